"""Signatures that take and return image files: kilobytes, not lists of numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.export.image_decoding import decode_images
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import ImageSpec, InputSpec

PNG_CHANNELS = (1, 3, 4)


def with_image_files(signatures: list[Signature]) -> list[Signature]:
    """Adds to signatures that return images their variants for files: `generate_png`.

    Images among the inputs and outputs, such as `images`, are replaced by files,
    `images_bytes`: strings, [batch], which TensorFlow Serving sends and takes in base
    64 because of their ending. Outputs are PNG files; inputs are PNG or JPEG files of
    the size that the model takes, see `decode_images`. Other outputs stay.
    """
    return [
        made
        for signature in signatures
        for made in (signature, _of_files(signature))
        if made is not None
    ]


class FileSpec(InputSpec):
    """Image files, which the graph checks when it decodes them."""

    def __init__(self) -> None:
        super().__init__(dtype="string")

    def assert_in_graph(self, name: str, tensor: Any) -> Any:
        """Returns the files as they are."""
        return tensor


def image_inputs(signature: Signature) -> list[str]:
    """Names of the inputs that are images."""
    return [n for n, spec in signature.inputs.items() if isinstance(spec, ImageSpec)]


def _of_files(signature: Signature) -> Signature | None:
    """The signature with files in place of images; None where PNG cannot hold them."""
    given = image_inputs(signature)
    made = [name for name, kind in signature.outputs.items() if kind == "image"]
    if not made or "saved_model" not in signature.runtimes:
        return None
    graph = signature.compiled.get_concrete_function()
    shapes = {name: signature.inputs[name].shape for name in given}
    channels = [graph.structured_outputs[name].shape[-1] for name in made]
    channels += [shape[-1] for shape in shapes.values()]
    if not {*channels} <= {*PNG_CHANNELS}:
        return None

    def function(**inputs):
        for name, shape in shapes.items():
            inputs[name] = decode_images(inputs.pop(f"{name}_bytes"), shape)
        return _files_for(made, signature.function(**inputs))

    def example(num_rows):
        values = _files_for(given, signature.example(num_rows))
        return {name: np.asarray(value) for name, value in values.items()}

    inputs = {
        f"{name}_bytes" if name in given else name: (
            FileSpec() if name in given else spec
        )
        for name, spec in signature.inputs.items()
    }
    outputs = {
        f"{name}_bytes" if name in made else name: "png" if name in made else kind
        for name, kind in signature.outputs.items()
    }
    return dataclasses.replace(
        signature,
        name=f"{signature.name}_png",
        function=function,
        inputs=inputs,
        outputs=outputs,
        examples=(example,),
        runtimes=("saved_model",),
    )


def _files_for(names: list[str], values: dict) -> dict:
    """The values, with PNG files in place of the named images."""
    return {
        **{name: value for name, value in values.items() if name not in names},
        **{f"{name}_bytes": tf.io.encode_png(as_bytes(values[name])) for name in names},
    }


def as_bytes(images: tf.Tensor) -> tf.Tensor:
    """uint8 images of float ones in [0, 1]."""
    return tf.cast(tf.round(images * 255.0), tf.uint8)
