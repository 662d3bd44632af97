"""What every model of kgen has to keep: a list of checks, and a table of results.

A check takes a row of `conformance_rows.py` and either raises or returns what it
measured; none knows a model by its name. `test_conformance.py` runs every check on
every row. `python tests/conformance.py` does so, too, and writes docs/conformance.md.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import platform
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import kgen
from conformance_processes import Arrays, Shared, state
from conformance_rows import BATCH_SIZE, ROWS, SEEDS, Row
from kgen import export, training
from kgen.export.verification import signatures_for

TABLE = Path(__file__).parents[1] / "docs" / "conformance.md"


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table: a promise, what is claimed, and what finds out."""

    promise: str
    claim: str
    function: Callable[[Row, Shared], str]

    @property
    def name(self) -> str:
        return f"{self.promise}-{self.function.__name__}"


CHECKS: list[Check] = []


def check(promise: str, claim: str) -> Callable:
    """Adds a function to the checks."""

    def add(function):
        CHECKS.append(Check(promise, claim, function))
        return function

    return add


def largest_difference(
    received: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> float:
    """Over all arrays of two lists; infinite where one is not finite."""
    return max(
        float(np.nan_to_num(abs(np.subtract(a, b, dtype="float64")), nan=np.inf).max())
        for a, b in zip(received, expected, strict=True)
    )


def within(what: str, value: float, limit: float) -> str:
    """Returns the table's cell, or raises."""
    require(value <= limit, f"{what}: {value:.3g}, allowed is {limit:.3g}")
    return f"{value:.1e}" if value else "0"


def require(kept: bool, message: str) -> None:
    if not kept:
        raise AssertionError(message)


def part_of(arrays: Arrays, prefix: str) -> list[np.ndarray]:
    """The arrays whose names start so, in order."""
    return [arrays[name] for name in sorted(arrays) if name.startswith(prefix)]


@check("fit", "plain `fit`: tf.data, `validation_data`, Keras callbacks")
def keras_callbacks(row, shared):
    model, monitored = row.model(), f"val_{row.loss}"
    file = shared.folder / f"best-{ROWS.index(row)}.keras"
    rates = [row.learning_rate, row.learning_rate / 2, row.learning_rate / 4]
    history = model.fit(
        row.pipeline(3 * BATCH_SIZE).dataset(),
        validation_data=row.pipeline(2 * BATCH_SIZE).dataset(),
        epochs=3,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                file, monitored, mode="min", save_best_only=True
            ),
            keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch]),
            # Nothing improves by as much as this: it stops after the second epoch.
            keras.callbacks.EarlyStopping(
                monitored, mode="min", min_delta=1e9, patience=1
            ),
        ],
        verbose=0,
    ).history
    require(len(history[row.loss]) == 2, f"early stopping had no effect: {history}")
    np.testing.assert_allclose(history["learning_rate"], rates[:2], rtol=1e-6)
    require(monitored in history, f"no {monitored} among {sorted(history)}")
    best = int(np.argmin(history[monitored]))
    saved = keras.saving.load_model(file, safe_mode=True)
    require(int(saved.step.numpy()) == 3 * (best + 1), "the best epoch was not saved")
    return "yes"


@check("fit", "history values are means over the epoch's rows: relative difference")
def epoch_means(row, shared):
    num_rows = 2 * BATCH_SIZE + 6  # the last batch is smaller
    model = row.model()
    history = model.fit(row.pipeline(num_rows).dataset(), verbose=0).history
    totals = {
        name: 0.0
        for name, metric in model.log_metrics.items()
        if type(metric) is keras.metrics.Mean and name in history
    }
    require(row.loss in totals, f"no mean loss among {sorted(model.log_metrics)}")
    again = row.model()
    for batch in row.pipeline(num_rows).dataset():
        again.reset_metrics()
        logs = again.train_on_batch(batch, return_dict=True)
        num_batch_rows = int(tf.shape(next(iter(batch.values())))[0])
        for name in totals:
            totals[name] += float(logs[name]) * num_batch_rows
    means = {name: total / num_rows for name, total in totals.items()}
    differences = [
        abs(history[name][0] - mean) / max(1.0, abs(mean))
        for name, mean in means.items()
    ]
    return within("relative difference", max(differences), 1e-5)


@check("scale", "two replicas = one device: weights after 16 steps of SGD, 1e-6")
def one_device_equals_two(row, shared):
    arrays = shared.devices
    moved = arrays[f"{row.name}/none/sgd/moved"].max()
    require(moved > 1e-2, f"no evidence: training moved the weights by {moved:.1g}")
    logs = [arrays[f"{row.name}/{name}/sgd/logs"] for name in ("none", "mirrored")]
    np.testing.assert_allclose(*logs, rtol=1e-5, atol=1e-5)
    one = part_of(arrays, f"{row.name}/none/sgd/weights")
    two = part_of(arrays, f"{row.name}/mirrored/sgd/weights")
    return within("weights", largest_difference(two, one), 1e-6)


@check("scale", "likewise with Adam: every log of both epochs, 1e-4")
def one_device_equals_two_with_adam(row, shared):
    logs = [
        shared.devices[f"{row.name}/{name}/adam/logs"] for name in ("none", "mirrored")
    ]
    scale = np.maximum(1.0, abs(logs[0]))
    return within(
        "logs", largest_difference([logs[1] / scale], [logs[0] / scale]), 1e-4
    )


@check("scale", "two worker processes = two replicas: weights and logs, bit for bit")
def two_workers_equal_two_replicas(row, shared):
    replicas = part_of(shared.devices, f"{row.name}/mirrored/sgd/")
    workers = part_of(shared.workers, f"{row.name}/")
    return within("weights and logs", largest_difference(workers, replicas), 0.0)


@check("scale", "TPU: compiles under XLA; not run. Weights with and without XLA, 1e-5")
def compiles_under_xla(row, shared):
    weights = []
    for jit_compile in (False, True):
        model = row.model(jit_compile=jit_compile)
        batches = row.pipeline(2 * BATCH_SIZE, drop_remainder=True).dataset()
        model.fit(batches, verbose=0)
        weights.append(model.get_weights())
    return within("weights", largest_difference(*weights), 1e-5)


def trains(row: Row, policy: str) -> str:
    """Trains with a precision for 16 steps of SGD; returns how far the loss fell.

    SGD, because Adam would hide a gradient that is a constant factor off.
    """
    model = row.model(dtype=policy)
    wrapper = keras.optimizers.LossScaleOptimizer
    scaled = [isinstance(optimizer, wrapper) for optimizer in model.optimizers]
    require({policy == "mixed_float16"} == {*scaled}, f"loss-scaled: {scaled}")
    dtypes = {variable.dtype for variable in model.trainable_variables}
    require(dtypes == {"float32"}, f"variables should be float32, and are {dtypes}")
    batches = row.pipeline(4 * BATCH_SIZE).dataset()
    loss = model.fit(batches, epochs=4, verbose=0).history[row.loss]
    require(loss[-1] < loss[0], f"the loss did not fall: {loss}")
    finite = all(np.isfinite(value).all() for value in state(model))
    require(finite, "a variable is not finite after training")
    return f"{loss[0]:.1f} to {loss[-1]:.1f}"


@check("precision", "float32: loss of the first and the fourth epoch, SGD")
def float32(row, shared):
    return trains(row, "float32")


@check("precision", "mixed_bfloat16: likewise")
def mixed_bfloat16(row, shared):
    return trains(row, "mixed_bfloat16")


@check("precision", "mixed_float16: likewise, every optimizer loss-scaled")
def mixed_float16(row, shared):
    return trains(row, "mixed_float16")


class BrokenOff(Exception):
    """Stands for a kill; a real one is in tests/training/test_resume.py."""


def train_three_epochs(row: Row, folder: Path, stop_at: int | None):
    """Trains 18 steps with Adam, from the checkpoint in the folder if there is one."""
    model = row.model(lambda: keras.optimizers.Adam(1e-2))
    checkpointer = training.Checkpointer(folder / "state.npz", every_seconds=0)
    checkpointer.restore(model)

    def stop(batch, logs):
        if int(model.step.numpy()) == stop_at:
            raise BrokenOff

    training.fit(
        model,
        row.pipeline(5 * BATCH_SIZE + 3, shuffle=True),
        epochs=3,
        validation=row.pipeline(BATCH_SIZE),
        callbacks=[
            training.History(folder / "history.csv"),
            checkpointer,
            keras.callbacks.LambdaCallback(on_train_batch_end=stop),
        ],
    )
    return state(model)


@check("resume", "broken off in an epoch and resumed: state and history, bit for bit")
def resumed_equals_uninterrupted(row, shared):
    folders = [shared.folder / f"{part}-{ROWS.index(row)}" for part in ("all", "parts")]
    for folder in folders:
        folder.mkdir()
    expected = train_three_epochs(row, folders[0], stop_at=None)
    try:
        train_three_epochs(row, folders[1], stop_at=9)
    except BrokenOff:
        received = train_three_epochs(row, folders[1], stop_at=None)
    histories = {(folder / "history.csv").read_bytes() for folder in folders}
    require(len(histories) == 1, f"the histories differ: {histories}")
    return within("state", largest_difference(received, expected), 0.0)


@check("save", "`.keras` in a fresh process: weights, optimizers, step, bit for bit")
def saved_state(row, shared):
    received = part_of(shared.reloaded, f"{row.name}/state/")
    with zipfile.ZipFile(shared.model_file(row)) as contents:
        kinds = {Path(name).suffix for name in contents.namelist()}
    require(kinds == {".json", ".h5"}, f"the file holds {kinds}")
    return within(
        "state", largest_difference(received, state(shared.trained(row))), 0.0
    )


@check("generate", "a fresh process makes the same, bit for bit")
def fresh_process(row, shared):
    expected = row.generate(shared.trained(row), range(len(SEEDS)))
    received = shared.reloaded[f"{row.name}/generated"]
    return within("outputs", largest_difference([received], [expected]), 0.0)


@check("generate", "row i is the same alone and in any batch, 1e-6")
def rows_stand_alone(row, shared):
    model, rows = shared.trained(row), range(len(SEEDS))
    together = row.generate(model, rows)
    require(together.dtype == np.float32, f"generate returns {together.dtype}")
    for one, other in itertools.combinations(rows, 2):
        differ = not np.array_equal(together[one], together[other])
        require(differ, f"the seeds {SEEDS[one]} and {SEEDS[other]} make the same")
    backwards = row.generate(model, rows[::-1])[::-1]
    alone = np.concatenate([row.generate(model, [index]) for index in rows])
    many = row.generate(model, [*rows] * 40)  # more than one batch inside
    received = [backwards, alone, *np.split(many, 40)]
    return within("rows", largest_difference(received, [together] * 42), 1e-6)


@check("evaluate", "records with protocol, n, interval and trivial baseline: how many")
def evaluation_records(row, shared):
    records = row.evaluate(shared.trained(row), row.make_rows(64))
    for record in records:
        complete = record.protocol and record.n > 0 and record.unit is not None
        require(complete and np.isfinite(record.value), f"not complete: {record}")
        low, high = record.interval or (record.value, record.value)
        require(low <= record.value <= high, f"outside of its interval: {record}")
    require(any(record.baseline for record in records), "no trivial baseline")
    require(any(record.interval for record in records), "no interval")
    return str(len(records))


@check(
    "export",
    "SavedModel: every signature, batches of 1, 3 and 64 (states: 8), 1e-5 (1e-4)",
)
def saved_model(row, shared):
    model, folder = shared.trained(row), shared.folder / f"exports-{ROWS.index(row)}"
    made = export.to_saved_model(model, folder)
    return largest_proof(model, "saved_model", made.verifications)


@check("export", "ONNX: every signature, likewise")
def onnx(row, shared):
    model, folder = shared.trained(row), shared.folder / f"exports-{ROWS.index(row)}"
    names = [signature.name for signature in signatures_for(model, "onnx")]
    made = [export.to_onnx(model, folder / f"{n}.onnx", signature=n) for n in names]
    return largest_proof(
        model, "onnx", [proof for one in made for proof in one.verifications]
    )


def largest_proof(model, runtime, verifications) -> str:
    """The largest difference, once every signature of the runtime is proven."""
    expected = {one.name for one in signatures_for(model, runtime)}
    received = {proof.signature for proof in verifications}
    require(received == expected, f"{received} exported of {expected}")
    for proof in verifications:
        within(proof.signature, proof.difference, proof.tolerance)
    # Of image files the proof is a share of pixels, and no difference.
    numbers = [
        one.difference for one in verifications if not one.signature.endswith("_png")
    ]
    return f"{max(numbers):.1e}"


@check("errors", "a wrong call is a ValueError that says what it received: how many")
def wrong_calls(row, shared):
    model = shared.trained(row)
    calls = row.wrong_calls(model) | {
        "a negative seed": lambda: model.compile(seed=-1),
        "a batch of unknown names": lambda: model.train_on_batch({"pictures": [0]}),
    }
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            require("Received" in str(error), f"{name}: {error}")
        else:
            raise AssertionError(f"{name}: accepted")
    return str(len(calls))


# ---------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------


def table(cells: dict[str, list[str]]) -> str:
    """Returns docs/conformance.md."""
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    lines = [
        "# Conformance",
        "",
        "What every model of kgen keeps, found out by `tests/conformance.py`, which "
        "wrote this file. Numbers are largest differences unless the line says "
        '"loss" or "how many"; 0 is bit for bit.',
        "",
        f"Last run: {datetime.date.today()}, kgen {kgen.__version__}, {versions}, "
        f"Python {platform.python_version()}, {os.cpu_count()} CPU cores, no GPU.",
        "",
        f"| promise | what is checked | {' | '.join(row.name for row in ROWS)} |",
        f"|---|---|{'---|' * len(ROWS)}",
    ]
    for one in CHECKS:
        lines.append(f"| {one.promise} | {one.claim} | {' | '.join(cells[one.name])} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs every check on every row and writes the table; 1 if one failed."""
    failures = 0
    cells: dict[str, list[str]] = {one.name: [] for one in CHECKS}
    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(Path(folder))
        for one, row in itertools.product(CHECKS, ROWS):
            start = time.monotonic()
            try:
                cell = one.function(row, shared)
            except Exception as error:
                failures += 1
                cell = "**fails**"
                print(f"{one.name}, {row.name}: {error}", file=sys.stderr)
            cells[one.name].append(cell)
            seconds = time.monotonic() - start
            print(f"{one.name}, {row.name}: {cell} ({seconds:.1f} s)", flush=True)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(cells))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
