"""Model repositories of Triton Inference Server, around ONNX files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from kgen.export.staging import rename_to_next_version, staged
from kgen.files import write_text

_CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: 64
dynamic_batching {{ max_queue_delay_microseconds: 2000 }}
{tensors}"""
_TENSOR = """\
{kind} {{
  name: "{name}"
  data_type: TYPE_{type}
  dims: {dims}{reshape}
}}
"""


def to_triton(
    onnx_file: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    name: str | None = None,
) -> Path:
    """Adds an ONNX file to a repository, as the next version of a model.

    Triton batches requests that wait for the model; rows do not depend on each other.
    A tensor with one number for each row, such as `seeds`, has the shape [batch, 1]
    there, as Triton requires.

    Args:
        onnx_file: A file that `to_onnx` wrote.
        repository: The folder that Triton takes as its `--model-repository`. Made if it
            is missing.
        name: The model's name; by default the file's, without its ending.

    Returns:
        The folder of the new version, `repository/name/1` the first time.

    Raises:
        OSError: The file cannot be read, or the folder cannot be written.

    Example:
        >>> to_triton(to_onnx(vae, "vae.onnx"), "triton")   # tritonserver
        ...                                   # --model-repository triton
    """
    import onnx

    onnx_file = Path(onnx_file)
    name = onnx_file.stem.replace(".", "_") if name is None else name
    graph = onnx.load(onnx_file).graph
    tensors = [_tensor("input", one) for one in graph.input]
    tensors += [_tensor("output", one) for one in graph.output]
    model = Path(repository) / name
    with staged(model, "version") as temporary:
        temporary.mkdir()
        shutil.copyfile(onnx_file, temporary / "model.onnx")
        text = _CONFIG.format(name=name, tensors="".join(tensors))
        write_text(model / "config.pbtxt", text)
        return rename_to_next_version(temporary, model)


def _tensor(kind: str, value: Any) -> str:
    """The configuration of an input or output, without its batch dimension."""
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name.upper()
    sizes = [one.dim_value or -1 for one in tensor.shape.dim][1:]
    reshape = "" if sizes else "\n  reshape { shape: [] }"
    return _TENSOR.format(
        kind=kind,
        name=value.name,
        type={"FLOAT32": "FP32", "FLOAT64": "FP64"}.get(dtype, dtype),
        dims=sizes or [1],
        reshape=reshape,
    )
