"""Distances between the outputs of an export and those of Keras, by kind of output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Two candidates for the next token whose scores are as near may change places.
TIED_TOKENS = 1e-4
NO_TIE = 2**62

# Largest share of pixels that are off by one: values that lie between two levels.
PIXEL_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Pair:
    """An output of an export and the same one of Keras.

    Attributes:
        received: The export's.
        expected: Keras'.
        tolerance: Largest difference that the signature accepts.
        scores: The scores of ranked items, as Keras computes them.
        ties: For each row the position of the first token that is tied with another,
            or NO_TIE. From there on two runtimes may continue differently.
    """

    received: np.ndarray
    expected: np.ndarray
    tolerance: float
    scores: np.ndarray | None
    ties: np.ndarray


def difference(received: np.ndarray, expected: np.ndarray) -> float:
    """The largest |received - expected| / max(1, |expected|); infinite for a NaN.

    Equal infinities (masked scores) do not differ.
    """
    received, expected = received.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(received - expected) / np.maximum(1.0, np.abs(expected))
    gaps = np.where(received == expected, 0.0, gaps)
    return float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0))


def pixels_off_by_one(received: np.ndarray, expected: np.ndarray) -> float:
    """The share of uint8 values that are off by one; infinite where one is off by more.

    Args:
        received: uint8 images, or the bytes of PNG files, [batch].
        expected: The same, of the same size.
    """
    ours, theirs = _pixels(expected), _pixels(received)
    if ours.shape != theirs.shape:
        return np.inf
    gaps = np.abs(ours.astype(int) - theirs)
    return float(gaps.mean()) if gaps.max(initial=0) <= 1 else np.inf


def _pixels(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    return np.array([tf.io.decode_png(file).numpy() for file in images])


def _numbers(pair: Pair) -> float:
    untied = pair.ties == NO_TIE
    return difference(pair.received[untied], pair.expected[untied])


def _pixel_share(pair: Pair) -> float:
    return pixels_off_by_one(pair.received, pair.expected)


def _items(pair: Pair) -> float:
    """0 or infinity: ids whose scores are equal but for rounding may change places."""
    scores = np.asarray(pair.scores, np.float64)
    with np.errstate(invalid="ignore"):
        steps = -np.diff(scores) / np.maximum(1.0, np.abs(scores[:, 1:]))
    apart = ~(steps <= 2 * pair.tolerance)  # NaN between two infinities: apart
    # The last may have changed places with one that is beyond the end.
    alone = np.pad(apart, ((0, 0), (1, 0)), constant_values=True) & np.pad(
        apart, ((0, 0), (0, 1)), constant_values=False
    )
    return np.inf if (alone & (pair.received != pair.expected)).any() else 0.0


def _tokens(pair: Pair) -> float:
    differs = pair.received != pair.expected
    before_tie = np.arange(differs.shape[1]) < pair.ties[:, None]
    return np.inf if (differs & before_tie).any() else 0.0


def _text(pair: Pair) -> float:
    """0 or infinity: the position of a token in a text is unknown: any tie counts."""
    differs = (pair.received != pair.expected) & (pair.ties == NO_TIE)
    return np.inf if differs.any() else 0.0


# Distances of a pair by kind of output: infinite where a value is simply wrong.
COMPARISONS: dict[str, Callable[[Pair], float]] = {
    "image": _numbers,
    "latent": _numbers,
    "scores": _numbers,
    "state": _numbers,
    "items": _items,
    "tokens": _tokens,
    "text": _text,
    "png": _pixel_share,
    "pixels": _pixel_share,
}
# Largest distances accepted of the other kinds: those of the signature.
TOLERANCES = {"png": PIXEL_TOLERANCE, "pixels": PIXEL_TOLERANCE}
