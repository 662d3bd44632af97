"""Likelihoods, divergences, adversarial losses and penalties, one number per row.

Log-likelihoods and divergences are in nats; their `images` are floats in [0, 1]. All
functions take tensors of any floating type and compute in float32. Sums run over
pixels, channels or latent dimensions, never over the batch.
"""

import math
from collections.abc import Callable, Sequence

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


# -- adversarial losses ---------------------------------------------------------
#
# Each function takes a discriminator's logits of real and of generated images, [batch,
# 1] or [batch], and returns the losses of the discriminator and of the generator, both
# [batch]. The sigmoid of a logit is the probability that the image is real.


def minimax(
    real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Minimax losses: -log D(real) - log(1 - D(fake)), and log(1 - D(fake)).

    Reference:
        Goodfellow et al., 2014, Generative Adversarial Nets, equation 1.
    """
    real, fake = _columns(real_logits, fake_logits)
    softplus = tf.math.softplus(fake)  # -log(1 - D(fake))
    return tf.math.softplus(-real) + softplus, -softplus


def non_saturating(
    real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Non-saturating losses: minimax, but the generator minimises -log D(fake).

    Reference:
        Goodfellow et al., 2014, Generative Adversarial Nets, section 3.
    """
    real, fake = _columns(real_logits, fake_logits)
    return tf.math.softplus(-real) + tf.math.softplus(fake), tf.math.softplus(-fake)


def least_squares(
    real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Half squared distances to the targets: 1 for real images, 0 for generated ones.

    Reference:
        Mao et al., 2017, Least Squares Generative Adversarial Networks, equation 9.
    """
    real, fake = _columns(real_logits, fake_logits)
    discriminator = 0.5 * (tf.square(real - 1.0) + tf.square(fake))
    return discriminator, 0.5 * tf.square(fake - 1.0)


def hinge(
    real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Hinge losses: the discriminator is pushed to margins of 1 on both sides of 0.

    Reference:
        Lim and Ye, 2017, Geometric GAN; Miyato et al., 2018, equations 16 and 17.
    """
    real, fake = _columns(real_logits, fake_logits)
    return tf.nn.relu(1.0 - real) + tf.nn.relu(1.0 + fake), -fake


def wasserstein(
    real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Difference of scores; needs a gradient penalty or spectral normalisation.

    Reference:
        Arjovsky et al., 2017, Wasserstein GAN.
    """
    real, fake = _columns(real_logits, fake_logits)
    return fake - real, -fake


def relativistic(
    real_logits: tf.Tensor, fake_logits: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Relativistic pairing losses: each real image against one generated image.

    Reference:
        Jolicoeur-Martineau, 2019, The relativistic discriminator (RpGAN); Huang et
        al., 2024, The GAN is dead; long live the GAN (R3GAN), equation 2.
    """
    real, fake = _columns(real_logits, fake_logits)
    return tf.math.softplus(fake - real), tf.math.softplus(real - fake)


ADVERSARIAL_LOSSES = {
    function.__name__: function
    for function in (
        minimax,
        non_saturating,
        least_squares,
        hinge,
        wasserstein,
        relativistic,
    )
}

PAIRED_LOSSES = ("relativistic",)  # The generator's loss needs real images, too.


# -- penalties of a discriminator's gradient ------------------------------------


def with_gradients(
    score: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores images and returns each score's gradient by its own image, in one pass.

    Returns:
        The scores as `score` returns them, and float32 gradients of the images' shape.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        scores = score(images)
    return scores, tf.cast(tape.gradient(scores, images), tf.float32)


def zero_centred_penalty(gradients: tf.Tensor) -> tf.Tensor:
    """Half the squared gradient norm: R1 at real images, R2 at generated ones.

    Shapes:
        gradients: [batch, ...] -> [batch]

    Reference:
        Mescheder et al., 2018, Which Training Methods for GANs do actually Converge?
    """
    return 0.5 * sum_rows(tf.square(gradients))


def one_centred_penalty(gradients: tf.Tensor) -> tf.Tensor:
    """Squared distance of the gradient norm from 1 (WGAN-GP), at interpolated images.

    Shapes:
        gradients: [batch, ...] -> [batch]

    Reference:
        Gulrajani et al., 2017, Improved Training of Wasserstein GANs.
    """
    # sqrt has no finite gradient at 0, where a discriminator ignores its input.
    norm = tf.sqrt(sum_rows(tf.square(gradients)) + 1e-12)
    return tf.square(norm - 1.0)


# -- penalties of weights --------------------------------------------------------


def squared_weights(variables: Sequence[keras.Variable]) -> tf.Tensor:
    """Sums the squares of all kernels, without biases: a scalar."""
    kernels = [v.value for v in variables if len(v.shape) > 1]
    return tf.add_n([tf.reduce_sum(tf.square(kernel)) for kernel in kernels])


def _columns(*logits: tf.Tensor) -> list[tf.Tensor]:
    return [tf.reshape(tf.cast(values, tf.float32), [-1]) for values in logits]


def sum_rows(values: tf.Tensor) -> tf.Tensor:
    """Sums over all axes but the first: [batch, ...] -> [batch]."""
    return tf.reduce_sum(values, axis=list(range(1, values.shape.rank)))


def _log_one_minus_exp(width: tf.Tensor) -> tf.Tensor:
    # log(1 - exp(-width)) for width > 0, accurate at both ends.
    return tf.math.log(-tf.math.expm1(-width))
