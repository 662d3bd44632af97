"""The images that a model is measured on."""

from __future__ import annotations

from typing import Any

import numpy as np

from kgen.data.image_sets import Binarization, ImageSet

READ_BATCH_SIZE = 500  # images that are read, or summed, together


def read_split(
    image_set: ImageSet,
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    binarize: Binarization = None,
    shuffle: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads images of a split, and their labels where there are any.

    Args:
        image_set: The images.
        split: "test", "validation" or "train".
        limit: The first images only, this many.
        seed: Keys the binarisation and the order.
        binarize: None, "dynamic" or "static".
        shuffle: Whether they come in random order, so that the first are a sample.

    Returns:
        uint8 [n, height, width, channels] and int32 [n] or None.
    """
    pipeline = image_set.pipeline(
        split,
        batch_size=READ_BATCH_SIZE,
        seed=seed,
        binarize=binarize,
        shuffle=shuffle,
    )
    count = min(limit or pipeline.num_rows, pipeline.num_rows)
    dataset = pipeline.dataset().take(-(-count // READ_BATCH_SIZE))
    batches = list(dataset.as_numpy_iterator())
    images = np.concatenate([batch["images"] for batch in batches])[:count]
    if "labels" not in batches[0]:
        return images, None
    return images, np.concatenate([batch["labels"] for batch in batches])[:count]


def check_one_shape(model: Any, image_set: ImageSet) -> None:
    """Raises a ValueError unless the model makes images like those of the set."""
    if tuple(model.image_shape) != image_set.image_shape:
        raise ValueError(
            "The model and the images must have one shape. Received: a model of "
            f"{tuple(model.image_shape)} and images of {image_set.image_shape}."
        )
