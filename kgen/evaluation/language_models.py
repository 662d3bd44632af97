"""What a language model is measured by: its loss, and what it writes."""

from __future__ import annotations

import importlib.util
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.data.text_sets import TextSet
from kgen.evaluation.records import Record, bootstrap_interval
from kgen.evaluation.speed import device

NUM_TEXTS = 50
PROMPT_CHARACTERS, TEXT_CHARACTERS = 40, 400
NGRAM = 5  # words in a row that count as copied where the training text has them
TIMED_TOKENS = 128
HIDDEN_EVERY = 7  # tokens: about as many as are hidden in training
_WORD = re.compile(r"\w+|[^\w\s]")


def evaluate_language_model(
    model: Any,
    text_set: TextSet,
    *,
    split: str = "validation",
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Measures how well text is predicted, what is written, and how fast.

    Every token of the split but the first is predicted once, in windows that do not
    overlap: those at the beginning of a window from few tokens. What is written goes on
    from places of the split that are spread over it evenly, at a temperature of 1.

    Args:
        model: Has `generate`, `score`, and a call that returns logits.
        text_set: The text the model was trained on.
        split: "validation" or "test"; "train" measures what was learned by heart.
        limit: Fewer texts than the usual 50, and windows than all.
        seed: Of the texts, and of the intervals.
        progress: Called with the number of texts that are written, and their total.

    Returns:
        Records `loss`, `perplexity`, `bits_per_character`, `loss[random-batches]` (the
        estimate of nanoGPT), `distinct_words@1` and `@2`,
        `self_bleu` (where the sacrebleu library is installed), `novelty@5` and
        `tokens_per_second`; the baselines are the frequencies of the tokens in
        training, and the split's own text.

    Raises:
        ValueError: The model has another tokenizer than the text.
    """
    _check_tokenizer(model, text_set)
    what = f"{text_set.name}, {split}"
    return [
        *_prediction(model, text_set, split, limit, seed, what),
        *_writing(model, text_set, split, limit, seed, progress, what),
        *_speed(model, text_set, split),
    ]


def evaluate_masked_language_model(
    model: Any,
    text_set: TextSet,
    *,
    split: str = "validation",
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Measures how well hidden tokens are guessed, and how fast texts are embedded.

    The split is cut into windows that do not overlap. Every seventh token of a window
    is hidden, all at once; where they begin goes round from window to window.

    Args:
        model: A BERT: a call returns logits, `embed` vectors.
        text_set: The text the model was trained on.
        split: "validation", "test" or "train".
        limit: Only the first windows, this many.
        seed: Of the intervals.
        progress: Called with the number of windows that are done, and their total.

    Returns:
        Records `masked_loss`, `masked_accuracy` and `texts_per_second`; the baselines
        are the frequencies of the tokens in training, and the most frequent token.

    Raises:
        ValueError: The model has another tokenizer than the text.
    """
    _check_tokenizer(model, text_set)
    tokens = text_set.tokens(split)
    size = model.context
    windows = np.full((-(-len(tokens) // size), size), -1, np.int32)
    windows.reshape(-1)[: len(tokens)] = tokens
    windows = windows[:limit]
    rows, places = np.indices(windows.shape)
    hidden = (places % HIDDEN_EVERY == rows % HIDDEN_EVERY) & (windows >= 0)
    windows, hidden = (x[hidden.any(axis=1)] for x in (windows, hidden))
    shown = np.where(hidden, model.vocab_size, windows)
    graph = tf.function(lambda tokens: tf.nn.log_softmax(model(tokens)))
    nats, right = np.zeros(windows.shape), np.zeros(windows.shape)
    for start in range(0, len(windows), 64):
        part = slice(start, start + 64)
        log_shares = graph(tf.constant(shown[part])).numpy()
        targets = np.maximum(windows[part], 0)[..., None]
        nats[part] = -np.take_along_axis(log_shares, targets, 2)[..., 0]
        right[part] = log_shares.argmax(axis=2) == windows[part]
        if progress:
            progress(min(start + 64, len(windows)), len(windows))
    targets = windows[hidden]
    counts = np.bincount(text_set.tokens("train"), minlength=model.vocab_size)
    protocol = (
        f"{text_set.name}, {split}, every {HIDDEN_EVERY}th token of {len(windows):,} "
        f"windows of {size}"
    )
    by_frequency = ("frequencies", _unigram_nats(text_set, targets) / len(targets))
    by_most = ("most frequent", float((targets == counts.argmax()).mean()))
    return [
        _of_windows("masked_loss", "nats", nats, hidden, protocol, seed, by_frequency),
        _of_windows("masked_accuracy", "", right, hidden, protocol, seed, by_most),
        _embedding_speed(model, windows),
    ]


def _of_windows(metric, unit, values, chosen, protocol, seed, baseline) -> Record:
    """The mean of chosen values, with an interval over the windows they are in."""
    sums, counts = (values * chosen).sum(axis=1), chosen.sum(axis=1)
    return Record(
        metric=metric,
        headline=True,
        value=float(sums.sum() / counts.sum()),
        unit=unit,
        protocol=f"{protocol}; 95 % bootstrap interval over windows",
        n=int(counts.sum()),
        seed=seed,
        higher_is_better=metric != "masked_loss",
        interval=bootstrap_interval(sums / counts.mean(), seed=seed),
        baseline=baseline,
    )


def _embedding_speed(model, windows) -> Record:
    rows = [row[row >= 0] for row in windows[:64]]
    low, middle, high = _rates(lambda: model.embed(rows), len(rows))
    return Record(
        metric="texts_per_second",
        headline=True,
        value=float(middle),
        unit="texts/s",
        protocol=f"embed, {len(rows)} texts of at most {model.context} tokens, warm, "
        f"median of 3 runs on {device()}; interval: the slowest and fastest",
        n=3 * len(rows),
        higher_is_better=True,
        interval=(float(low), float(high)),
    )


def _rates(run: Callable[[], Any], amount: int) -> np.ndarray:
    """An amount a second: the slowest, median and fastest of three warm runs."""
    run()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return amount / np.array(sorted(seconds, reverse=True))


def _check_tokenizer(model, text_set) -> None:
    if model.tokenizer != text_set.tokenizer.config():
        raise ValueError(
            "The model and the text must have the same tokenizer. Received: one of "
            f"{model.vocab_size:,} tokens and {text_set.tokenizer}. Open the text with "
            "the options the model was trained with."
        )


# -- prediction ----------------------------------------------------------------


def _prediction(model, text_set, split, limit, seed, what) -> list[Record]:
    """Nats of all tokens, from the sums over the windows."""
    graph = tf.function(lambda tokens: _window_losses(model, tokens))
    pipeline = text_set.pipeline(split, batch_size=64)
    windows = []
    for batch in pipeline.dataset():
        windows.append(np.float64(graph(batch["tokens"])))
        if limit is not None and 64 * len(windows) >= limit:
            break
    nats, counts = np.concatenate(windows, axis=1)[:, :limit]
    tokens = text_set.tokens(split)[: int(counts.sum()) + 1]
    characters = len(text_set.tokenizer.decode(tokens[1:]))
    unigrams = _unigram_nats(text_set, tokens[1:])
    # A mean over tokens whose windows are drawn: each window's share of it.
    shares = nats / counts.mean()
    low, high = bootstrap_interval(shares, seed=seed)
    loss = nats.sum() / counts.sum()
    per_bit = counts.sum() / characters / math.log(2.0)
    protocol = (
        f"{what}, {int(counts.sum()):,} tokens ({characters:,} characters), each "
        f"predicted once in windows of {text_set.context}"
    )

    def record(metric, unit, change):
        return Record(
            metric=metric,
            headline=metric != "perplexity",
            value=change(loss),
            unit=unit,
            protocol=f"{protocol}; 95 % bootstrap interval over windows",
            n=int(counts.sum()),
            seed=seed,
            higher_is_better=False,
            interval=(change(low), change(high)),
            baseline=("frequencies", change(unigrams / counts.sum())),
        )

    return [
        record("loss", "nats/token", lambda nats: float(nats)),
        record("perplexity", "", lambda nats: math.exp(nats)),
        record("bits_per_character", "bits", lambda nats: float(nats * per_bit)),
        _random_batches(graph, text_set, split, seed, what),
    ]


def _random_batches(graph, text_set, split, seed, what) -> Record:
    """The loss as nanoGPT estimates it: many papers and logs have this one alone."""
    tokens, size = text_set.tokens(split).astype(np.int32), text_set.context + 1
    starts = np.random.default_rng(seed).integers(0, len(tokens) - size + 1, (20, 12))
    windows = tokens[starts[..., None] + np.arange(size)]
    nats = np.array([np.sum(graph(tf.constant(batch))[0]) for batch in windows])
    losses = nats / windows[0, :, 1:].size
    targets = windows[..., 1:].ravel()
    return Record(
        metric="loss[random-batches]",
        value=float(losses.mean()),
        unit="nats/token",
        protocol=f"{what}, 20 batches of 12 windows of {text_set.context} that begin "
        "anywhere; mean; 95 % bootstrap interval over batches",
        n=targets.size,
        seed=seed,
        higher_is_better=False,
        interval=bootstrap_interval(losses, seed=seed),
        baseline=("frequencies", _unigram_nats(text_set, targets) / targets.size),
    )


def _window_losses(model, tokens):
    """Nats of each window, and how many tokens they are of: [batch] each."""
    targets = tokens[:, 1:]
    counted = tf.cast(targets >= 0, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.maximum(targets, 0), model(tokens[:, :-1])
    )
    return tf.reduce_sum(losses * counted, axis=1), tf.reduce_sum(counted, axis=1)


def _unigram_nats(text_set, tokens) -> float:
    """Nats of tokens by their frequencies in training; each has one more there."""
    counts = np.bincount(
        text_set.tokens("train"), minlength=text_set.tokenizer.vocab_size
    )
    return float(-np.log((counts + 1) / (counts + 1).sum())[tokens].sum())


# -- writing -------------------------------------------------------------------


def _writing(model, text_set, split, limit, seed, progress, what) -> list[Record]:
    """Diversity and novelty of texts, beside the split's own from the same places."""
    count = min(limit or NUM_TEXTS, NUM_TEXTS)
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
    real = [
        tokens[start + num_prompt : start + num_prompt + num_text] for start in starts
    ]
    written: list[np.ndarray] = []
    for start in range(0, count, 10):
        written += model.generate(
            prompts[start : start + 10],
            max_new_tokens=num_text,
            seeds=range(seed + start, seed + min(start + 10, count)),
        )
        if progress:
            progress(len(written), count)
    decode = text_set.tokenizer.decode
    ours, theirs = [decode(row) for row in written], [decode(row) for row in real]
    train = decode(text_set.tokens("train"))
    protocol = (
        f"{what}, {count} texts of {num_text} tokens that go on from {num_prompt} of "
        "the split, temperature 1; the baseline is what follows there"
    )
    known = _ngrams(_words(train), NGRAM)
    rows: list[tuple[str, Callable[[list[str]], float], bool, str]] = [
        (
            "distinct_words@1",
            lambda texts: _distinct(texts, 1),
            True,
            "different words over words",
        ),
        (
            "distinct_words@2",
            lambda texts: _distinct(texts, 2),
            True,
            "different pairs of words over pairs",
        ),
        (
            f"novelty@{NGRAM}",
            lambda texts: _novelty(texts, known),
            True,
            f"share of {NGRAM} words in a row that are nowhere in the training text",
        ),
    ]
    if importlib.util.find_spec("sacrebleu"):
        detail = "BLEU-4 of each text against all others"
        rows.append(("self_bleu", _self_bleu, False, detail))
    return [
        Record(
            metric=metric,
            headline=metric.startswith("novelty"),
            value=measure(ours),
            unit="",
            protocol=f"{protocol}; {detail}",
            n=count,
            seed=seed,
            higher_is_better=higher_is_better,
            baseline=("the text", measure(theirs)),
        )
        for metric, measure, higher_is_better, detail in rows
    ]


def _words(text: str) -> list[str]:
    """Words and signs, in lower case."""
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(n)), strict=False))


def _distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams.

    Reference:
        Li et al., 2016, A Diversity-Promoting Objective Function for Neural
        Conversation Models.
    """
    total, different = 0, set()
    for text in texts:
        words = _words(text)
        total += max(len(words) - n + 1, 0)
        different |= _ngrams(words, n)
    return len(different) / max(total, 1)


def _self_bleu(texts: Sequence[str]) -> float:
    """The mean BLEU-4 of each text against all others, 0 to 1; 0 for a single text.

    Reference:
        Zhu et al., 2018, Texygen: A Benchmarking Platform for Text Generation Models.
    """
    import sacrebleu

    if len(texts) < 2:
        return 0.0
    scores = [
        sacrebleu.sentence_bleu(
            text, [*texts[:index], *texts[index + 1 :]], lowercase=True
        ).score
        for index, text in enumerate(texts)
    ]
    return statistics.fmean(scores) / 100.0


def _novelty(texts: Sequence[str], known: set[tuple[str, ...]]) -> float:
    """The share of n-grams that are not known; 1 where there are none."""
    found = [gram for text in texts for gram in _ngrams(_words(text), NGRAM)]
    return sum(gram not in known for gram in found) / len(found) if found else 1.0


# -- speed ---------------------------------------------------------------------


def _speed(model, text_set, split) -> list[Record]:
    """Tokens a second of one text, with the cache and without."""
    prompt = text_set.tokens(split)[:1]
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

    records = []
    rates = {
        name: _rates(run, num_tokens)
        for name, run in (("uncached", uncached), ("cached", cached))
    }
    for name, rate in rates.items():
        records.append(
            Record(
                metric=f"tokens_per_second[{name}]",
                headline=name == "cached",
                value=float(rate[1]),
                unit="tokens/s",
                protocol=f"generate, one text of {num_tokens} tokens, warm, greedy, "
                f"median of 3 runs on {device()}; interval: the slowest and fastest",
                n=3 * num_tokens,
                higher_is_better=True,
                interval=(float(rate[0]), float(rate[2])),
                baseline=("uncached", float(rates["uncached"][1])),
            )
        )
    return records
