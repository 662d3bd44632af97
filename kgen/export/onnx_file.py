"""ONNX files, one signature each, verified in ONNX Runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

import kgen
from kgen.export.image_files import Form, as_bytes, image_inputs, in_forms
from kgen.export.manifest import ExportError, write_sums
from kgen.export.runtime_process import runtime_process
from kgen.export.staging import size_of, staged
from kgen.export.verification import Export, signatures_for, verify
from kgen.files import write_text
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import InputSpec

LAYOUTS = ("nhwc", "nchw")
DTYPES = ("float32", "uint8")
OPSET = 18  # The first with BitwiseAnd and BitwiseXor, which the noise needs.


def to_onnx(
    model: GenerativeModel,
    path: str | os.PathLike[str],
    signature: str | None = None,
    *,
    layout: str = "nhwc",
    dtype: str = "float32",
    metadata: dict[str, str] | None = None,
) -> Export:
    """Writes one signature of a model as an ONNX file, and verifies it.

    An ONNX file holds one graph, so each signature needs a file of its own. The file is
    loaded by a process that imports ONNX Runtime but not kgen or TensorFlow, and run on
    batches of 1, 3 and 64 rows. It appears, or replaces an older one, only if it
    computes the same as Keras in float32. Its metadata name the version of kgen, the
    model, the signature, and the layout and range of images. Files that its users need,
    such as a tokenizer.json, and its checksum are written beside it.

    Args:
        model: The model, of any precision; the export is float32.
        path: The file. Its folder is made if it is missing.
        signature: Name of the signature; by default the first that exists in ONNX.
        layout: Of images: "nhwc", [batch, height, width, channels], or "nchw".
        dtype: Of images: "float32", in [0, 1], or "uint8". torch-fidelity, for one,
            takes the signature `decode` of a GAN with "nchw" and "uint8". With other
            than the defaults, labels are int64.
        metadata: More metadata, such as the names of classes.

    Returns:
        The file, with its difference from Keras.

    Raises:
        ExportError: It does not convert, does not run, or differs from Keras.
        ValueError: The model has no such signature, or there is no such layout.
        OSError: The file cannot be written.

    Example:
        >>> to_onnx(vae, "saved_models/vae/vae.onnx")
        >>> to_onnx(vae, "saved_models/vae/vae.encode.onnx", signature="encode")
    """
    start = time.monotonic()
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(
            f"`path` must name a file, such as {path / 'model.onnx'}. "
            f"Received: the folder {path}"
        )
    runtime_process("onnx")  # It starts while the graph is converted.
    available = {item.name: item for item in signatures_for(model, "onnx")}
    name = next(iter(available)) if signature is None else signature
    if name not in available:
        raise ValueError(
            f"`signature` must be one that {type(model).__name__} offers in ONNX: "
            f"{', '.join(available)}. Received: signature={signature!r}"
        )
    chosen = _with_images_as(available[name], layout, dtype)
    with staged(path.parent, path.name) as temporary:
        # The converter's errors explain a file that ONNX Runtime refuses; of a file
        # that is right they are noise.
        with _complaints() as complaints:
            proto = _convert(chosen, complaints)
        about = {"model": type(model).__name__, **(metadata or {})}
        _describe(proto, chosen, about)
        temporary.write_bytes(proto.SerializeToString())
        try:
            verifications = verify(temporary, [chosen], "onnx")
        except ExportError as error:
            if not complaints:
                raise
            raise ExportError(f"{error} The converter said: {complaints[0]}") from error
        num_bytes = size_of(temporary)
        for name, text in chosen.files.items():
            write_text(path.parent / name, text)
        temporary.replace(path)
        write_sums(path, tuple(chosen.files))
    return Export(path, verifications, num_bytes, time.monotonic() - start)


def _convert(signature: Signature, complaints: list[str]) -> Any:
    shared = signature.inputs.keys() & signature.outputs.keys()
    if shared:
        raise ExportError(
            "Names of tensors are unique in an ONNX graph. Received: the signature "
            f"{signature.name} with an input and an output called "
            f"{', '.join(sorted(shared))}. Rename the output."
        )
    # tf2onnx 1.17 runs under NumPy 2 without a patch: the one removed function that it
    # still calls (np.product, fixed after the release:
    # https://github.com/onnx/tensorflow-onnx/pull/2474) is for `large_model=True` only.
    function = signature.compiled
    try:
        # The converter sets the variable for good, for this process and its children.
        with _unchanged_environment("TF_CPP_MIN_LOG_LEVEL"):
            import tf2onnx

            proto, _ = tf2onnx.convert.from_function(
                function, input_signature=function.input_signature, opset=OPSET
            )
    except Exception as error:
        # tf2onnx raises errors of any class.
        said = f" The converter said first: {complaints[0]}" if complaints else ""
        raise ExportError(
            f"The signature {signature.name} does not convert to ONNX: "
            f"{type(error).__name__}: {error}.{said}"
        ) from error
    unsupported = sorted(_unknown_operations(proto.graph))
    if unsupported:
        raise ExportError(
            f"The signature {signature.name} uses operations that ONNX does not have: "
            f"{', '.join(unsupported)}. Write it with others, or leave "
            '"onnx" out of its runtimes.'
        )
    names = [value.name for value in proto.graph.input]
    if sorted(names) != sorted(signature.inputs):
        raise ExportError(
            f"The ONNX graph of the signature {signature.name} must take "
            f"{sorted(signature.inputs)}. It takes {names}: a tensor that is made "
            "outside the function becomes an input. Make it inside."
        )
    return proto


def _unknown_operations(graph: Any) -> set[str]:
    """Operations that ONNX does not define, in a graph and its loop bodies."""
    import onnx

    unknown = set()
    for node in graph.node:
        if not onnx.defs.has(node.op_type, domain=node.domain):
            unknown.add(node.op_type)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                unknown |= _unknown_operations(body)
    return unknown


def _with_images_as(signature: Signature, layout: str, dtype: str) -> Signature:
    """The signature with images of another layout and type, in and out."""
    if layout not in LAYOUTS or dtype not in DTYPES:
        raise ValueError(
            f"`layout` must be one of {', '.join(LAYOUTS)}, and `dtype` one of "
            f"{', '.join(DTYPES)}. Received: layout={layout!r}, dtype={dtype!r}"
        )
    first, is_uint8 = layout == "nchw", dtype == "uint8"
    is_default = not first and not is_uint8
    images = [name for name, kind in signature.outputs.items() if kind == "image"]
    given = image_inputs(signature)
    if images or given:
        scaled = "values of 0 to 255 divided by 255"
        how = {
            "image_layout": layout.upper(),
            "image_range": "[0, 255]" if is_uint8 else "[0, 1]",
            "preprocessing": "none" if is_uint8 else scaled,
        }
        signature = dataclasses.replace(signature, metadata=how | signature.metadata)
    elif not is_default:
        raise ValueError(
            "`layout` and `dtype` are those of images, and the signature "
            f"{signature.name} has none. Received: {layout}, {dtype}"
        )
    if is_default:
        return signature

    def read(values):
        images = tf.cast(values, tf.float32)
        images = images / 255.0 if is_uint8 else images
        return tf.transpose(images, [0, 2, 3, 1]) if first else images

    def write(images):
        images = tf.transpose(images, [0, 3, 1, 2]) if first else images
        return as_bytes(images) if is_uint8 else images

    inputs = {}
    for name in given:
        height, width, channels = signature.inputs[name].shape
        shape = (channels, height, width) if first else (height, width, channels)
        spec = InputSpec(shape, dtype, low=0, high=255 if is_uint8 else 1)
        inputs[name] = Form(name, spec, read, write)
    if "labels" in signature.inputs:  # As the tools of PyTorch, which this is for.
        spec = InputSpec(dtype="int64", low=0, high=signature.inputs["labels"].high)
        inputs["labels"] = Form("labels", spec, lambda x: tf.cast(x, tf.int32))
    kind = "pixels" if is_uint8 else "image"
    outputs = {name: Form(name, kind, write=write) for name in images}
    return in_forms(signature, inputs, outputs)


def _describe(proto: Any, signature: Signature, about: dict[str, str]) -> None:
    """Names the dynamic dimensions, and stores the metadata."""
    for value in [*proto.graph.input, *proto.graph.output]:
        dimensions = value.type.tensor_type.shape.dim
        for place, dimension in enumerate(dimensions):
            if dimension.dim_param:  # by the converter, such as unk__2211
                dimension.dim_param = f"{value.name}_{place}"
        if len(dimensions):
            dimensions[0].dim_param = "batch"
    metadata = {
        "kgen_version": kgen.__version__,
        "signature": signature.name,
        **signature.metadata,
        **about,
    }
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects the errors that tf2onnx logs, and shows nothing of its log."""
    messages: list[str] = []
    logger = logging.getLogger("tf2onnx")
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextlib.contextmanager
def _unchanged_environment(name: str) -> Iterator[None]:
    before = {key: value for key, value in os.environ.items() if key == name}
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ.update(before)
