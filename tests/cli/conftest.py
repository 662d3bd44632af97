"""Fixtures of the tests that run commands."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

import kgen


@pytest.fixture(scope="module")
def load_once():
    """Load the model of a run once for all commands of a module, traced graphs too."""
    load = functools.cache(kgen.load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kgen, "load", lambda run: load(Path(run).resolve()))
        yield


@pytest.fixture
def run_without_tensorflow():
    """Run a command in a process of its own, and check that it loads no TensorFlow."""

    def check(command, folder):
        script = (
            "import sys; from kgen_cli.main import run; "
            f"assert run({command.split()}) == 0; "
            "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", script], check=True, cwd=folder)

    return check
