"""Import of TensorFlow without its start-up messages."""

import contextlib
import os
import re
import shutil
import subprocess
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
# The expressions are those of `sed -E`, too, and hold no slash.
NOISE = re.compile(
    rb"I[0-9]{4} [0-9]{2}:[0-9]{2}"
    rb"|[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+: I "
    rb"|WARNING: All log messages before absl::InitializeLog\(\) is called"
    rb"|To enable the following instructions: "
    rb"|.*(Attempting to register factory|computation placer already registered)"
    rb"|.*failed call to cuInit: .*\(303\)"
)


def load_tensorflow() -> None:
    """Import TensorFlow and find the devices; `NOISE` does not reach stderr."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "tensorflow" in sys.modules or not shutil.which("sed"):
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
    with subprocess.Popen(
        ["sed", "-u", "-E", f"/^({NOISE.pattern.decode()})/d"],
        stdin=subprocess.PIPE,
        stdout=2,
        start_new_session=True,  # Ctrl-C is for this process.
    ) as filtering:
        original = os.dup(2)
        os.dup2(filtering.stdin.fileno(), 2)  # type: ignore[union-attr]
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
