"""Evaluation of masked language models: prediction of masked tokens, and speed."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.data.text_sets import TextSet
from kgen.evaluation.blocks import Progress, row_blocks
from kgen.evaluation.language_models import (
    check_tokenizer,
    training_counts,
    unigram_baseline,
)
from kgen.evaluation.records import Record
from kgen.evaluation.split_rows import check_at_least_1
from kgen.evaluation.timing import rate_record

BATCH_SIZE = 64  # windows
MASK_EVERY = 7  # tokens: about the share that is masked in training


def evaluate_masked_language_model(
    model: Any,
    text_set: TextSet,
    *,
    split: str = "validation",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Record]:
    """Measure the prediction of masked tokens, and the speed of embedding.

    The split is cut into windows that do not overlap. In each, every seventh token is
    masked, from a start that moves by one from window to window.

    Args:
        model: A BERT: a call returns logits, `embed` vectors.
        text_set: The text the model was trained on.
        split: "validation", "test" or "train".
        limit: Only the first windows, this many.
        seed: Of the intervals.
        progress: Called with the number of processed windows, and their total.

    Returns:
        Records `masked_loss`, `masked_accuracy` and `texts_per_second`. The baselines
        are the token frequencies of the training split, and its most frequent token.

    Raises:
        ValueError: An argument is out of its range, or the text has another tokenizer.
    """
    check_at_least_1(limit=limit)
    check_tokenizer(model, text_set)
    windows, masked = _masked_windows(text_set.tokens(split), model.context, limit)
    inputs = np.where(masked, model.vocab_size, windows)
    graph = tf.function(lambda tokens: tf.nn.log_softmax(model(tokens)))
    nats, correct = np.zeros(windows.shape), np.zeros(windows.shape)
    for rows in row_blocks(len(windows), BATCH_SIZE, progress):
        log_probs = graph(tf.constant(inputs[rows])).numpy()
        targets = np.maximum(windows[rows], 0)[..., None]
        nats[rows] = -np.take_along_axis(log_probs, targets, 2)[..., 0]
        correct[rows] = log_probs.argmax(axis=2) == windows[rows]
    targets = windows[masked]
    most_frequent = targets == training_counts(text_set).argmax()
    texts = [row[row >= 0] for row in windows[:BATCH_SIZE]]
    record = functools.partial(
        Record.of_mean,
        counts=masked.sum(axis=1),
        rows="windows",
        headline=True,
        protocol=f"{text_set.name}, {split}, every {MASK_EVERY}th token of "
        f"{len(windows):,} windows of {model.context}",
        seed=seed,
    )
    return [
        record(
            (nats * masked).sum(axis=1),
            metric="masked_loss",
            unit="nats",
            higher_is_better=False,
            baseline=unigram_baseline(text_set, targets),
        ),
        record(
            (correct * masked).sum(axis=1),
            metric="masked_accuracy",
            higher_is_better=True,
            baseline=("most frequent token", float(most_frequent.mean())),
        ),
        rate_record(
            lambda: model.embed(texts),
            len(texts),
            metric="texts_per_second",
            headline=True,
            unit="texts/s",
            protocol=f"embed, {len(texts)} texts of at most {model.context} tokens",
            num_runs=3,
        ),
    ]


def _masked_windows(tokens, size, limit) -> tuple[np.ndarray, np.ndarray]:
    """Windows with a masked token, padded with -1, and their masks: [windows, size]."""
    windows = np.full((-(-len(tokens) // size), size), -1, np.int32)
    windows.reshape(-1)[: len(tokens)] = tokens
    windows = windows[:limit]
    rows, positions = np.indices(windows.shape)
    masked = (positions % MASK_EVERY == rows % MASK_EVERY) & (windows >= 0)
    kept = masked.any(axis=1)
    return windows[kept], masked[kept]
