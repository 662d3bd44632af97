"""Runs an export on stored inputs and stores its outputs; a script of its own.

The exporter starts it as a separate process. It imports what a user of the file has,
the runtime and NumPy, and nothing of kgen: a file that only works next to the code that
wrote it fails here.

Usage: python -P run_export.py saved_model|onnx EXPORT INPUTS.npz OUTPUTS.npz

Arrays are named `signature/batch/tensor`, in both files. For each signature a line is
printed: its name, and the median of the milliseconds that a call with one row takes.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]


def load_saved_model(path: str) -> Run:
    """Returns what calls a named signature of a SavedModel."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)

    def run(signature, inputs):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        outputs = loaded.signatures[signature](**tensors)
        arrays = {name: value.numpy() for name, value in outputs.items()}
        return {  # Text is stored as bytes of one length, not as pickled objects.
            name: array.astype(np.bytes_) if array.dtype == object else array
            for name, array in arrays.items()
        }

    return run


def load_onnx(path: str) -> Run:
    """Returns what calls the one graph of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(signature, inputs):
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def milliseconds(call: Callable[[], Any], most_calls: int = 50, most: float = 0.5):
    """The median of some calls, which together take half a second, or one call."""
    taken: list[float] = []
    while not taken or (len(taken) < most_calls and sum(taken) < most):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1000.0 * statistics.median(taken)


def main(runtime: str, export: str, inputs_file: str, outputs_file: str) -> None:
    """Replays every call that the inputs file holds."""
    run = {"saved_model": load_saved_model, "onnx": load_onnx}[runtime](export)
    calls: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    with np.load(inputs_file) as stored:
        for key in stored.files:
            signature, batch, name = key.split("/")
            calls.setdefault((signature, batch), {})[name] = stored[key]
    outputs: dict[str, Any] = {
        f"{signature}/{batch}/{name}": value
        for (signature, batch), inputs in calls.items()
        for name, value in run(signature, inputs).items()
    }
    for (signature, batch), inputs in calls.items():
        if batch == "1":
            taken = milliseconds(lambda: run(signature, inputs))  # noqa: B023
            sys.stdout.write(f"{signature} {taken}\n")
    if "kgen" in sys.modules:
        raise SystemExit("The export imported kgen: it does not stand on its own.")
    np.savez(outputs_file, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
