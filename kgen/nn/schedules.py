"""Schedules of learning rates, loss weights and averages.

The schedules of weights and averages have no state: they are functions of the model's
own step, a variable that is saved with it.
"""

import math

import keras
import tensorflow as tf


def linear_ramp(step: tf.Tensor, num_steps: int) -> tf.Tensor:
    """Rises from 0 at step 0 to 1 at `num_steps` and stays there.

    Args:
        step: Integer scalar, optimizer steps taken so far.
        num_steps: Length of the ramp in steps; 0: 1 from the start.

    Returns:
        float32 scalar in [0, 1].
    """
    if num_steps == 0:
        return tf.ones([])
    return tf.minimum(tf.cast(step, tf.float32) / num_steps, 1.0)


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


def ema_decay(
    images_seen: tf.Tensor, num_images: tf.Tensor, half_life: int
) -> tf.Tensor:
    """Decay of an exponential moving average for a step of `num_images` images.

    The half-life is at most a twentieth of the images seen so far, so that the average
    soon forgets the first weights (Karras et al., 2020, StyleGAN2-ADA).

    Args:
        images_seen: Integer scalar, images seen before.
        num_images: Scalar, images of this step.
        half_life: Number of images that halves the weight of an old value, above 0.

    Returns:
        float32 scalar in [0, 1).
    """
    seen = tf.cast(images_seen, tf.float32) + tf.cast(num_images, tf.float32)
    return tf.pow(
        0.5, tf.cast(num_images, tf.float32) / tf.minimum(float(half_life), 0.05 * seen)
    )


def warmup_cosine(
    peak: float, total_steps: int, warmup_steps: int = 0
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Learning rate with a linear warm-up to `peak`, then a half cosine to zero.

    Args:
        peak: Highest learning rate.
        total_steps: Steps of the whole run, including the warm-up.
        warmup_steps: Steps of the linear rise from zero.
    """
    decay_steps = max(total_steps - warmup_steps, 1)
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(peak, decay_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps, warmup_target=peak, warmup_steps=warmup_steps
    )
