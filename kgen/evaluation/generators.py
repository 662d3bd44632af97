"""What a generator of images is measured by: quality, diversity and speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kgen.data.image_sets import ImageSet
from kgen.evaluation.distances import (
    NUM_NEIGHBOURS,
    frechet_distance,
    neighbour_measures,
)
from kgen.evaluation.feature_spaces import (
    DIGIT_SIZE,
    NUM_DIGITS,
    DigitClassifier,
    RandomNetwork,
)
from kgen.evaluation.records import Record
from kgen.evaluation.speed import sampling_speed
from kgen.evaluation.split_rows import READ_BATCH_SIZE, check_one_shape, read_split
from kgen.models.shared.batches import check_images

NUM_IMAGES = (
    10_000  # All of MNIST's test images. Distances of another n do not compare.
)
# Stacked MNIST's usual number (Srivastava et al., 2017, VEEGAN; Lin et al., 2018,
# PacGAN), of which a perfect generator misses about no mode of 1,000.
NUM_MODE_IMAGES = 26_000
# With fewer, a ball of 5 neighbours holds more than a twentieth of all images.
MIN_NEIGHBOUR_IMAGES = 100
# Of the labels of a set that the digit classifier reads. Handwritten digits of another
# origin are still read that well; clothes, letters and white paper are not.
_MIN_SHARE_READ = 0.95
_NUM_IMAGES_TO_READ = 1000  # know a share of 95 % to 0.7 %

_NUM_PERFECT_DRAWS = 100  # give the mean of the best that is possible to 1 %

_INDEPENDENT = "independent pixels"

FEATURE_SPACES = {space.name: space for space in (DigitClassifier, RandomNetwork)}


def evaluate_generator(
    model: Any,
    image_set: ImageSet,
    *,
    split: str = "test",
    num_images: int = NUM_IMAGES,
    num_sets: int = 3,
    seed: int = 0,
    feature_space: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Measures how close generated images are to real ones, how diverse, how fast made.

    n generated images, n of the split, n others of the set in the generator's place
    (what a perfect one would reach), and n whose every pixel comes from a training
    image of its own (what knowing single pixels reaches) are compared as vectors of
    features. The seeds of the generated images are 0, 1, 2, ..., so that anyone can
    make them again; a conditional model gets the labels of the real images.

    Args:
        model: Has `image_shape`, `num_classes` and `generate(seeds, labels)`, which
            returns floats in [0, 1].
        image_set: The data the model was trained on.
        split: What generated images are compared with: "test", "validation" or
            "train". The others are of "train", or else of "test".
        num_images: The n; fewer where a split holds fewer.
        num_sets: How many sets of n images are generated, 1 or more, for the range of
            their Frechet distances. All other numbers are those of the first set.
        seed: Keys which images of a larger split are taken, the baseline, and the
            intervals.
        feature_space: "kgen-mnist-v1" or "kgen-random-v1". None: the first where it is
            seen to read the labels of the set right (28x28 pixels, each channel a
            digit, the first channel's the highest of the label), the second elsewhere.
        progress: Called with the number of images generated, and their total.

    Returns:
        Records, SPACE standing for the name of the feature space:
        `frechet_distance[SPACE]` and `frechet_distance_floor[SPACE]`, if n is at least
        2; `precision[SPACE]`, `recall[SPACE]`, `density[SPACE]` and `coverage[SPACE]`,
        if it is at least 100; `num_modes[SPACE]` and `mode_divergence[SPACE]`, where
        the labels are digits that the feature space can read; and `sampling_speed`,
        whose protocol says what was left out and why.

    Raises:
        ValueError: An argument is out of its range, or the model makes images of
            another shape or with values outside [0, 1].

    Example:
        >>> records = evaluate_generator(vae, kgen.data.open_images("digits"))
        >>> print(kgen.evaluation.table(records))
    """
    for name, value in (("num_images", num_images), ("num_sets", num_sets)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    if feature_space not in (None, *FEATURE_SPACES):
        raise ValueError(
            f"`feature_space` must be one of {', '.join(FEATURE_SPACES)}. Received: "
            f"feature_space={feature_space!r}"
        )
    check_one_shape(model, image_set)
    real, labels = _sample(image_set, split, num_images, seed)
    other_split = "test" if split == "train" else "train"
    other, _ = _sample(image_set, other_split, len(real), seed)
    count = len(other)
    real, labels = real[:count], None if labels is None else labels[:count]
    space = _open_space(feature_space, real, labels)
    wanted = labels if model.num_classes is not None else None
    seeds = f"seeds 0 to {count - 1:,}"
    if wanted is not None:
        seeds += ", with the labels of the real ones"
    real_features, real_numbers = _see(space, real)
    trivial, trivial_numbers = _see(space, independent_pixels(other, seed))
    made, numbers = _generate(model, space, wanted, count, num_sets, progress)
    seen = _Seen(
        space=space.name,
        real=real_features,
        other=_see(space, other)[0],
        trivial=trivial,
        generated=made.reshape(num_sets, count, -1),
        protocol=(
            f"{image_set.name}: {count:,} generated images ({seeds}), rounded to 256 "
            f"levels, against {count:,} of {split}"
        ),
        other_name=f"{count:,} of {other_split} in their place",
        seed=seed,
    )
    records, reasons = [], []
    if count >= 2:
        records += _distance_records(seen)
    else:
        reasons.append("a Frechet distance, for which 2 images are needed")
    if count >= MIN_NEIGHBOUR_IMAGES:
        records += _neighbour_records(seen)
    else:
        reasons.append(
            "precision, recall, density and coverage, for which "
            f"{MIN_NEIGHBOUR_IMAGES} images are needed"
        )
    share_read = _share_read(real_numbers, labels)
    if share_read >= _MIN_SHARE_READ:
        records += _mode_records(image_set, seen, numbers, trivial_numbers, share_read)
    speed = sampling_speed(model)
    for reason in reasons:
        speed = dataclasses.replace(
            speed, protocol=f"{speed.protocol}; not measured: {reason}"
        )
    return [*records, speed]


@dataclasses.dataclass(frozen=True)
class _Seen:
    """Features of all images that are compared, and what the records share.

    Attributes:
        space: Name of the feature space.
        real: [n, dim]
        other: Of real images in the generator's place: [n, dim].
        trivial: Of images of independent pixels: [n, dim].
        generated: [sets, n, dim]
        protocol: What was compared.
        other_name: What the other images are.
        seed: Of all that is drawn at random.
    """

    space: str
    real: np.ndarray
    other: np.ndarray
    trivial: np.ndarray
    generated: np.ndarray
    protocol: str
    other_name: str
    seed: int


# ---------------------------------------------------------------------------
# Images and what is seen in them
# ---------------------------------------------------------------------------


def independent_pixels(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Images that have the pixels of these, each drawn without regard to the others.

    Args:
        images: [n, height, width, channels].
        seed: Keys the drawing, which is without replacement.
    """
    columns = images.reshape(len(images), -1)
    drawn = np.random.default_rng(seed).permuted(columns, axis=0)
    return drawn.reshape(images.shape)


def _sample(image_set, split, num_images, seed):
    """Images of a split at random, but the same for one seed; and their labels."""
    return read_split(image_set, split, limit=num_images, seed=seed, shuffle=True)


def _open_space(name, images, labels):
    """The feature space of that name, or for None the one that suits these images."""
    if name is not None:
        return FEATURE_SPACES[name]()
    if images.shape[1:3] == DIGIT_SIZE:
        classifier = DigitClassifier()
        some = slice(0, _NUM_IMAGES_TO_READ)
        _, numbers = _see(classifier, images[some])
        if _share_read(numbers, labels) >= _MIN_SHARE_READ:
            return classifier
    return RandomNetwork()


def _share_read(numbers, labels):
    """Share of the labels that the numbers seen are equal to; 0 if there are none."""
    if numbers is None or labels is None:
        return 0.0
    return float(np.mean(numbers == labels[: len(numbers)]))


def _see(space, images):
    """Features [n, dim]; and the numbers [n] that the channels' digits make, or None.

    The first channel has the highest digit: red 1, green 2, blue 3 is 123.
    """
    features, probabilities = space.predict(images)
    if probabilities is None:
        return features, None
    digits = probabilities.argmax(axis=-1)  # [n, channels]
    return features, digits @ NUM_DIGITS ** np.arange(digits.shape[1])[::-1]


def _generate(model, space, labels, count, num_sets, progress):
    """What is seen in generated images: [sets * count, dim], and numbers or None."""
    total = num_sets * count
    labels = None if labels is None else np.resize(labels, total)
    seen = []
    for start in range(0, total, READ_BATCH_SIZE):
        rows = slice(start, min(start + READ_BATCH_SIZE, total))
        images = model.generate(
            range(rows.start, rows.stop), None if labels is None else labels[rows]
        )
        images = check_images(images, tuple(model.image_shape))
        # The levels that an image file has, and that the real images have.
        seen.append(_see(space, np.rint(images * 255).astype(np.uint8)))
        if progress:
            progress(rows.stop, total)
    features, numbers = zip(*seen, strict=True)
    if numbers[0] is None:
        return np.concatenate(features), None
    return np.concatenate(features), np.concatenate(numbers)


# ---------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------


def _distance_records(seen: _Seen) -> list[Record]:
    """The Frechet distance, and the one that real images have."""
    distances = [frechet_distance(seen.real, made) for made in seen.generated]
    floor = frechet_distance(seen.real, seen.other)
    interval, explained = None, ""
    if len(distances) > 1:
        interval = (min(distances), max(distances))
        last_seed = seen.generated.shape[0] * seen.generated.shape[1] - 1
        explained = (
            f"; interval: the lowest and the highest of {len(distances)} sets of "
            f"generated images (seeds 0 to {last_seed:,}), against the same real ones"
        )
    shared: dict[str, Any] = {
        "unit": "",
        "n": len(seen.real),
        "seed": seen.seed,
        "higher_is_better": False,
        "baseline": (_INDEPENDENT, frechet_distance(seen.real, seen.trivial)),
    }
    return [
        Record(
            metric=f"frechet_distance[{seen.space}]",
            headline=True,
            value=distances[0],
            interval=interval,
            protocol=f"{seen.protocol}; {seen.other_name}: {floor:.4g}{explained}",
            **shared,
        ),
        Record(
            metric=f"frechet_distance_floor[{seen.space}]",
            value=floor,
            protocol=f"{seen.protocol}, but with {seen.other_name}",
            **shared,
        ),
    ]


def _neighbour_records(seen: _Seen) -> list[Record]:
    """Precision, recall, density and coverage."""
    ours, others, trivial = (
        dataclasses.asdict(neighbour_measures(seen.real, features))
        for features in (seen.generated[0], seen.other, seen.trivial)
    )
    return [
        Record.of_mean(
            values,
            metric=f"{name}[{seen.space}]",
            unit="",
            protocol=(
                f"{seen.protocol}; balls to the {NUM_NEIGHBOURS}th nearest neighbour, "
                f"held fixed for the interval; {seen.other_name}: "
                f"{others[name].mean():.4g}"
            ),
            seed=seen.seed,
            higher_is_better=True,
            baseline=(_INDEPENDENT, float(trivial[name].mean())),
        )
        for name, values in ours.items()
    ]


def _mode_records(
    image_set: ImageSet,
    seen: _Seen,
    numbers: np.ndarray,
    trivial: np.ndarray,
    share_read: float,
) -> list[Record]:
    """How many of the classes appear, and how far their shares are from the data's."""
    batches = image_set.pipeline("train", batch_size=READ_BATCH_SIZE).dataset()
    labels = np.concatenate([x["labels"] for x in batches.as_numpy_iterator()])
    num_modes = NUM_DIGITS ** image_set.image_shape[-1]
    real = np.bincount(labels, minlength=num_modes)
    numbers = numbers[:NUM_MODE_IMAGES]
    draws = np.random.default_rng(seen.seed).multinomial(
        len(numbers), real / real.sum(), size=_NUM_PERFECT_DRAWS
    )
    perfect = np.mean([_modes_and_divergence(draw, real) for draw in draws], axis=0)
    ours, baseline = (
        _modes_and_divergence(np.bincount(x, minlength=len(real)), real)
        for x in (numbers, trivial)
    )
    protocol = (
        f"{image_set.name}: {len(numbers):,} generated images (seeds 0 to "
        f"{len(numbers) - 1:,}), each read as one of {num_modes:,} numbers by "
        f"{seen.space}, which reads {share_read:.1%} of the real ones right; baseline: "
        f"{len(trivial):,} images"
    )
    details = (
        ("num_modes", "", "numbers that appear", True),
        (
            "mode_divergence",
            "nats",
            f"KL(generated || labels of {real.sum():,} images of train)",
            False,
        ),
    )
    return [
        Record(
            metric=f"{name}[{seen.space}]",
            headline=name == "num_modes",
            value=ours[index],
            unit=unit,
            protocol=f"{protocol}; {what}; drawn like train: {perfect[index]:.4g}",
            n=len(numbers),
            seed=seen.seed,
            higher_is_better=higher_is_better,
            baseline=(_INDEPENDENT, baseline[index]),
        )
        for index, (name, unit, what, higher_is_better) in enumerate(details)
    ]


def _modes_and_divergence(
    generated: np.ndarray, real: np.ndarray
) -> tuple[float, float]:
    """How many classes appear, and KL(generated || real) in nats, from counts."""
    appear = generated > 0
    share = generated[appear] / generated.sum()
    with np.errstate(divide="ignore"):  # infinite where a class is never real
        ratio = np.log(share) - np.log(real[appear] / real.sum())
    return float(appear.sum()), float(np.sum(share * ratio))
