"""Processes that run exports for verification: one for each runtime."""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("run_export.py")
# By the number of this process as well: a fork must not share its parent's pipes.
_processes: dict[tuple[int, str], RuntimeProcess] = {}


def runtime_process(runtime: str) -> RuntimeProcess:
    """Returns the process of a runtime; starts it, in the background, if there is none.

    Args:
        runtime: "saved_model" or "onnx".
    """
    key = os.getpid(), runtime
    if key not in _processes or not _processes[key].is_running:
        _processes[key] = RuntimeProcess(runtime)
    return _processes[key]


class RuntimeProcess:
    """An interpreter that imports a runtime but not kgen; it ends with this process."""

    def __init__(self, runtime: str):
        self._errors = tempfile.TemporaryFile()
        # -P: the script's folder holds modules of kgen, which must not be importable.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), runtime],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        atexit.register(self.close)

    @property
    def is_running(self) -> bool:
        """Whether it takes jobs."""
        return self._process.poll() is None

    def run(self, path: Path, inputs: dict[str, Any]) -> tuple[dict, dict] | str:
        """Runs an export.

        Args:
            path: The export.
            inputs: Arrays by name, for each batch size of each signature.

        Returns:
            The outputs in the form of the inputs, and for each signature the median
            milliseconds of a call with one row; or a text that says why it failed.
        """
        jobs: Any = self._process.stdin
        answers: Any = self._process.stdout
        try:
            pickle.dump((str(path.resolve()), inputs), jobs)
            jobs.flush()
            return pickle.load(answers)
        except (EOFError, OSError):  # It has died.
            status = self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()]
            return f"{said[-1] if said else 'it said nothing'} (exit status {status})"
        except BaseException:  # An interrupt: the next answer would be of this job.
            self.close()
            raise

    def close(self) -> None:
        """Ends it."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.communicate()
        self._errors.close()
