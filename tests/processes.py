"""Processes for tests, forked from a server that has imported TensorFlow and Keras.

A new process is ready after a tenth of a second, and may still choose its devices:
TensorFlow's runtime starts when it is first used, not when it is imported
(`test_processes.py`). A test of a fresh interpreter needs `subprocess`.
"""

from __future__ import annotations

import gc
import importlib.util
import inspect
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tensorflow", "keras", "kgen.models"])

LIMIT_SECONDS = 300

# CPU time of the processes that have returned a result.
cpu_seconds = 0.0


class Process:
    """A call of a function in a new process, ended when its context is left.

    Args:
        function: Of any module with a file, test modules included.
        *args: Its arguments; a `multiprocessing` connection may be among them.
        environ: Environment variables, besides those of this process.
        devices: Logical CPU devices.
        folder: Working directory; this process's by default.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        environ: Mapping[str, str] | None = None,
        devices: int = 1,
        folder: Path | None = None,
    ):
        self.name = function.__qualname__
        self._output = tempfile.NamedTemporaryFile("r", errors="replace")
        self.connection, sender = pipe()
        origin = (function.__module__, inspect.getfile(function), self.name)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **(environ or {})}
        folder = folder or Path.cwd()
        self._process = _context.Process(
            target=_call,
            args=(sender, self._output.name, environment, folder, devices),
            kwargs={"origin": origin, "args": args},
            daemon=True,
        )
        self._process.start()
        sender.close()  # The end of the other process is then the end of the pipe.
        self.kill = self._process.kill
        self.terminate = self._process.terminate

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: Any) -> None:
        self.kill()
        self._process.join()
        self._process.close()
        self.connection.close()
        self._output.close()

    @property
    def output(self) -> str:
        """Standard output and standard error up to now."""
        return Path(self._output.name).read_text(errors="replace")

    def wait(self, limit_seconds: float = LIMIT_SECONDS) -> int:
        """The exit code; -9 after a SIGKILL."""
        self._process.join(limit_seconds)
        code = self._process.exitcode
        if code is None:
            raise AssertionError(f"{self.name} hangs:\n{self.output[-5000:]}")
        return code

    def result(self, limit_seconds: float = LIMIT_SECONDS) -> Any:
        """The function's result."""
        global cpu_seconds
        try:
            if not self.connection.poll(limit_seconds):
                self.wait(0)
            value, seconds = self.connection.recv()
        except EOFError:
            raise AssertionError(
                f"{self.name}: exit code {self.wait()}\n{self.output[-5000:]}"
            ) from None
        cpu_seconds += seconds
        return value


def run(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Returns `function(*args)`, computed by a `Process` with these options."""
    with Process(function, *args, **options) as process:
        return process.result()


def wait_together(
    processes: Sequence[Process], limit_seconds: float = LIMIT_SECONDS
) -> list[Any]:
    """The results of all, or the error of the first that fails.

    A worker of a cluster whose partner is gone may wait for ever.
    """
    results: dict[Process, Any] = {}
    deadline = time.monotonic() + limit_seconds
    while waiting := {p.connection: p for p in processes if p not in results}:
        remaining = max(0.0, deadline - time.monotonic())
        ready = multiprocessing.connection.wait(list(waiting), remaining)
        for connection in ready or waiting:
            process = waiting[connection]
            results[process] = process.result(0)
    return [results[process] for process in processes]


def collect_garbage_seldom() -> None:
    """Makes garbage collection skip what is imported, and come seldom: a tenth of all.

    Tracing makes objects by the hundred thousand, and hardly any of them is garbage.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pipe() -> tuple[Any, Any]:
    """The receiving and the sending end of a pipe between processes."""
    return _context.Pipe(duplex=False)


def _call(
    sender: Any,
    output: str,
    environment: dict[str, str],
    folder: Path,
    devices: int,
    origin: tuple[str, str, str],
    args: Sequence[Any],
) -> None:
    """Runs in the new process."""
    collect_garbage_seldom()
    with open(output, "w") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if devices > 1:
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * devices,
        )
    module, file, name = origin
    function = getattr(_module(module, file), name)
    sender.send((function(*args), sum(os.times()[:4])))


def _module(name: str, file: str) -> ModuleType:
    """Imports a module by its file: pytest puts no test module on the path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
