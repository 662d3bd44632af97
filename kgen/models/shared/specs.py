"""Specifications of inputs: type, shape, range, examples and the way into a network.

A batch is a dict of standard names, each with a spec, and so are the inputs of a
signature. A spec states its rule once. Arrays are checked whole before the first step;
datasets and exports carry assertions of the same rule in their graphs. Nothing is
checked inside a training step, where XLA drops assertions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.data.graph_tokenizers import encode_strings


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """Numbers of one type, in a range, with a shape for each row.

    Attributes:
        shape: Shape of a row; None for a dimension of any size.
        dtype: Type of the tensor in a signature. Float specs take integers, too.
        low: Smallest value, or None.
        high: Largest value, or None.
        above: Whether `low` itself is excluded.
        optional: Whether a batch may lack it.
        default: Value of each row where a call gives none; None: it must be given.
    """

    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None
    above: bool = False
    optional: bool = False
    default: float | None = None

    @property
    def is_float(self) -> bool:
        """Whether the values are floating-point numbers."""
        return tf.as_dtype(self.dtype).is_floating

    @property
    def values_rule(self) -> str:
        """Values and range in words."""
        noun = "finite numbers" if self.is_float else "integers"
        if self.high is not None:
            return f"{noun} in {'(' if self.above else '['}{self.low}, {self.high}]"
        if self.low is not None:
            return f"{noun} {'above' if self.above else 'from'} {self.low}"
        return noun

    @property
    def rule(self) -> str:
        """Values, range and shape in words, for error messages."""
        sizes = ["any" if size is None else str(size) for size in self.shape]
        return f"{self.values_rule} of the shape [{', '.join(['rows', *sizes])}]"

    def tensor_spec(self, name: str | None = None) -> tf.TensorSpec:
        """Type of the tensor in the graph of a signature, and its name there."""
        return tf.TensorSpec([None, *self.shape], self.dtype, name)

    def check(self, name: str, values: Any, num_rows: int | None = None) -> Any:
        """Returns values as an array, once all of them are found valid.

        Args:
            name: Name of the input, for the message.
            values: Anything that NumPy makes an array of.
            num_rows: Required number of rows; None for any.

        Raises:
            ValueError: Wrong type or shape, or a value out of range.
        """
        if isinstance(values, range):
            values = list(values)
        if isinstance(values, tf.Tensor) and values.dtype == tf.bfloat16:
            values = tf.cast(values, tf.float32)
        array = np.asarray(values)
        if not array.size:
            array = array.astype(self.dtype)  # An empty list has no type of its own.
        self.check_static(name, array.dtype, array.shape)
        if num_rows is not None and len(array) != num_rows:
            self.refuse(name, f"{len(array)} rows, where {num_rows} are needed")
        if self.is_float and array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype(self.dtype, copy=False)  # Its own limits count.
        self.assertions(name, array)
        return array

    def assert_in_graph(self, name: str, tensor: Any) -> Any:
        """Returns the tensor behind an assertion that its values are valid.

        Raises:
            ValueError: While tracing: wrong type or shape.
        """
        tensor = tf.convert_to_tensor(tensor)
        self.check_static(name, tensor.dtype, tensor.shape)
        with tf.control_dependencies(self.assertions(name, tensor)):
            return tf.identity(tensor)

    def assertions(self, name: str, values: Any) -> list[Any]:
        """Asserts that an array, or a tensor in a graph, holds valid values."""
        is_valid = self.is_valid(values)
        sentence = self.sentence(name, "values from {} to {}")
        return [] if is_valid is True else [assertion(is_valid, sentence, values)]

    def is_valid(self, values: Any) -> Any:
        """Whether each element is in range, which NaN never is; or True for all."""
        if tf.is_tensor(values) and values.dtype.is_integer:
            values = tf.cast(values, tf.float32 if self.is_float else tf.int64)
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if not self.is_float:  # Integers have no infinity to compare with.
            limits = np.iinfo(self.dtype)
            low, high = max(low, limits.min), min(high, limits.max)
        from_low = values > low if self.above or low == -math.inf else values >= low
        return from_low & (values < high if high == math.inf else values <= high)

    def check_static(self, name: str, dtype: Any, shape: Any) -> None:
        """Raises a ValueError where no values of this type and shape are valid."""
        try:
            dtype, is_taken = tf.as_dtype(dtype).name, self.takes(tf.as_dtype(dtype))
        except TypeError:  # An array of objects, such as None.
            is_taken = False
        shape = tf.TensorShape(shape)
        if not is_taken or not shape.is_compatible_with([None, *self.shape]):
            self.refuse(name, f"{dtype} of the shape {shape}")

    def takes(self, dtype: tf.DType) -> bool:
        """Whether values of this type can be valid."""
        return dtype.is_integer or (self.is_float and dtype.is_floating)

    def cast(self, array: np.ndarray) -> np.ndarray:
        """Returns checked values in the type of the signature's tensor."""
        return array.astype(self.dtype)

    def to_network(self, tensor: Any) -> Any:
        """Returns a checked tensor in the form that networks take."""
        return tf.cast(tensor, self.dtype) if self.is_float else tensor

    def example(self, rng: np.random.Generator, num_rows: int) -> np.ndarray:
        """Returns valid random rows, to verify an export with."""
        shape = (num_rows, *(8 if size is None else size for size in self.shape))
        low, high = self.low or 0, 9 if self.high is None else self.high
        if not self.is_float and not self.shape:  # such as seeds and labels
            return int(low) + np.arange(num_rows) % (int(high - low) + 1)
        if not self.is_float:
            return rng.integers(int(low), int(high) + 1, shape)
        if self.high is None:
            return abs(rng.standard_normal(shape))
        return rng.uniform(low, high, shape)

    def describe(self) -> dict[str, Any]:
        """Returns type, shape, range and default as JSON values, for clients."""
        fields = ("dtype", "shape", "low", "high", "above", "default")
        values = {name: getattr(self, name) for name in fields}
        return {"rule": self.rule} | {
            name: value
            for name, value in values.items()
            if value is not None and value is not False  # 0 is a limit.
        }

    def sentence(self, name: str, received: str) -> str:
        """The error message of this spec: rule, what was received, the way out."""
        return f"`{name}` must be {self.rule}. Received: {received}."

    def refuse(self, name: str, received: str) -> None:
        """Raises the ValueError of this spec."""
        raise ValueError(self.sentence(name, received))


class ImageSpec(InputSpec):
    """Images: uint8, or floats in [0, 1]; networks and signatures take floats.

    Args:
        height: Pixels, or None for any.
        width: Pixels, or None for any.
        channels: Channels of a pixel.
    """

    def __init__(self, height: int | None, width: int | None, channels: int):
        super().__init__(shape=(height, width, channels), low=0, high=1)

    @property
    def values_rule(self) -> str:
        """Values and range in words."""
        return "uint8, or floats in [0, 1],"

    def takes(self, dtype: tf.DType) -> bool:
        """Whether this is uint8 or a float type."""
        return dtype == tf.uint8 or dtype.is_floating

    def is_valid(self, values: Any) -> Any:
        """Whether each element is in range: every uint8 is."""
        return True if values.dtype == np.uint8 else super().is_valid(values)

    def cast(self, array: np.ndarray) -> np.ndarray:
        """Maps 0..255 to [0, 1]."""
        scale = 255.0 if array.dtype == np.uint8 else 1.0
        return array.astype(np.float32) / np.float32(scale)

    def to_network(self, tensor: tf.Tensor) -> tf.Tensor:
        """Maps 0..255 to [0, 1], as float32."""
        images = tf.cast(tensor, tf.float32)
        return images / 255.0 if tensor.dtype == tf.uint8 else images

    def sentence(self, name: str, received: str) -> str:
        """The error message, with the conversion of other integers."""
        text = super().sentence(name, received)
        if "int" in received and "uint8" not in received:
            text += " Scale the values: images.astype('uint8') where they are 0 to 255."
        return text


class ClassSpec(InputSpec):
    """Labels of classes; networks take them one-hot.

    Args:
        num_classes: Number of classes; None for a model without classes, which takes
            no notice of labels in a batch.
    """

    def __init__(self, num_classes: int | None):
        high = None if num_classes is None else num_classes - 1
        super().__init__(dtype="int32", low=0, high=high, optional=num_classes is None)

    @property
    def rule(self) -> str:
        """Values, range and shape in words."""
        return f"classes, {super().rule}, not one-hot"

    def assert_in_graph(self, name: str, tensor: Any) -> Any:
        """Returns labels behind the assertion; unused labels as they are."""
        return tensor if self.high is None else super().assert_in_graph(name, tensor)

    def to_network(self, tensor: tf.Tensor) -> tf.Tensor | None:
        """One-hot labels, float32 [rows, num_classes]; None without classes."""
        if self.high is None:
            return None
        return tf.one_hot(tf.cast(tensor, tf.int32), int(self.high) + 1)


@dataclasses.dataclass(frozen=True)
class TokenSpec(InputSpec):
    """Tokens of texts, padded with -1 at the end of a row.

    Attributes:
        min_tokens: Fewest tokens of a row.
        max_tokens: Most tokens of a row, or None.
    """

    shape: tuple[int | None, ...] = (None,)
    dtype: str = "int32"
    low: float | None = -1
    min_tokens: int = 0
    max_tokens: int | None = None

    @property
    def rule(self) -> str:
        """Values, range and shape in words."""
        return (
            f"integers in [0, {self.high}] of the shape [rows, any], padded with -1 at "
            f"the end of a row, {_numbers(self.min_tokens, self.max_tokens)} tokens in "
            "each"
        )

    def assertions(self, name: str, values: Any) -> list[Any]:
        """Asserts the range of tokens, and their number in each row."""
        return super().assertions(name, values) + _length_assertions(self, name, values)

    def to_network(self, tensor: tf.Tensor) -> tf.Tensor:
        """Tokens as int32."""
        return tf.cast(tensor, tf.int32)


@dataclasses.dataclass(frozen=True)
class TextSpec(InputSpec):
    """Texts that the graph tokenizes.

    Attributes:
        min_tokens: Fewest tokens of a text.
        max_tokens: Most tokens of a text, or None.
    """

    dtype: str = "string"
    min_tokens: int = 1
    max_tokens: int | None = None

    @property
    def rule(self) -> str:
        """Values and range in words."""
        return f"texts of {_numbers(self.min_tokens, self.max_tokens)} tokens"

    def encode(self, name: str, texts: tf.Tensor, tokenizer: Any) -> tf.Tensor:
        """Tokens of texts, padded with -1, behind an assertion of their number."""
        tokens = encode_strings(tokenizer, texts).to_tensor(-1)
        with tf.control_dependencies(_length_assertions(self, name, tokens)):
            return tf.identity(tokens)

    def check(self, name: str, values: Any, num_rows: int | None = None) -> Any:
        """Returns texts as an array of bytes; the graph asserts the rule."""
        return np.array([text.encode() for text in values], object)

    def assert_in_graph(self, name: str, tensor: Any) -> Any:
        """Returns the texts: `encode` asserts the rule."""
        return tensor

    def cast(self, array: np.ndarray) -> np.ndarray:
        """Returns the texts as they are."""
        return array


def _numbers(low: int, high: int | None) -> str:
    return f"{low} or more" if high is None else f"{low} to {high}"


def _length_assertions(spec: Any, name: str, tokens: Any) -> list[Any]:
    """Asserts that rows hold from `min_tokens` to `max_tokens` tokens."""
    if not spec.min_tokens and spec.max_tokens is None:
        return []
    lengths = tf.math.count_nonzero(tokens >= 0, axis=1)
    limits = InputSpec((), "int64", spec.min_tokens, spec.max_tokens)
    sentence = spec.sentence(name, "rows of {} to {} tokens")
    return [assertion(limits.is_valid(lengths), sentence, lengths)]


class StateSpec(InputSpec):
    """State that another signature returned, of any type: not checked for values."""

    def takes(self, dtype: tf.DType) -> bool:
        """Whether this is the type of the state."""
        return dtype == self.dtype

    def is_valid(self, values: Any) -> Any:
        """Every value is valid."""
        return True


class MaskSpec(InputSpec):
    """Loss mask of positions, bool, or numbers from 0 to 1: optional."""

    def __init__(self) -> None:
        super().__init__((None,), low=0, high=1, optional=True)

    def takes(self, dtype: tf.DType) -> bool:
        """Whether this is bool or a number type."""
        return dtype.is_bool or super().takes(dtype)

    def check(self, name: str, values: Any, num_rows: int | None = None) -> Any:
        """Returns marks as numbers, once all of them are found valid."""
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == bool else array
        return super().check(name, array, num_rows)

    def assert_in_graph(self, name: str, tensor: Any) -> Any:
        """Returns marks as float32, behind the assertion."""
        return super().assert_in_graph(name, tf.cast(tensor, tf.float32))


class ItemSpec(InputSpec):
    """Interactions of users: positions of items, ragged, each at most once a user.

    Args:
        num_items: Number of items.
        optional: Whether a batch may lack them.
    """

    def __init__(self, num_items: int, optional: bool = False):
        super().__init__((None,), "int32", 0, num_items - 1, optional=optional)

    @property
    def rule(self) -> str:
        """Values, range and shape in words."""
        return (
            "a RaggedTensor of the shape [rows, None]: the positions of each user's "
            f"items, integers in [0, {self.high}], none twice"
        )

    def check(self, name: str, values: Any, num_rows: int | None = None) -> Any:
        """Returns a ragged tensor, once all of its items are found valid."""
        self.assert_in_graph(name, values)
        if num_rows is not None and values.nrows() != num_rows:
            self.refuse(name, f"{values.nrows()} rows, where {num_rows} are needed")
        return values

    def assert_in_graph(self, name: str, tensor: Any) -> Any:
        """Returns the ragged tensor behind assertions of range and uniqueness."""
        if not isinstance(tensor, tf.RaggedTensor) or tensor.shape.rank != 2:
            self.refuse(name, f"{type(tensor).__name__} {getattr(tensor, 'shape', '')}")
        flat = super().assert_in_graph(name, tensor.values[:, None])[:, 0]
        sentence = self.sentence(name, "an item twice in a row")
        with tf.control_dependencies([assertion(_all_different(tensor), sentence)]):
            return tensor.with_values(tf.identity(flat))


def _all_different(items: tf.RaggedTensor) -> tf.Tensor:
    """Whether no row holds an item twice."""
    values, splits = items.values, tf.cast(items.row_splits, tf.int64)
    falls = tf.where(values[1:] <= values[:-1])[:, 0] + 1

    def no_pair_twice():
        rows = tf.searchsorted(splits, tf.range(splits[-1]), "right", tf.int64)
        pairs = tf.cast(values, tf.int64) * tf.size(splits, tf.int64) + rows
        return tf.size(tf.unique(pairs)[0]) == tf.size(pairs)

    # Where items fall at the starts of rows alone, each row is sorted: the usual case.
    starts = tf.gather(splits, tf.searchsorted(splits, falls))
    return tf.cond(tf.reduce_all(starts == falls), lambda: True, no_pair_twice)


def assertion(is_valid: Any, sentence: str, values: Any = None) -> Any:
    """Asserts that all are valid: by an operation in a graph, and otherwise at once.

    Args:
        is_valid: Bools of any shape.
        sentence: Message with places for the lowest and the highest of `values`.
        values: Numbers of any shape; None for a message without places.

    Raises:
        ValueError: Not all are valid; in a graph an InvalidArgumentError when it runs.
    """
    all_valid = tf.reduce_all(is_valid)
    if tf.executing_eagerly() and all_valid:
        return None
    extremes = () if values is None else (tf.reduce_min(values), tf.reduce_max(values))
    message = tf.strings.format(sentence, extremes)
    if tf.executing_eagerly():
        raise ValueError(message.numpy().decode())
    return tf.debugging.Assert(all_valid, [message])
