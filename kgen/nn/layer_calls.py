"""Calls of layers, noted while a loss is recorded, for gradients of single examples.

Inside a noted call the layer uses copies of its variables, so that a tape knows the
part of this call in a gradient. From the gradients of its outputs follow, for each
example, the gradients of the layer's variables: as factors in closed form, or by
running the layer alone again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

# Layers whose gradients follow from the tensors before their activation.
PLAIN = (keras.layers.Dense, keras.layers.Conv2D)
# Layers that run their sublayers in a loop, which cannot be observed from outside.
LOOPS = (keras.layers.RNN, keras.layers.TimeDistributed)


@contextlib.contextmanager
def noted_calls(
    layers: Iterable[keras.layers.Layer],
    variables: Sequence[keras.Variable],
    tape: tf.GradientTape,
) -> Iterator[list[LayerCall]]:
    """Notes the calls of layers that own some of the variables.

    Inside a call, the layer uses copies of its variables: so the tape knows the part of
    each call in a gradient.

    Raises:
        ValueError: A variable has a type that cannot be clipped.
    """
    for variable in variables:
        if not tf.as_dtype(variable.dtype).is_floating:
            raise ValueError(
                "Gradients are clipped by example for float variables. Received: "
                f"{variable.path} of {variable.dtype}. Freeze it, or clip the mean "
                "gradient with MeanGradient(clip_norm=...)."
            )
    indices = {id(variable): index for index, variable in enumerate(variables)}
    calls: list[LayerCall] = []
    with contextlib.ExitStack() as stack:
        for layer, weights in _owners(layers):
            own = [variable for variable in weights if id(variable) in indices]
            if own:
                numbers = [indices[id(variable)] for variable in own]
                note = functools.partial(
                    _note_call, calls, tape, layer, layer.call, own, numbers
                )
                stack.enter_context(_replaced(layer, "call", note))
        yield calls


def _owners(layers):
    """Layers and their own variables; a layer that loops over others owns theirs."""
    layers, inside = list(layers), set()
    for layer in layers:
        if isinstance(layer, LOOPS):
            inside |= {id(one) for one in layer._flatten_layers(include_self=False)}
    for layer in layers:
        if id(layer) not in inside:
            # Keras' own list: the public ones hold the variables of sublayers, too.
            is_loop = isinstance(layer, LOOPS)
            weights = (
                layer.trainable_variables if is_loop else layer._trainable_variables
            )
            yield layer, weights


def _note_call(calls, tape, layer, call, own, indices, *args, **kwargs):
    with tape.stop_recording():
        # Not `value`, which is cast to the type of the layer's computation.
        copies = [tf.identity(variable._value) for variable in own]
    tape.watch(copies)
    state, before_activation = list(zip(own, copies, strict=True)), []
    activation: Any = getattr(layer, "activation", None)

    def activate(inputs):
        before_activation.append(inputs)
        return activation(inputs)

    with contextlib.ExitStack() as stack:
        scope = stack.enter_context(keras.StatelessScope(state))
        if activation is not None and any(_is_plain(layer, one) for one in PLAIN):
            stack.enter_context(_replaced(layer, "activation", activate))
        outputs = call(*args, **kwargs)
    if scope.state_mapping.keys() > {id(variable) for variable in own}:
        raise ValueError(
            f"Layer {layer.name} ({type(layer).__name__}) updates a statistic of the "
            "batch: there is no gradient of one example. Take another normalization, "
            "such as group or layer normalization."
        )
    # Copies, since an output may follow from another one, or be the same tensor.
    outputs = tf.nest.map_structure(tf.identity, outputs)
    noted = before_activation or tf.nest.flatten(outputs)
    calls.append(LayerCall(layer, state, indices, (args, kwargs), noted))
    return outputs


@contextlib.contextmanager
def _replaced(layer, name, value):
    """Replaces an attribute of an object, without Keras' tracking."""
    old = vars(layer).get(name)
    object.__setattr__(layer, name, value)
    try:
        yield
    finally:
        if old is None:
            object.__delattr__(layer, name)
        else:
            object.__setattr__(layer, name, old)


def _is_plain(layer, kind):
    """Whether a layer computes as Keras' class does, with its weights alone."""
    names = {variable.name for variable in layer._trainable_variables}
    plain = {"kernel", "bias", "embeddings"}
    usual = getattr(layer, "groups", 1) == 1
    usual &= getattr(layer, "data_format", "channels_last") == "channels_last"
    is_kind = isinstance(layer, kind) and type(layer).call is kind.call
    return is_kind and usual and names <= plain


class Factors(NamedTuple):
    """Gradient of a variable for each example, as the product left^T right.

    Attributes:
        left: [rows, time, ...]; integers [rows, time] stand for rows of a unit matrix.
        right: [rows, time, ...].
        inner: Vectors in a row of the layer's inputs; None: known when it runs.
    """

    left: tf.Tensor
    right: tf.Tensor
    inner: int | None


class LayerCall:
    """One call of a layer: inputs, outputs, and the gradients of the outputs.

    Attributes:
        indices: Of the layer's own variables, in the recording.
        outputs: Tensors; of `PLAIN` layers the ones before the activation.
    """

    def __init__(self, layer, state, indices, arguments, outputs):
        self.layer, self.state, self.indices = layer, state, indices
        self.arguments, self.outputs = arguments, outputs
        self.copies = [copy for _, copy in state]

    def has_rows(self, rows: Any) -> bool:
        """Whether the outputs have rows of examples, and are not the same for all."""
        first = self.outputs[0].shape[0] if self.outputs[0].shape.rank else 1
        if isinstance(first, int) and isinstance(rows, int):
            return first >= rows and first % max(rows, 1) == 0
        return first != 1

    def takes_deltas(self, deltas: list[tf.Tensor | None], rows: Any) -> bool:
        """Takes the gradients of the outputs; False if the loss uses none of them."""
        self.deltas = [
            tf.zeros_like(output) if delta is None else tf.convert_to_tensor(delta)
            for output, delta in zip(self.outputs, deltas, strict=True)
        ]
        self.rows = rows
        return any(delta is not None for delta in deltas)

    def clipped_sums(
        self, tape: tf.GradientTape, factors: tf.Tensor
    ) -> list[tuple[int, tf.Tensor]]:
        """Index and gradient of each variable: rows times their factors."""
        scaled = []
        for delta in self.deltas:
            group = sizes_of(_grouped(delta, self.rows))[1]
            shape = [-1, *[1] * (delta.shape.rank - 1)]
            each = tf.reshape(tf.repeat(factors, group), shape)
            scaled.append(delta * tf.cast(each, delta.dtype))
        return indexed(self.indices, tape.gradient(self.outputs, self.copies, scaled))

    def closed_form(self) -> list[Factors] | None:
        """Factors of the gradient of each variable, or None."""
        inputs, delta = tf.nest.flatten(self.arguments)[0], self.deltas[0]
        inner = delta.shape[1:-1].num_elements()
        delta = _by_row(delta, self.rows)
        if _is_plain(self.layer, keras.layers.Embedding):
            tokens = _by_row(tf.cast(inputs, tf.int64)[..., None], self.rows)
            return [Factors(tokens[..., 0], delta, inner)]
        if not _is_plain(self.layer, keras.layers.Dense):
            return None
        kernel = Factors(_by_row(inputs, self.rows), delta, inner)
        bias = Factors(tf.ones_like(delta[..., :1]), delta, inner)
        return [kernel, bias][: len(self.indices)]

    def row_inputs(self) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Tensors among the arguments, and output gradients: [rows, group, ...]."""
        tensors = [a for a in tf.nest.flatten(self.arguments) if self._has_rows(a)]
        return (
            [_grouped(tensor, self.rows) for tensor in tensors],
            [_grouped(delta, self.rows) for delta in self.deltas],
        )

    def row_gradients(self, tensors, deltas):
        """Gradients of each row of a micro-batch, by running the layer for each."""
        if _is_plain(self.layer, keras.layers.Conv2D):
            return indexed(self.indices, self._of_convolution(tensors[0], deltas[0]))

        def of_row(row):
            inputs, row_deltas = iter(row[0]), row[1]
            args, kwargs = tf.nest.map_structure(
                lambda a: next(inputs) if self._has_rows(a) else a, self.arguments
            )
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(self.copies)
                with keras.StatelessScope(self.state):
                    outputs = tf.nest.flatten(self.layer(*args, **kwargs))
            return tape.gradient(
                outputs, self.copies, row_deltas, tf.UnconnectedGradients.ZERO
            )

        found = tf.vectorized_map(of_row, (tensors, deltas))
        return indexed(self.indices, found)

    def _of_convolution(self, inputs, deltas):
        """Gradients of a convolution's kernel and bias: patches^T D, of each row."""
        layer, shape, rows = self.layer, self.copies[0].shape, tf.shape(inputs)[0]
        patches = tf.image.extract_patches(
            tf.reshape(tf.cast(inputs, tf.float32), [-1, *inputs.shape[2:]]),
            sizes=[1, *shape[:2], 1],
            strides=[1, *layer.strides, 1],
            rates=[1, *layer.dilation_rate, 1],
            padding=layer.padding.upper(),
        )
        left = tf.reshape(patches, [rows, -1, patches.shape[-1]])
        right = tf.reshape(tf.cast(deltas, tf.float32), [rows, -1, shape[-1]])
        kernel = tf.matmul(left, right, transpose_a=True)
        kernel = tf.reshape(kernel, [-1, *shape])
        return [kernel, tf.reduce_sum(right, axis=1)][: len(self.indices)]

    def _has_rows(self, argument):
        """Whether an argument is a tensor with the rows of the outputs."""
        if not tf.is_tensor(argument) or not argument.shape.rank:
            return False
        sizes = {argument.shape[0], self.outputs[0].shape[0]}
        return len(sizes - {None}) < 2 and argument.shape[0] != 1 or len(sizes) == 1


def indexed(
    indices: Sequence[int], gradients: Sequence[tf.Tensor | None]
) -> list[tuple[int, tf.Tensor]]:
    """Pairs of indices and dense gradients, without those of unused variables."""
    pairs = zip(indices, gradients, strict=True)
    return [(i, tf.convert_to_tensor(g)) for i, g in pairs if g is not None]


def sizes_of(tensor: tf.Tensor) -> list[Any]:
    """Sizes of a tensor, as integers where they are known."""
    sizes = tf.shape(tensor)
    return [sizes[i] if size is None else size for i, size in enumerate(tensor.shape)]


def _grouped(tensor, rows):
    """The rows of a tensor that belong to each example: [rows, group, ...]."""
    first, *others = sizes_of(tensor)
    known = isinstance(first, int) and isinstance(rows, int)
    group = first // max(rows, 1) if known else first // tf.maximum(rows, 1)
    return tf.reshape(tensor, [rows, group, *others])


def _by_row(tensor, rows):
    """Vectors of each example: float32 [rows, time, size]."""
    _, group, *others, size = sizes_of(_grouped(tensor, rows))
    for other in others:
        group *= other
    tensor = tf.reshape(tensor, [rows, group, size])
    return tensor if tensor.dtype.is_integer else tf.cast(tensor, tf.float32)
