"""Loading TensorFlow without what it prints about itself."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read by TensorFlow when it is loaded; a value that the user has set stays. 2 shows
# errors only: as a warning TensorFlow logs every exception of an op a second time, with
# a traceback of its own. Python's warnings are another matter and all shown.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2"}

# The level above is obeyed only once TensorFlow is loaded. While it loads, all is
# printed (https://github.com/tensorflow/tensorflow/issues/100442), also what is logged
# as a warning or an error and is neither:
# - plug-ins that the wheel itself contains twice
#   (https://github.com/tensorflow/tensorflow/issues/62075);
# - on a machine without an NVIDIA driver, that there is none: error 303.
NOISE = re.compile(
    rb"I\d{4} \d\d:\d\d"
    rb"|\d{4}-\d\d-\d\d [\d:.]+: I "
    rb"|WARNING: All log messages before absl::InitializeLog\(\) is called"
    rb"|To enable the following instructions: "
    rb"|.*(Attempting to register factory|computation placer already registered)"
    rb"|.*failed call to cuInit: .*\(303\)"
)


def load_tensorflow() -> None:
    """Imports TensorFlow and finds the devices; only real messages reach stderr."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "tensorflow" in sys.modules or not hasattr(os, "fork"):
        return
    with _filtered_stderr():
        import tensorflow

        # Looked up now, for the look-up is what complains about a missing driver.
        tensorflow.config.list_physical_devices()


def load_model(run: Path) -> Any:
    """Load the model of a run, and TensorFlow before it."""
    load_tensorflow()
    import kgen

    return kgen.load(run)


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Passes what is written to stderr through `NOISE`, line by line.

    C++ code writes past Python's sys.stderr, so the file descriptor is what has to be
    replaced. The filter is a process of its own: when TensorFlow aborts while loading
    (it does on a processor that is too old), the last words still come through.
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
    """Runs in the filter process, until nobody can write to it any more."""
    import signal

    # Ctrl-C is for the process that works; this one ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if not NOISE.match(line):
                os.write(writing, line)
