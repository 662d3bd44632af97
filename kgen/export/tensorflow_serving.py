"""Files that TensorFlow Serving reads beside a SavedModel, and a request to it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kgen.files import write_text

if TYPE_CHECKING:  # `kgen serve` needs a name from here before it loads TensorFlow.
    from kgen.models.shared.signatures import Signature

IMAGE = "tensorflow/serving:2.20.0"
WARM_UP = "assets.extra/tf_serving_warmup_requests"

_MODELS = """\
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""
_BATCHING = """\
max_batch_size { value: 64 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
"""
_COMPOSE = """\
# docker compose up, in this folder: REST on port 8501, gRPC on 8500.
services:
  {name}:
    image: {image}
    ports: ["127.0.0.1:8501:8501", "127.0.0.1:8500:8500"]
    volumes: [".:/models/{name}:ro"]
    entrypoint: ["/usr/bin/tensorflow_model_server"]
    command:
      - --port=8500
      - --rest_api_port=8501
      - --model_config_file=/models/{name}/models.config
"""
_BATCHED = """\
      - --enable_batching=true
      - --batching_parameters_file=/models/{name}/batching.config
"""


def model_name(folder: Path) -> str:
    """The name of a served folder of versions: its own, in plain letters."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", folder.resolve().name)


def versions_in(folder: Path) -> list[int]:
    """The numbers of the versions in a folder, ascending."""
    found = [path.parent.name for path in folder.glob("*/saved_model.pb")]
    return sorted(int(name) for name in found if name.isdigit())


def check_versions(folder: Path, labels: dict[str, int]) -> None:
    """Checks that a folder can be served.

    Raises:
        FileNotFoundError: It holds no version.
        ValueError: A label names a version that is not there.
    """
    numbers = versions_in(folder)
    if not numbers:
        raise FileNotFoundError(
            "A model to serve must have a version, a folder named by a number. "
            f"Received: {folder}, which has none. Make one: kgen export {folder.name}."
        )
    for label, number in labels.items():
        if number not in numbers:
            raise ValueError(
                f"The label {label} must be of a version in {folder}: "
                f"{', '.join(map(str, numbers))}. Received: {label}={number}"
            )


def write_configuration(folder: Path, signatures: Sequence[Signature]) -> None:
    """Writes models.config, batching.config and compose.yaml beside the versions.

    An existing file is kept, since its user may have changed it. Where an input has
    rows of different lengths there is no batching.config: the server would pad short
    rows with their first values.
    """
    name = model_name(folder)
    shapes = [spec.shape for one in signatures for spec in one.inputs.values()]
    even = all(None not in shape for shape in shapes)
    compose = _COMPOSE + (_BATCHED if even else "")
    files = {
        "models.config": _MODELS.format(name=name),
        "compose.yaml": compose.format(name=name, image=IMAGE),
    }
    if even:
        files["batching.config"] = _BATCHING
    for file_name, text in files.items():
        if not (folder / file_name).exists():
            write_text(folder / file_name, text)


def write_warm_up(version: Path, name: str, signatures: Sequence[Signature]) -> None:
    """Writes a request to each signature, which the server runs before it is ready.

    Each is a `PredictionLog` of tensorflow_serving/apis/prediction_log.proto. Its
    classes come with a package that needs another version of TensorFlow; its four
    nested messages are written as bytes here.
    """
    import tensorflow as tf

    path = version / WARM_UP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in signatures:
            request = _field(1, _field(1, name) + _field(3, signature.name))
            for key, value in _one_row(signature).items():
                tensor = tf.make_tensor_proto(value, signature.inputs[key].dtype)
                entry = _field(1, key) + _field(2, tensor.SerializeToString())
                request += _field(2, entry)
            writer.write(_field(6, _field(1, request)))


def _field(number: int, value: str | bytes) -> bytes:
    """A field of a protocol buffer that holds text or another message."""
    content = value.encode() if isinstance(value, str) else value
    length, size = len(content), bytearray()
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content


def curl(name: str, signatures: Sequence[Signature]) -> str:
    """The command that sends the server an example request.

    Args:
        name: The name of the model.
        signatures: The signatures of the SavedModel. The first is asked for, in its
            variant for image files where there is one.
    """
    first = signatures[0]
    files = f"{first.name}_png"
    chosen = next((one for one in signatures if one.name == files), first)
    rows = {key: _plain(value) for key, value in _one_row(chosen).items()}
    body = json.dumps({"signature_name": chosen.name, "inputs": rows})
    quoted = body.replace("'", "'\\''")
    return f"curl -d '{quoted}' http://localhost:8501/v1/models/{name}:predict"


def _one_row(signature: Signature) -> dict[str, np.ndarray]:
    return {key: np.asarray(value) for key, value in signature.example(1).items()}


def _plain(value: np.ndarray) -> Any:
    """The JSON form of an array."""
    if value.dtype.kind in "SO":
        return [{"b64": base64.b64encode(one).decode()} for one in value.tolist()]
    return value.tolist()
