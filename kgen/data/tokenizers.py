"""Tokenizers of characters and bytes; any tokenizer of its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from kgen.data.bpe_tokenizer import BYTE_SYMBOLS, BPETokenizer
from kgen.data.tokenizer_interface import Tokenizer, added_tokens, check_text

UNKNOWN = "Each character must be one of the {} of the tokenizer. Received:"


class CharTokenizer(Tokenizer):
    """One id for each character (Unicode code point) of a given set.

    Args:
        characters: The characters, each once, ascending by code point. The id of a
            character is its index.
        special_tokens: Names of special tokens, which get the next ids.

    Raises:
        ValueError: There are none, they are not ascending, or one is a surrogate; a
            special token is empty or given twice.

    Example:
        >>> tokenizer = kgen.data.CharTokenizer("abc")
        >>> tokenizer.encode("cab")
        array([2, 0, 1], dtype=int32)
    """

    kind = "char"
    _arguments = ("characters", "special_tokens")

    def __init__(self, characters: str, special_tokens: Sequence[str] = ()):
        check_text(characters)
        points = _code_points(characters)
        if not len(points) or np.any(np.diff(points) <= 0):
            raise ValueError(
                "`characters` must be distinct, ascending by code point, and at least "
                f"one. Received: {characters[:100]!r}. Try CharTokenizer.of_text, "
                "which takes the characters of any text."
            )
        self.characters = characters
        self.take_special_tokens(special_tokens, len(points), {})
        self.points = points
        # An entry for each code point up to the next after the last.
        self._ids = np.full(points[-1] + 2, -1, np.int32)
        self._ids[points] = np.arange(len(points))

    @classmethod
    def of_text(cls, text: str, special_tokens: Sequence[str] = ()) -> CharTokenizer:
        """Returns the tokenizer of all characters of a text."""
        return cls("".join(sorted(set(text))), special_tokens)

    def _encode(self, text: str) -> np.ndarray:
        ids = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        places = np.flatnonzero(ids < 0)
        if len(places):
            raise ValueError(
                f"{UNKNOWN.format(len(self.points))} {_at_places(text, places)}. Leave "
                "them out, or make a tokenizer of a text that has them with "
                "CharTokenizer.of_text."
            )
        return ids

    def _decode(self, ids: np.ndarray) -> str:
        return self.points[ids].astype("<i4").tobytes().decode("utf-32-le")

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
        return _tokenizer_json(self, model=model, pre_tokenizer=split, decoder=fuse)


class ByteTokenizer(Tokenizer):
    """256 ids: the bytes of a text in UTF-8.

    Args:
        special_tokens: Names of special tokens, which get the next ids.

    Raises:
        ValueError: A special token is empty or given twice.

    Example:
        >>> kgen.data.ByteTokenizer().encode("é")
        array([195, 169], dtype=int32)
    """

    kind = "byte"
    _arguments = ("special_tokens",)

    def __init__(self, special_tokens: Sequence[str] = ()):
        self.take_special_tokens(special_tokens, 256, {})

    def _encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return ids.astype(np.uint8).tobytes().decode(errors="replace")

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
        return _tokenizer_json(self, model=model, pre_tokenizer=level, decoder=level)


def tokenizer_from_json(tokenizer_json: str) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, written by `to_json` or `save`.

    Any tokenizer.json of a BPE on bytes is accepted; see `BPETokenizer`.

    Raises:
        ImportError: It is a BPE, and the `tokenizers` library is not installed.
        ValueError: It is no tokenizer.json.
    """
    try:
        parts = json.loads(tokenizer_json)
        signs = "".join(parts["model"]["vocab"])
        special = [token["content"] for token in parts["added_tokens"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "`tokenizer_json` must be the text of a tokenizer.json. Received: "
            f"{str(tokenizer_json)[:100]!r}"
        ) from error
    if {*special}.isdisjoint({""}) and len({*special}) == len(special):
        chars = CharTokenizer.of_text(signs or " ", special)
        for tokenizer in (chars, ByteTokenizer(special)):
            if tokenizer.to_json() == tokenizer_json:
                return tokenizer
    return BPETokenizer(tokenizer_json)


def _tokenizer_json(tokenizer: Tokenizer, **parts: Any) -> str:
    """Returns a tokenizer.json of these parts, and without the others."""
    others = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor"])
    added = added_tokens(tokenizer)
    whole = {"version": "1.0", "added_tokens": added, **others, **parts}
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
