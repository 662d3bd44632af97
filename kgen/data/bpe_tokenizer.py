"""Byte pair encoding, by the `tokenizers` library."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kgen.arguments import check_integer
from kgen.data.tokenizer_interface import Tokenizer, added_tokens

# A byte-level vocabulary writes each byte as one printable character: itself where
# Latin-1 prints it, and else the next one from 256 on (Radford et al., 2019).
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTED))
BYTE_SYMBOLS = {byte: chr(byte) for byte in _PRINTED} | {
    byte: chr(256 + place) for place, byte in enumerate(_OTHERS)
}
# A tokenizer that decodes this decodes any text: all lengths of UTF-8, and spaces.
_PROBE = "a B\n\n  c\r\té\u2028☃😀 "

# The library needs 150 bytes of memory and more for each byte of a call, so it gets a
# long text in pieces. They end before a single space: every way to split words splits
# there, and so the ids do not change.
_PIECE = re.compile(r"(?s).{4096,}?\S(?= \S)|.+")
_OVER_AN_END = re.compile(r"[^ĊĠĉč ][Ġ ]")  # no newline, space, tab or \r, then space

_MIN_COUNT = 2  # occurrences of a pair of symbols that becomes a token


class Merges(NamedTuple):
    """The parts of a byte pair encoding.

    Attributes:
        byte_ids: Id of each byte, int32 [256].
        merges: Ids of the two tokens of each merge, and of the new one: int32 [n, 3];
            earlier ones come first.
        texts: The bytes of each id.
    """

    byte_ids: np.ndarray
    merges: np.ndarray
    texts: list[bytes]


class BPETokenizer(Tokenizer):
    """Byte pair encoding by the `tokenizers` library, on bytes: it encodes any text.

    Args:
        tokenizer_json: The text of a tokenizer.json whose model is a BPE on bytes, such
            as those of GPT-2 and Llama 3. Its truncation and padding are ignored. Its
            special tokens are known, and neither added to texts nor found in them.
        special_tokens: Names of special tokens; new ones get the next ids.

    Raises:
        ImportError: The library is not installed.
        ValueError: The text is no such file; a special token is empty or given twice.

    Example:
        >>> tokenizer = kgen.data.BPETokenizer.train(["low lower lowest"] * 9, 300)
        >>> tokenizer.decode(tokenizer.encode("slow"))
        'slow'

    Reference: Sennrich et al., 2016, Neural Machine Translation of Rare Words with
    Subword Units; on bytes as in Radford et al., 2019 (GPT-2).
    """

    kind = "bpe"
    _arguments = ("tokenizer_json",)

    def __init__(self, tokenizer_json: str, special_tokens: Sequence[str] = ()):
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
        known = {
            token.content: number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        num_ids = max(vocab.values(), default=-1) + 1
        self.take_special_tokens(special_tokens, num_ids, known)
        self.tokenizer_json = self._with_new_tokens(tokenizer_json, known)
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._in_pieces = not any(map(_OVER_AN_END.search, vocab))
        all_bytes = set(BYTE_SYMBOLS.values()) <= set(vocab)
        if not all_bytes or self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError(
                "`tokenizer_json` must be a BPE on bytes, which maps any text to ids "
                f"and back. Received: a {type(tokenizer.model).__name__} that "
                f"{'changes some texts' if all_bytes else 'lacks some bytes'}. Try "
                "BPETokenizer.train."
            )

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (),
    ) -> BPETokenizer:
        """Returns a tokenizer with the most frequent tokens of some texts.

        The same texts give the same tokenizer. The first 256 ids are the single bytes.
        Texts are split into words, each with the space before it, as GPT-2 does, and no
        token spans two words.

        Args:
            texts: The training texts.
            vocab_size: Number of ids, at least 256, without the special tokens. There
                are fewer if too few pairs occur twice in the texts.
            special_tokens: Names of special tokens, which get the next ids.

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
        why = ", the single bytes"
        check_integer("vocab_size", vocab_size, 256, why, hint=". Try 1024.")
        tokenizer = library.ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(
            (piece for text in texts for piece in _PIECE.findall(text)),
            vocab_size=int(vocab_size),
            min_frequency=_MIN_COUNT,
            show_progress=False,
        )
        return cls(tokenizer.to_str(), special_tokens)

    def _encode(self, text: str) -> np.ndarray:
        pieces = _PIECE.findall(text) if self._in_pieces else [text]
        ids = [
            np.array(self._tokenizer.encode(piece, add_special_tokens=False).ids, "i4")
            for piece in pieces
        ]
        return np.concatenate([np.zeros(0, np.int32), *ids])

    @functools.cached_property
    def merges(self) -> Merges | None:
        """The merges, where words are split as in GPT-2; None for other files."""
        parts = json.loads(self.tokenizer_json)
        model, words = parts["model"], parts["pre_tokenizer"] or {}
        plain = {"dropout", "unk_token", "continuing_subword_prefix"}
        plain |= {"end_of_word_suffix", "byte_fallback", "ignore_merges"}
        if (
            parts["normalizer"]
            or any(model.get(name) for name in plain)
            or (words.get("type"), words.get("add_prefix_space"))
            != ("ByteLevel", False)
            or not words.get("use_regex", True)
        ):
            return None
        pairs = [
            merge.split(" ") if isinstance(merge, str) else merge
            for merge in model["merges"]
        ]
        ids = [[self._vocab[sign] for sign in (*pair, "".join(pair))] for pair in pairs]
        of_byte = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}
        texts = [b""] * self.vocab_size
        for token, number in self._vocab.items():
            if token not in self.special_ids:
                texts[number] = bytes(of_byte[sign] for sign in token)
        return Merges(
            np.array([self._vocab[BYTE_SYMBOLS[byte]] for byte in range(256)], "i4"),
            np.array(ids, "i4").reshape(-1, 3),
            texts,
        )

    def _decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json; see `Tokenizer.to_json`."""
        return self.tokenizer_json

    def _with_new_tokens(self, tokenizer_json, known):
        new = [one for one in added_tokens(self) if one["content"] not in known]
        if not new:
            return tokenizer_json
        parts = json.loads(tokenizer_json)
        return json.dumps(parts | {"added_tokens": parts["added_tokens"] + new})


def _import_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "Byte pair encoding needs the tokenizers library, which is not installed. "
            "In the folder of kgen's sources: pip install '.[text]'. Or take a char or "
            "byte tokenizer."
        ) from error
    return tokenizers
