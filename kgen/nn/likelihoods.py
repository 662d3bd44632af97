"""Likelihoods, divergences and posterior statistics of latent-variable models.

Log-likelihoods and divergences are in nats; their `images` are floats in [0, 1]. All
functions take tensors of any floating type and compute in float32. Sums run over
pixels, channels or latent dimensions, never over the batch.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

LOG_2_PI = math.log(2.0 * math.pi)


def bernoulli_log_likelihood(images: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Log-likelihood of independent Bernoulli pixels.

    Exact for binary images. For grey values it is the usual cross-entropy, which is
    not a normalised likelihood.

    Shapes:
        images, logits: [batch, ...] -> [batch]
    """
    return _bernoulli(tf.cast(images, tf.float32), tf.cast(logits, tf.float32))


@tf.custom_gradient
def _bernoulli(images, logits):
    # Written by hand because it dominates the step of a small network: TensorFlow's
    # softplus is slow, and its gradient passes over the pixels twice as often.
    def gradient(upstream):
        upstream = tf.reshape(upstream, [-1] + [1] * (logits.shape.rank - 1))
        return upstream * logits, upstream * (images - tf.sigmoid(logits))

    # softplus(x) = max(x, 0) - log(sigmoid(|x|)), exact to 1e-7 for every x.
    log_sigmoid = tf.math.log(tf.sigmoid(tf.abs(logits)))
    softplus = tf.maximum(logits, 0.0) - log_sigmoid
    return sum_rows(images * logits - softplus), gradient


def gaussian_log_likelihood(
    values: tf.Tensor, mean: tf.Tensor, log_variance: tf.Tensor | float
) -> tf.Tensor:
    """Log-density of independent Gaussians.

    With a fixed variance this is the negative squared error over twice the variance,
    plus a constant.

    Shapes:
        values, mean: [batch, ...]; log_variance: broadcastable -> [batch]
    """
    return sum_rows(gaussian_log_density(values, mean, log_variance))


def gaussian_log_density(
    values: tf.Tensor, mean: tf.Tensor | float, log_variance: tf.Tensor | float
) -> tf.Tensor:
    """Log-density of each value under its own Gaussian.

    Shapes:
        values: [batch, ...]; the others: broadcastable -> [batch, ...]
    """
    values, mean = tf.cast(values, tf.float32), tf.cast(mean, tf.float32)
    log_variance = tf.cast(log_variance, tf.float32)
    squared_error = tf.square(values - mean) * tf.exp(-log_variance)
    return -0.5 * (LOG_2_PI + log_variance + squared_error)


def discretized_logistic_log_likelihood(
    images: tf.Tensor, mean: tf.Tensor, log_scale: tf.Tensor
) -> tf.Tensor:
    """Log-probability of 8-bit pixels under a logistic discretised to 256 levels.

    The lowest level holds the whole lower tail and the highest the whole upper tail, so
    that the 256 probabilities of a pixel sum to one.

    Shapes:
        images, mean: [batch, ...]; log_scale: broadcastable -> [batch]

    Reference:
        Kingma et al., 2016, Improving Variational Inference with Inverse
        Autoregressive Flow, section 5.2; tails as in Salimans et al., 2017.
    """
    images, mean = tf.cast(images, tf.float32), tf.cast(mean, tf.float32)
    log_scale = tf.cast(log_scale, tf.float32)
    half_level = 0.5 / 255.0
    inverse_scale = tf.exp(-log_scale)
    upper = (images + half_level - mean) * inverse_scale
    lower = (images - half_level - mean) * inverse_scale
    # log(sigmoid(upper) - sigmoid(lower)), in a form that stays finite where both
    # sigmoids round to the same number: the width of a level is inverse_scale / 255.
    width = inverse_scale / 255.0
    log_level = (
        tf.math.log_sigmoid(upper)
        + tf.math.log_sigmoid(-lower)
        + _log_one_minus_exp(width)
    )
    log_probability = tf.where(
        images < half_level,
        tf.math.log_sigmoid(upper),
        tf.where(images > 1.0 - half_level, tf.math.log_sigmoid(-lower), log_level),
    )
    return sum_rows(log_probability)


def gaussian_kl(mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each latent dimension.

    Shapes:
        mean, log_variance: [batch, latent_dim] -> [batch, latent_dim]
    """
    mean, log_variance = tf.cast(mean, tf.float32), tf.cast(log_variance, tf.float32)
    return 0.5 * (tf.square(mean) + tf.exp(log_variance) - 1.0 - log_variance)


def free_bits(kl: tf.Tensor, num_nats: float) -> tf.Tensor:
    """Raises each dimension's KL, averaged over the global batch, to a floor.

    Below the floor a dimension's cost is constant, so it gets no gradient.

    Shapes:
        kl: [batch, latent_dim] -> [batch, latent_dim]

    Reference:
        Kingma et al., 2016, Improving Variational Inference with Inverse
        Autoregressive Flow.
    """
    if not num_nats:
        return kl
    mean = tf.stop_gradient(tf.reduce_mean(kl, axis=0))
    if tf.distribute.has_strategy():
        context = tf.distribute.get_replica_context()
        mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, mean)
    return tf.where(mean > num_nats, kl, num_nats)


def log_mean_exp(values: tf.Tensor, axis: int) -> tf.Tensor:
    """Logarithm of the mean of exp(values) along an axis, without overflow."""
    count = tf.cast(tf.shape(values)[axis], values.dtype)
    return tf.reduce_logsumexp(values, axis=axis) - tf.math.log(count)


def kl_warmup(step: tf.Tensor, num_steps: int) -> tf.Tensor:
    """Factor of the KL weight that rises from 0 at step 0 to 1 at `num_steps`.

    Args:
        step: Integer scalar, optimizer steps taken so far.
        num_steps: Length of the ramp in steps; 0: 1 from the start.

    Returns:
        float32 scalar in [0, 1].
    """
    if num_steps == 0:
        return tf.ones([])
    return tf.minimum(tf.cast(step, tf.float32) / num_steps, 1.0)


def sum_rows(values: tf.Tensor) -> tf.Tensor:
    """Sums over all axes but the first: [batch, ...] -> [batch]."""
    return tf.reduce_sum(values, axis=list(range(1, values.shape.rank)))


def _log_one_minus_exp(width: tf.Tensor) -> tf.Tensor:
    # log(1 - exp(-width)) for width > 0, accurate at both ends.
    return tf.math.log(-tf.math.expm1(-width))


# -- observation models of a decoder's output -------------------------------------


class Likelihood(NamedTuple):
    """Distribution of images given an output [rows, h, w, c] and a log-variance [].

    Attributes:
        log_probability: (images, output, log_variance) -> [rows], in nats.
        mean: output -> images in [0, 1].
    """

    log_probability: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    mean: Callable[[tf.Tensor], tf.Tensor]


def _bernoulli_images(images, logits, log_variance):
    return bernoulli_log_likelihood(images, logits)


def _gaussian_images(images, output, log_variance):
    return gaussian_log_likelihood(images, output + 0.5, log_variance)


def _logistic_images(images, output, log_variance):
    # The variance of a logistic is (pi * scale)^2 / 3.
    log_scale = 0.5 * (log_variance + math.log(3.0)) - math.log(math.pi)
    return discretized_logistic_log_likelihood(images, output + 0.5, log_scale)


def _centred(output):
    # An output of 0 is the middle of the range [0, 1] of images.
    return tf.clip_by_value(output + 0.5, 0.0, 1.0)


LIKELIHOODS = {
    "bernoulli": Likelihood(_bernoulli_images, tf.sigmoid),
    "gaussian": Likelihood(_gaussian_images, _centred),
    "discretized_logistic": Likelihood(_logistic_images, _centred),
}


class ActiveUnits(keras.metrics.Metric):
    """Number of latent dimensions that the encoder uses.

    A dimension is active if the variance of its posterior mean over the data exceeds
    0.01 (Burda et al., 2016, section 5.1).
    """

    def __init__(self, latent_dim: int, name: str = "active_units", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.count = self.add_variable((), "zeros", name="count")
        self.total = self.add_variable((latent_dim,), "zeros", name="total")
        self.squares = self.add_variable((latent_dim,), "zeros", name="squares")

    def update_state(self, means: tf.Tensor, sample_weight: Any = None) -> None:
        """Adds the posterior means of a batch: [batch, latent_dim]."""
        self.count.assign_add(tf.cast(tf.shape(means)[0], tf.float32))
        self.total.assign_add(tf.reduce_sum(means, axis=0))
        self.squares.assign_add(tf.reduce_sum(tf.square(means), axis=0))

    def result(self) -> tf.Tensor:
        """Returns the number of active dimensions, float32."""
        mean = tf.math.divide_no_nan(self.total.value, self.count.value)
        mean_square = tf.math.divide_no_nan(self.squares.value, self.count.value)
        return tf.reduce_sum(tf.cast(mean_square - tf.square(mean) > 0.01, tf.float32))
