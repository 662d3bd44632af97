"""ONNX files of a run in ONNX Runtime: answers without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

MAX_ROWS = 256  # of one call: bounds the memory
TYPES = {"float": "float32", "double": "float64", "bool": "bool"}
# Files that other programs read may hold images of another layout or range.
IMAGES = {"image_layout": "NHWC", "image_range": "[0, 1]"}


class OnnxSession:
    """One signature of a model, as `kgen.export.to_onnx` wrote it.

    Attributes:
        path: The file.
        inputs: NumPy type of each input.
        metadata: What the exporter wrote about the signature and the model.

    Raises:
        ValueError: ONNX Runtime refuses the file.
    """

    def __init__(self, path: Path):
        import onnxruntime

        self.path = path
        options = {"providers": ["CPUExecutionProvider"]}
        try:
            self._session = onnxruntime.InferenceSession(str(path), **options)
        except Exception as error:  # ONNX Runtime's own have no common class.
            raise ValueError(
                f"An ONNX file must be whole. Received: {path}, which ONNX Runtime "
                f"refuses ({error}). Write it again with kgen export, or delete it."
            ) from error
        kinds = {one.name: one.type[7:-1] for one in self._session.get_inputs()}
        self.inputs = {name: TYPES.get(kind, kind) for name, kind in kinds.items()}
        self.metadata = self._session.get_modelmeta().custom_metadata_map

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray]:
        """Computes the outputs of any number of rows.

        Args:
            **inputs: One value for each row, or one for all.
        """
        num_rows = max(len(value) for value in inputs.values() if np.ndim(value))
        arrays = {
            name: np.asarray(np.full(num_rows, value) if not np.ndim(value) else value)
            for name, value in inputs.items()
        }
        parts = []
        for start in range(0, num_rows, MAX_ROWS):
            rows = {
                name: array[start : start + MAX_ROWS].astype(self.inputs[name])
                for name, array in arrays.items()
            }
            parts.append(self._session.run(None, rows))
        names = [output.name for output in self._session.get_outputs()]
        columns = map(np.concatenate, zip(*parts, strict=True))
        return dict(zip(names, columns, strict=True))


def session_of_run(
    run: Path, recipe_name: str, inputs: Iterable[str]
) -> OnnxSession | None:
    """Returns a session for the default signature of a run; None: no file suffices.

    The file must take just these inputs, hold images as Python has them, and not be
    older than the run's model.

    Args:
        run: Folder of the run.
        recipe_name: Name of its recipe.
        inputs: Names of the inputs.

    Raises:
        ValueError: ONNX Runtime refuses the file.
    """
    path, model = run / f"{recipe_name}.onnx", run / "model.keras"
    if not path.is_file() or path.stat().st_mtime < model.stat().st_mtime:
        return None
    session = OnnxSession(path)
    usual = all(session.metadata.get(k, value) == value for k, value in IMAGES.items())
    return session if usual and session.inputs.keys() == {*inputs} else None
