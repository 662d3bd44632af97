"""The interface of every tokenizer: text to ids and back, in Python and in graphs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from kgen.data.text_files import check_unicode
from kgen.files import replacing

_NOT_IN_GRAPH = (
    "Only char and byte tokenizers run in a graph. Received: a {} tokenizer. Encode "
    "and decode in Python."
)


class Tokenizer:
    """Maps text to token ids and back.

    Tokenizers of one kind and with an equal `config()` are equal.

    Attributes:
        kind: "char", "byte" or "bpe".
        vocab_size: Number of ids: they are 0 to vocab_size - 1.
        in_graph: Whether `encode_strings` and `decode_ids` do the same in TensorFlow
            operations, for a SavedModel.
    """

    kind: ClassVar[str]
    in_graph: ClassVar[bool]
    vocab_size: int

    _arguments: ClassVar[tuple[str, ...]] = ()  # of the constructor, as attributes

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 [time].

        Raises:
            TypeError: The text is not a str.
            ValueError: It has unknown characters or lone surrogates. The message names
                them and their indices.
        """
        check_text(text)
        return self._encode(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids.

        Negative ids are padding and have no text. Invalid UTF-8 becomes the replacement
        character U+FFFD.

        Args:
            ids: Whole numbers [time], below `vocab_size`.

        Raises:
            ValueError: The ids have another type, shape or range.
        """
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(
                "`ids` must be whole numbers in one dimension. Received: an array of "
                f"shape {array.shape} and type {array.dtype}. Decode the rows of a "
                "batch one by one."
            )
        array = array.astype(np.int64)
        if np.any(array >= self.vocab_size):
            raise ValueError(
                f"`ids` must be below vocab_size={self.vocab_size}. Received: "
                f"{array.max()}"
            )
        return self._decode(array[array >= 0])

    def encode_strings(self, strings: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of strings of UTF-8, in TensorFlow operations.

        An unknown character raises an InvalidArgumentError that names it. So does
        invalid UTF-8 for "char"; "byte" encodes it.

        Shapes:
            strings: [n] -> ragged int32 [n, None]

        Raises:
            NotImplementedError: The tokenizer is not `in_graph`.
        """
        return self._encode_strings(tf.convert_to_tensor(strings, tf.string))

    def decode_ids(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns the strings of ids, in TensorFlow operations.

        Negative ids are padding and have no text. An id from `vocab_size` on raises an
        InvalidArgumentError. Bytes are not changed, UTF-8 or not.

        Shapes:
            ids: int32 or int64 [n, time] -> strings [n]

        Raises:
            NotImplementedError: The tokenizer is not `in_graph`.
        """
        ids = tf.convert_to_tensor(ids)
        message = f"`ids` must be below vocab_size={self.vocab_size}. Received:"
        below = tf.reduce_all(ids < self.vocab_size)
        check = tf.debugging.Assert(below, [message, tf.reduce_max(ids)])
        with tf.control_dependencies([check]):
            ids = tf.identity(ids)
        return self._decode_ragged(tf.ragged.boolean_mask(ids, ids >= 0))

    def config(self) -> dict[str, Any]:
        """Returns plain values for `tokenizer_from_config`."""
        arguments = {name: getattr(self, name) for name in self._arguments}
        return {"kind": self.kind, **arguments}

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json.

        The `tokenizers` library, and programs built on it, give the same ids with it.
        """
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a tokenizer.json; see `to_json`.

        Args:
            path: The file to write, in a folder that exists.
        """
        with replacing(path) as file:
            file.write(self.to_json().encode())

    def _encode(self, text: str) -> np.ndarray:
        raise NotImplementedError

    def _decode(self, ids: np.ndarray) -> str:
        raise NotImplementedError

    def _encode_strings(self, strings: tf.Tensor) -> tf.RaggedTensor:
        raise NotImplementedError(_NOT_IN_GRAPH.format(self.kind))

    def _decode_ragged(self, ids: tf.RaggedTensor) -> tf.Tensor:
        raise NotImplementedError(_NOT_IN_GRAPH.format(self.kind))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size:,} ids)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(json.dumps(self.config()))


def check_text(text: str) -> None:
    """Refuses anything but a str without lone surrogates."""
    if not isinstance(text, str):
        raise TypeError(f"A text must be a str. Received: {type(text).__name__}")
    check_unicode(text)
