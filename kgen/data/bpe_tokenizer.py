"""Byte pair encoding, by the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from kgen.data.pipeline import check_integer
from kgen.data.tokenizer_interface import Tokenizer

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
    _arguments = ("tokenizer_json",)

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
        all_bytes = set(BYTE_SYMBOLS.values()) <= set(vocab)
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
        why = ", the single bytes"
        check_integer("vocab_size", vocab_size, 256, why, hint=". Try 1024.")
        tokenizer = library.ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(
            (piece for text in texts for piece in _PIECE.findall(text)),
            vocab_size=int(vocab_size),
            min_frequency=_MIN_COUNT,
            show_progress=False,
        )
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

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json; see `Tokenizer.to_json`."""
        return self.tokenizer_json


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
