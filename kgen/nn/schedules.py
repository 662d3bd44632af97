"""Values that change during training, as functions of the model's own step.

Learning rates use `keras.optimizers.schedules`; what is here is for everything else
(KL weight, regularisers). A schedule has no state: the step it reads is a variable of
the model and is saved with it.
"""

import keras
import tensorflow as tf


def linear_ramp(step: tf.Tensor, num_steps: int) -> tf.Tensor:
    """Rises from 0 at step 0 to 1 at `num_steps` and stays there.

    Args:
        step: Integer scalar, optimizer steps taken so far.
        num_steps: Length of the ramp in steps; 0 means that it is over at once.

    Returns:
        float32 scalar in [0, 1].
    """
    if num_steps == 0:
        return tf.ones([])
    return tf.minimum(tf.cast(step, tf.float32) / num_steps, 1.0)


def warmup_cosine(
    peak: float, total_steps: int, warmup_steps: int = 0
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning rate that rises to `peak`, then follows a half cosine to zero.

    Args:
        peak: Highest learning rate.
        total_steps: Steps of the whole run, the warm-up included.
        warmup_steps: Steps of the linear rise from zero.
    """
    decay_steps = max(total_steps - warmup_steps, 1)
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(peak, decay_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps, warmup_target=peak, warmup_steps=warmup_steps
    )
