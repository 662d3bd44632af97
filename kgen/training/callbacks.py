"""Callbacks: history, samples, TensorBoard, progress, and checks of the losses."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import math
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import rich.console
import rich.progress
import tensorflow as tf

from kgen.files import write_text
from kgen.pictures import write_image_grid

NUM_COLUMNS = 80  # of a line that is printed


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends training when a loss is NaN or infinite, and names the first such term.

    Raises:
        FloatingPointError: From `fit`. Place this callback before the checkpointer, so
            that the last good checkpoint stays.
    """

    def on_train_batch_end(self, batch, logs=None):
        """Checks the running means, which a single bad value makes bad."""
        self._check(logs)

    def on_epoch_end(self, epoch, logs=None):
        """Checks the validation's values, too."""
        self._check(logs)

    def _check(self, logs: dict[str, Any] | None) -> None:
        values = {k: np.asarray(v, np.float64) for k, v in (logs or {}).items()}
        bad = [name for name, value in values.items() if not np.isfinite(value).all()]
        if not bad:
            return
        first, step = self.model.first_non_finite() or (bad[0], None)
        where = "" if step is None else f" at step {step}"
        raise FloatingPointError(
            f"`{first}` became NaN or infinite{where}, first of the loss's terms. The "
            "last good checkpoint is kept, if there was one. Try a smaller "
            "`learning_rate`, a `gradient_clip_norm` of 1, or float32."
        )


class History(keras.callbacks.Callback):
    """Writes history.csv: one row for each epoch, all digits, no times.

    Args:
        file: The file. Rows of epochs that a resumed run repeats are replaced. Columns
            are those of all rows, empty where a row has no such value.
    """

    def __init__(self, file: Path):
        super().__init__()
        self.file = Path(file)
        self.rows: list[dict[str, Any]] = []

    def on_train_begin(self, logs=None):
        """Reads the rows of an earlier part of the run."""
        if self.file.is_file() and not self.rows:
            with open(self.file, newline="") as opened:
                self.rows = list(csv.DictReader(opened))

    def on_epoch_end(self, epoch, logs=None):
        """Rewrites the file with this epoch's row."""
        values = {name: repr(float(_scalar(value))) for name, value in logs.items()}
        row = {"epoch": str(epoch + 1), **values}
        self.rows = [r for r in self.rows if int(r["epoch"]) <= epoch] + [row]
        names = dict.fromkeys(name for row in self.rows for name in row)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(names), restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.file, text.getvalue())


@dataclasses.dataclass(frozen=True)
class SampleWriter:
    """Form of the samples that show one kind of output.

    Attributes:
        suffix: Suffix of a file.
        write: Writes samples to a path.
        log: Adds samples to TensorBoard's log, under a name.
    """

    suffix: str
    write: Callable[[Any, Path], Any]
    log: Callable[[str, Any], Any]


def _log_images(name: str, images: np.ndarray) -> None:
    tf.summary.image(name, images[:16], max_outputs=16)


def _log_text(name: str, text: str) -> None:
    tf.summary.text(name, textwrap.indent(text, "    "))  # as it is, no Markdown


_IMAGES = SampleWriter(".png", write_image_grid, _log_images)
_TEXT = SampleWriter(".txt", lambda text, path: write_text(path, text), _log_text)
# By the kind of a model's first output that has one.
SAMPLE_WRITERS: dict[str, SampleWriter | None] = {
    "image": _IMAGES,
    "items": _TEXT,
    "latent": None,
    "scores": _TEXT,
    "state": None,
    "text": _TEXT,
    "tokens": _TEXT,
}


class Samples(keras.callbacks.Callback):
    """Writes samples after each epoch: epoch-0001.png, or epoch-0001.txt of a text.

    Args:
        make_samples: Returns images [n, height, width, channels] in [0, 1] for a model
            of images, and a text for all others.
        folder: Folder of the files.
        every_epochs: Write after every so many epochs, and after the last.

    Attributes:
        epoch: The epoch of the newest samples, from 0; -1: there are none yet.
        newest: The newest samples.
        writer: Their form.
    """

    def __init__(
        self,
        make_samples: Callable[[], np.ndarray | str],
        folder: Path,
        every_epochs: int = 1,
    ):
        super().__init__()
        self.make_samples = make_samples
        self.folder = Path(folder)
        self.every_epochs = every_epochs
        self.epoch = -1
        self.newest: Any = None

    def on_train_begin(self, logs=None):
        """Chooses the form of the samples by the model's signatures."""
        kinds = [k for one in self.model.signatures() for k in one.outputs.values()]
        self.writer = next(filter(None, map(SAMPLE_WRITERS.get, kinds)))

    def on_epoch_end(self, epoch, logs=None):
        """Writes the samples of this epoch."""
        done = epoch + 1
        if done % self.every_epochs and done != self.params.get("epochs"):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.epoch, self.newest = epoch, self.make_samples()
        file = self.folder / f"epoch-{done:04d}{self.writer.suffix}"
        self.writer.write(self.newest, file)


class TensorBoard(keras.callbacks.Callback):
    """Writes scalars, samples and the graph of the default signature.

    Args:
        folder: The log folder, for `tensorboard --logdir FOLDER`.
        samples: The callback before this one whose samples are shown; None: none are.
    """

    def __init__(self, folder: Path, samples: Samples | None = None):
        super().__init__()
        self.folder = Path(folder)
        self.samples = samples
        self._writer: Any = None

    def on_train_begin(self, logs=None):
        """Opens the log and writes the graph."""
        self._writer = tf.summary.create_file_writer(str(self.folder))
        signature = self.model.signatures()[0]
        graph = signature.compiled.get_concrete_function()
        with self._writer.as_default():
            tf.summary.graph(graph.graph)

    def on_epoch_end(self, epoch, logs=None):
        """Writes this epoch's values and samples."""
        with self._writer.as_default(step=epoch + 1):
            for name, value in logs.items():
                tf.summary.scalar(name, _scalar(value))
            if self.samples and self.samples.epoch == epoch:
                self.samples.writer.log("samples", self.samples.newest)
        self._writer.flush()

    def on_train_end(self, logs=None):
        """Closes the log."""
        self._writer.close()


class HealthWarnings(keras.callbacks.Callback):
    """Reports the model's warnings about its own logs, each once.

    Args:
        report: Called with each message; by default, a Python warning.
    """

    def __init__(self, report: Callable[[str], None] = warnings.warn):
        super().__init__()
        self.report = report
        self._seen: set[str] = set()

    def on_epoch_end(self, epoch, logs=None):
        """Checks the logs, from the second epoch on: the first is no evidence."""
        values = {name: float(_scalar(value)) for name, value in logs.items()}
        for message in self.model.health(values) if epoch else []:
            kind = message.split(":")[0]
            if kind not in self._seen:
                self._seen.add(kind)
                self.report(message)


class Progress(keras.callbacks.Callback):
    """Shows a bar with rate and time left on a terminal, and prints a line an epoch.

    As a context manager it removes the bar when training ends, by an error, too.

    Args:
        steps_per_epoch: Steps of a whole epoch.
        batch_size: Rows of a global batch, for the rate.
        report: Prints a line.
        total_steps: Steps of the whole run.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        batch_size: int,
        report: Callable[[str], None],
        total_steps: int,
    ):
        super().__init__()
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.report = report
        self.total_steps = total_steps
        self._first_step = -1
        self._num_values = sys.maxsize
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=rich.console.Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("starting", total=total_steps)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error):
        self._bar.stop()

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock of the epoch, at the model's own step."""
        self._epoch = epoch
        self._epoch_started = time.monotonic()
        self._epoch_step = self._step = int(self.model.step.numpy())
        if self._first_step < 0:
            self._first_step, self._started = self._step, self._epoch_started

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar."""
        # With several steps in one call, `batch` can reach past the end of the epoch.
        end = (self._epoch + 1) * self.steps_per_epoch
        self._step = min(self._epoch_step + batch + 1, end)
        loss = float(_scalar((logs or {}).get("loss", math.nan)))
        text = f"epoch {self._epoch + 1}  loss {loss:.2f}  {self._rate():,.0f} rows/s"
        self._bar.update(self._task, completed=self._step, description=text)

    def on_epoch_end(self, epoch, logs=None):
        """Prints the epoch's line."""
        elapsed = time.monotonic() - self._started
        done = self._step - self._first_step
        seconds = round(elapsed / done * (self.total_steps - self._step))
        left = datetime.timedelta(seconds=seconds)
        names = sorted(logs, key=lambda name: name not in ("loss", "val_loss"))
        values = [f"{name} {float(_scalar(logs[name])):.4g}" for name in names]
        start = f"epoch {epoch + 1}/{self.total_steps // self.steps_per_epoch}"
        end = [f"{self._rate():,.0f} rows/s", f"{left} left"]
        # history.csv has all; a column that did not fit once is not shown again.
        while True:
            line = "  ".join([start, *values[: self._num_values], *end])
            if len(line) <= NUM_COLUMNS or self._num_values == 1:
                break
            self._num_values = min(self._num_values, len(values)) - 1
        self.report(line)

    def _rate(self) -> float:
        seconds = max(time.monotonic() - self._epoch_started, 1e-9)
        return (self._step - self._epoch_step) * self.batch_size / seconds


def _scalar(value: Any) -> Any:
    return np.asarray(value).reshape(-1)[0]
