"""Modules that `import kgen` and `--help` load, and their time."""

import json
import resource
import subprocess
import sys

import pytest

from kgen.recipes import RECIPES

HEAVY = (
    "tensorflow",
    "keras",
    "numpy",
    "PIL",
    "pyarrow",
    "scipy",
    "sklearn",
    "rich",
    "onnx",
    "onnxruntime",
    "tokenizers",
)
LIMIT = 0.5  # Seconds of the processor, the interpreter's start included.
COMMANDS = [
    ["--help"],
    ["--version"],
    ["fit"],
    *([verb, "--help"] for verb in ("fit", "generate", "evaluate", "export", "list")),
    *(["fit", recipe, "--help"] for recipe in RECIPES),
]
# Printed when the process ends: which of the heavy packages it loaded.
REPORT = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps([n for n in {HEAVY} if n in sys.modules])))
"""


def run(code: str) -> tuple[list[str], float]:
    """Runs code in a fresh interpreter; returns loaded heavy packages and seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [sys.executable, "-c", REPORT + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    # Processor time: on a busy machine the rest is waiting for other tests.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(process.stdout.splitlines()[-1]), seconds


def best_time(code: str) -> float:
    """The shortest of up to five runs: the rest waited for the disk or a neighbour."""
    best = float("inf")
    for _ in range(5):
        best = min(best, run(code)[1])
        if best < LIMIT:
            break
    return best


def command(arguments: list[str]) -> str:
    return f"from kgen_cli.main import main\nmain({arguments!r})"


def test_the_report_sees_a_heavy_package():
    assert run("import numpy")[0] == ["numpy"]


def test_import_kgen_loads_nothing_heavy():
    assert run("import kgen; kgen.__version__; dir(kgen)")[0] == []


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_help_loads_nothing_heavy(arguments):
    assert run(command(arguments))[0] == []


def test_import_kgen_takes_less_than_half_a_second():
    assert best_time("import kgen") < LIMIT


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_help_takes_less_than_half_a_second(arguments):
    assert best_time(command(arguments)) < LIMIT
