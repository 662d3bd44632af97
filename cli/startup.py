"""Import of TensorFlow without its start-up messages."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read by TensorFlow when it is imported; a value set by the user is kept. 2 shows
# errors only: as warnings TensorFlow logs every exception of an op a second time, with
# a traceback of its own. Python's warnings are all shown.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2"}

# TensorFlow ignores the level above while it is imported
# (https://github.com/tensorflow/tensorflow/issues/100442), and logs as warnings or
# errors:
# - plug-ins that the wheel itself contains twice
#   (https://github.com/tensorflow/tensorflow/issues/62075);
# - error 303, on a machine without an NVIDIA driver.
NOISE = re.compile(
    rb"I\d{4} \d\d:\d\d"
    rb"|\d{4}-\d\d-\d\d [\d:.]+: I "
    rb"|WARNING: All log messages before absl::InitializeLog\(\) is called"
    rb"|To enable the following instructions: "
    rb"|.*(Attempting to register factory|computation placer already registered)"
    rb"|.*failed call to cuInit: .*\(303\)"
)


def load_tensorflow() -> None:
    """Import TensorFlow and find the devices; `NOISE` does not reach stderr."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "tensorflow" in sys.modules or not hasattr(os, "fork"):
        return
    with _filtered_stderr():
        import tensorflow

        # The first look-up logs a missing driver.
        tensorflow.config.list_physical_devices()


def load_model(run: Path) -> Any:
    """Load the model of a run, and TensorFlow before it."""
    load_tensorflow()
    import kgen

    return kgen.load(run)


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Drop lines that match `NOISE` from stderr.

    C++ code bypasses sys.stderr, so the file descriptor is replaced. The filter is a
    process of its own, not a temporary file to be copied afterwards: when TensorFlow
    aborts on import (on a processor without AVX), its last message says why.
    """
    sys.stderr.flush()
    reading, writing = os.pipe()
    original = os.dup(2)
    child = os.fork()
    if child == 0:
        os.close(writing)
        _copy_lines(reading, original)
        os._exit(0)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original, 2)
        os.close(original)
        os.waitpid(child, 0)


def _copy_lines(reading: int, writing: int) -> None:
    """Copy lines until the writing end is closed: the filter process."""
    import signal

    # Ctrl-C is for the main process; this one ends when that closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not NOISE.match(line):
                os.write(writing, line)
