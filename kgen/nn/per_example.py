"""Mean of gradients that are clipped example by example, with noise: for privacy.

The gradient of each example is clipped to a norm before the sum, so that no example
moves the weights by more. That needs the norm of each gradient, but seldom the gradient
itself. `noted_calls` notes the inputs and outputs of each
layer that owns weights. One
backward pass gives the gradients of these outputs, and from them follow

- norms in closed form, for dense layers and embeddings. The gradient of a kernel is
  X^T D, of inputs X [time, in] and output gradients D [time, out]; its squared norm is
  the sum of (X X^T) * (D D^T) (Goodfellow, 2015, Efficient Per-Example Gradient
  Computations; Li et al., 2022, Large Language Models Can Be Strong Differentially
  Private Learners);
- norms by row, for other layers: the layer alone runs again, vectorized over the rows
  of a micro-batch;
- the clipped sum: the output gradients of each row, times its factor, go back through
  the one layer.

Weights that the loss uses outside of such layers are differentiated row by row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from kgen.arguments import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    check_fields,
    require,
)
from kgen.nn.gradients import GradientEstimator
from kgen.nn.layer_calls import LayerCall, indexed, noted_calls, sizes_of


@keras.saving.register_keras_serializable(package="kgen")
@dataclasses.dataclass(frozen=True)
class PerExampleGradient(GradientEstimator):
    """Estimator of the mean gradient that clips the gradient of each example.

    An example is a row of the batch. The gradient of the row's mean loss is clipped to
    `clip_norm`, and counts with the row's weight: with a large `clip_norm`, this is the
    mean gradient. Inputs of layers have one row for each example, or the same number of
    rows for each, one example after the other.

    Args:
        clip_norm: Largest norm of the gradient of an example.
        noise_multiplier: Standard deviation of the noise in the sum of all gradients,
            in units of `clip_norm * max_weight`.
        noise_seed: Two integers of 64 bits: the noise is a function of them and of the
            optimizer's step.
        max_weight: Largest weight of an example, at which larger ones are cut off: 1
            where losses have no weights. None: no limit, and no noise.
        micro_batch: Rows whose gradients are in memory at a time, for layers that have
            no closed form of their norm.

    Raises:
        ValueError: An argument is out of its range.

    Reference:
        Abadi et al., 2016, Deep Learning with Differential Privacy.
    """

    clip_norm: PositiveFloat
    noise_multiplier: NonNegativeFloat = 0.0
    noise_seed: tuple[int, int] = (0, 0)
    max_weight: PositiveFloat | None = None
    micro_batch: PositiveInt = 32

    def __post_init__(self) -> None:
        """Checks the arguments."""
        check_fields(self)
        # A list, once it is read from a file.
        object.__setattr__(self, "noise_seed", tuple(self.noise_seed))
        kept = self.max_weight is not None or not self.noise_multiplier
        require(kept, "max_weight", None, "be given with noise: its size follows")

    @property
    def is_by_example(self) -> bool:
        """Always."""
        return True

    @property
    def is_of_whole(self) -> bool:
        """Whether there is noise."""
        return self.noise_multiplier > 0

    def observe(
        self, layers: Iterable[keras.layers.Layer], variables: Any, tape: Any
    ) -> contextlib.AbstractContextManager[list[LayerCall]]:
        """Notes the calls of layers: see `noted_calls`."""
        return noted_calls(layers, variables, tape)

    def gradients(
        self,
        tape: tf.GradientTape,
        observed: list[LayerCall],
        variables: Sequence[keras.Variable],
        losses: tf.Tensor,
        seeds: tf.Tensor,
        unit: tf.Tensor,
    ) -> list[tf.Tensor | None]:
        """Returns the clipped sum over the rows of this replica, for each variable."""
        rows = losses.shape[0] or tf.shape(losses)[0]
        by_row = [call for call in observed if call.has_rows(rows)]
        sources = [(i, variable.value) for i, variable in enumerate(variables)]
        for call in observed:
            if call not in by_row:
                sources += zip(call.indices, call.copies, strict=True)
        outside = _OutsideUses(tape, sources, losses, seeds)
        deltas = tape.gradient(losses, [call.outputs for call in by_row], seeds)
        calls = [
            call
            for call, delta in zip(by_row, deltas, strict=True)
            if call.takes_deltas(delta, rows)
        ]
        squares = _squared_norms(calls, outside, variables, rows, self.micro_batch)
        weights = tf.reduce_sum(tf.reshape(seeds, [rows, -1]), axis=1)
        if self.max_weight is not None:
            weights = tf.minimum(weights, self.max_weight * unit)
        factors = self.clip_norm * tf.math.divide_no_nan(weights, tf.sqrt(squares))
        # A loss scale that overflows must be seen in the sum.
        nan = tf.constant(float("nan"))
        factors = tf.where(tf.math.is_finite(squares), tf.minimum(factors, 1.0), nan)

        found = outside.clipped_sums(factors)
        for call in calls:
            found += call.clipped_sums(tape, factors)
        return [_sum([g for i, g in found if i == n]) for n in range(len(variables))]

    def transform(
        self, gradients: list[tf.Tensor], total_weight: tf.Tensor, step: tf.Tensor
    ) -> list[tf.Tensor]:
        """Adds noise, the same on every replica."""
        size = self.clip_norm * self.noise_multiplier * (self.max_weight or 0.0)
        deviation = tf.math.divide_no_nan(size, total_weight)
        fold_in = tf.random.experimental.stateless_fold_in
        seed = fold_in(tf.constant(self.noise_seed, tf.int64), tf.cast(step, tf.int64))
        return [
            gradient
            + tf.cast(deviation, gradient.dtype)
            * tf.random.stateless_normal(
                gradient.shape, fold_in(seed, index), dtype=gradient.dtype, alg="philox"
            )
            for index, gradient in enumerate(gradients)
        ]


class _OutsideUses:
    """Uses of variables outside of calls of layers that have rows of examples."""

    def __init__(self, tape, sources, losses, seeds):
        self.tape, self.losses, self.seeds = tape, losses, seeds
        self.indices, self.tensors = (list(part) for part in zip(*sources, strict=True))
        used = tape.gradient(losses, self.tensors, seeds)
        kept = [i for i, one in enumerate(used) if one is not None]
        self.indices = [self.indices[i] for i in kept]
        self.tensors = [self.tensors[i] for i in kept]

    def clipped_sums(self, factors):
        """Index and gradient of each variable: rows times their factors."""
        shape = [-1, *[1] * (self.losses.shape.rank - 1)]
        seeds = self.seeds * tf.reshape(factors, shape)
        return indexed(
            self.indices, self.tape.gradient(self.losses, self.tensors, seeds)
        )

    def row_gradients(self, rows):
        """Index and gradients of each of some rows, for each variable."""
        num_rows = tf.shape(self.losses)[0]

        def of_row(row):
            return [g for _, g in self.clipped_sums(tf.one_hot(row, num_rows))]

        if not self.indices:
            return []
        return indexed(self.indices, tf.vectorized_map(of_row, rows))


def _sum(gradients):
    """Sum of the parts of a gradient, or None."""
    return tf.add_n(gradients) if gradients else None


# -- norms -----------------------------------------------------------------------


def _squared_norms(calls, outside, variables, rows, micro_batch):
    """Squared norm of the gradient of each row: float32 [rows]."""
    forms = [call.closed_form() for call in calls]
    factors: list[Any] = [[] for _ in variables]
    open_indices = {*outside.indices}
    for call, form in zip(calls, forms, strict=True):
        if form is None:
            open_indices |= {*call.indices}
            continue
        for index, pair in zip(call.indices, form, strict=True):
            factors[index].append(pair)
    # Tokens and vectors of one variable have no closed form together.
    open_indices |= {
        index
        for index, pairs in enumerate(factors)
        if len({left.shape.rank for left, _ in pairs}) > 1
    }
    squares = tf.zeros([rows])
    for index, pairs in enumerate(factors):
        if pairs and index not in open_indices:
            left, right = (tf.concat(part, axis=1) for part in zip(*pairs, strict=True))
            squares += _squared_norm_of_product(left, right)
    if not open_indices:
        return squares

    opened = [call for call, form in zip(calls, forms, strict=True) if form is None]
    pairs = [[i, *pair] for i in open_indices for pair in factors[i]]
    tensors = (
        [call.row_inputs() for call in opened],
        [pair[1:] for pair in pairs],
        tf.range(rows),
    )

    def of_micro_batch(tensors):
        inputs, products, some_rows = tensors
        found = outside.row_gradients(some_rows)
        for call, one in zip(opened, inputs, strict=True):
            found += call.row_gradients(*one)
        for (index, *_), (left, right) in zip(pairs, products, strict=True):
            found.append((index, _product(left, right, variables[index].shape)))
        total = 0.0
        for index in open_indices:
            summed = tf.cast(_sum([g for i, g in found if i == index]), tf.float32)
            total += tf.reduce_sum(
                tf.square(summed), axis=tuple(range(1, summed.shape.rank))
            )
        return total

    return squares + _in_micro_batches(of_micro_batch, tensors, rows, micro_batch)


def _squared_norm_of_product(left, right):
    """Squared norm of left^T right of each row: [rows]."""
    width = 1 if left.shape.rank == 2 else left.shape[2]
    time = left.shape[1]
    if left.shape.rank == 2:
        gram = tf.cast(left[:, :, None] == left[:, None], tf.float32)
    elif time == 1:
        square = functools.partial(tf.reduce_sum, axis=(1, 2))
        return square(tf.square(left)) * square(tf.square(right))
    elif width == 1 or (time and 2 * time * time > width * right.shape[2]):
        product = tf.matmul(left, right, transpose_a=True)
        return tf.reduce_sum(tf.square(product), axis=(1, 2))
    else:
        gram = tf.matmul(left, left, transpose_b=True)
    gram *= tf.matmul(right, right, transpose_b=True)
    return tf.reduce_sum(gram, axis=(1, 2))


def _product(left, right, shape):
    """The gradient left^T right of each row: [rows, *shape]."""
    if left.shape.rank == 2:
        left = tf.one_hot(left, shape[0])
    product = tf.matmul(left, right, transpose_a=True)
    return tf.reshape(product, [-1, *shape])


def _in_micro_batches(
    function: Callable[[Any], tf.Tensor], tensors: Any, rows: Any, micro_batch: int
) -> tf.Tensor:
    """Values of a function of rows, computed for some rows at a time: [rows]."""
    if isinstance(rows, int) and rows <= micro_batch:
        return function(tensors)
    parts = -(-rows // micro_batch)

    def cut(tensor):
        spare = [[0, parts * micro_batch - rows]] + [[0, 0]] * (tensor.shape.rank - 1)
        return tf.reshape(
            tf.pad(tensor, spare), [parts, micro_batch, *sizes_of(tensor)[1:]]
        )

    values = tf.map_fn(
        function,
        tf.nest.map_structure(cut, tensors),
        fn_output_signature=tf.TensorSpec([micro_batch], tf.float32),
        parallel_iterations=1,
    )
    return tf.reshape(values, [-1])[:rows]
