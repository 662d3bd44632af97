"""Tokenizers: text to ids and back, in Python and in TensorFlow graphs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from kgen.data.text_files import check_unicode
from kgen.files import replacing

# A byte-level vocabulary writes each byte as one printable character: itself where
# Latin-1 prints it, and else the next one from 256 on (Radford et al., 2019).
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTED))
_BYTE_SYMBOLS = {byte: chr(byte) for byte in _PRINTED} | {
    byte: chr(256 + place) for place, byte in enumerate(_OTHERS)
}
# A tokenizer that decodes this decodes any text: all lengths of UTF-8, and spaces.
_PROBE = "a B\n\n  c\r\té\u2028☃😀 "

# The library needs 150 bytes of memory and more for each byte of a call, so it gets a
# long text in pieces. They end before a single space: every way to split words splits
# there, and so the ids do not change.
_PIECE = re.compile(r"(?s).{4096,}?\S(?= \S)|.+")
_OVER_AN_END = re.compile(r"[^ĊĠĉč ][Ġ ]")  # no newline, space, tab or \r, then space

_UNKNOWN = "Each character must be one of the {} of the tokenizer. Received:"
_NOT_IN_GRAPH = (
    "Only char and byte tokenizers run in a graph. Received: a {} tokenizer. Encode "
    "and decode in Python."
)

_MIN_COUNT = 2  # occurrences of a pair of symbols that becomes a token


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

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 [time].

        Raises:
            TypeError: The text is not a str.
            ValueError: It has unknown characters or lone surrogates. The message names
                them and their indices.
        """
        _check_text(text)
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
        check = tf.debugging.Assert(
            tf.reduce_all(ids < self.vocab_size), [message, tf.reduce_max(ids)]
        )
        with tf.control_dependencies([check]):
            ids = tf.identity(ids)
        return self._decode_ragged(tf.ragged.boolean_mask(ids, ids >= 0))

    def config(self) -> dict[str, Any]:
        """Returns plain values for `tokenizer_from_config`."""
        raise NotImplementedError

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

    def __init__(self, characters: str):
        _check_text(characters)
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

    def config(self) -> dict[str, Any]:
        """Returns plain values; see `Tokenizer.config`."""
        return {"kind": self.kind, "characters": self.characters}

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
        return _tokenizer_json(model, split, {"type": "Fuse"})


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

    def config(self) -> dict[str, Any]:
        """Returns plain values; see `Tokenizer.config`."""
        return {"kind": self.kind}

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json; see `Tokenizer.to_json`."""
        vocab = {symbol: byte for byte, symbol in sorted(_BYTE_SYMBOLS.items())}
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        }
        model = {"type": "BPE", "vocab": vocab, "merges": []}
        return _tokenizer_json(model, byte_level, byte_level)


class BPETokenizer(Tokenizer):
    """Byte pair encoding by the `tokenizers` library, on bytes: it encodes any text.

    Special tokens are neither added nor recognised: text that spells one stays text.

    Args:
        tokenizer_json: The text of a tokenizer.json whose model is a BPE on bytes, such
            as those of GPT-2 and Llama 3. Its truncation and padding are ignored.

    Raises:
        ImportError: The library is not installed.
        ValueError: The text is no such file.

    Example:
        >>> tokenizer = kgen.data.BPETokenizer.train(["low lower lowest"] * 9, 300)
        >>> tokenizer.decode(tokenizer.encode("slow"))
        'slow'

    Reference: Sennrich et al., 2016, Neural Machine Translation of Rare Words with
    Subword Units; on bytes as in Radford et al., 2019 (GPT-2).
    """

    kind = "bpe"
    in_graph = False

    def __init__(self, tokenizer_json: str):
        library = _import_tokenizers()
        try:
            tokenizer = library.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises no narrower type
            raise ValueError(
                "`tokenizer_json` must be the text of a tokenizer.json of the "
                f"tokenizers library. Received: {str(tokenizer_json)[:100]!r} ({error})"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # as text, by the model
        vocab = tokenizer.get_vocab()
        self.tokenizer_json = tokenizer_json
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self._tokenizer = tokenizer
        self._in_pieces = not any(map(_OVER_AN_END.search, vocab))
        all_bytes = set(_BYTE_SYMBOLS.values()) <= set(vocab)
        if not all_bytes or self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError(
                "`tokenizer_json` must be a BPE on bytes, which maps any text to ids "
                f"and back. Received: a {type(tokenizer.model).__name__} that "
                f"{'changes some texts' if all_bytes else 'lacks some bytes'}. Try "
                "BPETokenizer.train."
            )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Returns a tokenizer with the most frequent tokens of some texts.

        The same texts give the same tokenizer. The first 256 ids are the single bytes.
        Texts are split into words, each with the space before it, as GPT-2 does, and no
        token spans two words.

        Args:
            texts: The training texts.
            vocab_size: Number of ids, at least 256. There are fewer if too few pairs
                occur twice in the texts.

        Raises:
            ImportError: The `tokenizers` library is not installed.
            TypeError: `texts` is a str itself.
            ValueError: `vocab_size` is below 256.
        """
        library = _import_tokenizers()
        if isinstance(texts, str):
            raise TypeError(
                "`texts` must be a list of texts. Received: str. Try [text]."
            )
        if not isinstance(vocab_size, (int, np.integer)) or vocab_size < 256:
            raise ValueError(
                "`vocab_size` must be an integer of at least 256, the single bytes. "
                f"Received: vocab_size={vocab_size}. Try 1024."
            )
        tokenizer = library.Tokenizer(library.models.BPE())
        cut = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = cut
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=int(vocab_size),
            min_frequency=_MIN_COUNT,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        pieces = (piece for text in texts for piece in _PIECE.findall(text))
        tokenizer.train_from_iterator(pieces, trainer)
        return cls(tokenizer.to_str())

    def _encode(self, text: str) -> np.ndarray:
        pieces = _PIECE.findall(text) if self._in_pieces else [text]
        ids = [
            np.array(self._tokenizer.encode(piece, add_special_tokens=False).ids, "i4")
            for piece in pieces
        ]
        return np.concatenate([np.zeros(0, np.int32), *ids])

    def _decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def config(self) -> dict[str, Any]:
        """Returns plain values; see `Tokenizer.config`."""
        return {"kind": self.kind, "tokenizer_json": self.tokenizer_json}

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json; see `Tokenizer.to_json`."""
        return self.tokenizer_json


_KINDS: dict[str, type[Tokenizer]] = {
    "char": CharTokenizer,
    "byte": ByteTokenizer,
    "bpe": BPETokenizer,
}


def tokenizer_from_config(config: dict[str, Any]) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.config` describes.

    Raises:
        ImportError: The kind is "bpe", and `tokenizers` is not installed.
        ValueError: An unknown kind, or values that do not fit.
    """
    values = dict(config)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(
            f"A tokenizer's `kind` must be one of {', '.join(_KINDS)}. Received: "
            f"kind={kind!r}"
        )
    try:
        return _KINDS[kind](**values)
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


def _import_tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ImportError(
            "Byte pair encoding needs the tokenizers library, which is not installed. "
            "Install it with `pip install kgen[text]`, or take a char or byte "
            "tokenizer."
        ) from error
    return tokenizers


def _tokenizer_json(
    model: dict[str, Any], pre_tokenizer: dict[str, Any], decoder: dict[str, Any]
) -> str:
    """Returns a tokenizer.json of these parts."""
    parts: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(parts, ensure_ascii=False)


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"A text must be a str. Received: {type(text).__name__}")
    check_unicode(text)


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
