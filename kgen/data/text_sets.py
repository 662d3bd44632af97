"""Text data sets: one stream of tokens, split, and read in batches of windows."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.arguments import check_integer, require
from kgen.data.bpe_tokenizer import BPETokenizer
from kgen.data.dataset import SPLITS, DataSet, take_batch_options
from kgen.data.named_builders import NAME, DataDir
from kgen.data.named_texts import PYTHON_MANUAL, read_named_texts, read_python_manual
from kgen.data.pipeline import Batch, Read
from kgen.data.text_files import Documents, read_text_files, read_text_list
from kgen.data.tokenizer_interface import Tokenizer
from kgen.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
)
from kgen.nn import random

SEPARATOR = "\n\n"  # between documents

TOKENIZERS = ("char", "byte", "bpe")
_TOKENS_PER_READ = 2**18  # few calls, the first of them short

Source = str | os.PathLike | Sequence[str]


def text(source: Source, *, split: str = "train", **options: Any) -> tf.data.Dataset:
    """Returns batches of windows of a text, as tokens.

    Every iteration is one pass. The windows of the k-th pass and their order are a pure
    function of (seed, k); without shuffling all passes are alike.

    Args:
        source: See `open_text`.
        split: "train", "validation" or "test".
        **options: tokenizer, vocab_size, context, validation_fraction, test_fraction,
            text_key, data_dir and download of `open_text`; batch_size (by default 64),
            seed, shuffle and drop_remainder of `TextSet.batches`. The seed keys where
            the windows begin, and their order.

    Returns:
        A dataset of dicts: "tokens", int32 [batch, context + 1]; see `TextSet`.

    Raises:
        FileNotFoundError: See `open_text`.
        ImportError: See `open_text`.
        ValueError: See `open_text`; and a batch size above the number of training
            windows.

    Example:
        >>> batches = kgen.data.text("input.txt", batch_size=64, context=256)
        >>> batches.element_spec["tokens"].shape
        TensorShape([64, 257])
    """
    batching = take_batch_options(options)
    return open_text(source, **options).batches(split, **batching)


def open_text(
    source: Source,
    *,
    tokenizer: str | Tokenizer = "char",
    vocab_size: int | None = None,
    context: int = 256,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    text_key: str = "text",
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
) -> TextSet:
    r"""Opens a text for a language model.

    Documents are joined to one text by a blank line ("\n\n"), whatever the tokenizer;
    empty documents are left out. The text is split by characters: the first
    floor((1 - validation_fraction - test_fraction) * characters) are for training, the
    validation split follows, and the test split is the end. So the splits are the same
    for all tokenizers, and Tiny Shakespeare is 1,003,854 and 111,540 characters. Each
    split is tokenized on its own.

    Args:
        source: One of
            - a path (which has precedence over an equal name) of a file of text in
              UTF-8, with any ending; it is one document. Newlines are kept, and a byte
              order mark at the beginning is dropped;
            - a path of JSON Lines (.jsonl): the text under `text_key` of each line is a
              document, and blank lines are skipped;
            - a .gz of one of these;
            - a path of a folder or a .zip of such files, in the order of their names,
              folder by folder, without hidden files. A zip is read in place and never
              unpacked to disk;
            - "python-manual": the pages of Python's manual that `help()` shows, of the
              running Python (3.11: 465,000 characters). Nothing is downloaded;
            - the name of a data set of tensorflow-datasets with a text feature
              `text_key`, or with just one text feature: tiny_shakespeare, ... Its
              splits are read as one;
            - a list of str, the documents.
        tokenizer: One of
            - "char": an id for each of the characters of the whole text, so that the
              validation split has no unknown ones (Tiny Shakespeare has 65);
            - "byte": the 256 bytes of UTF-8;
            - "bpe": byte pair encoding with `vocab_size` ids, learned from the training
              split alone; needs the extra `text`;
            - a tokenizer.
        vocab_size: Number of ids of "bpe", at least 256; for no other.
        context: Tokens that a model sees at most, at least 1. A window has one more:
            the inputs are all but the last, the targets all but the first.
        validation_fraction: Share of the characters, in [0, 1).
        test_fraction: Share of the characters, in [0, 1). A split whose share is 0 does
            not exist.
        text_key: The key of the text in JSON Lines, or its feature in
            tensorflow-datasets.
        data_dir: The folder in which tensorflow-datasets keeps its data sets. None: its
            own default, ~/tensorflow_datasets. For names only.
        download: Whether a missing data set of tensorflow-datasets may be downloaded
            and prepared.

    Raises:
        FileNotFoundError: A path that does not exist, a folder or zip without files, or
            a missing data set that cannot be downloaded.
        ImportError: "bpe" without the `tokenizers` library.
        TypeError: A source or a tokenizer of another type.
        ValueError: An unknown name, a damaged file, another encoding than UTF-8, a line
            without JSON or without text, no text at all, an argument out of range, a
            split of fewer than context + 1 tokens, characters unknown to the tokenizer.
            The message names the file, and the byte or the line.

    Example:
        >>> print(kgen.data.open_text("input.txt"))
        input.txt: 1,115,394 characters, char tokenizer with 65 ids, ...
    """
    _check_tokenizer(tokenizer, vocab_size)  # before a large file is read
    check_integer("context", context)
    shares = _shares(validation_fraction, test_fraction)
    name, documents, notes = _read(source, data_dir, text_key, download)
    whole = SEPARATOR.join(documents)
    if len(documents) > 1:
        notes += (f"joined by blank lines: {len(documents):,} documents",)
    texts = _split(whole, shares)
    made = _make_tokenizer(tokenizer, vocab_size, whole, texts["train"])
    if made.vocab_size < (vocab_size or 0):
        notes += (f"too few pairs to make {vocab_size:,} tokens",)
    return TextSet(name, texts, made, int(context), notes)


def _read(source: Any, data_dir: DataDir, text_key: str, download: bool) -> Documents:
    if not isinstance(source, (str, os.PathLike)):
        return read_text_list(source)
    path = Path(source).expanduser()
    if os.path.exists(path):  # False for a name that is too long
        return read_text_files(path, text_key)
    if source == PYTHON_MANUAL:
        return read_python_manual()
    if not isinstance(source, str) or not NAME.fullmatch(source):
        shown = repr(source[:100]) if isinstance(source, str) else source
        raise FileNotFoundError(
            f"There is no file or folder {shown}. Pass a text itself in a list: [text]."
        )
    return read_named_texts(source, data_dir, text_key, download)


class TextSet(DataSet):
    """A text as tokens, with splits; see `open_text`.

    A batch is a dict: "tokens", int32 [batch, context + 1], one window a row. Row i
    holds the tokens i * context to (i + 1) * context, both included: the inputs are
    `tokens[:, :-1]` and the targets `tokens[:, 1:]`, and each token but the first is a
    target once. A last window that is shorter is padded with -1.

    Shuffled, the windows of an epoch begin at an offset that is a pure function of
    (seed, epoch), below `context` and as far as the text reaches; all are full, of the
    same number in each epoch, and the tokens before and after them are not read.

    Args:
        name: Name of the data set.
        texts: The characters of each split.
        tokenizer: The tokenizer.
        context: Tokens that a model sees at most.
        notes: Remarks on what was left out or is out of the ordinary.

    Attributes:
        name: Name of the data set.
        tokenizer: The tokenizer.
        context: Tokens that a model sees at most.
        splits: Number of tokens in "train", "validation" and "test", as far as they
            exist.
        notes: Remarks on what was left out or is out of the ordinary.

    Raises:
        ValueError: A split of fewer than context + 1 tokens; characters unknown to the
            tokenizer.
    """

    default_batch_size = 64
    _split_hint = ". The share of a split is an option of `open_text`."

    def __init__(
        self,
        name: str,
        texts: dict[str, str],
        tokenizer: Tokenizer,
        context: int,
        notes: tuple[str, ...] = (),
    ):
        self.name = name
        self.notes = notes
        self.tokenizer = tokenizer
        self.context = context
        self._characters = {split: len(part) for split, part in texts.items()}
        smallest = np.min_scalar_type(tokenizer.vocab_size - 1)  # that holds all ids
        self._tokens = {
            split: tokenizer.encode(part).astype(smallest)
            for split, part in texts.items()
        }
        self.splits = {split: len(tokens) for split, tokens in self._tokens.items()}
        least = min(self.splits.values())
        for split, count in self.splits.items():
            if count <= self.context:
                fit = f"Try context={least - 1} or less, or t" if least > 1 else "T"
                raise ValueError(
                    "Each split must have at least context + 1 tokens, one window. "
                    f"Received: {count} in {split} of {self.name}, and "
                    f"context={self.context}. {fit}ake more text or another share."
                )

    def _content(self) -> str:
        return (
            f"{sum(self._characters.values()):,} characters, "
            f"{self.tokenizer.kind} tokenizer with {self.tokenizer.vocab_size:,} ids, "
            f"context {self.context:,}; tokens: "
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the tokenizer, the splits and their tokens."""
        head = json.dumps([self.tokenizer.get_config(), self.splits, self._characters])
        digest = hashlib.sha256(head.encode())
        for tokens in self._tokens.values():
            digest.update(tokens.astype("<i4").data)
        return digest.hexdigest()

    def characters(self, split: str) -> int:
        """Returns the number of characters (code points) of a split.

        With the loss of a whole split it gives bits per character, which compare over
        tokenizers: loss * targets / characters / log(2).

        Raises:
            ValueError: There is no such split.
        """
        self._check_split(split)
        return self._characters[split]

    def tokens(self, split: str) -> np.ndarray:
        """Returns the tokens of a split, int32 [tokens].

        Raises:
            ValueError: There is no such split.
        """
        self._check_split(split)
        return self._tokens[split].astype(np.int32)

    def num_rows(self, split: str, *, shuffle: bool = False) -> int:
        """Returns the number of windows; see `DataSet.num_rows`."""
        self._check_split(split)
        if shuffle:
            # One window fewer than there is room for, so that the offset is free; but
            # at least one.
            return max(self.splits[split] // self.context - 1, 1)
        return math.ceil((self.splits[split] - 1) / self.context)

    def _reader(self, split: str, seed: int, shuffle: bool) -> tuple[Read, int]:
        num_tokens, context = self.splits[split], self.context
        num_offsets = 1
        if shuffle:
            num_windows = self.num_rows(split, shuffle=True)
            num_offsets = min(num_tokens - num_windows * context, context)
        with tf.device("CPU:0"):  # tf.data reads there; captured, never copied
            tokens = tf.constant(self._tokens[split])
            key = random.keys(seed, random.STREAM_WINDOWS)

        def read(rows: tf.Tensor, epoch: tf.Tensor, positions: tf.Tensor) -> Batch:
            offset = random.fold_in(key, epoch) % num_offsets
            within = tf.range(context + 1, dtype=tf.int64)
            wanted = offset + rows[:, None] * context + within  # [n, context + 1]
            found = tf.gather(tokens, tf.minimum(wanted, num_tokens - 1))
            found = tf.cast(found, tf.int32)
            return {"tokens": tf.where(wanted < num_tokens, found, -1)}

        return read, _TOKENS_PER_READ // (context + 1)


def _check_tokenizer(tokenizer: Any, vocab_size: int | None) -> None:
    if isinstance(tokenizer, str):
        rule = f"be {', '.join(TOKENIZERS)} or a tokenizer"
        require(tokenizer in TOKENIZERS, "tokenizer", tokenizer, rule)
    elif not isinstance(tokenizer, Tokenizer):
        raise TypeError(
            "`tokenizer` must be a name or a tokenizer. Received: "
            f"{type(tokenizer).__name__}"
        )
    if (vocab_size is None) == (tokenizer == "bpe"):
        raise ValueError(
            "`vocab_size` must be given for tokenizer='bpe', and for no other. "
            f"Received: vocab_size={vocab_size}, tokenizer={tokenizer!r:.100}."
            f"{' Try 1024.' if vocab_size is None else ''}"
        )


def _make_tokenizer(
    tokenizer: Any, vocab_size: int | None, whole: str, training: str
) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if tokenizer == "char":
        return CharTokenizer.of_text(whole)
    if tokenizer == "byte":
        return ByteTokenizer()
    return BPETokenizer.train([training], vocab_size or 0)


def _shares(validation_fraction: float, test_fraction: float) -> dict[str, Fraction]:
    """Returns the share of each split in the characters."""
    fractions = (validation_fraction, test_fraction)
    if not all(0 <= share < 1 for share in fractions) or not sum(fractions) < 1:
        raise ValueError(
            "`validation_fraction` and `test_fraction` must be in [0, 1), and leave "
            f"something to train on. Received: {validation_fraction} and "
            f"{test_fraction}"
        )
    # Decimal: 0.1 is a tenth, but slightly more as a float.
    validation, test = (Fraction(str(share)) for share in fractions)
    return dict(zip(SPLITS, (1 - validation - test, validation, test), strict=True))


def _split(whole: str, shares: dict[str, Fraction]) -> dict[str, str]:
    """Returns the characters of each split with a share above 0."""
    parts, start, covered = {}, 0, Fraction(0)
    for split, share in shares.items():
        covered += share
        end = math.floor(len(whole) * covered)
        if share:
            parts[split] = whole[start:end]
        start = end
    return parts
