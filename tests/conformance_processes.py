"""Trained models of the conformance suite, and computations in other processes.

Logical devices and TF_CONFIG have to be there before TensorFlow starts, and only a
fresh process shows what a file holds. Each process serves all rows at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kgen.models
import processes
from conformance_rows import BATCH_SIZE, ROWS, SEEDS, Row
from kgen import training
from kgen.models import GenerativeModel
from kgen.nn.gradients import Adam
from kgen.training.strategies import num_processes

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
        files = {row.name: str(self.model_file(row)) for row in self.rows}
        return processes.run(reload_models, files)

    def train_on_devices(self, count: int, rows: Sequence[Row]) -> Arrays:
        """One device and `count` replicas."""
        return processes.run(train_on_devices, count, _names(rows), devices=count)

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
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(
                    processes.Process(
                        train_as_worker,
                        count,
                        _names(rows),
                        environ={"TF_CONFIG": config},
                    )
                )
                for config in configs
            ]
            return processes.wait_together(workers, 200 + 60 * len(rows))[0]

    def model_file(self, row: Row) -> Path:
        """Where the model of a row is saved."""
        return self.folder / f"{ROWS.index(row)}.keras"


def _names(rows: Sequence[Row]) -> list[str]:
    return [row.name for row in rows]


def _rows(names: Sequence[str]) -> list[Row]:
    return [row for row in ROWS if row.name in names]


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
    with training.unoptimized_graphs():
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


def train_on_devices(count: int, names: Sequence[str]) -> Arrays:
    """One device, and `count` replicas: with SGD, and two once more with Adam."""
    strategies = {name: training.make_strategy(name) for name in ("none", "mirrored")}
    kinds: dict[str, Any] = {"sgd": None}
    if count == 2:
        kinds["adam"] = functools.partial(Adam, 1e-3)
    return {
        f"{row.name}/{name}/{kind}/{key}": value
        for row in _rows(names)
        for name, strategy in strategies.items()
        for kind, optimizer in kinds.items()
        for key, value in train_sixteen_steps(row, strategy, count, optimizer).items()
    }


def train_as_worker(count: int, names: Sequence[str]) -> Arrays:
    """One of `count` processes, as TF_CONFIG says."""
    strategy = training.make_strategy("auto")
    if num_processes(strategy) != count:
        raise RuntimeError(f"{num_processes(strategy)} processes instead of {count}")
    return {
        f"{row.name}/{key}": value
        for row in _rows(names)
        for key, value in train_sixteen_steps(row, strategy, count).items()
    }


def reload_models(files: dict[str, str]) -> Arrays:
    """Everything in the saved models, and what they generate."""
    results = {}
    for row in _rows(list(files)):
        model = kgen.models.load(Path(files[row.name]))
        for index, value in enumerate(state(model)):
            results[f"{row.name}/state/{index:03d}"] = value
        results[f"{row.name}/generated"] = row.generate(model, range(len(SEEDS)))
    return results


def state(model: GenerativeModel) -> list[np.ndarray]:
    """The weights, the step among them, and the variables of all optimizers."""
    variables = [variable for o in model.optimizers for variable in o.variables]
    return [variable.numpy() for variable in [*model.weights, *variables]]
