"""Adversarial losses, gradient penalties, augmentation and diversity of GANs."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kgen.nn import random

Losses = tuple[tf.Tensor, tf.Tensor]

# -- losses -----------------------------------------------------------------------
#
# Each function takes a discriminator's logits of real and of generated images, [batch,
# 1] or [batch], and returns the losses of the discriminator and of the generator, both
# [batch]. The sigmoid of a logit is the probability that the image is real.


def minimax(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> Losses:
    """Minimax losses: -log D(real) - log(1 - D(fake)), and log(1 - D(fake)).

    Reference:
        Goodfellow et al., 2014, Generative Adversarial Nets, equation 1.
    """
    real, fake = _columns(real_logits, fake_logits)
    softplus = tf.math.softplus(fake)  # -log(1 - D(fake))
    return tf.math.softplus(-real) + softplus, -softplus


def non_saturating(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> Losses:
    """Non-saturating losses: minimax, but the generator minimises -log D(fake).

    Reference:
        Goodfellow et al., 2014, Generative Adversarial Nets, section 3.
    """
    real, fake = _columns(real_logits, fake_logits)
    return tf.math.softplus(-real) + tf.math.softplus(fake), tf.math.softplus(-fake)


def least_squares(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> Losses:
    """Half squared distances to the targets: 1 for real images, 0 for generated ones.

    Reference:
        Mao et al., 2017, Least Squares Generative Adversarial Networks, equation 9.
    """
    real, fake = _columns(real_logits, fake_logits)
    discriminator = 0.5 * (tf.square(real - 1.0) + tf.square(fake))
    return discriminator, 0.5 * tf.square(fake - 1.0)


def hinge(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> Losses:
    """Hinge losses: the discriminator is pushed to margins of 1 on both sides of 0.

    Reference:
        Lim and Ye, 2017, Geometric GAN; Miyato et al., 2018, equations 16 and 17.
    """
    real, fake = _columns(real_logits, fake_logits)
    return tf.nn.relu(1.0 - real) + tf.nn.relu(1.0 + fake), -fake


def wasserstein(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> Losses:
    """Difference of scores; needs a gradient penalty or spectral normalisation.

    Reference:
        Arjovsky et al., 2017, Wasserstein GAN.
    """
    real, fake = _columns(real_logits, fake_logits)
    return fake - real, -fake


def relativistic(real_logits: tf.Tensor, fake_logits: tf.Tensor) -> Losses:
    """Relativistic pairing losses: each real image against one generated image.

    Reference:
        Jolicoeur-Martineau, 2019, The relativistic discriminator (RpGAN); Huang et
        al., 2024, The GAN is dead; long live the GAN (R3GAN), equation 2.
    """
    real, fake = _columns(real_logits, fake_logits)
    return tf.math.softplus(fake - real), tf.math.softplus(real - fake)


ADVERSARIAL_LOSSES = {
    "minimax": minimax,
    "non_saturating": non_saturating,
    "least_squares": least_squares,
    "hinge": hinge,
    "wasserstein": wasserstein,
    "relativistic": relativistic,
}

PAIRED_LOSSES = ("relativistic",)  # The generator's loss needs real images, too.


def joined(updates: list[dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """Concatenates the terms of several updates by their names."""
    return tf.nest.map_structure(lambda *terms: tf.concat(terms, axis=0), *updates)


def _columns(*logits: tf.Tensor) -> list[tf.Tensor]:
    return [tf.reshape(tf.cast(values, tf.float32), [-1]) for values in logits]


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
    return 0.5 * _squared_norm(gradients)


def one_centred_penalty(gradients: tf.Tensor) -> tf.Tensor:
    """Squared distance of the gradient norm from 1 (WGAN-GP), at interpolated images.

    Shapes:
        gradients: [batch, ...] -> [batch]

    Reference:
        Gulrajani et al., 2017, Improved Training of Wasserstein GANs.
    """
    # sqrt has no finite gradient at 0, where a discriminator ignores its input.
    norm = tf.sqrt(_squared_norm(gradients) + 1e-12)
    return tf.square(norm - 1.0)


def cosine_ramp(
    images_seen: tf.Tensor, start: float, end: float, num_images: int
) -> tf.Tensor:
    """Moves from `start` to `end` along half a cosine over `num_images` images.

    Returns:
        float32 scalar; always `start` if `num_images` is 0.
    """
    if num_images == 0:
        return tf.constant(start, tf.float32)
    progress = tf.minimum(tf.cast(images_seen, tf.float32) / num_images, 1.0)
    return end + (start - end) * 0.5 * (1.0 + tf.cos(math.pi * progress))


def _squared_norm(gradients: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(
        tf.square(gradients), axis=list(range(1, gradients.shape.rank))
    )


# -- differentiable augmentation ---------------------------------------------------
#
# Against discriminators that memorise small data sets. Real and generated images are
# augmented alike before the discriminator sees them, and gradients flow through the
# augmentation to the generator. Methods and ranges: Zhao et al., 2020, Differentiable
# Augmentation for Data-Efficient GAN Training.


def color(images: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Shifts brightness by up to 0.5, scales saturation by 0-2 and contrast by 0.5-1.5.

    Shapes:
        images: [batch, height, width, channels] in [-1, 1], keys: [batch]
    """
    noise = random.uniform(random.fold_in(keys, 1), (3, 1, 1, 1))
    brightness, saturation, contrast = tf.unstack(noise, axis=1)  # [b, 1, 1, 1]
    images = images + (brightness - 0.5)
    grey = tf.reduce_mean(images, axis=3, keepdims=True)
    images = grey + (images - grey) * (2.0 * saturation)
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    return mean + (images - mean) * (contrast + 0.5)


def translation(images: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Translates by up to an eighth of the side; new pixels are 0, the middle grey.

    Shapes:
        images: [batch, height, width, channels] in [-1, 1], keys: [batch]
    """
    _, height, width, _ = images.shape
    noise = random.uniform(random.fold_in(keys, 2), (2,))  # [b, 2]
    rows = _shift_matrix(noise[:, 0], height)
    columns = _shift_matrix(noise[:, 1], width)
    # Matrix products, because the gradient of a gather is slow and not differentiable.
    images = tf.einsum("byi,bijc->byjc", rows, images)
    return tf.einsum("bxj,byjc->byxc", columns, images)


def cutout(images: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Sets a square of half the side to 0, the middle grey.

    Shapes:
        images: [batch, height, width, channels] in [-1, 1], keys: [batch]
    """
    _, height, width, _ = images.shape
    noise = random.uniform(random.fold_in(keys, 3), (2,))  # [b, 2]
    rows = _hole(noise[:, 0], height)[:, :, None]
    columns = _hole(noise[:, 1], width)[:, None, :]
    return images * (1.0 - rows * columns)[..., None]


AUGMENTATIONS = {"color": color, "translation": translation, "cutout": cutout}


def augment(images: tf.Tensor, keys: tf.Tensor, names: tuple[str, ...]) -> tf.Tensor:
    """Applies the named augmentations in order.

    Shapes:
        images: [batch, height, width, channels] in [-1, 1], keys: [batch]
    """
    for name in names:
        images = AUGMENTATIONS[name](images, keys)
    return images


def _shift_matrix(noise: tf.Tensor, size: int) -> tf.Tensor:
    """One-hot rows: output pixel i is input pixel i - shift: [batch, size, size]."""
    reach = size // 8
    shift = tf.floor(noise * (2 * reach + 1)) - reach  # [b], -reach to reach
    pixels = tf.range(size, dtype=tf.float32)
    source = pixels[None] - shift[:, None]  # [b, size]
    return tf.cast(source[:, :, None] == pixels, tf.float32)


def _hole(noise: tf.Tensor, size: int) -> tf.Tensor:
    """1 inside a random interval of half the size, 0 outside: [batch, size]."""
    length = size // 2
    # The interval may start before 0 or end after the last pixel.
    start = tf.floor(noise * (size + 1)) - length // 2
    pixels = tf.range(size, dtype=tf.float32)[None]
    inside = (pixels >= start[:, None]) & (pixels < start[:, None] + length)
    return tf.cast(inside, tf.float32)


# -- diversity ---------------------------------------------------------------------


class Diversity(keras.metrics.Metric):
    """Ratio of the total pixel variance of generated images to that of real images.

    1 if two generated images differ as much as two real ones in mean square; 0 if all
    generated images are equal (mode collapse).
    """

    def __init__(self, image_shape: Any, name: str = "diversity", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.image_shape = tuple(image_shape)
        self.count = self.add_variable((), "zeros", name="count")
        self.total = self.add_variable((2, *self.image_shape), "zeros", name="total")
        self.squares = self.add_variable((2,), "zeros", name="squares")

    def update_state(self, images: tf.Tensor, sample_weight: Any = None) -> None:
        """Adds images in [-1, 1], generated and real: [2, batch, h, w, c]."""
        # Black, a common value, becomes 0: less rounding.
        images = 0.5 * (images + 1.0)
        self.count.assign_add(tf.cast(tf.shape(images)[1], tf.float32))
        self.total.assign_add(tf.reduce_sum(images, axis=1))
        self.squares.assign_add(tf.reduce_sum(tf.square(images), axis=(1, 2, 3, 4)))

    def result(self) -> tf.Tensor:
        """Returns the ratio so far, float32; 0 before the first images."""
        mean = tf.math.divide_no_nan(self.total.value, self.count.value)
        mean_square = tf.math.divide_no_nan(self.squares.value, self.count.value)
        variances = mean_square - tf.reduce_sum(tf.square(mean), axis=(1, 2, 3))
        return tf.math.divide_no_nan(variances[0], variances[1])
