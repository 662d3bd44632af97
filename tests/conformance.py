"""The promises that every model of kgen keeps: a list of checks, a table of results.

A check takes the `Trial` of a row of `conformance_rows.py` and either raises or returns
what it measured; none knows a model by its name. `test_conformance.py` runs the checks.
`python tests/conformance.py` runs every check on every row and writes
docs/conformance.md.
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
from conformance_processes import Arrays, Interrupted, Trial, state
from conformance_rows import BATCH_SIZE, COVERING_ROWS, ROWS, SEEDS, Row
from kgen import export
from kgen.export.verification import signatures_for

TABLE = Path(__file__).parents[1] / "docs" / "conformance.md"


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table: a promise, the claim, and the function that checks it.

    Attributes:
        rows: Rows that the default tests check.
        lane: The mark of the tests that check the others.
    """

    promise: str
    claim: str
    function: Callable[[Trial], str]
    rows: Sequence[Row]
    lane: str

    @property
    def name(self) -> str:
        return f"{self.promise}-{self.function.__name__}"


CHECKS: list[Check] = []
DEFAULT_ROWS = [row for row in ROWS if not row.slow]


def check(
    promise: str,
    claim: str,
    rows: Sequence[Row] = DEFAULT_ROWS,
    lane: str = "slow",
) -> Callable:
    """Adds a function to the checks."""

    def add(function):
        CHECKS.append(Check(promise, claim, function, rows, lane))
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
def keras_callbacks(trial):
    row, monitored = trial.row, f"val_{trial.row.loss}"
    file = trial.folder / "best.keras"
    rates = [row.learning_rate, row.learning_rate / 2, row.learning_rate / 4]
    history = (
        trial.model()
        .fit(
            row.pipeline(3 * BATCH_SIZE).dataset(),
            validation_data=row.pipeline(2 * BATCH_SIZE).dataset(),
            epochs=3,
            callbacks=[
                keras.callbacks.ModelCheckpoint(
                    file, monitored, mode="min", save_best_only=True
                ),
                keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch]),
                # Nothing improves by as much: it stops after the second epoch.
                keras.callbacks.EarlyStopping(
                    monitored, mode="min", min_delta=1e9, patience=1
                ),
            ],
            verbose=0,
        )
        .history
    )
    require(len(history[row.loss]) == 2, f"early stopping had no effect: {history}")
    np.testing.assert_allclose(history["learning_rate"], rates[:2], rtol=1e-6)
    require(monitored in history, f"no {monitored} among {sorted(history)}")
    best = int(np.argmin(history[monitored]))
    saved = keras.saving.load_model(file, safe_mode=True)
    require(int(saved.step.numpy()) == 3 * (best + 1), "the best epoch was not saved")
    return "yes"


class LogsOfEachBatch(keras.callbacks.Callback):
    """Keeps each batch's logs, where Keras shows means over the epoch so far."""

    def __init__(self):
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.rows.append(dict(logs))


@check("fit", "history values are means over the epoch's rows: relative difference")
def epoch_means(trial):
    batch_rows = [BATCH_SIZE, BATCH_SIZE, 6]
    batches = trial.row.pipeline(sum(batch_rows)).dataset()
    history = trial.model().fit(batches, verbose=0).history
    of_each = LogsOfEachBatch()
    model = trial.model()
    model.fit(batches, callbacks=[of_each], verbose=0)
    means = {
        name: np.average([logs[name] for logs in of_each.rows], weights=batch_rows)
        for name, metric in model.log_metrics.items()
        if type(metric) is keras.metrics.Mean and name in history
    }
    require(trial.row.loss in means, f"no mean loss among {sorted(model.log_metrics)}")
    differences = [
        abs(history[name][0] - mean) / max(1.0, abs(mean))
        for name, mean in means.items()
    ]
    return within("relative difference", max(differences), 1e-5)


@check(
    "scale",
    "two replicas = one device: weights after 16 steps of SGD, 1e-6",
    COVERING_ROWS,
)
def one_device_equals_two(trial):
    return same_weights(trial.two_replicas, trial.one_device())


def same_weights(replicas: Arrays, one: Arrays) -> str:
    """Compares weights and logs of SGD on replicas and on one device."""
    moved = one["moved"].max()
    require(moved > 1e-2, f"no evidence: training moved the weights by {moved:.1g}")
    np.testing.assert_allclose(replicas["logs"], one["logs"], rtol=1e-5, atol=1e-5)
    difference = largest_difference(
        part_of(replicas, "weights/"), part_of(one, "weights/")
    )
    return within("weights", difference, 1e-6)


@check(
    "scale",
    "likewise with Adam: every log of both epochs, 1e-4",
    [row for row in COVERING_ROWS if "batch statistics" in row.capabilities],
)
def one_device_equals_two_with_adam(trial):
    one, two = trial.one_device("adam")["logs"], trial.replicas("adam")["logs"]
    scale = np.maximum(1.0, abs(one))
    return within("logs", largest_difference([two / scale], [one / scale]), 1e-4)


@check(
    "scale",
    "two worker processes = two replicas: weights and logs, bit for bit",
    COVERING_ROWS,
    lane="machines",
)
def two_workers_equal_two_replicas(trial):
    replicas, workers = trial.two_replicas, trial.workers()
    difference = largest_difference(part_of(workers, ""), part_of(replicas, ""))
    return within("weights and logs", difference, 0.0)


@check(
    "scale",
    "TPU: compiles under XLA; not run. Weights with and without XLA, 1e-5",
    COVERING_ROWS,
)
def compiles_under_xla(trial):
    weights = [trial.two_steps(jit_compile=used) for used in (True, False)]
    return within("weights", largest_difference(*weights), 1e-5)


@check("precision", "float32: loss before and after four epochs of SGD, the same noise")
def float32(trial):
    batches = trial.row.pipeline(4 * BATCH_SIZE).dataset()
    model, losses = trial.model(), []
    for epochs in (0, 4):
        model.fit(batches, epochs=epochs, verbose=0)
        logs = model.evaluate(batches, verbose=0, return_dict=True)
        losses.append(logs[trial.row.loss])
    require(losses[1] < losses[0], f"the loss did not fall: {losses}")
    return f"{losses[0]:.1f} to {losses[1]:.1f}"


@check(
    "precision",
    "float32: by a short step of SGD the loss falls by rate x squared gradient: "
    "their ratio, 1 +- 0.1, where all variables share one loss",
)
def gradient_of_the_loss(trial):
    row = trial.row
    if row.loss != "loss" or "estimator" in row.options:
        return "-"
    model, rate, losses = trial.model(), row.learning_rate / 30, []
    for optimizer in model.optimizers:
        optimizer.learning_rate = rate
    batch = row.pipeline(BATCH_SIZE).dataset()
    before = trainable(model)
    for _ in range(2):
        losses.append(model.fit(batch, verbose=0).history["loss"][0])
        if len(losses) == 1:
            after = trainable(model)
            model.step.assign(0)  # The same noise again.
    moved = sum(np.sum((a - b) ** 2) for a, b in zip(after, before, strict=True))
    ratio = (losses[0] - losses[1]) * rate / moved
    require(abs(ratio - 1) < 0.1, f"the gradient is 1 / {ratio:.2f} of the loss's")
    return f"{ratio:.3f}"


def trainable(model: kgen.models.GenerativeModel) -> list[np.ndarray]:
    """By optimizer: all values of its variables, float64."""
    return [
        np.concatenate([np.ravel(variable) for variable in group], dtype="float64")
        for group in (
            getattr(optimizer, "inner_optimizer", optimizer)._trainable_variables
            for optimizer in model.optimizers
        )
    ]


# How far from float32's the weights may end, as a share of how far those have moved.
# The convolutions with batch normalization differ by 0.14 in bfloat16, dense networks
# by 0.01 and less; a gradient that is off by a factor of 2, by 1.
PRECISION_TOLERANCE = 0.2


def follows_float32(trial: Trial, policy: str) -> str:
    """Compares the displacement of the weights by four steps of SGD with float32's.

    SGD, because Adam would hide a gradient that is a constant factor off.
    """
    model = trial.model(policy)
    wrapper = keras.optimizers.LossScaleOptimizer
    scaled = [isinstance(optimizer, wrapper) for optimizer in model.optimizers]
    require({policy == "mixed_float16"} == {*scaled}, f"loss-scaled: {scaled}")
    dtypes = {variable.dtype for variable in model.trainable_variables}
    require(dtypes == {"float32"}, f"variables should be float32, and are {dtypes}")
    if policy == "mixed_float16":
        for optimizer in model.optimizers:  # So that no step overflows and is left out.
            optimizer.dynamic_scale.assign(256.0)
    received = displacement(model, trial.row)
    expected = displacement(trial.model(), trial.row)
    shares = [
        float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        for ours, theirs in zip(received, expected, strict=True)
    ]
    return within("share of the displacement", max(shares), PRECISION_TOLERANCE)


def displacement(model: kgen.models.GenerativeModel, row: Row) -> list[np.ndarray]:
    """By optimizer: the difference that four steps make to its variables."""
    before = trainable(model)
    model.fit(row.pipeline(4 * BATCH_SIZE).dataset(), verbose=0)
    return [a - b for a, b in zip(trainable(model), before, strict=True)]


@check(
    "precision",
    "mixed_bfloat16: distance to the weights of float32 after 4 steps of SGD, as a "
    f"share of their displacement, {PRECISION_TOLERANCE}",
    COVERING_ROWS,
)
def mixed_bfloat16(trial):
    return follows_float32(trial, "mixed_bfloat16")


@check(
    "precision", "mixed_float16: likewise, every optimizer loss-scaled", COVERING_ROWS
)
def mixed_float16(trial):
    return follows_float32(trial, "mixed_float16")


@check("resume", "broken off in an epoch and resumed: state and history, bit for bit")
def resumed_equals_uninterrupted(trial):
    expected = state(trial.trained())
    parts = trial.folder / "parts"
    try:
        trial.train_three_epochs(parts, stop_at=9)
    except Interrupted:
        received = trial.train_three_epochs(parts)
    histories = {
        (folder / "history.csv").read_bytes()
        for folder in (trial.folder / "run", parts)
    }
    require(len(histories) == 1, f"the histories differ: {histories}")
    return within("state", largest_difference(received, expected), 0.0)


@check("save", "`.keras` in a fresh process: weights, optimizers, step, bit for bit")
def saved_state(trial):
    received, _ = trial.reloaded
    with zipfile.ZipFile(trial.model_file) as contents:
        kinds = {Path(name).suffix for name in contents.namelist()}
    require(kinds == {".json", ".h5"}, f"the file holds {kinds}")
    return within("state", largest_difference(received, state(trial.trained())), 0.0)


@check("generate", "a fresh process makes the same, bit for bit")
def fresh_process(trial):
    expected = trial.row.generate(trial.trained(), range(len(SEEDS)))
    _, received = trial.reloaded
    return within("outputs", largest_difference([received], [expected]), 0.0)


@check("generate", "row i is the same alone and in any batch, 1e-6")
def rows_stand_alone(trial):
    row, model, rows = trial.row, trial.trained(), range(len(SEEDS))
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
def evaluation_records(trial):
    records = trial.row.evaluate(trial.trained(), trial.row.make_rows(64))
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
def saved_model(trial):
    model = trial.trained()
    made = export.to_saved_model(model, trial.folder / "exports")
    return largest_proof(model, "saved_model", made.verifications)


@check("export", "ONNX: every signature, likewise")
def onnx(trial):
    model, folder = trial.trained(), trial.folder / "exports"
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
def wrong_calls(trial):
    model = trial.trained()
    calls = trial.row.wrong_calls(model) | {
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
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(row, Path(folder))
            for one in CHECKS:
                start = time.monotonic()
                try:
                    cell = one.function(trial)
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
