"""Process that runs exports without kgen; a script that `runtime_process.py` starts.

It imports what a user of the files has, the runtime and NumPy: a file that only works
next to the code that wrote it fails here. Each job runs in a fork of its own, which has
loaded nothing before and cannot take the next job down.

Usage: python -P run_export.py saved_model|onnx

Jobs come pickled on standard input: (path, {signature: {batch size: inputs}}). Answers
go to standard output: (outputs in the same form, {signature: milliseconds}), or the
text of an error.
"""

import os
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Run = Callable[[str, Arrays], Arrays]


def load_saved_model(path: str) -> Run:
    """Returns a function that calls a named signature of a SavedModel."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)

    def run(signature, inputs):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        outputs = loaded.signatures[signature](**tensors)
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def load_onnx(path: str) -> Run:
    """Returns a function that calls the one graph of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(signature, inputs):
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


RUNTIMES = {
    "saved_model": ("tensorflow", load_saved_model),
    "onnx": ("onnxruntime", load_onnx),
}


def milliseconds(call: Callable[[], Any], max_calls: int = 50, seconds: float = 0.5):
    """Median time of some calls, which together take half a second, or of one call."""
    taken: list[float] = []
    while not taken or (len(taken) < max_calls and sum(taken) < seconds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1000.0 * statistics.median(taken)


def run_job(runtime: str, path: str, inputs: dict[str, dict[int, Arrays]]) -> Any:
    """The answer to a job."""
    try:
        run = RUNTIMES[runtime][1](path)
        outputs = {
            signature: {size: run(signature, batch) for size, batch in batches.items()}
            for signature, batches in inputs.items()
        }
        times = {
            signature: milliseconds(lambda: run(signature, batches[1]))  # noqa: B023
            for signature, batches in inputs.items()
        }
    except Exception as error:  # Whatever a runtime raises is why the file is wrong.
        return f"{type(error).__name__}: {error}"
    if "kgen" in sys.modules:
        return "The export imported kgen: it does not stand on its own."
    return outputs, times


def main(runtime: str) -> None:
    """Answers jobs until standard input ends."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # A library that prints must not write into an answer.
    __import__(RUNTIMES[runtime][0])
    while jobs.peek(1):
        path, inputs = pickle.load(jobs)
        child = os.fork()
        if child == 0:
            pickle.dump(run_job(runtime, path, inputs), answers)
            answers.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            pickle.dump(f"exit status {os.waitstatus_to_exitcode(status)}", answers)
            answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
