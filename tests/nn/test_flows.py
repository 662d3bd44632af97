"""CouplingFlow: a normalised density and an invertible map."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from kgen.nn.flows import CouplingFlow


def random_flow(dim, scale=0.6, **options):
    """A flow that is far from the identity: all weights are random."""
    flow = CouplingFlow(dim=dim, hidden_dim=4, **options)
    rng = np.random.default_rng(dim)
    flow.set_weights([rng.normal(0, scale, w.shape) for w in flow.get_weights()])
    return flow


def vectors_of(dim, num_rows=5):
    return tf.constant(np.random.default_rng(1).normal(size=(num_rows, dim)), "float32")


@pytest.mark.parametrize("dim", [2, 5])
def test_an_untrained_flow_is_the_standard_normal(dim):
    vectors = vectors_of(dim)
    np.testing.assert_allclose(
        CouplingFlow(dim=dim, hidden_dim=4)(vectors),
        scipy.stats.norm.logpdf(vectors).sum(axis=1),
        rtol=1e-5,
    )


@pytest.mark.parametrize("num_couplings", [2, 3, 6])
@pytest.mark.parametrize("dim", [2, 4, 5])
def test_from_noise_inverts_to_noise(dim, num_couplings):
    flow, vectors = random_flow(dim, num_couplings=num_couplings), vectors_of(dim)
    noise, _ = flow.to_noise(vectors)
    assert np.abs(noise - vectors).max() > 0.1
    np.testing.assert_allclose(flow.from_noise(noise), vectors, atol=1e-4)
    np.testing.assert_allclose(
        flow.to_noise(flow.from_noise(vectors))[0], vectors, atol=1e-4
    )


@pytest.mark.parametrize("dim", [2, 3])
def test_the_log_determinant_equals_the_jacobian_s(dim):
    """The Jacobian by automatic differentiation, one output at a time."""
    flow, vectors = random_flow(dim), vectors_of(dim)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(vectors)
        noise, log_determinant = flow.to_noise(vectors)
        outputs = tf.unstack(noise, axis=1)
    # Row n, output i, input j: rows are independent.
    jacobian = np.stack([tape.gradient(output, vectors) for output in outputs], axis=1)
    _, expected = np.linalg.slogdet(jacobian.astype(np.float64))
    np.testing.assert_allclose(log_determinant, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_two_couplings_change_every_element():
    """So the smallest flow that is allowed changes every dimension."""
    flow, vectors = random_flow(5, num_couplings=2), vectors_of(5)
    noise, _ = flow.to_noise(vectors)
    for element in noise.numpy().T:
        assert np.abs(vectors.numpy() - element[:, None]).min() > 1e-6


def test_a_density_integrates_to_one():
    """A Riemann sum over a square with all the mass, in steps of 0.1."""
    flow, step = random_flow(2, scale=0.3), 0.1
    axis = np.arange(-15, 15, step)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = np.exp(flow(tf.constant(grid, tf.float32)).numpy().astype(np.float64))
    assert np.abs(density - scipy.stats.norm.pdf(grid).prod(axis=1)).max() > 0.05
    np.testing.assert_allclose(density.sum() * step**2, 1, atol=5e-3)


def test_samples_have_the_density():
    """E[1 / p(z)] over a region equals its area: here a square of side 2.

    For z ~ p the mean of 1[z in A] / p(z) is the integral of 1 over A.
    """
    flow = random_flow(2, scale=0.3)
    noise = np.random.default_rng(2).normal(size=(50_000, 2)).astype(np.float32)
    samples = flow.from_noise(tf.constant(noise))
    inside = np.all(np.abs(samples) < 1, axis=1)
    terms = inside / np.exp(flow(samples).numpy().astype(np.float64))
    error = terms.std() / np.sqrt(len(terms))
    assert error < 0.1
    assert abs(terms.mean() - 4) < 4 * error


def test_a_config_makes_the_same_flow():
    flow, vectors = random_flow(3, num_couplings=4), vectors_of(3)
    config = keras.saving.serialize_keras_object(flow)
    copy = keras.saving.deserialize_keras_object(config)
    assert (copy.dim, copy.num_couplings, copy.hidden_dim) == (3, 4, 4)
    copy.set_weights(flow.get_weights())
    np.testing.assert_array_equal(copy(vectors), flow(vectors))


def test_a_flow_computes_in_float32_under_any_policy():
    """A density in nats would lose its digits in 16 bits."""
    vectors = vectors_of(4)
    expected = random_flow(4)(vectors)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        flow = random_flow(4)
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(flow(vectors), expected)
    assert flow.from_noise(vectors).dtype == tf.float32


@pytest.mark.parametrize("options", [{"dim": 1}, {"dim": 4, "num_couplings": 1}])
def test_sizes_below_two_are_refused(options):
    with pytest.raises(ValueError, match="at least 2. Received: dim=[14], num_coup"):
        CouplingFlow(**options)
