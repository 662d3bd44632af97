"""Evaluation of autoencoders: bound, likelihood and reconstruction."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kgen.data.image_sets import Binarization, ImageSet
from kgen.evaluation.blocks import Progress, in_blocks, row_blocks
from kgen.evaluation.image_quality import mean_squared_error, psnr, ssim, ssim_window
from kgen.evaluation.records import Record
from kgen.evaluation.split_rows import (
    READ_BATCH_SIZE,
    check_at_least_1,
    check_one_shape,
    read_split,
)
from kgen.files import replacing

_BLOCK_ROWS = 100  # images whose likelihoods are computed, and saved, together
# Images, in random order, of the mean training image, at most: its pixels are exact to
# 0.002, and a set that is decoded while it is read takes seconds.
BASELINE_ROWS = 60_000


def evaluate_autoencoder(
    model: Any,
    image_set: ImageSet,
    *,
    split: str = "test",
    binarize: Binarization = None,
    num_samples: int = 5000,
    seed: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
    unfinished: Path | None = None,
) -> list[Record]:
    """Measure bound, likelihood and reconstruction.

    The baselines need no model: the mean training image for the reconstruction, and
    independent pixels for the likelihood.

    Args:
        model: Has `elbo`, `log_likelihood`, `reconstruct`, `likelihood` and
            `num_classes`, as `kgen.models.VAE`.
        image_set: The data the model was trained on; the baselines are computed from
            its training split.
        split: "test", "validation" or "train".
        binarize: None, "dynamic" or "static", as in training. Dynamic binarisation of
            the split is drawn once, from `seed`.
        num_samples: Importance samples for the likelihood of each image; more give a
            tighter bound. 5000 is usual in the literature.
        seed: Of the binarisation, the noise and the intervals.
        limit: Only the first images of the split, this many.
        progress: Called with the number of images with a likelihood, and their total.
        unfinished: File for the likelihoods computed so far: after an interruption the
            same call resumes from it. Delete it after the records are written.

    Returns:
        Records `elbo`, `nll[is-K]`, `reconstruction_mse`, `reconstruction_psnr` and
        `reconstruction_ssim`.

    Raises:
        ValueError: An argument is out of its range, or the model's images have another
            shape.

    Example:
        >>> records = evaluate_autoencoder(
        ...     vae, kgen.data.open_images("digits"), num_samples=100, limit=100
        ... )
        >>> print(kgen.evaluation.table(records))
    """
    check_at_least_1(num_samples=num_samples, limit=limit)
    check_one_shape(model, image_set)
    images, labels = read_split(
        image_set, split, limit=limit, seed=seed, binarize=binarize
    )
    if model.num_classes is None:
        labels = None
    moments = _training_moments(image_set, seed)
    drawn = f"{binarize} binarisation" if binarize else "not binarised"
    if binarize == "dynamic":
        drawn += ", one draw for each image"
    data = f"{image_set.name} {split} (baseline: {moments.count:,} of train), {drawn}"
    elbo = model.elbo(images, labels=labels, seed=seed)
    log_likelihood = _log_likelihood(
        model, images, labels, num_samples, seed, progress, unfinished
    )
    baseline = pixel_baseline(model.likelihood, images, moments)
    protocol = f"{data}, {model.likelihood} likelihood"
    if model.likelihood == "bernoulli" and not np.isin(images, (0, 255)).all():
        protocol += " of grey pixels (a cross-entropy, not a normalised likelihood)"
    if labels is not None:
        protocol += ", given the label"
    record = functools.partial(Record.of_mean, seed=seed)
    return [
        record(
            elbo,
            metric="elbo",
            unit="nats/image",
            protocol=f"{protocol}, one posterior sample for each image",
            higher_is_better=True,
            baseline=baseline,
        ),
        record(
            -log_likelihood,
            metric=f"nll[is-{num_samples}]",
            headline=True,
            unit="nats/image",
            protocol=f"{protocol}, importance sampling with {num_samples:,} posterior "
            "samples for each image",
            higher_is_better=False,
            baseline=(baseline[0], -baseline[1]),
        ),
        *_reconstruction_records(record, model, images, labels, moments.mean, data),
    ]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and variance of the training images, pixels in [0, 1].

    Attributes:
        mean: The mean image, float64 [height, width, channels].
        variance: The variance around it, one number for all pixels.
        count: Number of images.
    """

    mean: np.ndarray
    variance: float
    count: int


def _training_moments(image_set: ImageSet, seed: int) -> Moments:
    pipeline = image_set.pipeline(
        "train", batch_size=READ_BATCH_SIZE, seed=seed, shuffle=True
    )
    steps = min(pipeline.steps_per_epoch, BASELINE_ROWS // READ_BATCH_SIZE)
    count, total, squares = 0, np.zeros(image_set.image_shape), 0.0
    for batch in pipeline.dataset().take(steps).as_numpy_iterator():
        images = batch["images"] / 255.0  # float64: sums of 60,000 rows stay exact
        count += len(images)
        total += images.sum(axis=0)
        squares += np.square(images).sum()
    mean = total / count
    variance = squares / (count * mean.size) - np.square(mean).mean()
    return Moments(mean, float(variance), count)


# ---------------------------------------------------------------------------
# Likelihood
# ---------------------------------------------------------------------------


def _log_likelihood(model, images, labels, num_samples, seed, progress, unfinished):
    """Log-likelihoods [n], computed and saved to `unfinished` block by block."""
    done = np.zeros([0], np.float32)
    key = _fingerprint(model.get_weights(), images, labels, num_samples, seed)
    if unfinished is not None and unfinished.is_file():
        with np.load(unfinished, allow_pickle=False) as saved:
            done = saved["values"] if saved["key"] == key else done
    for start in range(len(done), len(images), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        values = model.log_likelihood(
            images[rows],
            num_samples,
            labels=_rows_of(labels, rows),
            seed=seed,
            first_index=start,
        )
        done = np.concatenate([done, values])
        if unfinished is not None:
            with replacing(unfinished) as file:
                np.savez(file, key=key, values=done)
        if progress:
            progress(len(done), len(images))
    return done


def _fingerprint(weights, images, labels, num_samples, seed) -> str:
    """Hash of everything that determines the likelihoods."""
    digest = hashlib.sha256(f"{num_samples} {seed}".encode())
    for array in (*weights, images, *([] if labels is None else [labels])):
        digest.update(array.tobytes())
    return digest.hexdigest()


def pixel_baseline(
    likelihood: str, images: np.ndarray, moments: Moments
) -> tuple[str, float]:
    """Return the mean log-likelihood under a model of independent pixels, in nats.

    Args:
        likelihood: "bernoulli": a probability for each pixel, the training mean with
            one black and one white image added (Laplace), so that none is 0 or 1.
            "gaussian": the training mean and one variance for all pixels.
            "discretized_logistic": 256 equally probable levels.
        images: uint8 [n, height, width, channels].
        moments: Of the training images.

    Returns:
        Name of the baseline, and the mean over the images.
    """
    if likelihood == "discretized_logistic":
        return "uniform levels", -images[0].size * math.log(256.0)
    values = images.mean(axis=0, dtype=np.float64) / 255.0  # linear in the images
    if likelihood == "bernoulli":
        count = moments.count
        probability = (moments.mean * count + 1.0) / (count + 2.0)
        pixels = values * np.log(probability) + (1 - values) * np.log1p(-probability)
        return "independent pixels", float(pixels.sum())
    errors = in_blocks(
        lambda rows: np.square(rows / 255.0 - moments.mean).sum(axis=(1, 2, 3)),
        images,
        size=READ_BATCH_SIZE,
    ).mean()
    constant = images[0].size * math.log(2.0 * math.pi * moments.variance)
    return "independent pixels", -0.5 * float(constant + errors / moments.variance)


# ---------------------------------------------------------------------------
# Reconstruction
# ---------------------------------------------------------------------------


def _reconstruction_records(
    record: Callable[..., Record], model, images, labels, mean_image, data
) -> list[Record]:
    window = ssim_window(images.shape[1:])
    rows = (
        ("mse", mean_squared_error, "", "of pixels in [0, 1]"),
        ("psnr", psnr, "dB", "peak 1, mean of each image's"),
        ("ssim", ssim, "", f"{window}x{window} Gaussian window, sigma 1.5"),
    )
    blocks = []
    for block in row_blocks(len(images), READ_BATCH_SIZE):
        targets = images[block] / np.float32(255.0)
        made = model.reconstruct(images[block], _rows_of(labels, block))
        mean = np.broadcast_to(mean_image.astype(np.float32), targets.shape)
        blocks.append(
            [[measure(x, targets) for x in (made, mean)] for _, measure, _, _ in rows]
        )
    values = np.concatenate(blocks, axis=2)  # [metrics, 2, images]
    return [
        record(
            ours,
            metric=f"reconstruction_{name}",
            headline=name == "psnr",
            unit=unit,
            protocol=f"{data}, decoded posterior means, {detail}",
            higher_is_better=name != "mse",
            baseline=("mean training image", float(baseline.mean())),
        )
        for (name, _, unit, detail), (ours, baseline) in zip(rows, values, strict=True)
    ]


def _rows_of(labels: np.ndarray | None, rows: slice) -> np.ndarray | None:
    return None if labels is None else labels[rows]
