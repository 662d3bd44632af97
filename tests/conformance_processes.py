"""One row of the conformance suite under trial: its models and its other processes.

Tracing a model costs seconds and a step of it milliseconds, so each kind of model is
traced once. Logical devices and TF_CONFIG must be set before TensorFlow starts, and
only another process shows what a file holds.
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

# Kinds of models by name: arguments of `Row.model`.
KINDS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": functools.partial(Adam, 1e-2)},
    "mixed_bfloat16": {"dtype": "mixed_bfloat16"},
    "mixed_float16": {"dtype": "mixed_float16"},
}


class Trial:
    """Models of one row, and results of processes that are started when first needed.

    Args:
        row: The row.
        folder: For files; empty.
    """

    def __init__(self, row: Row, folder: Path):
        self.row = row
        self.folder = folder
        self._models: dict[str, tuple[GenerativeModel, list[np.ndarray]]] = {}

    def model(self, kind: str = "sgd") -> GenerativeModel:
        """The compiled model of a kind, traced before, with its initial variables."""
        if kind not in self._models:
            model = self.row.model(**KINDS[kind])
            initial = state(model)
            # Any later batch fits a trace for any number of rows.
            batches = self.row.pipeline(BATCH_SIZE + 5).dataset()
            model.fit(batches, validation_data=batches, verbose=0)
            self._models[kind] = model, initial
        model, initial = self._models[kind]
        assign_state(model, initial)
        return model

    def trained(self) -> GenerativeModel:
        """The model after three epochs of Adam."""
        expected = self._trained_state
        model, _ = self._models["adam"]
        assign_state(model, expected)
        return model

    @functools.cached_property
    def _trained_state(self) -> list[np.ndarray]:
        return self.train_three_epochs(self.folder / "run")

    def train_three_epochs(
        self, folder: Path, stop_at: int | None = None
    ) -> list[np.ndarray]:
        """Trains 18 steps with Adam, from the checkpoint in the folder if there is one.

        Returns:
            The state of the model.

        Raises:
            Interrupted: At the step `stop_at`.
        """
        model = self.model("adam")
        checkpointer = training.Checkpointer(folder / "state.npz", every_seconds=0)
        checkpointer.restore(model)

        def stop(batch, logs):
            if int(model.step.numpy()) == stop_at:
                raise Interrupted

        folder.mkdir(exist_ok=True)
        training.fit(
            model,
            self.row.pipeline(5 * BATCH_SIZE + 3, shuffle=True),
            epochs=3,
            validation=self.row.pipeline(BATCH_SIZE),
            callbacks=[
                training.History(folder / "history.csv"),
                checkpointer,
                keras.callbacks.LambdaCallback(on_train_batch_end=stop),
            ],
        )
        return state(model)

    def one_device(self, kind: str = "sgd", count: int = 2) -> Arrays:
        """Sixteen steps on one device, of batches that `count` replicas could share."""
        return train_sixteen_steps(self.model(kind), self.row, count)

    def replicas(self, kind: str = "sgd", count: int = 2) -> Arrays:
        """The same steps on replicas of one process."""
        return processes.run(
            train_on_replicas, self.row.name, kind, count, devices=count
        )

    @functools.cached_property
    def two_replicas(self) -> Arrays:
        """Two replicas with SGD."""
        return self.replicas()

    def two_steps(self, *, jit_compile: bool = False) -> list[np.ndarray]:
        """Weights after two steps of SGD, on the same batches with and without XLA."""
        if jit_compile:  # In a process, since XLA never frees what it has compiled.
            return processes.run(train_two_steps_with_xla, self.row.name)
        return train_two_steps(self.model(), self.row)

    def workers(self, count: int = 2) -> Arrays:
        """The same steps by processes that train together; the results of the chief."""
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
                        self.row.name,
                        count,
                        environ={"TF_CONFIG": config},
                    )
                )
                for config in configs
            ]
            return processes.wait_together(workers)[0]

    @functools.cached_property
    def model_file(self) -> Path:
        """The trained model, saved."""
        file = self.folder / "model.keras"
        self.trained().save(file)
        return file

    @functools.cached_property
    def reloaded(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The state that another process finds in the file, and what it generates."""
        return processes.run(reload_model, self.row.name, self.model_file)


class Interrupted(Exception):
    """Stands for a kill; a real one is in tests/training/test_resume.py."""


class Records(keras.callbacks.Callback):
    """Keeps each epoch's logs, which `training.fit` does not return."""

    def __init__(self):
        super().__init__()
        self.rows: list[list[float]] = []

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append([float(np.reshape(value, ())) for value in logs.values()])


def train_sixteen_steps(
    model: GenerativeModel,
    row: Row,
    count: int,
    strategy: tf.distribute.Strategy | None = None,
) -> Arrays:
    """Two epochs of eight steps: where the weights end, and what they logged.

    Args:
        model: The row's, compiled.
        row: Gives the data.
        count: Replicas that a batch has to be divisible by.
        strategy: Trains on it.
    """
    batch_size = BATCH_SIZE // count * count
    before = model.get_weights()
    records = Records()
    training.fit(
        model,
        row.pipeline(8 * batch_size, batch_size, shuffle=True, drop_remainder=True),
        epochs=2,
        # The last batch is distributed unevenly.
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


def train_two_steps(model: GenerativeModel, row: Row) -> list[np.ndarray]:
    batches = row.pipeline(2 * BATCH_SIZE, drop_remainder=True).dataset()
    model.fit(batches, verbose=0)
    return model.get_weights()


def train_two_steps_with_xla(name: str) -> list[np.ndarray]:
    row = row_named(name)
    return train_two_steps(row.model(jit_compile=True), row)


def train_on_replicas(name: str, kind: str, count: int) -> Arrays:
    """Runs in a process with so many logical devices."""
    return _train_on(training.make_strategy("mirrored"), name, kind, count)


def train_as_worker(name: str, count: int) -> Arrays:
    """One of `count` processes, as TF_CONFIG says."""
    strategy = training.make_strategy("auto")
    if num_processes(strategy) != count:
        raise RuntimeError(f"{num_processes(strategy)} processes instead of {count}")
    return _train_on(strategy, name, "sgd", count)


def _train_on(
    strategy: tf.distribute.Strategy, name: str, kind: str, count: int
) -> Arrays:
    row = row_named(name)
    with strategy.scope():
        model = row.model(**KINDS[kind])
    with training.unoptimized_graphs():
        return train_sixteen_steps(model, row, count, strategy)


def reload_model(name: str, file: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Everything in a saved model, and what it generates."""
    model = kgen.models.load(file)
    return state(model), row_named(name).generate(model, range(len(SEEDS)))


def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def _variables(model: GenerativeModel) -> list[Any]:
    """The weights, the step among them, and the variables of all optimizers."""
    return [*model.weights, *(v for o in model.optimizers for v in o.variables)]


def state(model: GenerativeModel) -> list[np.ndarray]:
    """All variables that the next step depends on."""
    return [variable.numpy() for variable in _variables(model)]


def assign_state(model: GenerativeModel, values: Sequence[np.ndarray]) -> None:
    """Gives the variables of `state` these values, and empties the metrics."""
    for variable, value in zip(_variables(model), values, strict=True):
        variable.assign(value)
    model.reset_metrics()
