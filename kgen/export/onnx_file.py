"""ONNX files, one signature each, proven in ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kgen
from kgen.data.atomic import replacing
from kgen.export.proof import (
    Export,
    ExportError,
    prove,
    signatures_for,
    size_of,
    staged,
    trace,
)
from kgen.models.base import GenerativeModel, Signature

OPSET = 18  # The first with BitwiseAnd and BitwiseXor, which the noise needs.


def to_onnx(
    model: GenerativeModel,
    path: str | os.PathLike[str],
    signature: str | None = None,
) -> Export:
    """Writes one signature of a model as an ONNX file, and proves it.

    An ONNX file holds one graph, so each signature needs a file of its own. The file is
    loaded by a process that imports ONNX Runtime but not kgen or TensorFlow, and run on
    batches of 1, 3 and 64 rows. It appears, or replaces an older one, only if it
    computes what Keras computes in float32. Its metadata name the version of kgen, the
    model, the signature, and the range of its images. What its users need besides, such
    as a tokenizer.json, is written beside it.

    Args:
        model: The model; of any precision, the export is float32.
        path: The file. Its folder is made if it is missing.
        signature: Name of the signature; by default the first that exists in ONNX.

    Returns:
        The file, and its difference from Keras.

    Raises:
        ExportError: It does not convert, does not run, or differs from Keras.
        ValueError: The model has no such signature.
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
    available = {item.name: item for item in signatures_for(model, "onnx")}
    name = next(iter(available)) if signature is None else signature
    if name not in available:
        raise ValueError(
            f"`signature` must be one that {type(model).__name__} offers in ONNX: "
            f"{', '.join(available)}. Received: signature={signature!r}"
        )
    chosen = available[name]
    with staged(path.parent, path.name) as temporary:
        # What the converter complained about is the best explanation of a file that
        # ONNX Runtime refuses, and noise if the file is right.
        with _complaints() as complaints:
            proto = _convert(chosen, complaints)
        _describe(proto, chosen, type(model).__name__)
        temporary.write_bytes(proto.SerializeToString())
        try:
            proofs = prove(temporary, [chosen], "onnx")
        except ExportError as error:
            if not complaints:
                raise
            raise ExportError(f"{error} The converter said: {complaints[0]}") from error
        num_bytes = size_of(temporary)
        for name, text in chosen.files.items():
            with replacing(path.parent / name) as file:
                file.write(text.encode())
        temporary.replace(path)
    return Export(path, proofs, num_bytes, time.monotonic() - start)


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
    function = trace(signature)
    try:
        # The converter sets the variable for good, for this process and its children.
        with _unchanged_environment("TF_CPP_MIN_LOG_LEVEL"):
            import tf2onnx

            proto, _ = tf2onnx.convert.from_function(
                function, input_signature=function.input_signature, opset=OPSET
            )
    except Exception as error:
        # tf2onnx raises whatever its handlers ran into: there is no narrower class.
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


def _describe(proto: Any, signature: Signature, model_name: str) -> None:
    """Names the batch dimension, and stores what the file is."""
    values = [(value, signature.inputs[value.name]) for value in proto.graph.input]
    for value, spec in [*values, *((value, None) for value in proto.graph.output)]:
        has_rows = spec is None or (spec.shape.rank > 0 and spec.shape[0] is None)
        dimensions = value.type.tensor_type.shape.dim
        if has_rows and len(dimensions):
            dimensions[0].dim_param = "batch"
    metadata = {
        "kgen_version": kgen.__version__,
        "model": model_name,
        "signature": signature.name,
        **signature.metadata,
    }
    if "image" in signature.outputs.values() or "images" in signature.inputs:
        metadata["image_range"] = "[0, 1]"
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects what tf2onnx logs as an error, instead of showing all that it logs."""
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
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
