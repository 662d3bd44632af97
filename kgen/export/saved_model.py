"""SavedModel, in the layout that TensorFlow Serving reads."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

import kgen
from kgen.export.manifest import ExportError, write_sums
from kgen.export.runtime_process import runtime_process
from kgen.export.staging import rename_to_next_version, size_of, staged
from kgen.export.tensorflow_serving import (
    curl,
    model_name,
    write_configuration,
    write_warm_up,
)
from kgen.export.verification import Export, signatures_for, verify
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature


def to_saved_model(
    model: GenerativeModel,
    folder: str | os.PathLike[str],
    *,
    metadata: dict[str, str] | None = None,
) -> Export:
    """Writes a model as the next version of a SavedModel, and verifies it.

    Each signature is an endpoint of its name; the first is also the default.
    The version is loaded by a process that imports TensorFlow but not kgen, and run on
    batches of 1, 3 and 64 rows, or 8 where a row takes megabytes. It appears in the
    folder only if it computes the same as Keras in float32; older versions are never
    touched. It holds a warm-up request for each endpoint, which TensorFlow Serving runs
    before it is ready, and the checksums of its files. The server's configuration and a
    compose.yaml are written beside the versions; existing ones are kept.

    Args:
        model: The model, of any precision; the export is float32.
        folder: The folder of the versions, the `--model_base_path` of TF Serving. Made
            if it is missing.
        metadata: Entries of `assets.extra/kgen.json` besides the version of kgen, the
            model, and the kinds of the outputs.

    Returns:
        The new version, `folder/1` the first time, with its differences from Keras.

    Raises:
        ExportError: It cannot be written by this runtime, or differs from Keras.
        OSError: The folder cannot be written.

    Example:
        >>> export = to_saved_model(vae, "saved_models/vae")
        >>> generate = tf.saved_model.load(export).signatures["generate"]
        >>> images = generate(seeds=tf.constant([0, 1], tf.int64))["images"]
    """
    start = time.monotonic()
    folder = Path(folder)
    runtime_process("saved_model")  # It starts while the graphs are traced.
    signatures = signatures_for(model, "saved_model")
    with staged(folder, "saved_model") as temporary:
        _write(signatures, temporary)
        about = {"model": type(model).__name__, **(metadata or {})}
        _write_extra(signatures, temporary, about)
        write_warm_up(temporary, model_name(folder), signatures)
        verifications = verify(temporary, signatures, "saved_model")
        write_sums(temporary)
        num_bytes = size_of(temporary)
        path = rename_to_next_version(temporary, folder)
    write_configuration(folder, signatures)
    seconds = time.monotonic() - start
    request = curl(model_name(folder), signatures)
    return Export(path, verifications, num_bytes, seconds, request)


def _write(signatures: Sequence[Signature], path: Path) -> None:
    # Variables are tracked, not layers: Keras' ExportArchive stores the variables of a
    # tracked layer twice, and traces `call` of layers that no signature uses.
    layers = [layer for signature in signatures for layer in signature.layers]
    tracked = {id(one.value): one.value for layer in layers for one in layer.variables}
    # Graphs use one copy of each variable that a strategy mirrors.
    copies = [getattr(one, "values", (one,)) for one in tracked.values()]
    known = {id(copy) for group in copies for copy in group}
    endpoints = {}
    for signature in signatures:
        endpoint = signature.compiled.get_concrete_function()
        stray = [v.name for v in endpoint.variables if id(v) not in known]
        if stray:
            raise ExportError(
                f"`layers` of the signature {signature.name} must hold every variable "
                f"it uses. Missing: {', '.join(stray)}."
            )
        endpoints[signature.name] = endpoint
    module = tf.Module()
    module.tracked = list(tracked.values())
    module.tables = [table for one in signatures for table in one.resources]
    endpoints.setdefault("serving_default", endpoints[signatures[0].name])
    try:
        tf.saved_model.save(module, path, signatures=endpoints)
    except tf.errors.OpError as error:
        # The graphs were traced above: only the file system can fail here.
        raise OSError(
            errno.EIO,
            f"The SavedModel could not be written ({_without_graph(error.message)})",
            str(path.parent),
        ) from error


def _write_extra(
    signatures: Sequence[Signature], path: Path, about: dict[str, str]
) -> None:
    """Writes metadata and text files, which the server does not read."""
    described = {one.name: one.describe() for one in signatures}
    metadata = {"kgen_version": kgen.__version__, "signatures": described, **about}
    files = {name: text for one in signatures for name, text in one.files.items()}
    files["kgen.json"] = json.dumps(metadata, indent=2)
    extra = path / "assets.extra"
    extra.mkdir()
    for name, text in files.items():
        (extra / name).write_text(text, encoding="utf-8")


def _without_graph(message: str) -> str:
    """The message without the names of the node and the operation around it."""
    return message.rpartition("}} ")[2].partition(" [Op:")[0]
