"""Images by name: data sets of tensorflow-datasets."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kgen.data import named_builders
from kgen.data.dataset import SPLITS
from kgen.data.image_arrays import as_labels, as_pillow
from kgen.data.image_rows import (
    MEMORY_LIMIT,
    ImageFormat,
    Shape,
    Source,
    Split,
    keep_rows,
    not_read,
)
from kgen.data.named_builders import DataDir

_CHUNK_ROWS = 1024


def open_named_images(
    name: str, data_dir: DataDir, wanted: ImageFormat, cache: str, download: bool
) -> Source:
    """Opens a data set of tensorflow-datasets; see `open_images` for the errors."""
    builder = named_builders.find_builder(name, data_dir, ("digits", "stacked_mnist"))
    stored = _StoredImages(builder, name, wanted)
    named_builders.prepare(builder, name, download)
    stored_splits = builder.info.splits
    rows = {name: stored_splits[name].num_examples for name in stored_splits}
    rows = {split: rows[split] for split in SPLITS if split in rows}
    if "train" not in rows:
        raise ValueError(
            "A data set must have a split called train. Received: "
            f"{name} with {', '.join(stored_splits)}."
        )
    if cache == "auto":
        decoded_bytes = sum(rows.values()) * np.prod(stored.image_shape)
        cache = "memory" if decoded_bytes <= MEMORY_LIMIT else "disk"
    if cache == "none":
        raise ValueError(
            "tensorflow-datasets does not read single rows of its files, so its images "
            "are kept decoded, in memory or on disk. Received: cache='none'. Try "
            "cache='disk'."
        )
    identity = f"{builder.info.full_name} {rows} {stored.image_shape}"
    splits = {}
    for split, num_rows in rows.items():
        labels = None
        numbers: list[np.ndarray] = []
        shape = (num_rows, *stored.image_shape)
        place = (identity, split, str(builder.data_path))
        images = keep_rows(stored.images(split, numbers), shape, cache, place)
        if stored.class_names is not None:
            # Cached images are not read again, and so neither are their labels.
            parts = (part.view(np.uint8) for part in numbers or stored.labels(split))
            kept = keep_rows(parts, (num_rows * 4,), cache, (*place, "labels"))
            labels = np.array(kept).view(np.int32)
            labels = as_labels(labels, f"the {split} split of {name}", num_rows)
        splits[split] = Split(images=images, labels=labels)
    unused = [split for split in stored_splits if split not in rows]
    return Source(
        name=name,
        splits=splits,
        class_names=stored.class_names,
        identity=identity,
        notes=not_read(unused),
    )


class _StoredImages:
    """The images of a prepared builder, in the order of its files."""

    def __init__(self, builder: Any, name: str, wanted: ImageFormat) -> None:
        import tensorflow_datasets as tfds

        self._builder = builder
        self._wanted = wanted
        features = named_builders.named_features(builder)
        image = features.get("image")
        if not isinstance(image, tfds.features.Image):
            raise ValueError(
                "An image data set must have an image feature called image. Received: "
                f"{name} with {', '.join(features) or 'no named features'}."
            )
        if image.np_dtype != np.uint8 or image.shape[2] not in (1, 3):
            raise ValueError(
                "Images must be uint8 with 1 or 3 channels. Received: "
                f"{name} with {np.dtype(image.np_dtype)} of shape {image.shape}."
            )
        height, width, own_channels = image.shape
        if wanted.size is None and None in (height, width):
            raise ValueError(
                "The images of this data set are of different sizes, so `image_size` "
                f"is needed. Received: {name} with image_size=None. Try image_size=64."
            )
        height, width = wanted.size or (height, width)
        self.image_shape: Shape = (height, width, wanted.channels or own_channels)
        self._as_stored = self.image_shape == tuple(image.shape)
        label = features.get("label")
        self.class_names: tuple[str, ...] | None = None
        if isinstance(label, tfds.features.ClassLabel):
            self.class_names = tuple(label.names)

    def images(self, split: str, labels: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields all images of a split, uint8, in chunks; appends their labels."""
        features = ["image", "label"] if self.class_names else ["image"]
        with named_builders.examples(self._builder, split, features) as dataset:
            if self._as_stored:
                for chunk in dataset.batch(_CHUNK_ROWS).as_numpy_iterator():
                    if self.class_names is not None:
                        labels.append(chunk["label"].astype(np.int32))
                    yield chunk["image"]
                return
            rows = dataset.as_numpy_iterator()
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                while chunk := list(itertools.islice(rows, _CHUNK_ROWS)):
                    if self.class_names is not None:
                        found = [row["label"] for row in chunk]
                        labels.append(np.array(found, np.int32))
                    yield np.stack(list(pool.map(self._fit, chunk)))

    def labels(self, split: str) -> Iterator[np.ndarray]:
        """Yields all labels of a split, int32, in chunks; decodes no image."""
        with named_builders.examples(self._builder, split, ["label"]) as dataset:
            for row in dataset.batch(_CHUNK_ROWS).as_numpy_iterator():
                yield row["label"].astype(np.int32)

    def _fit(self, example: dict[str, np.ndarray]) -> np.ndarray:
        name = f"an image of {self._builder.name}"
        return self._wanted.fit(as_pillow(example["image"]), name)
