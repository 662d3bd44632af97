"""Rows of a split that a model is measured on."""

from __future__ import annotations

from typing import Any

import numpy as np

from kgen.data.image_sets import ImageSet

READ_BATCH_SIZE = 500  # images


def check_at_least_1(**arguments: int | None) -> None:
    """Raise a ValueError for an argument below 1; None is accepted."""
    for name, value in arguments.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")


def read_split(
    image_set: ImageSet, split: str, *, limit: int | None = None, **options: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the images of a split, and their labels if it has labels.

    Args:
        image_set: The images.
        split: "test", "validation" or "train".
        limit: Only the first images, this many.
        **options: Of `ImageSet.pipeline`: `seed`, `binarize`, and `shuffle`, with which
            the first images are a sample.

    Returns:
        uint8 [n, height, width, channels] and int32 [n] or None.
    """
    pipeline = image_set.pipeline(split, batch_size=READ_BATCH_SIZE, **options)
    count = min(limit or pipeline.num_rows, pipeline.num_rows)
    dataset = pipeline.dataset().take(-(-count // READ_BATCH_SIZE))
    batches = list(dataset.as_numpy_iterator())
    images = np.concatenate([batch["images"] for batch in batches])[:count]
    if "labels" not in batches[0]:
        return images, None
    return images, np.concatenate([batch["labels"] for batch in batches])[:count]


def check_one_shape(model: Any, image_set: ImageSet) -> None:
    """Raise a ValueError unless model and images have the same shape."""
    if tuple(model.image_shape) != image_set.image_shape:
        raise ValueError(
            "The model and the images must have one shape. Received: a model of "
            f"{tuple(model.image_shape)} and images of {image_set.image_shape}."
        )
