"""Signatures that take and return image files: kilobytes, and no lists of numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from kgen.models.shared.signatures import Signature

PNG_CHANNELS = (1, 3, 4)
# The share of the pixels that may be off by one: those that lie between two levels.
TOLERANCE = 0.01


def with_image_files(signatures: list[Signature]) -> list[Signature]:
    """Adds to signatures of images those of files, such as `generate_png`.

    Images among the inputs are replaced by `images_bytes`, PNG or JPEG files of the
    size that the model takes; those among the outputs, such as `images`, by
    `images_bytes`, PNG files. Both are strings, [batch]. TensorFlow Serving sends and
    takes strings whose names end in `_bytes` in base 64.
    """
    return [
        made
        for signature in signatures
        for made in (signature, _of_files(signature))
        if made is not None
    ]


def _of_files(signature: Signature) -> Signature | None:
    """The signature with files in place of images; None where it returns no images."""
    [(output, kind), *others] = signature.outputs.items()
    if kind != "image" or others or "saved_model" not in signature.runtimes:
        return None
    graph = tf.function(signature.function).get_concrete_function(**signature.inputs)
    if graph.structured_outputs[output].shape[-1] not in PNG_CHANNELS:
        return None
    spec = signature.inputs.get("images")

    def function(**inputs):
        if spec is not None:
            inputs["images"] = _read_files(inputs.pop("images_bytes"), spec.shape[1:])
        images = signature.function(**inputs)[output]
        return {f"{output}_bytes": _files_of(images)}

    def example(num_rows):
        values = signature.example(num_rows)
        if spec is not None:
            values["images_bytes"] = _files_of(values.pop("images")).numpy()
        return values

    inputs = dict(signature.inputs)
    if spec is not None:
        del inputs["images"]
        inputs = {"images_bytes": tf.TensorSpec([None], tf.string)} | inputs
    return dataclasses.replace(
        signature,
        name=f"{signature.name}_png",
        function=function,
        inputs=inputs,
        outputs={f"{output}_bytes": "png"},
        example=example,
        runtimes=("saved_model",),
        tolerance=TOLERANCE,
    )


def as_bytes(images: tf.Tensor) -> tf.Tensor:
    """uint8 images of float ones in [0, 1]."""
    return tf.cast(tf.round(images * 255.0), tf.uint8)


def _files_of(images: tf.Tensor) -> tf.Tensor:
    return tf.io.encode_png(as_bytes(images))


def _read_files(files: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Images, float32 in [0, 1], [batch, height, width, channels], from files."""
    height, width, channels = shape

    def read(file):
        is_png = tf.strings.substr(file, 0, 4) == b"\x89PNG"
        is_jpeg = tf.strings.substr(file, 0, 2) == b"\xff\xd8"
        known = tf.debugging.Assert(
            (is_png & (tf.strings.length(file) > 24)) | is_jpeg,
            ["`images_bytes` must be PNG or JPEG files."],
        )
        with tf.control_dependencies([known]):
            file = tf.identity(file)
        # The size first: a small file can unpack to more than the memory holds.
        size = tf.cond(
            is_png,
            lambda: tf.io.decode_raw(
                tf.strings.substr(file, 16, 8), tf.int32, little_endian=False
            )[::-1],
            lambda: tf.image.extract_jpeg_shape(file)[:2],
        )
        message = f"`images_bytes` must be images of {height} x {width} pixels."
        fits = tf.debugging.Assert(tf.reduce_all(size == [height, width]), [message])
        with tf.control_dependencies([fits]):
            file = tf.identity(file)
        image = tf.io.decode_image(file, channels=channels, expand_animations=False)
        return tf.ensure_shape(image, shape)

    pixels = tf.map_fn(read, files, fn_output_signature=tf.uint8)
    pixels = tf.ensure_shape(pixels, [None, *shape])
    return tf.cast(pixels, tf.float32) / 255.0


def share_of_pixels_off(received: np.ndarray, expected: np.ndarray) -> float:
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
