"""Tokenizers of characters and bytes; any tokenizer of its config or its file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.data.bpe_tokenizer import BYTE_SYMBOLS, BPETokenizer
from kgen.data.tokenizer_interface import Tokenizer, check_text

_UNKNOWN = "Each character must be one of the {} of the tokenizer. Received:"


class CharTokenizer(Tokenizer):
    """One id for each character (Unicode code point) of a given set.

    Args:
        characters: The characters, each once, ascending by code point. The id of a
            character is its index.

    Raises:
        ValueError: There are none, they are not ascending, or one is a surrogate.

    Example:
        >>> tokenizer = kgen.data.CharTokenizer("abc")
        >>> tokenizer.encode("cab")
        array([2, 0, 1], dtype=int32)
    """

    kind = "char"
    in_graph = True
    _arguments = ("characters",)

    def __init__(self, characters: str):
        check_text(characters)
        points = _code_points(characters)
        if not len(points) or np.any(np.diff(points) <= 0):
            raise ValueError(
                "`characters` must be distinct, ascending by code point, and at least "
                f"one. Received: {characters[:100]!r}. Try CharTokenizer.of_text, "
                "which takes the characters of any text."
            )
        self.characters = characters
        self.vocab_size = len(points)
        self._points = points
        # An entry for each code point up to the next after the last.
        self._ids = np.full(points[-1] + 2, -1, np.int32)
        self._ids[points] = np.arange(len(points))

    @classmethod
    def of_text(cls, text: str) -> CharTokenizer:
        """Returns the tokenizer of all characters of a text."""
        return cls("".join(sorted(set(text))))

    def _encode(self, text: str) -> np.ndarray:
        ids = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        places = np.flatnonzero(ids < 0)
        if len(places):
            raise ValueError(
                f"{_UNKNOWN.format(self.vocab_size)} {_at_places(text, places)}. Leave "
                "them out, or make a tokenizer of a text that has them with "
                "CharTokenizer.of_text."
            )
        return ids

    def _decode(self, ids: np.ndarray) -> str:
        return self._points[ids].astype("<i4").tobytes().decode("utf-32-le")

    def _encode_strings(self, strings: tf.Tensor) -> tf.RaggedTensor:
        points = tf.strings.unicode_decode(strings, "UTF-8", errors="strict")
        # Searched, not looked up: a table would be a resource to track and initialise.
        known_points = tf.constant(self._points)
        ids = tf.searchsorted(known_points, points.values)
        nearest = tf.gather(known_points, tf.minimum(ids, self.vocab_size - 1))
        unknown = tf.boolean_mask(points.values, nearest != points.values)
        received = tf.strings.unicode_encode(unknown[:10], "UTF-8")
        message = _UNKNOWN.format(self.vocab_size)
        check = tf.debugging.Assert(tf.equal(tf.size(unknown), 0), [message, received])
        with tf.control_dependencies([check]):
            return points.with_values(tf.identity(ids))

    def _decode_ragged(self, ids: tf.RaggedTensor) -> tf.Tensor:
        points = tf.gather(tf.constant(self._points), ids)
        return tf.strings.unicode_encode(points, "UTF-8")

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json; see `Tokenizer.to_json`."""
        model = {
            "type": "WordLevel",
            "vocab": {sign: index for index, sign in enumerate(self.characters)},
            # Not in the vocabulary: an unknown character is an error there as well.
            "unk_token": "<unknown>",
        }
        split = {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},
            "behavior": "Isolated",
            "invert": False,
        }
        fuse = {"type": "Fuse"}
        return _tokenizer_json(model=model, pre_tokenizer=split, decoder=fuse)


class ByteTokenizer(Tokenizer):
    """256 ids: the bytes of a text in UTF-8.

    `decode_ids` returns the bytes unchanged, also if they are no UTF-8.

    Example:
        >>> kgen.data.ByteTokenizer().encode("é")
        array([195, 169], dtype=int32)
    """

    kind = "byte"
    in_graph = True
    vocab_size = 256

    def _encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return ids.astype(np.uint8).tobytes().decode(errors="replace")

    def _encode_strings(self, strings: tf.Tensor) -> tf.RaggedTensor:
        single = tf.strings.bytes_split(strings)  # ragged [n, None], of one byte each
        numbers = tf.io.decode_raw(single.values, tf.uint8)  # [bytes, 1]
        return single.with_values(tf.cast(tf.reshape(numbers, [-1]), tf.int32))

    def _decode_ragged(self, ids: tf.RaggedTensor) -> tf.Tensor:
        single = tf.constant([bytes([number]) for number in range(256)])
        return tf.strings.reduce_join(tf.gather(single, ids), axis=1)

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json; see `Tokenizer.to_json`."""
        vocab = {symbol: byte for byte, symbol in sorted(BYTE_SYMBOLS.items())}
        level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        }
        model = {"type": "BPE", "vocab": vocab, "merges": []}
        return _tokenizer_json(model=model, pre_tokenizer=level, decoder=level)


_CLASSES: list[type[Tokenizer]] = [CharTokenizer, ByteTokenizer, BPETokenizer]
KINDS = {one.kind: one for one in _CLASSES}


def tokenizer_from_config(config: dict[str, Any]) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.config` describes.

    Raises:
        ImportError: The kind is "bpe", and `tokenizers` is not installed.
        ValueError: An unknown kind, or values that do not fit.
    """
    values = dict(config)
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(
            f"A tokenizer's `kind` must be one of {', '.join(KINDS)}. Received: "
            f"kind={kind!r}"
        )
    try:
        return KINDS[kind](**values)
    except TypeError as error:
        raise ValueError(
            f"The values of a {kind} tokenizer must come from its `config()`. "
            f"Received: {', '.join(map(str, config))} ({error})"
        ) from error


def tokenizer_from_json(tokenizer_json: str) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, written by `to_json` or `save`.

    Any tokenizer.json of a BPE on bytes is accepted; see `BPETokenizer`.

    Raises:
        ImportError: It is a BPE, and the `tokenizers` library is not installed.
        ValueError: It is no tokenizer.json.
    """
    try:
        signs = "".join(json.loads(tokenizer_json)["model"]["vocab"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "`tokenizer_json` must be the text of a tokenizer.json. Received: "
            f"{str(tokenizer_json)[:100]!r}"
        ) from error
    for tokenizer in (CharTokenizer.of_text(signs or " "), ByteTokenizer()):
        if tokenizer.to_json() == tokenizer_json:
            return tokenizer
    return BPETokenizer(tokenizer_json)


def _tokenizer_json(**parts: Any) -> str:
    """Returns a tokenizer.json of these parts, and without the others."""
    others = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor"])
    whole = {"version": "1.0", "added_tokens": [], **others, **parts}
    return json.dumps(whole, ensure_ascii=False)


def _code_points(text: str) -> np.ndarray:
    """Returns int32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), "<i4").astype(np.int32, copy=False)


def _at_places(text: str, places: np.ndarray) -> str:
    """Names the first unknown characters, each with its first indices."""
    found: dict[str, list[str]] = {}
    for place in places.tolist():
        found.setdefault(text[place], []).append(str(place))
    named = [
        f"{sign!r} at {', '.join(at[:3])}{', ...' if len(at) > 3 else ''}"
        for sign, at in list(found.items())[:5]
    ]
    more = f" and {len(found) - 5} others" if len(found) > 5 else ""
    return "; ".join(named) + more
