"""What goes into a model: the rules of the standard names, and valid examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


def scale_images(images: tf.Tensor) -> tf.Tensor:
    """Maps uint8 0..255 to float32 in [0, 1]; floats pass as they are."""
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) / 255.0
    return tf.cast(images, tf.float32)


def assert_images(
    batch: dict[str, tf.Tensor],
    image_shape: tuple[int, ...],
    num_classes: int | None,
) -> dict[str, tf.Tensor]:
    """Refuses inside a compiled step what `check_images` and `check_labels` refuse."""
    images = tf.convert_to_tensor(batch["images"])
    if not images.shape.is_compatible_with([None, *image_shape]):
        raise ValueError(
            "`images` must have the shape [batch, height, width, channels] with "
            f"(height, width, channels) = {image_shape}. Received: {images.shape}."
        )
    asserts = []
    if images.dtype.is_floating:
        message = "`images` must be uint8, or floats in [0, 1]. Received floats from"
        asserts.append(assert_range(images, 0, 1, message))
    if num_classes is not None and batch.get("labels") is not None:
        labels = tf.convert_to_tensor(batch["labels"])
        if not (labels.dtype.is_integer and labels.shape.is_compatible_with([None])):
            raise ValueError(
                "`labels` must be whole numbers, one for each image and not one-hot. "
                f"Received: {labels.dtype.name} of the shape {labels.shape}."
            )
        labels = tf.cast(labels, tf.int64)
        message = f"`labels` must lie in [0, {num_classes}). Received values from"
        asserts.append(assert_range(labels, 0, num_classes - 1, message))
    # Whatever uses the images waits: a refused batch changes no weight.
    with tf.control_dependencies(asserts):
        return batch | {"images": tf.identity(images)}


def assert_range(
    values: tf.Tensor, low: float, high: float, message: str
) -> tf.Operation:
    """Returns an operation that fails, with this message, on a value out of range."""
    kept = tf.reduce_all((values >= low) & (values <= high))
    received = [message, tf.reduce_min(values), "to", tf.reduce_max(values)]
    return tf.debugging.Assert(kept, received)


def check_seeds(seeds: Any) -> np.ndarray:
    """Returns seeds as int64 [n].

    Raises:
        ValueError: If they are not whole numbers of 64 bits in one dimension.
    """
    array = np.asarray(list(seeds) if isinstance(seeds, range) else seeds)
    if array.ndim == 0:
        array = array[None]
    whole = not array.size or np.issubdtype(array.dtype, np.integer)
    if array.ndim != 1 or not whole or (array.size and array.max() >= 2**63):
        raise ValueError(
            "`seeds` must be whole numbers in one dimension, below 2**63, such as "
            "range(64). "
            f"Received: an array of shape {array.shape} and type {array.dtype}."
        )
    return array.astype(np.int64)


def check_images(images: Any, image_shape: tuple[int, ...]) -> np.ndarray:
    """Returns images as float32 in [0, 1], [n, height, width, channels].

    Raises:
        ValueError: On another shape, or floats outside [0, 1] (NaN included).
    """
    array = np.asarray(images)
    if array.shape[1:] != image_shape:
        raise ValueError(
            "`images` must have the shape [n, height, width, channels] with "
            f"(height, width, channels) = {image_shape}. Received: {array.shape}."
        )
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255.0
    array = array.astype(np.float32)
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            "`images` must be uint8, or floats in [0, 1]. Received: floats from "
            f"{array.min()} to {array.max()}."
        )
    return array


def check_latents(latents: Any, latent_dim: int) -> np.ndarray:
    """Returns latents as float32 [n, latent_dim].

    Raises:
        ValueError: On another shape.
    """
    array = np.asarray(latents, np.float32)
    if array.shape[1:] != (latent_dim,):
        raise ValueError(
            f"`latents` must have the shape [n, {latent_dim}]. Received: {array.shape}."
        )
    return array


def check_labels(
    labels: Any, num_rows: int, num_classes: int | None
) -> np.ndarray | None:
    """Returns labels as int32 [n], or None for a model without classes.

    Raises:
        ValueError: If labels are missing, not wanted, or outside [0, num_classes).
    """
    if num_classes is None and labels is None:
        return None
    if num_classes is None:
        raise ValueError(
            "This model takes no labels: it was made with num_classes=None. "
            "Received: labels. Leave them out, or train a model with num_classes=."
        )
    if labels is None:
        raise ValueError(
            f"This model needs a label in [0, {num_classes}) for each row. "
            "Received: labels=None."
        )
    array = np.asarray(labels)
    whole = np.issubdtype(array.dtype, np.integer) or not array.size
    if array.shape != (num_rows,) or not whole:
        raise ValueError(
            f"`labels` must be {num_rows} whole numbers, one for each row. "
            f"Received: shape {array.shape}, type {array.dtype}."
        )
    if array.size and not (array.min() >= 0 and array.max() < num_classes):
        raise ValueError(
            f"`labels` must lie in [0, {num_classes}). Received: values from "
            f"{array.min()} to {array.max()}."
        )
    return array.astype(np.int32)


def example_rows(
    inputs: dict[str, tf.TensorSpec],
    num_classes: int | None,
    make_images: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
    num_rows: int,
) -> dict[str, np.ndarray]:
    """Valid inputs of a signature by their standard names, always the same ones.

    Args:
        inputs: What the signature takes.
        num_classes: Classes of the labels, or None.
        num_rows: How many rows.
        make_images: Makes realistic images of seeds and labels. On noise a trained
            network is far outside of what it has learned, and so steep that float32
            itself is not good enough to compare two runtimes.
    """
    seeds = np.arange(num_rows, dtype=np.int64)
    labels = seeds.astype(np.int32) % (num_classes or 1)
    rng = np.random.default_rng(num_rows)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        match name:
            case "seeds":
                return seeds
            case "labels":
                return labels
            case "latents":
                return rng.standard_normal(shape, np.float32)
            case "images":
                return make_images(seeds, labels if num_classes else None)
        raise ValueError(f"No example is known of an input of this name: {name!r}.")

    return {
        name: values(name, (num_rows, *spec.shape[1:])) for name, spec in inputs.items()
    }
