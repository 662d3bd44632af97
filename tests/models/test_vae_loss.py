"""The training loss: recomputed in NumPy, and its options by hand."""

import math

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from kgen.nn import MeanGradient, random

pytestmark = pytest.mark.usefixtures("eagerly")
RNG = np.random.default_rng(5)
ENCODER = RNG.normal(0, 0.5, (4, 4)), RNG.normal(0, 0.5, 4)
DECODER = RNG.normal(0, 1, (2, 4)), RNG.normal(0, 0.5, 4)


def logs_of(vae, images, step="train_step", labels=None, **compiled):
    """The logs of one step, as numbers."""
    vae.compile(**{"optimizer": keras.optimizers.SGD(0.0)} | compiled)
    vae.reset_metrics()
    batch = {"images": images} | ({} if labels is None else {"labels": labels})
    return {name: float(value) for name, value in getattr(vae, step)(batch).items()}


def terms_in_numpy(images, stream, num_samples, log_pixel, seed=9):
    """log p(x|z), log p(z) and log q(z|x), each [rows, samples], and the KL [rows]."""
    pixels = images.reshape(-1, 1, 4)
    mean, log_variance = np.split(pixels @ ENCODER[0] + ENCODER[1], 2, axis=2)
    keys = random.keys(seed, stream, 0, tf.range(len(images)))
    noise = random.normal(keys, (num_samples, 2)).numpy().astype(np.float64)
    deviation = np.exp(0.5 * log_variance)
    latents = mean + deviation * noise
    log_likelihood = log_pixel(pixels, latents @ DECODER[0] + DECODER[1]).sum(axis=2)
    log_prior = scipy.stats.norm.logpdf(latents).sum(axis=2)
    log_posterior = scipy.stats.norm.logpdf(latents, mean, deviation).sum(axis=2)
    kl = 0.5 * (mean**2 + deviation**2 - 1 - log_variance).sum(axis=(1, 2))
    return log_likelihood, log_prior, log_posterior, kl


def bernoulli(pixels, logits):
    return scipy.stats.bernoulli.logpmf(pixels, scipy.special.expit(logits))


STEPS = [("train_step", random.STREAM_TRAIN), ("test_step", random.STREAM_TEST)]


@pytest.mark.parametrize(("step", "stream"), STEPS)
def test_the_loss_of_one_sample_equals_numpy(
    make_linear_vae, binary_images, step, stream
):
    """Reconstruction of one sample plus half the KL in closed form."""
    vae = make_linear_vae(*ENCODER, *DECODER, kl_weight=0.5)
    log_likelihood, _, _, kl = terms_in_numpy(binary_images, stream, 1, bernoulli)
    logs = logs_of(vae, binary_images, step, seed=9)
    np.testing.assert_allclose(
        logs["reconstruction"], -log_likelihood.mean(), rtol=1e-5
    )
    np.testing.assert_allclose(logs["kl"], kl.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        logs["loss"], (0.5 * kl - log_likelihood[:, 0]).mean(), rtol=1e-5
    )


@pytest.mark.parametrize(("step", "stream"), STEPS)
def test_the_loss_of_three_samples_equals_numpy(
    make_linear_vae, binary_images, step, stream
):
    """Minus the log of the mean of p(x, z) / q(z | x) over the samples."""
    vae = make_linear_vae(*ENCODER, *DECODER, num_importance_samples=3)
    terms = terms_in_numpy(binary_images, stream, 3, bernoulli)
    log_likelihood, log_prior, log_posterior, kl = terms
    log_weights = log_likelihood + log_prior - log_posterior
    expected = np.log(3) - scipy.special.logsumexp(log_weights, axis=1)
    logs = logs_of(vae, binary_images, step, seed=9)
    np.testing.assert_allclose(logs["loss"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        logs["reconstruction"], -log_likelihood.mean(), rtol=1e-5
    )
    np.testing.assert_allclose(logs["kl"], kl.mean(), rtol=1e-5)


def test_drawn_samples_give_the_gradient_of_all_samples_on_average(
    make_linear_vae, binary_images
):
    """The loss is that of all three samples whatever is drawn, to the last digit.

    The gradient of one sample drawn by its weight has the whole gradient as its mean.
    The mean of 4,000 draws has a standard error of 1/63 of one draw's spread; a draw
    by equal chances, the mistake to be caught, is off by 0.39 of it.
    """
    changes, results = {}, {}
    for num_drawn in (None, 1, 4000):
        vae = make_linear_vae(
            *ENCODER, *DECODER, num_importance_samples=3, num_gradient_samples=num_drawn
        )
        before = vae.get_weights()
        optimizer = keras.optimizers.SGD(1.0)
        results[num_drawn] = logs_of(vae, binary_images, optimizer=optimizer, seed=9)
        changes[num_drawn] = np.concatenate(
            [
                (after - value).ravel()
                for after, value in zip(vae.get_weights(), before, strict=True)
                if value.ndim
            ]
        )
    assert results[1] == results[4000] == results[None]
    spread = np.linalg.norm(changes[1] - changes[None])
    assert spread > 0.1 * np.linalg.norm(changes[None])
    assert np.linalg.norm(changes[4000] - changes[None]) < 3 / 63 * spread


def gaussian(pixels, output):
    return scipy.stats.norm.logpdf(pixels, output + 0.5, math.sqrt(0.1))


def logistic(pixels, output):
    """Levels 1/255 wide of a logistic of variance 0.1 = (pi * scale)^2 / 3."""
    scale = math.sqrt(3 * 0.1) / math.pi
    upper = np.where(pixels == 1, np.inf, pixels + 1 / 510)
    lower = np.where(pixels == 0, -np.inf, pixels - 1 / 510)
    cdf = scipy.stats.logistic(output + 0.5, scale).cdf
    return np.log(cdf(upper) - cdf(lower))


@pytest.mark.parametrize(
    ("likelihood", "log_pixel"),
    [("gaussian", gaussian), ("discretized_logistic", logistic)],
)
def test_likelihoods_of_grey_pixels_equal_scipy(make_linear_vae, likelihood, log_pixel):
    """Images of uint8, zeros and 255 among them; a variance of 0.1."""
    levels = RNG.integers(0, 256, (8, 2, 2, 1)).astype(np.uint8)
    levels[0], levels[1] = 0, 255
    vae = make_linear_vae(*ENCODER, *DECODER, likelihood=likelihood, variance=0.1)
    log_likelihood, _, _, _ = terms_in_numpy(
        levels / 255, random.STREAM_TRAIN, 1, log_pixel
    )
    logs = logs_of(vae, levels, seed=9)
    np.testing.assert_allclose(
        logs["reconstruction"], -log_likelihood.mean(), rtol=1e-4
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized_logistic"])
def test_a_stated_variance_is_fixed_and_none_is_learned(make_linear_vae, likelihood):
    fixed = make_linear_vae(likelihood=likelihood, variance=0.1)
    learned = make_linear_vae(likelihood=likelihood)
    # Encoder 4 x 4 + 4, decoder 2 x 4 + 4, and the logarithm of the variance.
    assert sum(math.prod(w.shape) for w in fixed.trainable_weights) == 32
    assert sum(math.prod(w.shape) for w in learned.trainable_weights) == 33


def test_a_learned_variance_moves_towards_the_mean_squared_error(make_linear_vae):
    """By hand, for variance v and squared errors e^2 over d pixels.

    -log N = d/2 (log 2 pi + log v) + e^2 / (2 v): its derivative by log v is
    d/2 - e^2 / (2 v). Here d = 4, v = 0.01, and each pixel 1 is 0.5 off the mean:
    e^2 = 1, derivative 2 - 50 = -48. A rate of 0.01 adds 0.48 to log v.
    """
    vae = make_linear_vae(likelihood="gaussian")
    before = float(vae.log_variance.value)
    assert before == pytest.approx(math.log(0.01))
    logs_of(
        vae, np.ones([3, 2, 2, 1], np.float32), optimizer=keras.optimizers.SGD(0.01)
    )
    assert float(vae.log_variance.value) - before == pytest.approx(0.48, rel=1e-4)


# -- weight of the KL -----------------------------------------------------------

# KL(N(m, 1) || N(0, 1)) = m^2 / 2: here 0 and 2 nats for every image.
TWO_NATS = np.array([0, 2, 0, 0])


def test_the_weight_warms_up_from_zero_in_training_only(make_linear_vae, binary_images):
    """At step 0 of 10 no KL counts, at step 5 half of 3 times it, from 10 on all."""
    vae = make_linear_vae(encoder_bias=TWO_NATS, kl_weight=3.0, kl_warmup_steps=10)
    for step, weight in [(0, 0.0), (5, 1.5), (10, 3.0), (50, 3.0)]:
        vae.step.assign(step)
        logs = logs_of(vae, binary_images)
        assert logs["kl"] == pytest.approx(2)
        assert logs["loss"] - logs["reconstruction"] == pytest.approx(2 * weight)
        assert int(vae.step.numpy()) == step + 1
    vae.step.assign(0)
    logs = logs_of(vae, binary_images, "test_step")
    assert logs["loss"] - logs["reconstruction"] == pytest.approx(6)
    assert int(vae.step.numpy()) == 0


def test_free_bits_by_hand(make_linear_vae, binary_images):
    """A dimension of 0 nats costs the floor of 0.5, one of 2 nats costs 2."""
    vae = make_linear_vae(encoder_bias=TWO_NATS, free_bits=0.5)
    logs = logs_of(vae, binary_images)
    assert logs["kl"] == pytest.approx(2)
    assert logs["loss"] - logs["reconstruction"] == pytest.approx(2.5)
    logs = logs_of(vae, binary_images, "test_step")
    assert logs["loss"] - logs["reconstruction"] == pytest.approx(2)


def test_free_bits_are_of_the_batch_mean(make_linear_vae):
    """One dimension, of 0 nats for the black image and 1.28 for the white one.

    The mean, 0.64, is above the floor of 0.5, so it counts as it is; floors of single
    images would give (0.5 + 1.28) / 2 = 0.89.
    """
    images = np.stack([np.zeros([2, 2, 1]), np.ones([2, 2, 1])]).astype(np.float32)
    # The mean is 0.4 times the sum of four pixels: 1.6, and 1.6^2 / 2 = 1.28.
    vae = make_linear_vae([0.4, 0], latent_dim=1, free_bits=0.5)
    logs = logs_of(vae, images)
    assert logs["loss"] - logs["reconstruction"] == pytest.approx(0.64)


def test_a_dimension_below_the_floor_gets_no_gradient(make_linear_vae, binary_images):
    """Means 0.5 and 2, KL 0.125 and 2 nats; a decoder of zeros pulls at neither.

    The gradient of m^2 / 2 is m: at rate 0.1 only the second mean moves, to 1.8.
    """
    vae = make_linear_vae(encoder_bias=[0.5, 2, 0, 0], free_bits=0.5)
    logs_of(vae, binary_images, optimizer=keras.optimizers.SGD(0.1))
    np.testing.assert_allclose(
        vae.encoder.get_weights()[1], [0.5, 1.8, 0, 0], rtol=1e-5
    )


def test_a_gradient_is_clipped_to_its_joint_norm(make_linear_vae, binary_images):
    """The step of SGD at rate 1 is the gradient: here its norm is far above 1e-3."""
    vae = make_linear_vae(encoder_bias=TWO_NATS)
    before = vae.get_weights()
    logs_of(
        vae,
        binary_images,
        optimizer=keras.optimizers.SGD(1.0),
        estimator=MeanGradient(1e-3),
    )
    squares = [
        np.sum((new.astype(np.float64) - old) ** 2)
        for new, old in zip(vae.get_weights(), before, strict=True)
        if new.dtype == np.float32
    ]
    assert math.sqrt(sum(squares)) == pytest.approx(1e-3, rel=1e-3)


# -- what is logged -------------------------------------------------------------


def test_active_units_are_those_whose_means_vary(make_linear_vae):
    """Means a x, for a pixel x that is 0 or 1: variance a^2 / 4 over all images.

    Above 0.01 for a = 0.21, below for a = 0.19. Within each batch x is constant: only
    statistics over both batches see the variance.
    """
    kernel = np.zeros([4, 6])
    kernel[0, :3] = 0.21, 0.19, -3
    vae = make_linear_vae(kernel, latent_dim=3, kl_weight=0.0)
    vae.compile("sgd")
    black, white = np.zeros([4, 2, 2, 1], "float32"), np.ones([4, 2, 2, 1], "float32")
    assert float(vae.test_step({"images": black})["active_units"]) == 0
    assert float(vae.test_step({"images": white})["active_units"]) == 2
    vae.reset_metrics()
    assert float(vae.test_step({"images": white})["active_units"]) == 0


def test_health_names_posterior_collapse(make_linear_vae):
    vae = make_linear_vae()
    (warning,) = vae.health({"active_units": 0.0, "kl": 0.03})
    assert "posterior collapse: 0 of 2 latent dimensions are active" in warning
    assert "KL is 0.03 nats" in warning
    assert "kl_warmup_steps" in warning
    assert vae.health({"active_units": 1.0, "kl": 3.0}) == []


def test_the_term_that_went_first_is_named(make_linear_vae, binary_images):
    """A log-variance of 200: exp(200) is infinite, and so is the KL at once.

    The loss follows in the same step; the means stay finite. Two good steps came
    before, so the third is the first bad one.
    """
    vae = make_linear_vae(decoder_kernel=np.zeros([2, 4]))
    batch = {"images": binary_images}
    vae.compile(keras.optimizers.SGD(0.0))
    for _ in range(2):
        vae.train_step(batch)
    assert vae.first_non_finite() is None
    kernel, _ = vae.encoder.get_weights()
    vae.encoder.set_weights([kernel, np.array([0, 0, 200, 0])])
    vae.train_step(batch)
    assert vae.first_non_finite() == ("kl", 3)


# -- labels and the learned prior -------------------------------------------------


def test_a_flow_prior_that_is_untrained_changes_no_bound(
    make_linear_vae, binary_images
):
    """It is the standard normal; its KL is that of the samples, not the closed form."""
    options = {"num_importance_samples": 3}
    normal = make_linear_vae(*ENCODER, *DECODER, **options)
    flow = make_linear_vae(*ENCODER, *DECODER, prior="flow", **options)
    assert logs_of(flow, binary_images)["loss"] == pytest.approx(
        logs_of(normal, binary_images)["loss"], rel=1e-5
    )


def test_a_flow_prior_is_trained(make_linear_vae, binary_images):
    vae = make_linear_vae(*ENCODER, *DECODER, prior="flow")
    before = vae.flow.get_weights()
    logs = logs_of(vae, binary_images, optimizer=keras.optimizers.SGD(0.1), seed=9)
    _, log_prior, log_posterior, _ = terms_in_numpy(
        binary_images, random.STREAM_TRAIN, 1, bernoulli
    )
    assert logs["kl"] == pytest.approx((log_posterior - log_prior).mean(), rel=1e-4)
    changes = [
        np.abs(a - b).max() for a, b in zip(vae.flow.get_weights(), before, strict=True)
    ]
    assert max(changes) > 1e-3


def test_training_noise_follows_from_seed_and_step(make_linear_vae, binary_images):
    vae = make_linear_vae(*ENCODER, *DECODER)
    first = logs_of(vae, binary_images)["loss"]
    second = logs_of(vae, binary_images)["loss"]  # One step on.
    vae.step.assign(0)
    assert logs_of(vae, binary_images)["loss"] == first
    vae.step.assign(0)
    other_seed = logs_of(vae, binary_images, seed=1)["loss"]
    assert len({first, second, other_seed}) == 3


def test_testing_draws_the_same_noise_at_every_step(make_linear_vae, binary_images):
    vae = make_linear_vae(*ENCODER, *DECODER)
    first = logs_of(vae, binary_images, "test_step")["loss"]
    vae.step.assign(100)
    assert logs_of(vae, binary_images, "test_step")["loss"] == first
