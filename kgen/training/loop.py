"""Training with `model.fit`, from any position in the data, on any strategy."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from kgen.data.pipeline import Pipeline
from kgen.models.shared.batches import checked_data
from kgen.models.shared.model import GenerativeModel
from kgen.training.strategies import distribute


def fit(
    model: GenerativeModel,
    pipeline: Pipeline,
    *,
    epochs: int,
    validation: Pipeline | None = None,
    strategy: tf.distribute.Strategy | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains from the model's own step to the end of the last epoch.

    A model at step 0 starts at the beginning. A model that was restored in the middle
    of an epoch first takes the rest of that epoch, in the same order and with the same
    noise as without the interruption.

    Args:
        model: Compiled, in the strategy's scope.
        pipeline: Training batches.
        epochs: Epochs in all, those already trained included.
        validation: Batches to evaluate after each epoch, or None.
        strategy: As returned by `make_strategy`; None is one device.
        callbacks: Keras callbacks. On several processes, files should be written by
            the chief alone.
    """

    def pin_epoch(epoch, logs):  # Keras opens more iterators than epochs.
        pipeline.epoch = epoch

    strategy = strategy or tf.distribute.get_strategy()
    pin = keras.callbacks.LambdaCallback(on_epoch_begin=pin_epoch)
    check = functools.partial(checked_data, specs=model.batch_specs)
    epoch, step = divmod(int(model.step.numpy()), pipeline.steps_per_epoch)
    # A pass that starts inside an epoch is shorter than the others, and Keras takes one
    # length for all: two calls.
    parts = [(epoch, epoch + 1, step), (epoch + 1, epochs, 0)] if step else []
    model.stop_training = False
    held_out = distribute(strategy, validation, 0, check) if validation else None
    for first, last, skip in parts or [(epoch, epochs, 0)]:
        if first >= last or model.stop_training:
            continue
        model.fit(
            distribute(strategy, pipeline, skip, check),
            initial_epoch=first,
            epochs=last,
            # The datasets know it, too, but without it Keras opens each pass twice.
            steps_per_epoch=pipeline.steps_per_epoch - skip,
            validation_data=held_out,
            validation_steps=validation.steps_per_epoch if validation else None,
            callbacks=[pin, *callbacks],
            verbose=0,
        )
