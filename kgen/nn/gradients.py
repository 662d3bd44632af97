"""The one place where a loss becomes an update.

Three things go wrong in a hand-written `train_step` and are right here: under a
distribution strategy the optimizer sums the replicas' gradients, so a mean loss has to
be divided by their number; under `mixed_float16` the loss has to be scaled inside the
tape; and whatever changes the gradients (clipping, privacy) has to see the gradient of
the whole batch, unscaled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

Transform = Callable[[list[tf.Tensor]], list[tf.Tensor]]


def minimize(
    compute_loss: Callable[[], tuple[tf.Tensor, Any]],
    variables: Sequence[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
    transform: Transform | None = None,
) -> Any:
    """Takes one optimizer step on a loss.

    Args:
        compute_loss: Called once, under a gradient tape. Returns the loss, a float32
            scalar that is a mean over this replica's rows, and anything else.
        variables: What to update. The optimizer must have been built on them.
        optimizer: A Keras optimizer; a `LossScaleOptimizer` scales and unscales.
        transform: Maps the gradients of the whole global batch, unscaled, to those
            that are applied.

    Returns:
        The second value of `compute_loss`.

    Raises:
        ValueError: If the optimizer clips by itself while there are several replicas:
            it would clip each replica's part of the gradient.
    """
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    loss_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    _refuse_clipping_per_replica(optimizer, num_replicas)

    values = [variable.value for variable in variables]
    # What it watches, and no more: one update may be made while another's loss is being
    # computed, as that of a discriminator within its generator's.
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        loss, outputs = compute_loss()
        scaled_loss = optimizer.scale_loss(loss / num_replicas)
    gradients = tape.gradient(scaled_loss, values)

    # A variable that the loss does not use has no gradient; Keras warns of it.
    used = [i for i, gradient in enumerate(gradients) if gradient is not None]
    whole = [gradients[i] for i in used]
    summed_here = num_replicas > 1 and (transform or loss_scaled)
    if summed_here:
        # The whole batch's gradient is needed before the optimizer sums the replicas:
        # by the transform, and by the loss scale, which must find an overflow on every
        # replica or on none.
        context = tf.distribute.get_replica_context()
        whole = context.all_reduce(tf.distribute.ReduceOp.SUM, whole)
    if transform:
        scale = optimizer.scale_loss(tf.ones([]))
        whole = transform([gradient / scale for gradient in whole])
        whole = [gradient * scale for gradient in whole]
    if summed_here:  # Undoes the optimizer's own sum.
        whole = [gradient / num_replicas for gradient in whole]
    for i, gradient in zip(used, whole, strict=True):
        gradients[i] = gradient

    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return outputs


def alternate(
    is_first_turn: tf.Tensor,
    first: Callable[..., Any],
    second: Callable[..., Any],
    *args: Any,
) -> Any:
    """Takes one of two kinds of step, each of which may call `minimize`.

    TensorFlow's `cond` cannot hold an update in a replica: there the replicas meet
    first, and the chosen step is taken by each of them inside it.

    Args:
        is_first_turn: Scalar, bool, the same on all replicas.
        first: Called with `args`; returns tensors, as `second` does.
        second: Likewise.
        *args: This replica's tensors. A function may not close over any of its own.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tf.cond(is_first_turn, lambda: first(*args), lambda: second(*args))

    def choose(strategy, is_first_turn, *args):
        def on_each_replica(function):
            return lambda: strategy.extended.call_for_each_replica(function, args)

        (turn, *_) = strategy.experimental_local_results(is_first_turn)
        return tf.cond(turn, on_each_replica(first), on_each_replica(second))

    context = tf.distribute.get_replica_context()
    return context.merge_call(choose, args=(is_first_turn, *args))


def clip_by_global_norm(max_norm: float) -> Transform:
    """Returns a transform that scales gradients down to a joint norm of `max_norm`."""

    def clip(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        clipped, _ = tf.clip_by_global_norm(gradients, max_norm)
        return clipped

    return clip


def update_average(
    averages: Sequence[keras.Variable],
    variables: Sequence[keras.Variable],
    decay: tf.Tensor,
) -> None:
    """Moves exponential moving averages towards variables, on every replica alike.

    Args:
        averages: One for each variable.
        variables: Whose values are averaged.
        decay: Scalar, how much of the old average stays.
    """

    def move(strategy, decay):
        for average, variable in zip(averages, variables, strict=True):
            strategy.extended.update(
                average.value,
                lambda old, new, decay: old.assign(new + decay * (old - new)),
                args=(variable.value, decay),
            )

    tf.distribute.get_replica_context().merge_call(move, args=(decay,))


def _refuse_clipping_per_replica(
    optimizer: keras.optimizers.Optimizer, num_replicas: int
) -> None:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for name in ("clipnorm", "global_clipnorm", "clipvalue"):
        if num_replicas > 1 and getattr(inner, name, None):
            raise ValueError(
                "An optimizer that clips sees one replica's part of the gradient, not "
                f"the whole. Received: {name}={getattr(inner, name)} with "
                f"{num_replicas} replicas. Clip in the model instead "
                "(`gradient_clip_norm=`, or `transform=` of `minimize`)."
            )
