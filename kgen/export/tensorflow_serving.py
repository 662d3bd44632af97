"""What TensorFlow Serving reads beside a SavedModel, and the request it answers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.files import replacing
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
    """The name that a folder of versions is served under: its own, in plain letters."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", folder.resolve().name)


def write_configuration(folder: Path, signatures: Sequence[Signature]) -> None:
    """Writes models.config, batching.config and compose.yaml beside the versions.

    A file that is there already is left as it is: somebody may have changed it. Rows of
    different lengths cannot be put into one batch by the server, which would pad them
    with what they begin with: where an input has such rows there is no batching.config.
    """
    name = model_name(folder)
    even = all(
        None not in spec.shape[1:] for one in signatures for spec in one.inputs.values()
    )
    files = {
        "models.config": _MODELS.format(name=name),
        "compose.yaml": _COMPOSE.format(name=name, image=IMAGE)
        + (_BATCHED.format(name=name) if even else ""),
    }
    if even:
        files["batching.config"] = _BATCHING
    for file_name, text in files.items():
        if not (folder / file_name).exists():
            with replacing(folder / file_name) as file:
                file.write(text.encode())


def write_warm_up(version: Path, name: str, signatures: Sequence[Signature]) -> None:
    """Writes a request to each signature, which the server makes before it is ready.

    Each is a `PredictionLog` of tensorflow_serving/apis/prediction_log.proto. Its
    classes come with a package that wants another TensorFlow; it is four messages deep,
    and written here as the bytes that it is.
    """
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
    """The command that asks the server for what the model is for.

    Args:
        name: The model's.
        signatures: Those of the SavedModel; image files are preferred to numbers.
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
    """As JSON has it."""
    if value.dtype.kind in "SO":
        return [{"b64": base64.b64encode(one).decode()} for one in value.tolist()]
    return value.tolist()
