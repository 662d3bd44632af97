"""Statistics of text: diversity, novelty and token frequencies."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Return words and punctuation marks, in lower case."""
    return _WORD.findall(text.lower())


def ngrams(items: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """Return all sequences of n neighbouring words."""
    return set(zip(*(items[start:] for start in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the number of different n-grams of words over the number of n-grams.

    Reference:
        Li et al., 2016, A Diversity-Promoting Objective Function for Neural
        Conversation Models.
    """
    rows = [words(text) for text in texts]
    total = sum(max(len(row) - n + 1, 0) for row in rows)
    return len(set().union(*(ngrams(row, n) for row in rows))) / max(total, 1)


def novelty(texts: Sequence[str], known: set[tuple[str, ...]], n: int) -> float:
    """Return the share of n-grams of words that are not in `known`; 1 without any."""
    found = [gram for text in texts for gram in ngrams(words(text), n)]
    return sum(gram not in known for gram in found) / len(found) if found else 1.0


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU-4 of each text against all others, 0 to 1; 0 for one text.

    Reference:
        Zhu et al., 2018, Texygen: A Benchmarking Platform for Text Generation Models.
    """
    import sacrebleu

    if len(texts) < 2:
        return 0.0
    scores = []
    for index, text in enumerate(texts):
        others = [*texts[:index], *texts[index + 1 :]]
        scores.append(sacrebleu.sentence_bleu(text, others, lowercase=True).score)
    return statistics.fmean(scores) / 100.0


def unigram_loss(counts: np.ndarray, tokens: np.ndarray) -> float:
    """Return the mean nats of tokens under the frequencies of a training text.

    Args:
        counts: Occurrences of each token in the training text: [vocab_size]. Each gets
            one more (Laplace), so that no probability is 0.
        tokens: [n].
    """
    probabilities = (counts + 1) / (counts + 1).sum()
    return float(-np.log(probabilities[tokens]).mean())
