"""The bounds of a linear-Gaussian VAE against its exact marginal likelihood.

With z ~ N(0, I) and x = W z + b + noise of variance s, x is N(b, W W^T + s I), and the
posterior of z is N(P^-1 W^T (x - b) / s, P^-1) with P = I + W^T W / s. W's columns are
orthogonal, so P is diagonal and an encoder can be the exact posterior.
"""

import numpy as np
import pytest
import scipy.stats

W = np.array([[0.2, 0.3], [0.2, -0.3], [0.2, 0.1], [0.2, -0.1]])
B = np.array([0.4, 0.5, 0.6, 0.5])
S = 0.05
PRECISION = np.diag(np.eye(2) + W.T @ W / S)
# What makes the other encoder wrong: by this much in the mean, this factor in variance.
SHIFT = np.array([0.3, -0.4])
FACTOR = np.array([1.6, 0.8])
COPIES = 20_000


def vae_of(make_linear_vae, shift=0.0, factor=1.0, **options):
    kernel = W / S / PRECISION
    return make_linear_vae(
        np.concatenate([kernel, np.zeros([4, 2])], axis=1),
        np.concatenate([shift - B @ kernel, np.log(factor / PRECISION)]),
        W.T,
        B - 0.5,  # A decoder returns the mean minus 0.5.
        likelihood="gaussian",
        variance=S,
        **options,
    )


@pytest.fixture(scope="module")
def exact(make_linear_vae):
    return vae_of(make_linear_vae)


@pytest.fixture(scope="module")
def inexact(make_linear_vae):
    return vae_of(make_linear_vae, SHIFT, FACTOR)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 1, (7, 2, 2, 1)).astype(np.float32)


def log_marginal(images):
    covariance = W @ W.T + S * np.eye(4)
    return scipy.stats.multivariate_normal(B, covariance).logpdf(images.reshape(-1, 4))


def gap():
    """KL of the inexact encoder from the posterior, which is the same for all images.

    For variances f v and v, and means apart by d: (f + d^2 / v - 1 - log f) / 2.
    """
    return 0.5 * np.sum(FACTOR + SHIFT**2 * PRECISION - 1 - np.log(FACTOR))


def copies_of(images, number):
    return np.repeat(images[:1], number, axis=0)


def mean_and_error(values):
    return values.mean(), values.std() / np.sqrt(len(values))


@pytest.mark.parametrize("seed", [0, 1, -7])
def test_the_bound_of_an_exact_encoder_is_the_marginal_for_any_noise(
    exact, images, seed
):
    """Then p(x, z) / q(z | x) = p(x) for every z."""
    np.testing.assert_allclose(
        exact.elbo(images, seed=seed), log_marginal(images), atol=1e-4
    )


def test_more_samples_of_an_exact_encoder_change_nothing(exact, images):
    np.testing.assert_allclose(
        exact.log_likelihood(images, 30), log_marginal(images), atol=1e-4
    )


def test_the_bound_of_another_encoder_is_lower_by_its_divergence(inexact, images):
    bounds = inexact.elbo(copies_of(images, COPIES))
    mean, error = mean_and_error(bounds)
    assert gap() > 20 * error  # So that the check can fail.
    assert abs(mean - (log_marginal(images)[0] - gap())) < 4 * error


def test_importance_sampling_converges_to_the_marginal(inexact, images):
    estimates = inexact.log_likelihood(images, 50_000, seed=3)
    # The error of log p is about sqrt(variance of the weights / k): below 0.01 here.
    np.testing.assert_allclose(estimates, log_marginal(images), atol=0.02)


def test_bounds_tighten_with_the_number_of_samples(inexact, images):
    many = copies_of(images, 2000)
    results = [
        mean_and_error(inexact.log_likelihood(many, num_samples, batch_size=2000))
        for num_samples in (1, 5, 50)
    ]
    means, errors = np.transpose(results)
    assert (np.diff(means) > 4 * errors[:-1]).all(), results
    assert means[-1] < log_marginal(images)[0] + 4 * errors[-1]


def test_the_training_loss_is_the_same_bound_on_average(
    make_linear_vae, images, eagerly
):
    """One sample: closed-form KL and sampled reconstruction. Five: the IWAE."""
    many = copies_of(images, COPIES)
    expected = log_marginal(images)[0]
    losses = {}
    for num_samples in (1, 5):
        vae = vae_of(make_linear_vae, SHIFT, FACTOR, num_importance_samples=num_samples)
        vae.compile("sgd")
        losses[num_samples] = float(vae.test_step({"images": many})["loss"])
    # One image's loss has a standard deviation of at most 2 nats: 0.06 is 4 errors.
    assert abs(-losses[1] - (expected - gap())) < 0.06
    assert expected - gap() + 0.2 < -losses[5] < expected + 0.06


def test_an_estimate_does_not_depend_on_the_batches_it_is_computed_in(inexact, images):
    """7 samples in chunks of 2, with one masked, or all at once."""
    whole = inexact.log_likelihood(images, 7)
    np.testing.assert_allclose(
        inexact.log_likelihood(images, 7, batch_size=5000), whole, atol=1e-5
    )
    np.testing.assert_allclose(
        inexact.log_likelihood(images, 7, batch_size=3), whole, atol=1e-5
    )
    np.testing.assert_allclose(
        inexact.log_likelihood(images[2:], 7, first_index=2), whole[2:], atol=1e-5
    )
    assert np.abs(inexact.log_likelihood(images, 7, seed=1) - whole).max() > 1e-3


def test_progress_counts_images(exact, images):
    calls = []
    exact.log_likelihood(
        images,
        1,
        batch_size=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(3, 7), (6, 7), (7, 7)]


def test_no_images_have_no_likelihood(exact, images):
    assert exact.log_likelihood(images[:0], 5).shape == (0,)


def test_at_least_one_sample_is_needed(exact, images):
    with pytest.raises(
        ValueError, match="`num_samples` must be integers from 1 .*0 to 0"
    ):
        exact.log_likelihood(images, 0)
