"""What the conformance suite computes in processes of its own, and who starts them.

Logical devices and TF_CONFIG have to be there before TensorFlow starts, and only a
fresh process shows what a file holds. Each process serves all rows at once.

Usage: python conformance_processes.py devices|worker|reload FOLDER COUNT ROW...
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kgen.models
from conformance_rows import BATCH_SIZE, ROWS, SEEDS, Row
from kgen import training
from kgen.models import GenerativeModel
from kgen.nn import optimizers
from kgen.training.strategies import is_chief, num_processes

Arrays = dict[str, np.ndarray]


class Shared:
    """Trained models, and results of processes that are started when first needed.

    Args:
        folder: For files; empty.
        rows: Those whose results are asked for.
    """

    def __init__(self, folder: Path, rows: Sequence[Row] = ROWS):
        self.folder = folder
        self.rows = rows
        self._trained: dict[str, GenerativeModel] = {}

    def trained(self, row: Row) -> GenerativeModel:
        """The model of a row after a few steps of Adam."""
        if row.name not in self._trained:
            model = row.model(lambda: keras.optimizers.Adam(1e-2))
            model.fit(row.pipeline(4 * BATCH_SIZE).dataset(), epochs=2, verbose=0)
            self._trained[row.name] = model
        return self._trained[row.name]

    @functools.cached_property
    def devices(self) -> Arrays:
        """One device and two replicas, trained by a process with two devices."""
        return self.train_on_devices(2, self.rows)

    @functools.cached_property
    def workers(self) -> Arrays:
        """Two processes that train together; the results of the chief."""
        return self.train_with_workers(2, self.rows)

    @functools.cached_property
    def reloaded(self) -> Arrays:
        """What a fresh process finds in the saved models, and generates with them."""
        for row in self.rows:
            self.trained(row).save(self.model_file(row))
        return self._results("reload", 1, self.rows, [{}])

    def train_on_devices(self, count: int, rows: Sequence[Row]) -> Arrays:
        """One device and `count` replicas."""
        return self._results("devices", count, rows, [{}])

    def train_with_workers(self, count: int, rows: Sequence[Row]) -> Arrays:
        """So many processes that train together; the results of the chief."""
        # All sockets are open until all ports are known, so the ports differ.
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for listening in sockets:
                listening.bind(("localhost", 0))
            ports = [opened.getsockname()[1] for opened in sockets]
        cluster = {"worker": [f"localhost:{port}" for port in ports]}
        tasks = [{"type": "worker", "index": index} for index in range(count)]
        configs = [json.dumps({"cluster": cluster, "task": task}) for task in tasks]
        return self._results(
            "worker", count, rows, [{"TF_CONFIG": config} for config in configs]
        )

    def model_file(self, row: Row) -> Path:
        """Where the model of a row is saved."""
        return model_file(self.folder, row)

    def _results(
        self,
        task: str,
        count: int,
        rows: Sequence[Row],
        environments: Sequence[dict[str, str]],
    ) -> Arrays:
        indices = [str(ROWS.index(row)) for row in rows]
        arguments = [task, str(self.folder), str(count), *indices]
        run_processes(arguments, environments, limit_seconds=200 + 60 * len(rows))
        with np.load(self.folder / f"{task}.npz") as arrays:
            return dict(arrays)


def model_file(folder: Path, row: Row) -> Path:
    return folder / f"{ROWS.index(row)}.keras"


def run_processes(
    arguments: list[str],
    environments: Sequence[dict[str, str]],
    limit_seconds: float,
) -> None:
    """Runs this file, once for each environment, all at the same time.

    When one fails or time is up, all are stopped: a worker whose partner is gone would
    wait for ever.
    """
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    processes: list[subprocess.Popen] = []
    deadline = time.monotonic() + limit_seconds
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            for environment in environments:
                processes.append(
                    subprocess.Popen(
                        # -P: the folders beside this file are no modules.
                        [sys.executable, "-P", __file__, *arguments],
                        env=common | environment,
                        stdout=output,
                        stderr=output,
                    )
                )
            while None in (codes := [process.poll() for process in processes]):
                if any(codes) or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(codes) or None in codes:
            output.seek(0)
            raise AssertionError(
                f"{arguments}: exit codes {codes} (None: stopped from here, after "
                f"{limit_seconds:.0f} s or because of the other):\n"
                f"{output.read()[-5000:]}"
            )


class Records(keras.callbacks.Callback):
    """Keeps each epoch's logs, which `training.fit` does not return."""

    def __init__(self):
        super().__init__()
        self.rows: list[list[float]] = []

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append([float(np.reshape(value, ())) for value in logs.values()])


def train_sixteen_steps(
    row: Row, strategy: tf.distribute.Strategy, count: int, optimizer: Any = None
) -> Arrays:
    """Two epochs of eight steps, with SGD: where they end, and what they logged.

    Args:
        row: What to train.
        strategy: On what.
        count: Replicas that a batch has to be divisible by.
        optimizer: Makes another one.
    """
    batch_size = BATCH_SIZE // count * count
    with strategy.scope():
        model = row.model(optimizer)
    before = model.get_weights()
    records = Records()
    training.fit(
        model,
        row.pipeline(8 * batch_size, batch_size, shuffle=True, drop_remainder=True),
        epochs=2,
        # The last batch is dealt unevenly.
        validation=row.pipeline(2 * batch_size - 3, batch_size),
        strategy=strategy,
        callbacks=[training.StopOnNonFinite(), records],
    )
    after = model.get_weights()
    moved = [
        float(np.abs(a - b).max())
        for a, b in zip(after, before, strict=True)
        if a.dtype.kind == "f"  # not the counters
    ]
    weights = {f"weights/{index:03d}": value for index, value in enumerate(after)}
    return weights | {"logs": np.array(records.rows), "moved": np.array(moved)}


def train_on_devices(folder: Path, count: int, rows: Sequence[Row]) -> Arrays:
    """One device, and `count` replicas: with SGD, and two once more with Adam."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )
    strategies = {name: training.make_strategy(name) for name in ("none", "mirrored")}
    kinds: dict[str, Any] = {"sgd": None}
    if count == 2:
        kinds["adam"] = functools.partial(optimizers.Adam, 1e-3)
    return {
        f"{row.name}/{name}/{kind}/{key}": value
        for row in rows
        for name, strategy in strategies.items()
        for kind, optimizer in kinds.items()
        for key, value in train_sixteen_steps(row, strategy, count, optimizer).items()
    }


def train_as_worker(folder: Path, count: int, rows: Sequence[Row]) -> Arrays | None:
    """One of `count` processes, as TF_CONFIG says."""
    strategy = training.make_strategy("auto")
    if num_processes(strategy) != count:
        raise RuntimeError(f"{num_processes(strategy)} processes instead of {count}")
    results = {
        f"{row.name}/{key}": value
        for row in rows
        for key, value in train_sixteen_steps(row, strategy, count).items()
    }
    return results if is_chief(strategy) else None


def reload_models(folder: Path, count: int, rows: Sequence[Row]) -> Arrays:
    """Everything in the saved models, and what they generate."""
    results = {}
    for row in rows:
        model = kgen.models.load(model_file(folder, row))
        for index, value in enumerate(state(model)):
            results[f"{row.name}/state/{index:03d}"] = value
        results[f"{row.name}/generated"] = row.generate(model, range(len(SEEDS)))
    return results


def state(model: GenerativeModel) -> list[np.ndarray]:
    """The weights, the step among them, and the variables of all optimizers."""
    variables = [variable for o in model.optimizers for variable in o.variables]
    return [variable.numpy() for variable in [*model.weights, *variables]]


TASKS: dict[str, Any] = {
    "devices": train_on_devices,
    "worker": train_as_worker,
    "reload": reload_models,
}


def main(task: str, folder: str, count: str, *indices: str) -> None:
    """Runs a task on these rows and writes its arrays to FOLDER/TASK.npz."""
    rows = [ROWS[int(index)] for index in indices]
    results = TASKS[task](Path(folder), int(count), rows)
    if results is not None:
        np.savez(Path(folder) / f"{task}.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
