"""Evaluation of language models: loss, generated text and decoding speed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.data.text_sets import TextSet
from kgen.evaluation import text_statistics
from kgen.evaluation.blocks import Progress, row_blocks
from kgen.evaluation.records import Record
from kgen.evaluation.split_rows import check_at_least_1
from kgen.evaluation.timing import rate_record

NUM_TEXTS = 50
PROMPT_CHARACTERS, TEXT_CHARACTERS = 40, 400
NGRAM = 5  # words in a row that count as copied if the training text has them
TIMED_TOKENS = 128
_distinct_words = functools.partial(text_statistics.distinct, n=1)
_distinct_pairs = functools.partial(text_statistics.distinct, n=2)


def evaluate_language_model(
    model: Any,
    text_set: TextSet,
    *,
    split: str = "validation",
    limit: int | None = None,
    num_texts: int = NUM_TEXTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Record]:
    """Measure loss, diversity and novelty of generated text, and decoding speed.

    Every token of the split except the first is predicted once, in windows that do not
    overlap, so that the first tokens of a window have little context. Generated texts
    continue prompts at evenly spaced positions of the split, at a temperature of 1.

    Args:
        model: Has `generate`, `score`, and a call that returns logits.
        text_set: The text the model was trained on.
        split: "validation" or "test"; "train" measures memorisation.
        limit: At most so many windows, and texts.
        num_texts: Generated texts; diversity and novelty depend on their number.
        seed: Of the generated texts, and of the intervals.
        progress: Called with the number of generated texts, and their total.

    Returns:
        Records `loss`, `perplexity`, `bits_per_character`, `loss[random-batches]` (the
        estimate of nanoGPT), `distinct_words@1` and `@2`, `novelty@5`,
        `self_bleu` (if the sacrebleu library is installed) and
        `tokens_per_second`. The baselines are the token frequencies of the training
        split, and the text of the split.

    Raises:
        ValueError: An argument is out of its range, or the text has another tokenizer.
    """
    check_at_least_1(limit=limit, num_texts=num_texts)
    check_tokenizer(model, text_set)
    num_texts = min(limit or num_texts, num_texts)
    protocol = f"{text_set.name}, {split}"
    return [
        *_loss_records(model, text_set, split, limit, seed, protocol),
        *_text_records(model, text_set, split, num_texts, seed, progress, protocol),
        *_speed_records(model, text_set.tokens(split)[:1]),
    ]


def check_tokenizer(model: Any, text_set: TextSet) -> None:
    """Raise a ValueError unless model and text have the same tokenizer."""
    if model.tokenizer != text_set.tokenizer:
        raise ValueError(
            "The model and the text must have the same tokenizer. Received: one of "
            f"{model.vocab_size:,} tokens and {text_set.tokenizer}. Open the text with "
            "the options the model was trained with."
        )


def training_counts(text_set: TextSet) -> np.ndarray:
    """Return the occurrences of each token in the training split: [vocab_size]."""
    size = text_set.tokenizer.vocab_size
    return np.bincount(text_set.tokens("train"), minlength=size)


def unigram_baseline(text_set: TextSet, tokens: np.ndarray) -> tuple[str, float]:
    """Return the baseline of a loss: the frequencies of tokens in training."""
    counts = training_counts(text_set)
    return "token frequencies", text_statistics.unigram_loss(counts, tokens)


# -- loss ----------------------------------------------------------------------


def _loss_records(model, text_set, split, limit, seed, protocol) -> list[Record]:
    tokens, context = text_set.tokens(split), text_set.context
    starts = np.arange(0, len(tokens) - 1, context)[:limit]
    windows = [tokens[start : start + context + 1] for start in starts]
    counts = np.array([len(window) - 1 for window in windows])
    targets = tokens[1 : counts.sum() + 1]
    num_characters = len(text_set.tokenizer.decode(targets))
    record = functools.partial(
        Record.of_mean, unit="nats/token", seed=seed, higher_is_better=False
    )
    name, unigrams = unigram_baseline(text_set, targets)
    loss: Any = record(
        -model.score(windows),
        counts,
        rows="windows",
        metric="loss",
        headline=True,
        protocol=f"{protocol}, {len(targets):,} tokens ({num_characters:,} "
        f"characters), each predicted once in windows of {context}",
        baseline=(name, unigrams),
    )
    to_bits = len(targets) / num_characters / math.log(2.0)
    converted = [
        dataclasses.replace(
            loss,
            metric=metric,
            headline=unit == "bits",
            value=convert(loss.value),
            unit=unit,
            interval=tuple(map(convert, loss.interval)),
            baseline=(name, convert(unigrams)),
        )
        for metric, unit, convert in (
            ("perplexity", "", math.exp),
            ("bits_per_character", "bits", lambda nats: nats * to_bits),
        )
    ]
    # The loss as nanoGPT estimates it, to compare with papers and logs.
    starts = np.random.default_rng(seed).integers(0, len(tokens) - context, 20 * 12)
    drawn = tokens[starts[:, None] + np.arange(context + 1)]
    estimate = record(
        -model.score(drawn).reshape(20, 12).sum(axis=1),
        np.full(20, 12 * context),
        rows="batches",
        metric="loss[random-batches]",
        protocol=f"{protocol}, 20 batches of 12 windows of {context} from random "
        "positions",
        baseline=unigram_baseline(text_set, drawn[:, 1:].ravel()),
    )
    return [loss, *converted, estimate]


# -- generated text ------------------------------------------------------------


def _text_records(model, text_set, split, count, seed, progress, protocol):
    """Diversity and novelty of generated texts and of the split's own continuations."""
    ratio = text_set.splits[split] / text_set.characters(split)
    num_prompt = max(round(PROMPT_CHARACTERS * ratio), 1)
    num_text = max(round(TEXT_CHARACTERS * ratio), 1)
    if model.positions == "learned":
        num_prompt = max(model.context // 4, 1)
        num_text = model.context - num_prompt
    tokens = text_set.tokens(split)
    room = max(len(tokens) - num_prompt - num_text, 0)
    starts = np.linspace(0, room, count).astype(int)
    prompts = [tokens[start : start + num_prompt] for start in starts]
    generated: list[np.ndarray] = []
    for block in row_blocks(count, 10, progress):
        generated += model.generate(
            prompts[block],
            max_new_tokens=num_text,
            seeds=range(seed + block.start, seed + block.stop),
        )
    decode = text_set.tokenizer.decode
    ours = [decode(row) for row in generated]
    theirs = [decode(tokens[start:][num_prompt:][:num_text]) for start in starts]
    train = text_statistics.words(decode(text_set.tokens("train")))
    known = text_statistics.ngrams(train, NGRAM)
    novelty = functools.partial(text_statistics.novelty, known=known, n=NGRAM)
    copied = f"share of {NGRAM} words in a row that the training text does not contain"
    rows: list[tuple[str, Callable[[list[str]], float], str]] = [
        ("distinct_words@1", _distinct_words, "different words over words"),
        ("distinct_words@2", _distinct_pairs, "different pairs of words over pairs"),
        (f"novelty@{NGRAM}", novelty, copied),
    ]
    if importlib.util.find_spec("sacrebleu"):
        detail = "BLEU-4 of each text against all others"
        rows.append(("self_bleu", text_statistics.self_bleu, detail))
    return [
        Record(
            metric=metric,
            headline=metric.startswith("novelty"),
            value=measure(ours),
            protocol=f"{protocol}, {count} texts of {num_text} tokens that continue "
            f"{num_prompt} of the split, temperature 1; the baseline is the "
            f"continuation in the split; {detail}",
            n=count,
            seed=seed,
            higher_is_better=metric != "self_bleu",
            baseline=("text of the split", measure(theirs)),
        )
        for metric, measure, detail in rows
    ]


# -- speed ---------------------------------------------------------------------


def _speed_records(model, prompt) -> list[Record]:
    """Tokens per second of one text, with and without the KV cache."""
    num_tokens = min(TIMED_TOKENS, max(model.context - 1, 1))
    next_token = tf.function(
        lambda tokens: tf.argmax(model(tokens)[:, -1:], axis=2, output_type=tf.int32),
        input_signature=[tf.TensorSpec([1, None], tf.int32)],
    )

    def cached():
        model.generate([prompt], max_new_tokens=num_tokens, temperature=0.0)

    def uncached():
        tokens = tf.constant(prompt[None])
        for _ in range(num_tokens):
            tokens = tf.concat([tokens, next_token(tokens)], axis=1)

    rate = functools.partial(
        rate_record,
        amount=num_tokens,
        unit="tokens/s",
        protocol=f"generate, one text of {num_tokens} tokens, greedy",
        num_runs=3,
    )
    slow = rate(uncached, metric="tokens_per_second[uncached]")
    fast = rate(
        cached,
        metric="tokens_per_second[cached]",
        headline=True,
        baseline=("uncached", slow.value),
    )
    return [slow, fast]
