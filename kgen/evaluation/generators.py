"""Evaluation of image generators: quality, diversity and speed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from kgen.data.image_sets import ImageSet
from kgen.evaluation.blocks import Progress, row_blocks
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
from kgen.evaluation.split_rows import (
    READ_BATCH_SIZE,
    check_at_least_1,
    check_one_shape,
    read_split,
)
from kgen.evaluation.timing import sampling_speed
from kgen.models.shared.specs import ImageSpec

NUM_IMAGES = 10_000  # MNIST's test split. Distances of another n do not compare.
# Usual for Stacked MNIST (Srivastava et al., 2017, VEEGAN; Lin et al., 2018, PacGAN): a
# perfect generator misses about none of the 1,000 modes.
NUM_MODE_IMAGES = 26_000
# With fewer, a ball of 5 neighbours holds more than a twentieth of all images.
MIN_NEIGHBOUR_IMAGES = 100
# Accuracy from which the digit classifier is used. It reaches this on handwritten
# digits of other origins, but not on clothes, letters and blank images.
_MIN_ACCURACY = 0.95
_NUM_ACCURACY_IMAGES = 1000  # an accuracy of 95 % is then known to 0.7 %

_NUM_PERFECT_DRAWS = 100  # of a perfect generator: its mean is then known to 1 %

_SHUFFLED = "independent pixels"

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
    progress: Progress | None = None,
) -> list[Record]:
    """Measure quality and diversity of generated images, and the speed of sampling.

    n generated images are compared with n real ones of the split, as feature vectors.
    The floor, the score of a perfect generator, takes n real images of another split
    as generated; the baseline takes n images whose pixels come from different
    images. The seeds are 0, 1, 2, ..., so that the images can be generated
    again; a conditional model gets the labels of the real images.

    Args:
        model: Has `image_shape`, `num_classes` and `generate(seeds, labels)`, which
            returns floats in [0, 1].
        image_set: The data the model was trained on.
        split: Split of the real images: "test", "validation" or "train". The floor and
            the baseline use "train", or "test" if the split is "train".
        num_images: The n; fewer if a split holds fewer.
        num_sets: Sets of n generated images, 1 or more, for the range of the Frechet
            distance. All other numbers are of the first set.
        seed: Of the choice of images from a larger split, the baseline, and the
            intervals.
        feature_space: "kgen-mnist-v1" or "kgen-random-v1". None: the first if it
            classifies the images of the set correctly (28x28 pixels, a digit in each
            channel, the first channel's the highest of the label), else the second.
        progress: Called with the number of generated images, and their total.

    Returns:
        Records `frechet_distance[SPACE]` and `frechet_distance_floor[SPACE]`, if n is
        at least 2; `precision[SPACE]`, `recall[SPACE]`, `density[SPACE]` and
        `coverage[SPACE]`, if n is at least 100; `num_modes[SPACE]` and
        `mode_divergence[SPACE]`, if the feature space classifies the digits of the
        labels; and `sampling_speed`, whose protocol names records left out and the
        reason. SPACE is the name of the feature space.

    Raises:
        ValueError: An argument is out of its range, or the generated images have
            another shape or values outside [0, 1].

    Example:
        >>> records = evaluate_generator(vae, kgen.data.open_images("digits"))
        >>> print(kgen.evaluation.table(records))
    """
    check_at_least_1(num_images=num_images, num_sets=num_sets)
    if feature_space not in (None, *FEATURE_SPACES):
        raise ValueError(
            f"`feature_space` must be one of {', '.join(FEATURE_SPACES)}. Received: "
            f"feature_space={feature_space!r}"
        )
    check_one_shape(model, image_set)
    # Random images of a split, the same for one seed.
    sample = functools.partial(read_split, image_set, seed=seed, shuffle=True)
    real, labels = sample(split, limit=num_images)
    other_split = "test" if split == "train" else "train"
    other, _ = sample(other_split, limit=len(real))
    count = len(other)
    real, labels = real[:count], None if labels is None else labels[:count]
    space = _open_space(feature_space, real, labels)
    seeds, conditions = f"seeds 0 to {count - 1:,}", None
    if labels is not None and model.num_classes is not None:
        seeds += ", with the labels of the real ones"
        conditions = np.resize(labels, num_sets * count)
    real_features, real_numbers = _embed(space, real)
    shuffled_features, shuffled_numbers = _embed(space, shuffled_pixels(other, seed))
    generated, numbers = _generate(model, space, conditions, num_sets * count, progress)
    features = _Features(
        space=space.name,
        real=real_features,
        other=_embed(space, other)[0],
        shuffled=shuffled_features,
        generated=generated.reshape(num_sets, count, -1),
        protocol=f"{image_set.name}: {count:,} generated images ({seeds}), rounded to "
        f"256 levels, against {count:,} of {split}",
        other_name=f"{count:,} of {other_split} instead of generated ones",
        seed=seed,
    )
    records, reasons = [], []
    neighbour_names = "precision, recall, density and coverage"
    for names, fewest, measured in (
        ("a Frechet distance", 2, _distance_records),
        (neighbour_names, MIN_NEIGHBOUR_IMAGES, _neighbour_records),
    ):
        if count >= fewest:
            records += measured(features)
        else:
            reasons.append(f"{names}, for which {fewest} images are needed")
    accuracy = _accuracy(real_numbers, labels)
    if accuracy >= _MIN_ACCURACY:
        records += _mode_records(
            image_set, features, numbers, shuffled_numbers, accuracy
        )
    speed = sampling_speed(model)
    protocol = "; not measured: ".join([speed.protocol, *reasons])
    return [*records, dataclasses.replace(speed, protocol=protocol)]


@dataclasses.dataclass(frozen=True)
class _Features:
    """Features of all compared images, and the shared fields of the records.

    Attributes:
        space: Name of the feature space.
        real: [n, dim]
        other: Of real images of another split: [n, dim].
        shuffled: Of images of independent pixels: [n, dim].
        generated: [sets, n, dim]
        protocol: The compared images.
        other_name: Name of the other real images.
        seed: Of all random choices.
    """

    space: str
    real: np.ndarray
    other: np.ndarray
    shuffled: np.ndarray
    generated: np.ndarray
    protocol: str
    other_name: str
    seed: int


# ---------------------------------------------------------------------------
# Images and their features
# ---------------------------------------------------------------------------


def shuffled_pixels(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return images with each pixel permuted among the images on its own.

    Args:
        images: [n, height, width, channels].
        seed: Of the permutations.
    """
    columns = images.reshape(len(images), -1)
    shuffled = np.random.default_rng(seed).permuted(columns, axis=0)
    return shuffled.reshape(images.shape)


def _open_space(name, images, labels):
    """The feature space of a name; for None, chosen by the images."""
    if name is not None:
        return FEATURE_SPACES[name]()
    if images.shape[1:3] == DIGIT_SIZE:
        classifier = DigitClassifier()
        _, numbers = _embed(classifier, images[:_NUM_ACCURACY_IMAGES])
        if _accuracy(numbers, labels) >= _MIN_ACCURACY:
            return classifier
    return RandomNetwork()


def _accuracy(numbers, labels):
    """Share of numbers that equal the labels; 0 without labels."""
    return 0.0 if labels is None else float(np.mean(numbers == labels[: len(numbers)]))


def _embed(space, images):
    """Features [n, dim]; and the numbers [n] of the channels' digits, or -1.

    The first channel has the highest digit: red 1, green 2, blue 3 is 123.
    """
    features, probabilities = space.predict(images)
    if probabilities is None:
        return features, np.full(len(images), -1)
    digits = probabilities.argmax(axis=-1)  # [n, channels]
    return features, digits @ NUM_DIGITS ** np.arange(digits.shape[1])[::-1]


def _generate(model, space, labels, total, progress):
    """Features of generated images, [total, dim], and their numbers."""
    spec = ImageSpec(*model.image_shape)
    batches = []
    for rows in row_blocks(total, READ_BATCH_SIZE, progress):
        seeds = range(rows.start, rows.stop)
        images = model.generate(seeds, None if labels is None else labels[rows])
        images = spec.cast(spec.check("images", images))
        # The 256 levels of an image file and of the real images.
        batches.append(_embed(space, np.rint(images * 255).astype(np.uint8)))
    return map(np.concatenate, zip(*batches, strict=True))


# ---------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------


def _distance_records(features: _Features) -> list[Record]:
    """The Frechet distance, and its floor by real images."""
    distance = functools.partial(frechet_distance, features.real)
    distances = [distance(one) for one in features.generated]
    floor = distance(features.other)
    interval, explained = None, ""
    if len(distances) > 1:
        interval = (min(distances), max(distances))
        last_seed = len(distances) * len(features.real) - 1
        explained = (
            f"; interval: the lowest and the highest of {len(distances)} sets of "
            f"generated images (seeds 0 to {last_seed:,}), against the same real ones"
        )
    record = functools.partial(
        Record,
        n=len(features.real),
        seed=features.seed,
        higher_is_better=False,
        baseline=(_SHUFFLED, distance(features.shuffled)),
    )
    return [
        record(
            metric=f"frechet_distance[{features.space}]",
            headline=True,
            value=distances[0],
            interval=interval,
            protocol=f"{features.protocol}; {features.other_name}: {floor:.4g}"
            + explained,
        ),
        record(
            metric=f"frechet_distance_floor[{features.space}]",
            value=floor,
            protocol=f"{features.protocol}, but with {features.other_name}",
        ),
    ]


def _neighbour_records(features: _Features) -> list[Record]:
    """Precision, recall, density and coverage."""
    ours, others, shuffled = (
        dataclasses.asdict(neighbour_measures(features.real, vectors))
        for vectors in (features.generated[0], features.other, features.shuffled)
    )
    return [
        Record.of_mean(
            values,
            metric=f"{name}[{features.space}]",
            protocol=f"{features.protocol}; balls to the {NUM_NEIGHBOURS}th nearest "
            f"neighbour, fixed for the interval; {features.other_name}: "
            f"{others[name].mean():.4g}",
            seed=features.seed,
            higher_is_better=True,
            baseline=(_SHUFFLED, float(shuffled[name].mean())),
        )
        for name, values in ours.items()
    ]


def _mode_records(image_set, features, numbers, shuffled, accuracy) -> list[Record]:
    """The number of generated classes, and the divergence of their frequencies."""
    batches = image_set.pipeline("train", batch_size=READ_BATCH_SIZE).dataset()
    labels = np.concatenate([x["labels"] for x in batches.as_numpy_iterator()])
    num_modes = NUM_DIGITS ** image_set.image_shape[-1]
    real = np.bincount(labels, minlength=num_modes)
    numbers = numbers[:NUM_MODE_IMAGES]
    draws = np.random.default_rng(features.seed).multinomial(
        len(numbers), real / real.sum(), size=_NUM_PERFECT_DRAWS
    )
    perfect = np.mean([_modes_and_divergence(draw, real) for draw in draws], axis=0)
    ours, baseline = (
        _modes_and_divergence(np.bincount(x, minlength=len(real)), real)
        for x in (numbers, shuffled)
    )
    protocol = (
        f"{image_set.name}: {len(numbers):,} generated images (seeds 0 to "
        f"{len(numbers) - 1:,}), each classified as one of {num_modes:,} numbers by "
        f"{features.space}, whose accuracy on real ones is {accuracy:.1%}; baseline: "
        f"{len(shuffled):,} images"
    )
    divergence = f"KL(generated || labels of {real.sum():,} images of train)"
    details = (
        ("num_modes", "", "generated numbers", True),
        ("mode_divergence", "nats", divergence, False),
    )
    return [
        Record(
            metric=f"{name}[{features.space}]",
            headline=name == "num_modes",
            value=ours[index],
            unit=unit,
            protocol=f"{protocol}; {detail}; perfect: {perfect[index]:.4g}",
            n=len(numbers),
            seed=features.seed,
            higher_is_better=higher_is_better,
            baseline=(_SHUFFLED, baseline[index]),
        )
        for index, (name, unit, detail, higher_is_better) in enumerate(details)
    ]


def _modes_and_divergence(generated, real) -> tuple[float, float]:
    """Number of generated classes, and KL(generated || real) in nats, from counts."""
    found = generated > 0
    share = generated[found] / generated.sum()
    with np.errstate(divide="ignore"):  # infinite if a class has no real images
        ratio = np.log(share) - np.log(real[found] / real.sum())
    return float(found.sum()), float(np.sum(share * ratio))
