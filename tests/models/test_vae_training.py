"""`fit` of a VAE: what it takes, what it logs, and that it learns."""

import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from kgen.models import VAE
from kgen.nn import MeanGradient


def labelled_vae():
    return VAE(image_shape=(2, 2, 1), latent_dim=2, hidden_units=(3,), num_classes=3)


LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int32)


def fitted(vae, data, **options):
    """One epoch with no learning, without graphs; returns the last logs."""
    vae.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    history = vae.fit(data, verbose=0, **options).history
    return {name: values[-1] for name, values in history.items()}


def rows(values, batch_size=8):
    return tf.data.Dataset.from_tensor_slices(values).batch(batch_size)


# -- kinds of data --------------------------------------------------------------------


def test_every_kind_of_unlabelled_data_is_the_same_batch(
    make_linear_vae, binary_images
):
    kernel = np.random.default_rng(0).normal(size=(4, 4))
    results = []
    for data in (
        rows({"images": binary_images}),
        rows(binary_images),
        rows((binary_images * 255).astype(np.uint8)),
        rows({"images": binary_images, "labels": LABELS}),
    ):
        results.append(fitted(make_linear_vae(kernel), data))
    for options in ({"shuffle": False}, {}):
        # An array may be shuffled: one batch, so the KL stays the same.
        vae = make_linear_vae(kernel)
        results.append(fitted(vae, binary_images, batch_size=8, **options))
    kls = [result["kl"] for result in results]
    np.testing.assert_allclose(kls, kls[0], rtol=1e-6)
    losses = [result["loss"] for result in results[:5]]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_labels_come_in_a_dict_or_as_the_second_of_a_pair(binary_images):
    vae = labelled_vae()
    images = binary_images
    first = fitted(vae, rows({"images": images, "labels": LABELS}))
    vae.step.assign(0)
    second = fitted(vae, rows((images, LABELS)))
    assert first == second
    vae.step.assign(0)
    other = fitted(vae, rows((images, (LABELS + 1) % 3)))
    assert other["loss"] != first["loss"]


def test_a_conditional_model_refuses_a_batch_without_labels(binary_images):
    with pytest.raises(ValueError, match="with images and labels .*Received: images."):
        fitted(labelled_vae(), rows(binary_images))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"images": np.zeros([8, 2, 2])},
            r"2, 2, 1\]. Received: .*, 2, 2\)",
        ),
        (
            {"images": np.zeros([8, 3, 2, 1])},
            r"Received: .*, 3, 2, 1\)",
        ),
        (
            {"images": np.zeros([8, 2, 2, 1]), "labels": np.eye(8, 3)},
            r"not one-hot. Received: float\d+ of the shape \(.*, 3\)",
        ),
    ],
)
def test_a_batch_of_another_shape_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        fitted(labelled_vae(), rows({"labels": LABELS} | batch))


def test_a_batch_without_images_is_refused(make_linear_vae, binary_images):
    with pytest.raises(ValueError, match="Received: pixels"):
        fitted(make_linear_vae(), rows({"pixels": binary_images}))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", [rows, np.array])
def test_images_out_of_range_are_refused_before_a_step(kind, jit_compile):
    images = np.random.default_rng(0).random((8, 2, 2, 1), np.float32)
    for wrong, received in ((2 * images - 1, "-0.9"), (images * np.nan, "nan")):
        vae = VAE(image_shape=(2, 2, 1), latent_dim=2, hidden_units=(3,))
        vae.compile(jit_compile=jit_compile)
        before = vae.trainable_variables[0].numpy()
        message = rf"`images` must be uint8, or floats in \[0, 1\].*from {received}"
        with pytest.raises(ValueError, match=message):
            vae.fit(kind(wrong), verbose=0)
        np.testing.assert_array_equal(vae.trainable_variables[0], before)


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize("kind", [rows, lambda pair: pair])
def test_labels_out_of_range_are_refused_before_a_step(kind, wrong):
    labels = LABELS.copy()
    labels[3] = wrong
    images = np.zeros((8, 2, 2, 1), np.float32)
    vae = labelled_vae()
    vae.compile()
    received = f"from {min(wrong, 0)} to {max(wrong, 2)}"
    with pytest.raises(ValueError, match=rf"`labels` must be .*\[0, 2\].*{received}"):
        data = kind((images, labels))
        vae.fit(*data if isinstance(data, tuple) else [data], verbose=0)


# -- logs -----------------------------------------------------------------------------


def test_history_holds_means_over_the_rows_of_an_epoch(make_linear_vae, binary_images):
    """8 rows in batches of 3, 3 and 2: not the mean of the batches' means.

    The KL has no noise: by hand the mean m of an image is the sum of its pixels, and
    the KL m^2 / 2.
    """
    vae = make_linear_vae([[1, 0]] * 4, latent_dim=1)
    logs = fitted(
        vae, rows(binary_images, 3), validation_data=rows(binary_images[:4], 3)
    )
    kl = binary_images.sum(axis=(1, 2, 3)) ** 2 / 2
    batches = [kl[:3].mean(), kl[3:6].mean(), kl[6:].mean()]
    assert abs(np.mean(batches) - kl.mean()) > 1e-3
    assert logs["kl"] == pytest.approx(kl.mean(), rel=1e-6)
    assert logs["val_kl"] == pytest.approx(kl[:4].mean(), rel=1e-6)
    assert logs["loss"] == pytest.approx(logs["kl"] + logs["reconstruction"], rel=1e-6)
    names = {"loss", "reconstruction", "kl", "active_units"}
    assert set(logs) == names | {f"val_{name}" for name in names}
    assert int(vae.step.numpy()) == 3


def test_every_epoch_starts_its_means_anew(make_linear_vae, binary_images):
    """Black images have no KL with this encoder: the second epoch must say zero."""
    vae = make_linear_vae([[1, 0]] * 4, latent_dim=1)
    assert fitted(vae, rows(binary_images))["kl"] > 0.1
    assert fitted(vae, rows(0 * binary_images))["kl"] == 0


@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 4}])
def test_the_loss_falls_within_a_few_steps_on_digits(options):
    """It starts at 64 log 2 = 44.4 nats, the loss of a decoder that knows nothing."""
    digits = sklearn.datasets.load_digits().images[:256, ..., None] / 16
    vae = VAE(image_shape=(8, 8, 1), latent_dim=4, hidden_units=(32,))
    vae.compile(keras.optimizers.Adam(1e-2), seed=1, **options)
    keras.utils.set_random_seed(0)
    data = rows(digits.astype(np.float32), 32)
    history = vae.fit(data, epochs=3, verbose=0, validation_data=data).history
    assert history["loss"][0] > history["loss"][-1]
    assert history["val_loss"][-1] < 32  # A constant image, the mean, costs 29.6.
    assert int(vae.step.numpy()) == 24


def test_a_step_compiles_under_xla(make_linear_vae, binary_images):
    """The same losses and weights as without, noise and all."""
    weights = [np.random.default_rng(0).normal(0, 0.5, s) for s in [(4, 4), 4, (2, 4)]]
    results = []
    for jit_compile in (False, True):
        vae = make_linear_vae(*weights, num_importance_samples=2)
        vae.compile(
            keras.optimizers.SGD(0.1),
            jit_compile=jit_compile,
            estimator=MeanGradient(1.0),
        )
        history = vae.fit(rows(binary_images, 4), verbose=0).history
        results.append((history, vae.get_weights()))
    (plain, plain_weights), (compiled, compiled_weights) = results
    for name in plain:
        np.testing.assert_allclose(compiled[name], plain[name], rtol=1e-5)
    for first, second in zip(plain_weights, compiled_weights, strict=True):
        np.testing.assert_allclose(second, first, atol=1e-5)
    assert np.abs(plain_weights[0] - weights[0]).max() > 1e-3


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_step_in_mixed_precision_is_near_one_in_float32(
    make_linear_vae, binary_images, policy
):
    """Under float16 the loss is scaled, or the weights would not move."""
    weights = [np.random.default_rng(0).normal(0, 0.5, s) for s in [(4, 4), 4, (2, 4)]]
    results = []
    for dtype in ("float32", policy):
        vae = make_linear_vae(*weights, dtype=dtype)
        vae.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        vae.fit(rows(binary_images), verbose=0)
        # Variables stay float32: the masters of the 16-bit copies.
        results.append(vae.encoder.get_weights() + vae.decoder.get_weights())
    assert results[1][0].dtype == np.float32
    for before, exact, mixed in zip(weights, *results, strict=False):
        step = np.abs(exact - before).max()
        assert step > 1e-3
        np.testing.assert_allclose(mixed, exact, atol=0.1 * step)
