"""Optimizer steps: gradients of a loss, Adam, schedules, averages, weight penalties.

All models take their steps by `Recording`, for three reasons. Under a distribution
strategy the optimizer sums the replicas' gradients, so the loss must be divided by the
weight (rows, tokens) of the global batch; under `mixed_float16` the loss must be scaled
inside the tape; and an estimator that clips, or adds noise, needs the losses of single
rows or the gradient of the whole batch, unscaled.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from kgen.arguments import PositiveFloat, check_fields


@dataclasses.dataclass(frozen=True)
class GradientEstimator:
    """Base of the estimators of a step's gradient, which are frozen dataclasses."""

    @property
    def is_by_example(self) -> bool:
        """Whether layers are observed, and the tape is persistent."""
        return False

    @property
    def is_of_whole(self) -> bool:
        """Whether `transform` needs the gradient of the global batch."""
        return False

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GradientEstimator:
        """Returns the estimator of these arguments."""
        return cls(**config)

    def observe(
        self, layers: Iterable[keras.layers.Layer], variables: Any, tape: Any
    ) -> contextlib.AbstractContextManager[Any]:
        """Observes layers while losses are recorded; yields what `gradients` needs."""
        return contextlib.nullcontext()

    def gradients(
        self,
        tape: tf.GradientTape,
        observed: Any,
        variables: Sequence[keras.Variable],
        losses: tf.Tensor,
        seeds: tf.Tensor,
        unit: tf.Tensor,
    ) -> list[tf.Tensor | None]:
        """Returns the sum over the rows of this replica, for each variable.

        Args:
            tape: Of the losses.
            observed: What `observe` yielded.
            variables: Variables to differentiate by.
            losses: float32 [rows, ...].
            seeds: Gradients of the global mean by each loss, times the loss scale.
            unit: Seed of a loss of weight 1.
        """
        return tape.gradient(losses, [v.value for v in variables], seeds)

    def transform(
        self, gradients: list[tf.Tensor], total_weight: tf.Tensor, step: tf.Tensor
    ) -> list[tf.Tensor]:
        """Maps the gradients of the global mean, unscaled, to those to apply.

        Args:
            gradients: Equal on all replicas, as the results must be.
            total_weight: Weight of the global batch.
            step: Integer scalar, number of the optimizer's step.
        """
        return gradients


@keras.saving.register_keras_serializable(package="kgen")
@dataclasses.dataclass(frozen=True)
class MeanGradient(GradientEstimator):
    """Gradient of the mean loss over the global batch.

    Args:
        clip_norm: Largest joint norm of the gradients of all variables, to which they
            are scaled down; None: no limit.

    Raises:
        ValueError: An argument is out of its range.
    """

    clip_norm: PositiveFloat | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_fields(self)

    @property
    def is_of_whole(self) -> bool:
        """Whether gradients are clipped."""
        return self.clip_norm is not None

    def transform(
        self, gradients: list[tf.Tensor], total_weight: tf.Tensor, step: tf.Tensor
    ) -> list[tf.Tensor]:
        """Clips gradients to the joint norm."""
        return tf.clip_by_global_norm(gradients, self.clip_norm)[0]


class Recording:
    """Context that records the computation of a loss, for one optimizer step.

    It watches only `variables`, so other updates may run inside the block.

    Args:
        variables: Variables to update. The optimizer must have been built on them.
        optimizer: A Keras optimizer; a `LossScaleOptimizer` scales and unscales.
        estimator: Estimator of the gradient.
        layers: Layers with these variables, for an estimator by example.

    Raises:
        ValueError: The optimizer clips gradients and there are several replicas: it
            would clip each replica's part of the gradient.

    Example:
        >>> with Recording(model.trainable_variables, optimizer) as recording:
        ...     losses = compute_losses(batch)  # float32 [rows]
        >>> recording.minimize(losses)
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        optimizer: keras.optimizers.Optimizer,
        estimator: GradientEstimator | None = None,
        layers: Iterable[keras.layers.Layer] = (),
    ):
        self.variables = list(variables)
        self.optimizer = optimizer
        self.estimator = estimator or MeanGradient()
        self._num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._tape = tf.GradientTape(
            persistent=self.estimator.is_by_example, watch_accessed_variables=False
        )
        self._observing = self.estimator.observe(layers, self.variables, self._tape)
        _refuse_clipping_per_replica(optimizer, self._num_replicas)

    def __enter__(self) -> Recording:
        self._tape.__enter__()
        self._tape.watch([variable.value for variable in self.variables])
        self._observed = self._observing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._observing.__exit__(*error)
        self._tape.__exit__(*error)

    def minimize(self, losses: tf.Tensor, weights: tf.Tensor | None = None) -> None:
        """Takes a step on the mean of losses over the rows of all replicas.

        Args:
            losses: float32 [rows], or any shape, such as one loss per token.
            weights: Weights of the same shape: the mean is sum(weights * losses) /
                sum(weights), with both sums over the global batch. None: all are 1.
        """
        if not self.variables:  # All of them are frozen.
            return
        context = tf.distribute.get_replica_context()
        sum_of = tf.distribute.ReduceOp.SUM
        weights = tf.ones_like(losses) if weights is None else weights
        total_weight = tf.reduce_sum(weights)
        if self._num_replicas > 1:
            total_weight = context.all_reduce(sum_of, total_weight)
        scale = self.optimizer.scale_loss(tf.ones([]))
        gradients = self.estimator.gradients(
            self._tape,
            self._observed,
            self.variables,
            losses,
            # The gradient of the scaled mean with respect to the losses.
            seeds=scale * tf.math.divide_no_nan(weights, total_weight),
            unit=tf.math.divide_no_nan(scale, total_weight),
        )

        # A variable that the loss does not use has no gradient; Keras warns about it.
        used = [i for i, gradient in enumerate(gradients) if gradient is not None]
        whole = [gradients[i] for i in used]
        loss_scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        is_of_whole = self.estimator.is_of_whole
        summed_here = self._num_replicas > 1 and (is_of_whole or loss_scaled)
        if summed_here:
            # The estimator needs the gradient of the global batch before the optimizer
            # sums the replicas; so does the loss scale, which must find an overflow on
            # every replica or on none.
            whole = context.all_reduce(sum_of, whole)
        if is_of_whole:
            whole = [gradient / scale for gradient in whole]
            step = self.optimizer.iterations.value
            whole = self.estimator.transform(whole, total_weight, step)
            whole = [gradient * scale for gradient in whole]
        if summed_here:  # Undoes the optimizer's own sum.
            whole = [gradient / self._num_replicas for gradient in whole]
        for i, gradient in zip(used, whole, strict=True):
            gradients[i] = gradient
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))


def alternate(
    is_first: tf.Tensor,
    first: Callable[..., Any],
    second: Callable[..., Any],
    *args: Any,
) -> Any:
    """Runs one of two kinds of step, each of which may hold a `Recording`.

    In replicas, TensorFlow's `cond` cannot contain an optimizer's update. There the
    condition is evaluated in a merge call, and each replica runs the step inside it.

    Args:
        is_first: Scalar, bool, equal on all replicas.
        first: Function of `args` that returns tensors.
        second: Function of `args` that returns tensors of the same structure.
        *args: This replica's tensors. The functions must not capture other tensors.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tf.cond(is_first, lambda: first(*args), lambda: second(*args))

    def choose(strategy, is_first, *args):
        def on_each_replica(function):
            return lambda: strategy.extended.call_for_each_replica(function, args)

        (chosen, *_) = strategy.experimental_local_results(is_first)
        return tf.cond(chosen, on_each_replica(first), on_each_replica(second))

    context = tf.distribute.get_replica_context()
    return context.merge_call(choose, args=(is_first, *args))


def update_average(
    averages: Sequence[keras.Variable],
    variables: Sequence[keras.Variable],
    decay: tf.Tensor,
) -> None:
    """Moves exponential moving averages towards variables, on every replica alike.

    Args:
        averages: One average for each variable.
        variables: Variables to average.
        decay: Scalar, factor of the old average.
    """

    def move(strategy, decay):
        for average, variable in zip(averages, variables, strict=True):
            strategy.extended.update(
                average.value,
                lambda old, new, decay: old.assign(new + decay * (old - new)),
                args=(variable.value, decay),
            )

    tf.distribute.get_replica_context().merge_call(move, args=(decay,))


def ema_decay(
    examples_seen: tf.Tensor, num_examples: tf.Tensor, half_life: int
) -> tf.Tensor:
    """Decay of an exponential moving average for a step of `num_examples` examples.

    The half-life is at most a twentieth of the examples seen so far, so that the
    average soon forgets the first weights (Karras et al., 2020, StyleGAN2-ADA).

    Args:
        examples_seen: Integer scalar, examples seen before.
        num_examples: Scalar, examples of this step.
        half_life: Number of examples that halves the weight of an old value, above 0.

    Returns:
        float32 scalar in [0, 1).
    """
    seen = tf.cast(examples_seen, tf.float32) + tf.cast(num_examples, tf.float32)
    return tf.pow(
        0.5,
        tf.cast(num_examples, tf.float32) / tf.minimum(float(half_life), 0.05 * seen),
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


def squared_weights(variables: Sequence[keras.Variable]) -> tf.Tensor:
    """Sums the squares of all kernels, without biases: a scalar."""
    kernels = [v.value for v in variables if len(v.shape) > 1]
    return tf.add_n([tf.reduce_sum(tf.square(kernel)) for kernel in kernels])


def _refuse_clipping_per_replica(
    optimizer: keras.optimizers.Optimizer, num_replicas: int
) -> None:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for name in ("clipnorm", "global_clipnorm", "clipvalue"):
        if num_replicas > 1 and getattr(inner, name, None):
            raise ValueError(
                "An optimizer that clips sees one replica's part of the gradient, not "
                f"the whole. Received: {name}={getattr(inner, name)} with "
                f"{num_replicas} replicas. Give the model's `compile` "
                "estimator=kgen.nn.MeanGradient(clip_norm=...) instead."
            )


@keras.saving.register_keras_serializable(package="kgen")
class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` with TensorFlow's fused update kernel.

    Arguments, variables and arithmetic are those of Keras, whose update makes a dozen
    passes over the memory of a weight; the fused kernel makes one. On a CPU, Adam takes
    a tenth of a small network's step with it, and a third without.

    Reference:
        Kingma and Ba, 2015, Adam: A Method for Stochastic Optimization.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable (tf.Variable) and its moments."""
        if self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        step = tf.cast(self.iterations + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, dtype), step),
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        )
