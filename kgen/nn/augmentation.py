"""Differentiable augmentation, against discriminators that memorise small data sets.

Real and generated images are augmented alike before the discriminator sees them, and
gradients flow through the augmentation to the generator.

Reference:
    Zhao et al., 2020, Differentiable Augmentation for Data-Efficient GAN Training,
    with the ranges of the paper.
"""

import tensorflow as tf

from kgen.nn import random


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


AUGMENTATIONS = {
    function.__name__: function for function in (color, translation, cutout)
}


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
    start = (
        tf.floor(noise * (size + 1)) - length // 2
    )  # may start before 0 or end after size
    pixels = tf.range(size, dtype=tf.float32)[None]
    inside = (pixels >= start[:, None]) & (pixels < start[:, None] + length)
    return tf.cast(inside, tf.float32)
