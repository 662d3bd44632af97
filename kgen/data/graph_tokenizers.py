"""Tokenizers in TensorFlow operations, for a SavedModel that takes and returns text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kgen.data.tokenizer_interface import Tokenizer
from kgen.data.tokenizers import UNKNOWN, BPETokenizer, ByteTokenizer, CharTokenizer

_MARK, _END = b"\xfe", b"\xff"  # no bytes of UTF-8
_SPACE = r"\t-\r \x{85}\p{Z}"
# With those of Unicode 15.1 and 16, which TensorFlow's RE2 does not know.
_LETTER = (
    r"\p{L}\x{1C89}\x{1C8A}\x{A7CB}-\x{A7CD}\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}"
    r"\x{10D4A}-\x{10D65}\x{10D6F}-\x{10D85}\x{10EC2}-\x{10EC4}\x{11380}-\x{11389}"
    r"\x{1138B}\x{1138E}\x{11390}-\x{113B5}\x{113B7}\x{113D1}\x{113D3}"
    r"\x{11BC0}-\x{11BE0}\x{13460}-\x{143FA}\x{16100}-\x{1611D}\x{16D40}-\x{16D6C}"
    r"\x{18CFF}\x{1E5D0}-\x{1E5ED}\x{1E5F0}\x{2EBF0}-\x{2EE5D}"
)
_NUMBER = (
    r"\p{N}\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}"
    r"\x{16130}-\x{16139}\x{16D70}-\x{16D79}\x{1CCF0}-\x{1CCF9}\x{1E5F1}-\x{1E5FA}"
)
_LAST_OF_SPACES = rf"([{_SPACE}]+)([{_SPACE}][^{_SPACE}])"
_WORD = (
    rf"'(?:[sdmt]|ll|ve|re)| ?[{_LETTER}]+| ?[{_NUMBER}]+"
    rf"| ?[^{_SPACE}{_LETTER}{_NUMBER}]+|[{_SPACE}]+"
)
_LONG_WORD = 32  # bytes

# Models take tokenizers as they are: Keras saves and loads them. Not where they are
# defined, which does not import Keras.
for _class in (CharTokenizer, ByteTokenizer, BPETokenizer):
    keras.saving.register_keras_serializable(package="kgen")(_class)


def runs_in_graph(tokenizer: Tokenizer) -> bool:
    """Whether there are operations for tokenizers of this class."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.merges is not None
    return type(tokenizer) in _OPERATIONS


def encode_strings(tokenizer: Tokenizer, strings: tf.Tensor) -> tf.RaggedTensor:
    """Returns the ids of strings of UTF-8.

    An unknown character raises an InvalidArgumentError that names it. So does invalid
    UTF-8 for characters; bytes encode it.

    Shapes:
        strings: [n] -> ragged int32 [n, None]

    Raises:
        NotImplementedError: The tokenizer does not run in a graph.
    """
    encode, _ = _operations(tokenizer)
    return encode(tokenizer, tf.convert_to_tensor(strings, tf.string))


def decode_ids(tokenizer: Tokenizer, ids: tf.Tensor) -> tf.Tensor:
    """Returns the strings of ids.

    Negative ids are padding; these and special tokens have no text. An id from
    `vocab_size` on raises an InvalidArgumentError. Bytes are not changed, UTF-8 or not.

    Shapes:
        ids: int32 or int64 [n, time] -> strings [n]

    Raises:
        NotImplementedError: The tokenizer does not run in a graph.
    """
    _, decode = _operations(tokenizer)
    ids = tf.convert_to_tensor(ids)
    message = f"`ids` must be below vocab_size={tokenizer.vocab_size}. Received:"
    below = tf.reduce_all(ids < tokenizer.vocab_size)
    check = tf.debugging.Assert(below, [message, tf.reduce_max(ids)])
    with tf.control_dependencies([check]):
        shown = ids >= 0
    for special in tokenizer.special_ids.values():
        shown &= ids != special
    return decode(tokenizer, tf.ragged.boolean_mask(ids, shown))


def _operations(tokenizer):
    if not runs_in_graph(tokenizer):
        raise NotImplementedError(
            "A tokenizer in a graph must be of characters, of bytes, or a BPE that "
            f"splits words as GPT-2 does. Received: {tokenizer}. Encode in Python."
        )
    return _OPERATIONS[type(tokenizer)]


def _encode_characters(tokenizer, strings):
    points = tf.strings.unicode_decode(strings, "UTF-8", errors="strict")
    # Searched, not looked up: a table would be a resource to track and initialise.
    known_points = tf.constant(tokenizer.points)
    ids = tf.searchsorted(known_points, points.values)
    nearest = tf.gather(known_points, tf.minimum(ids, len(tokenizer.points) - 1))
    unknown = tf.boolean_mask(points.values, nearest != points.values)
    received = tf.strings.unicode_encode(unknown[:10], "UTF-8")
    message = UNKNOWN.format(len(tokenizer.points))
    check = tf.debugging.Assert(tf.equal(tf.size(unknown), 0), [message, received])
    with tf.control_dependencies([check]):
        return points.with_values(tf.identity(ids))


def _decode_characters(tokenizer, ids):
    points = tf.gather(tf.constant(tokenizer.points), ids)
    return tf.strings.unicode_encode(points, "UTF-8")


def _encode_bytes(tokenizer, strings):
    single = tf.strings.bytes_split(strings)  # ragged [n, None], of one byte each
    numbers = tf.io.decode_raw(single.values, tf.uint8)  # [bytes, 1]
    return single.with_values(tf.cast(tf.reshape(numbers, [-1]), tf.int32))


def _decode_bytes(tokenizer, ids):
    single = tf.constant([bytes([number]) for number in range(256)])
    return tf.strings.reduce_join(tf.gather(single, ids), axis=1)


def _encode_bpe(tokenizer, strings):
    strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="strict")
    # GPT-2's words. RE2 cannot look ahead: a mark before the last of several spaces
    # ends the run where a word follows.
    marked = tf.strings.regex_replace(strings, _LAST_OF_SPACES, rb"\1" + _MARK + rb"\2")
    ended = tf.strings.regex_replace(marked, _WORD, rb"\0" + _END)
    words = tf.strings.split(ended, _END)
    words = tf.ragged.boolean_mask(words, tf.strings.length(words) > 0)
    is_marked = tf.strings.substr(words.values, 0, 1) == _MARK
    flat = tf.where(is_marked, tf.strings.substr(words.values, 1, -1), words.values)
    distinct, index = tf.unique(flat)
    # Few words are long: a matrix of all of them would be as wide as the longest.
    is_long = tf.cast(tf.strings.length(distinct) > _LONG_WORD, tf.int32)
    parts = tf.dynamic_partition(distinct, is_long, 2)
    order = tf.dynamic_partition(tf.range(tf.size(distinct)), is_long, 2)
    table = _MergeTable(tokenizer.merges)
    tokens = tf.concat([table.ids_of(part) for part in parts], axis=0)
    tokens = tf.gather(tokens, tf.math.invert_permutation(tf.concat(order, axis=0)))
    return words.with_values(tf.gather(tokens, index)).merge_dims(1, 2)


class _MergeTable:
    """Merges sorted by their two tokens, as one number, to be searched."""

    def __init__(self, parts):
        self.size = len(parts.texts)
        left, right, new = parts.merges.astype(np.int64).T
        pairs = left * self.size + right
        order = np.argsort(pairs, kind="stable")
        self.none = len(order)  # rank of a pair that is not merged
        self.keys = tf.constant(np.append(pairs[order], self.size**2))
        self.ranks = tf.constant(np.append(order, self.none).astype(np.int32))
        self.new = tf.constant(np.append(new, -1).astype(np.int32))
        self.byte_ids = tf.constant(parts.byte_ids)

    def ids_of(self, words):
        """Ids of words, by one merge after the other: ragged int32 [words, None]."""
        lengths = tf.strings.length(words)
        width = tf.maximum(tf.reduce_max(tf.concat([lengths, [0]], 0)), 2)
        numbers = tf.io.decode_raw(words, tf.uint8, fixed_length=width)
        ids = tf.gather(self.byte_ids, tf.cast(numbers, tf.int32))
        columns = tf.range(width)[None]
        ids = tf.where(columns < lengths[:, None], ids, -1)

        def merge(ids, _):
            rank = self._ranks_of_pairs(ids)
            first = tf.argmin(rank, axis=1, output_type=tf.int32)[:, None]
            best = tf.reduce_min(rank, axis=1, keepdims=True)
            is_merged = best < self.none
            shifted = tf.pad(ids[:, 1:], [[0, 0], [0, 1]], constant_values=-1)
            others = tf.where(columns < first, ids, shifted)
            merged = tf.where(columns == first, tf.gather(self.new, best), others)
            return tf.where(is_merged, merged, ids), tf.reduce_any(is_merged)

        ids, _ = tf.while_loop(
            lambda _, is_merged: is_merged, merge, (ids, tf.size(words) > 0)
        )
        return tf.ragged.boolean_mask(ids, ids >= 0)

    def _ranks_of_pairs(self, ids):
        left, right = tf.cast(ids[:, :-1], tf.int64), tf.cast(ids[:, 1:], tf.int64)
        no_pair = tf.cast(self.size**2, tf.int64)
        pairs = tf.where(right < 0, no_pair, left * self.size + right)
        flat = tf.reshape(pairs, [-1])
        found = tf.searchsorted(self.keys, flat)
        known = tf.gather(self.keys, found) == flat
        rank = tf.where(known, tf.gather(self.ranks, found), self.none)
        return tf.reshape(rank, tf.shape(pairs))


def _decode_bpe(tokenizer, ids):
    return tf.strings.reduce_join(
        tf.gather(tf.constant(tokenizer.merges.texts), ids), axis=1
    )


Operation = Callable[[Any, Any], Any]
_OPERATIONS: dict[type[Tokenizer], tuple[Operation, Operation]] = {
    CharTokenizer: (_encode_characters, _decode_characters),
    ByteTokenizer: (_encode_bytes, _decode_bytes),
    BPETokenizer: (_encode_bpe, _decode_bpe),
}
