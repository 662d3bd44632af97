"""Checkpoints for exact resume: the whole state of training in one file."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from kgen.files import replacing
from kgen.models.shared.model import GenerativeModel


class Checkpointer(keras.callbacks.Callback):
    """Saves the state of training, and restores it bit for bit.

    The state is every weight, every optimizer variable and, in the middle of an epoch,
    the sums of the metrics. The position in the data needs no entry: it
    follows from the model's step, because the order of the data is a pure function of
    (seed, epoch).

    Args:
        file: The file. Written beside it and renamed: a kill leaves the old state or
            the new one.
        every_seconds: Largest amount of work that a kill may cost. A checkpoint is also
            written at the end of each epoch, if it is the last one or at least a tenth
            of this time has gone by since the checkpoint before.
        mid_epoch: Whether to write in the middle of an epoch. Not with several
            processes: each has only its own part of the metrics, and its own clock.
            They write at the end of every epoch.
        write: Whether this process writes at all; only the chief does.
    """

    def __init__(
        self,
        file: Path,
        *,
        every_seconds: float = 60.0,
        mid_epoch: bool = True,
        write: bool = True,
    ):
        super().__init__()
        self.file = Path(file)
        self.every_seconds = every_seconds
        self.mid_epoch = mid_epoch
        self.write = write
        self._saved_at = time.monotonic()
        self._restored_metrics: list[np.ndarray] = []
        self._interrupted = False

    @contextlib.contextmanager
    def saving_on_interrupt(self) -> Iterator[None]:
        """Within it, Ctrl-C saves after the step under way and then interrupts.

        A second Ctrl-C interrupts at once.
        """
        if not self.mid_epoch or threading.current_thread() != threading.main_thread():
            yield
            return

        def interrupt(signal_number, frame):
            self._interrupted = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def restore(self, model: GenerativeModel) -> bool:
        """Restores a saved state into a compiled model; returns whether there was one.

        Raises:
            ValueError: If the state belongs to a model of another shape.
        """
        if not self.file.is_file():
            return False
        try:
            # Opened here: NumPy leaves a damaged file open.
            with open(self.file, "rb") as file, np.load(file) as saved:
                states = {name: _entries(saved, name) for name in ("state", "metrics")}
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise ValueError(
                f"A checkpoint must be whole. Received: {self.file}, which is damaged "
                f"({error}). Start anew with --overwrite, and --start-from another run "
                "if there is one."
            ) from error
        variables, values = state_variables(model), states["state"]
        shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
        saved_shapes = {path: value.shape for path, value in values.items()}
        if shapes != saved_shapes:
            different = sorted(dict(shapes.items() ^ saved_shapes.items()))
            raise ValueError(
                f"The checkpoint {self.file} belongs to another model or optimizer. "
                f"Received: {len(values)} variables for a model with "
                f"{len(variables)}; different are {', '.join(different[:3])}"
                f"{', ...' * (len(different) > 3)}. Resume with the options the run "
                "was started with, or start anew with --overwrite."
            )
        for path, variable in variables.items():
            variable.assign(values[path])
        self._restored_metrics = [*states["metrics"].values()]
        return True

    def on_epoch_begin(self, epoch, logs=None):
        """Restores the metrics of an interrupted epoch, after Keras has reset them."""
        local_values = _local_values(self.model)
        if self._restored_metrics:
            for part, value in zip(local_values, self._restored_metrics, strict=True):
                part.assign(value)
        self._restored_metrics = []

    def on_train_batch_end(self, batch, logs=None):
        """Saves after `every_seconds`, or on Ctrl-C."""
        if batch + 1 >= self.params["steps"]:
            return  # `on_epoch_end` saves, after validation and the other files.
        due = time.monotonic() - self._saved_at >= self.every_seconds
        if self.mid_epoch and (due or self._interrupted):
            self.save([part.numpy() for part in _local_values(self.model)])
        if self._interrupted:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        """Saves; the metrics are reset before the next epoch."""
        last = epoch + 1 == self.params.get("epochs")
        due = time.monotonic() - self._saved_at >= self.every_seconds / 10
        if last or due or self._interrupted or not self.mid_epoch:
            self.save([])
        if self._interrupted:
            raise KeyboardInterrupt

    def save(self, metric_values: list[np.ndarray]) -> None:
        """Writes the current state of the model.

        Raises:
            FloatingPointError: If a variable is not finite; the old file stays.
        """
        # Every process reads, as a read can be a collective operation; one writes.
        variables = state_variables(self.model)
        values = {path: variable.numpy() for path, variable in variables.items()}
        for path, value in values.items():
            if not np.all(np.isfinite(value)):
                raise FloatingPointError(
                    f"All variables must be finite. Received: {path} with NaN or "
                    f"infinity at step {int(self.model.step.numpy())}. The last "
                    f"checkpoint is kept in {self.file}. Try a smaller learning rate, "
                    "or a gradient_clip_norm."
                )
        if self.write:
            entries = {f"state/{path}": value for path, value in values.items()}
            entries |= {f"metrics/{i:05d}": v for i, v in enumerate(metric_values)}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as opened:
                np.savez(opened, **entries)
        self._saved_at = time.monotonic()


def state_variables(model: GenerativeModel) -> dict[str, keras.Variable]:
    """Returns every variable that training changes, by a path of attribute names.

    Unlike `Variable.path`, which several variables may share, a path is the same in
    every process and for every instance of the class.
    """
    paths: dict[str, keras.Variable] = {}
    unseen = {id(variable) for variable in model.weights}

    def walk(value, path):
        if isinstance(value, keras.Variable):
            if id(value) in unseen:
                unseen.remove(id(value))
                paths["/".join(path)] = value
        elif isinstance(value, dict):
            for key, one in value.items():
                walk(one, [*path, str(key)])
        elif isinstance(value, list | tuple):
            for index, one in enumerate(value):
                walk(one, [*path, str(index)])
        elif isinstance(value, keras.Layer) and id(value) not in layers:
            layers.add(id(value))
            # Public names first: private ones are Keras' own lists of the same layers.
            for name in sorted(vars(value), key=lambda one: (one[0] == "_", one)):
                plain = name.lstrip("_")
                label = name if plain in vars(value) else plain
                walk(vars(value)[name], [*path, label])

    layers: set[int] = set()
    walk(model, [])
    for name in model.optimizer_slots:
        variables = getattr(model, name).variables
        paths |= {f"{name}/{index}": one for index, one in enumerate(variables)}
    if unseen:
        raise ValueError(
            f"All variables of a model must belong to its layers. Received: "
            f"{len(unseen)} that do not."
        )
    return paths


def _entries(saved, prefix: str) -> dict[str, np.ndarray]:
    names = [name for name in saved.files if name.startswith(f"{prefix}/")]
    return {name.removeprefix(f"{prefix}/"): saved[name] for name in sorted(names)}


def _local_values(model: GenerativeModel) -> list:
    """Returns the metrics' variables, a part for each local replica."""
    variables = [v.value for metric in model.metrics for v in metric.variables]
    return [part for v in variables for part in getattr(v, "values", [v])]
