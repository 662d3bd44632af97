"""TensorFlow's start-up messages do not reach stderr."""

import os
import subprocess
import sys

import pytest

from kgen_cli.startup import NOISE

SMALL_FIT = """
from kgen_cli.startup import load_tensorflow
load_tensorflow()
import keras
import numpy as np
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
model.compile("adam", "mse")
model.fit(np.zeros((20, 4)), np.zeros((20, 3)), epochs=2, batch_size=7, verbose=0)
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    unset = ("TF_CPP_MIN_LOG_LEVEL",)
    inherited = {name: text for name, text in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_small_fit_prints_nothing_but_a_real_warning_and_a_real_error():
    real = (
        'import os, warnings\nwarnings.warn("look here")\nos.write(2, b"E0000 bad\\n")'
    )
    process = run(SMALL_FIT + real)
    assert process.returncode == 0
    assert process.stdout == ""
    lines = process.stderr.splitlines()
    assert [line for line in lines if "UserWarning: look here" in line]
    assert lines[-1] == "E0000 bad"
    assert len(lines) <= 3, process.stderr


FILTER = """
import os, sys
from kgen_cli.startup import _filtered_stderr
with _filtered_stderr():
    os.write(2, b"I0000 00:00:17.5 1 port.cc:153] oneDNN custom operations are on.\\n")
    os.write(2, b"E0000 00:00:17.5 1 real.cc:1] broken\\n")
    print("from Python", file=sys.stderr)
    if "KILLED" in os.environ:
        os.write(2, b"last message")
        os.abort()
os.write(2, b"I0000 00:00:17.5 1 port.cc:153] afterwards\\n")
"""


def test_real_messages_pass_while_tensorflow_loads():
    process = run(FILTER)
    assert process.stderr.splitlines() == [
        "E0000 00:00:17.5 1 real.cc:1] broken",
        "from Python",
        "I0000 00:00:17.5 1 port.cc:153] afterwards",
    ]


def test_the_last_message_of_a_crash_passes():
    process = run(FILTER, KILLED="1")
    assert process.returncode != 0
    assert process.stderr.endswith("last message")


@pytest.mark.parametrize(
    "line",
    [
        b"E0000 00:00:1.2 3 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA "
        b"error: Failed call to cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)",
        b"W0000 00:00:1.2 3 gpu_device.cc:2344] Cannot dlopen some GPU libraries.",
        b"F0000 00:00:1.2 3 cpu_feature_guard.cc:112] The TensorFlow library was "
        b"compiled to use AVX instructions, but these aren't available",
        b"Iterations failed",
        b"Traceback (most recent call last):",
    ],
)
def test_messages_for_the_user_are_not_noise(line):
    assert not NOISE.match(line)
