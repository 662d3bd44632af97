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
from kgen.export.verification import Export, signatures_for, trace, verify
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature


def to_saved_model(
    model: GenerativeModel,
    folder: str | os.PathLike[str],
    *,
    metadata: dict[str, str] | None = None,
) -> Export:
    """Writes a model as the next version of a SavedModel, and proves it.

    Each signature is an endpoint of its name; the first is the default one as well.
    The version is loaded by a process that imports TensorFlow but not kgen, and run on
    batches of 1, 3 and 64 rows, 8 where a row takes megabytes. It appears in the folder
    only if it computes what Keras computes in float32; older versions are never
    touched. It holds a request for each endpoint, which TensorFlow Serving makes before
    it says that it is ready, and the sums of its files. Beside the versions lie the
    server's configuration and a compose.yaml that starts it, unless there are such
    files already.

    Args:
        model: The model; of any precision, the export is float32.
        folder: Where the versions lie: what TF Serving takes as its
            `--model_base_path`. Made if it is missing.
        metadata: What else `assets.extra/kgen.json` says, beside the version of kgen,
            the model, and the kinds of what its endpoints return.

    Returns:
        The new version, `folder/1` the first time, and its differences from Keras.

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
        _write_extra(signatures, temporary, type(model).__name__, metadata or {})
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
    # Variables alone are tracked, not the layers: Keras' ExportArchive stores those
    # of a tracked layer twice, and traces `call` of layers that nobody asked for.
    tracked = {
        id(variable.value): variable.value
        for signature in signatures
        for layer in signature.layers
        for variable in layer.variables
    }
    # Graphs use one copy of a variable that a strategy mirrors.
    copies = {
        id(copy)
        for variable in tracked.values()
        for copy in getattr(variable, "values", (variable,))
    }
    endpoints = {}
    for signature in signatures:
        endpoint = trace(signature).get_concrete_function()
        stray = [v.name for v in endpoint.variables if id(v) not in copies]
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
        # The graphs were traced above: what fails here is the file system.
        raise OSError(
            errno.EIO,
            f"The SavedModel could not be written ({_without_graph(error.message)})",
            str(path.parent),
        ) from error


def _write_extra(
    signatures: Sequence[Signature],
    path: Path,
    model_name: str,
    metadata: dict[str, str],
) -> None:
    """Writes what the server hands to nobody, but whoever runs it may need."""
    about = {
        "kgen_version": kgen.__version__,
        "model": model_name,
        "outputs": {one.name: one.outputs for one in signatures},
        **metadata,
    }
    files = {name: text for one in signatures for name, text in one.files.items()}
    files["kgen.json"] = json.dumps(about, indent=2)
    extra = path / "assets.extra"
    extra.mkdir()
    for name, text in files.items():
        (extra / name).write_text(text, encoding="utf-8")


def _without_graph(message: str) -> str:
    """The message without the node before it and the operation behind it."""
    return message.rpartition("}} ")[2].partition(" [Op:")[0]
