"""Signatures that take and return image files: kilobytes, not lists of numbers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.export.image_decoding import decode_images
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import ImageSpec, InputSpec

PNG_CHANNELS = (1, 3, 4)
# Files that a SavedModel returns for an output of each kind; None: no files.
FILE_KINDS = {
    "image": "png",
    "items": None,
    "latent": None,
    "scores": None,
    "state": None,
    "text": None,
    "tokens": None,
}


def with_image_files(signatures: list[Signature]) -> list[Signature]:
    """Adds to signatures that return images their variants for files: `generate_png`.

    Images among the inputs and outputs, such as `images`, are replaced by files,
    `images_bytes`: strings, [batch], which TensorFlow Serving sends and takes in base
    64 because of their ending. Outputs are PNG files; inputs are PNG or JPEG files of
    the size that the model takes, see `decode_images`. Other outputs stay.
    """
    pairs = [(signature, _of_files(signature)) for signature in signatures]
    return [made for pair in pairs for made in pair if made is not None]


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
    made = [name for name, kind in signature.outputs.items() if FILE_KINDS[kind]]
    if not made or "saved_model" not in signature.runtimes:
        return None
    graph = signature.compiled.get_concrete_function()
    channels = [graph.structured_outputs[name].shape[-1] for name in made]
    channels += [signature.inputs[name].shape[-1] for name in given]
    if not {*channels} <= {*PNG_CHANNELS}:
        return None

    inputs = {}
    for name in given:
        read = functools.partial(decode_images, shape=signature.inputs[name].shape)
        inputs[name] = Form(f"{name}_bytes", FileSpec(), read, _png)
    outputs = {
        name: Form(f"{name}_bytes", FILE_KINDS[signature.outputs[name]], write=_png)
        for name in made
    }
    of_files = in_forms(signature, inputs, outputs)
    return dataclasses.replace(
        of_files, name=f"{signature.name}_png", runtimes=("saved_model",)
    )


@dataclasses.dataclass(frozen=True)
class Form:
    """Another form of an input or output of a signature.

    Attributes:
        name: Its name.
        kind: Spec of an input, or kind of an output.
        read: Function from this form to the signature's own.
        write: Function from the signature's own form to this one.
    """

    name: str
    kind: Any
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value


def in_forms(
    signature: Signature, inputs: dict[str, Form], outputs: dict[str, Form]
) -> Signature:
    """The signature with some of its inputs and outputs in other forms."""
    given = {k: inputs.get(k, Form(k, spec)) for k, spec in signature.inputs.items()}
    made = {k: outputs.get(k, Form(k, kind)) for k, kind in signature.outputs.items()}

    def function(**values):
        own = {name: form.read(values[form.name]) for name, form in given.items()}
        results = signature.function(**own)
        return {form.name: form.write(results[name]) for name, form in made.items()}

    def example(num_rows):
        own = signature.example(num_rows)
        values = {form.name: form.write(own[name]) for name, form in given.items()}
        return {name: np.asarray(value) for name, value in values.items()}

    return dataclasses.replace(
        signature,
        function=function,
        inputs={form.name: form.kind for form in given.values()},
        outputs={form.name: form.kind for form in made.values()},
        examples=(example,),
    )


def _png(images: Any) -> tf.Tensor:
    """PNG files of images in [0, 1]."""
    return tf.io.encode_png(as_bytes(images))


def as_bytes(images: tf.Tensor) -> tf.Tensor:
    """uint8 images of float ones in [0, 1]."""
    return tf.cast(tf.round(images * 255.0), tf.uint8)
