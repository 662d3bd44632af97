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
import math
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
    rows for each, one example after the other. The loss must not hold gradients of the
    network, such as penalties.

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
        seed = _fold_in(tf.constant(self.noise_seed, tf.int64), step)
        return [
            gradient
            + tf.cast(deviation, gradient.dtype)
            * tf.cast(_normal(gradient.shape, _fold_in(seed, index)), gradient.dtype)
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
    opened = [call for call, form in zip(calls, forms, strict=True) if form is None]
    factors = [
        (index, one)
        for call, form in zip(calls, forms, strict=True)
        for index, one in zip(call.indices, form or (), strict=False)
    ]
    open_indices = {*outside.indices}.union(*(call.indices for call in opened))
    squares = [tf.zeros([rows])]
    for index in sorted(dict(factors).keys() - open_indices):
        of_variable = [one for i, one in factors if i == index]
        if len({one.left.shape.rank for one in of_variable}) == 1:
            squares.append(_squared_norm(of_variable))
        else:  # Tokens and vectors have no closed form together.
            open_indices.add(index)
    # Not a chain of additions, which TensorFlow orders by what it knows of the shapes:
    # that is not the same in a worker and a replica.
    closed = tf.add_n(squares)
    if not open_indices:
        return closed

    factors = [(index, one) for index, one in factors if index in open_indices]
    tensors = (
        [call.row_inputs() for call in opened],
        [(one.left, one.right) for _, one in factors],
        tf.range(rows),
    )

    def of_micro_batch(tensors):
        inputs, products, some_rows = tensors
        found = outside.row_gradients(some_rows)
        for call, one in zip(opened, inputs, strict=True):
            found += call.row_gradients(*one)
        for (index, _), (left, right) in zip(factors, products, strict=True):
            found.append((index, _product(left, right, variables[index].shape)))
        total = []
        for index in sorted(open_indices):
            summed = tf.cast(_sum([g for i, g in found if i == index]), tf.float32)
            others = tuple(range(1, summed.shape.rank))
            total.append(tf.reduce_sum(tf.square(summed), axis=others))
        return tf.add_n(total)

    return closed + _in_micro_batches(of_micro_batch, tensors, rows, micro_batch)


def _bits(shape, seed, dtype):
    """Philox bits of a seed, int64 [2]; they are the same with XLA, normals are not."""
    return tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=dtype, alg="philox"
    )


def _fold_in(seed, number):
    """A seed that follows from a seed and a number: int64 [2]."""
    number = tf.cast(number, tf.int64)
    return _bits([2], tf.bitwise.bitwise_xor(seed, tf.stack([0, number])), tf.int64)


def _normal(shape, seed):
    """Normal noise, by Box and Muller: float32."""
    bits = _bits([2, *shape], seed, tf.uint32)
    first, second = tf.unstack((tf.cast(bits, tf.float32) + 0.5) * 2.0**-32)
    return tf.sqrt(-2.0 * tf.math.log(first)) * tf.cos(2.0 * math.pi * second)


def _squared_norm(factors):
    """Squared norm of the sum of left^T right for each row: [rows].

    The way to compute it does not depend on whether the number of rows is known: with
    several workers, that may differ from one to the next.
    """
    left = tf.concat([one.left for one in factors], axis=1)
    right = tf.concat([one.right for one in factors], axis=1)
    if left.shape.rank == 2:
        gram = tf.cast(left[:, :, None] == left[:, None], tf.float32)
    else:
        inner = sum(one.inner or 0 for one in factors)
        if left.shape[2] == 1 or 2 * inner**2 > left.shape[2] * right.shape[2]:
            product = tf.matmul(left, right, transpose_a=True)
            return tf.reduce_sum(tf.square(product), axis=(1, 2))
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
