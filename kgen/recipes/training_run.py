"""The path of a run: from a recipe to a model that is saved, measured and exported."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kgen import evaluation, export, training
from kgen.models import load
from kgen.recipes.recipe import Recipe
from kgen.recipes.records import (
    check_resumable,
    export_metadata,
    make_record,
    now,
    read_record,
    training_options,
)
from kgen.training.strategies import is_chief, num_processes

FORMATS = {"saved_model", "onnx"}
# Options of `Recipe.evaluate`. IS-100 of 1,000 images and 10 texts take seconds; 5,000
# samples of each image, as in the literature, can take an hour.
QUICK = {"split": "validation", "limit": 1000, "num_samples": 100, "num_texts": 10}
MEASURES: dict[str, dict[str, Any]] = {"quick": QUICK, "full": {}}
Report = Callable[[str], None]


def train(
    recipe: Recipe, *, resume: bool, overwrite: bool, dry_run: bool, report: Report
) -> Path | None:
    """Trains, saves, measures and exports; see `Recipe.run`."""
    strategy = training.make_strategy(
        recipe.strategy,
        worker_timeout=recipe.worker_timeout,
        join=not dry_run,
        report=report,
    )
    folder = training.RunFolder(recipe.run_folder)
    with contextlib.ExitStack() as stack:
        if is_chief(strategy) and not dry_run:
            claim = folder.claim(resume=resume, overwrite=overwrite, report=report)
            stack.enter_context(claim)
        if recipe.deterministic and strategy.num_replicas_in_sync > 1:
            stack.enter_context(training.unoptimized_graphs())
        return _train(recipe, strategy, folder, resume, dry_run, report)


def _train(recipe, strategy, folder, resume, dry_run, report) -> Path | None:
    chief = is_chief(strategy)
    data = recipe.open_data(download=not dry_run)
    rows = recipe.rows_per_batch(data, strategy.num_replicas_in_sync)
    shrunk = recipe.batch_size is None and rows < recipe.default_batch_size
    recipe = dataclasses.replace(recipe, batch_size=rows)
    pipeline, validation = recipe.pipelines(data)
    pipeline.check_divides(strategy.num_replicas_in_sync)
    keras.utils.set_random_seed(recipe.seed % 2**32)  # of the initial weights
    with strategy.scope():
        model = recipe.make_model(data, pipeline.steps_per_epoch)
        if recipe.start_from and not (resume and folder.checkpoint.is_file()):
            _take_weights(recipe, model, recipe.start_from)
    total = recipe.epochs * pipeline.steps_per_epoch
    if chief:
        for line in _plan(recipe, data, pipeline, model, strategy, shrunk):
            report(line)
    else:
        report("This worker trains along; the chief reports and writes the files.")
    if dry_run:
        return None

    record = make_record(recipe, data, model, strategy)
    _check_same_run(strategy, record)
    if chief and resume and folder.recipe.is_file():
        for change in check_resumable(record, read_record(folder.path)):
            report(f"Warning: not bit for bit as if never stopped: {change}")
    elif chief:
        folder.start(record)
    checkpointer = training.Checkpointer(
        folder.checkpoint,
        every_seconds=recipe.checkpoint_seconds,
        mid_epoch=num_processes(strategy) == 1,
        write=chief,
    )
    with strategy.scope():
        restored = resume and checkpointer.restore(model)
    done = int(model.step.numpy())
    training.check_equal(
        strategy,
        done,
        "All workers must go on from the same checkpoint, at the same step",
        f"Put {folder.path} on a file system that all of them share.",
    )
    finished = False
    if chief and restored:
        report(f"resumed at step {done:,} of {total:,}")
        finished = done == total and "finished" in read_record(folder.path)
    elif chief and resume:
        folder.write_record(record)  # not finished, even if it was once
        report(f"no checkpoint in {folder.path} yet: starting at step 0")
    if finished:
        report(
            "The run is finished; there is nothing left to train. kgen evaluate and "
            "kgen export\nmeasure and export it again."
        )
    else:
        _fit(recipe, model, data, pipeline, validation, strategy, checkpointer, report)
        if chief:
            _finish(recipe, model, data, folder, report)
    # A worker that had ended would not start again, were the chief killed till now.
    training.barrier(strategy)
    return folder.path if chief else None


def _fit(
    recipe, model, data, pipeline, validation, strategy, checkpointer, report
) -> None:
    """Trains to the end of the last epoch; the chief writes files and lines."""
    callbacks: list[keras.callbacks.Callback] = [training.StopOnNonFinite()]
    bar: Any = contextlib.nullcontext()
    if is_chief(strategy):
        folder = training.RunFolder(recipe.run_folder)
        samples = training.Samples(
            lambda: recipe.sample(model, data), folder.samples, recipe.sample_epochs
        )
        steps = pipeline.steps_per_epoch
        bar = training.Progress(
            steps, pipeline.batch_size, report, recipe.epochs * steps
        )
        callbacks += [
            training.History(folder.history),
            samples,
            training.TensorBoard(folder.tensorboard, samples),
            training.HealthWarnings(lambda text: report(f"Warning: {text}")),
            bar,
        ]
    # Last: a checkpoint says that all the other files of its epoch are written.
    callbacks.append(checkpointer)
    with bar, checkpointer.saving_on_interrupt():
        training.fit(
            model,
            pipeline,
            epochs=recipe.epochs,
            validation=validation,
            strategy=strategy,
            callbacks=callbacks,
        )


def _check_same_run(strategy, record) -> None:
    """Checks that all processes train the same model on the same data.

    Raises:
        ValueError: In every process, if they do not. Training would wait for ever, or
            come to nothing.
    """
    same = [training_options(record), record["data"]["fingerprint"], record["versions"]]
    training.check_equal(
        strategy,
        zlib.crc32(json.dumps(same, sort_keys=True).encode()),
        "All workers must be started with the same options, data and versions",
        "Give each the same command, the same data with the same file times, and, to "
        "resume, the same folder.",
    )


def _take_weights(recipe: Recipe, model: Any, run: str) -> None:
    """Gives a new model the weights of a trained one, but not its step."""
    beside = Path(recipe.folder) / run
    source = beside if beside.is_dir() else Path(run)
    received = f"Received: start_from={run}"
    if source.resolve() == recipe.run_folder.resolve():
        raise ValueError(
            "`start_from` must be another run than the one that is written. "
            f"{received}. Choose another `name`."
        )
    trained = load(source)
    for name in model.compatibility_arguments:
        if getattr(trained, name, None) != getattr(model, name):
            raise ValueError(
                f"`start_from` must be a model with the same {name} as the one to "
                f"train. {received}, with others."
            )
    weights = trained.get_weights()
    for given, needed in itertools.zip_longest(weights, model.weights):
        shapes = [None if x is None else tuple(x.shape) for x in (given, needed)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "`start_from` must be a model with the same networks as the one to "
                f"train. {received}, which has a weight of shape {shapes[0]} where "
                f"{shapes[1]} is needed."
            )
    model.set_weights(weights)
    # Schedules, noise and the order of the data start anew.
    for counter in (model.step, model.examples_seen):
        counter.assign(0)


def _finish(recipe: Recipe, model, data, folder, report: Report) -> None:
    """Saves, measures and exports a trained model, and records the run as finished."""
    report("saving, measuring and exporting")
    folder.save_model(model)
    if recipe.measure != "none":
        options = {"unfinished": folder.unfinished_measures, **MEASURES[recipe.measure]}
        records = recipe.evaluate(model, data, **options)
        evaluation.write_records(folder.metrics, records)
        folder.unfinished_measures.unlink(missing_ok=True)
        report(evaluation.table(one for one in records if one.headline))
    offered = {one for item in model.signatures() for one in item.runtimes}
    wanted = FORMATS if recipe.export == "all" else {recipe.export} - {"none"}
    about = export_metadata(folder.path)
    for runtime in sorted(wanted - offered):
        report(f"Not exported: a {type(model).__name__} has no {runtime} signature.")
    folder.remove_versions()  # by an earlier process, which was killed afterwards
    if "saved_model" in wanted & offered:
        export.to_saved_model(model, folder.path, metadata=about)
    if "onnx" in wanted & offered:
        onnx_file = folder.path / f"{recipe.recipe_name}.onnx"
        export.to_onnx(model, onnx_file, metadata=about)
    folder.write_record(read_record(folder.path) | {"finished": now()})
    for file in sorted(folder.samples.glob("epoch-*"))[-1:]:
        report(f"Samples: {file}")


def _plan(recipe, data, pipeline, model, strategy, shrunk) -> list[str]:
    """Returns the lines that say what will be trained, on what, in 80 columns."""
    present = {device.device_type for device in tf.config.list_logical_devices()}
    kind = next(kind for kind in ("TPU", "GPU", "CPU") if kind in present)
    count, processes = strategy.num_replicas_in_sync, num_processes(strategy)
    devices = f"one {kind}" if count == 1 else f"{count} replicas on {kind}"
    devices += f", in {processes} processes" if processes > 1 else ""
    devices += ", without XLA" if recipe.jit_compile and not model.jit_compile else ""
    steps = pipeline.steps_per_epoch
    trainable = sum(int(np.prod(one.shape)) for one in model.trainable_variables)
    batches = f"batches of {recipe.batch_size}"
    if shrunk:
        default = recipe.default_batch_size
        batches += f" instead of {default}, for {pipeline.num_rows} rows"
    all_steps = f"{recipe.epochs:,} epochs x {steps:,} = {recipe.epochs * steps:,}"
    rows = [
        ("recipe", recipe.recipe_name),
        ("data", "\n".ljust(12).join(textwrap.wrap(data.describe(), 69))),
        ("model", f"{type(model).__name__}, {trainable:,} trainable parameters"),
        ("device", devices),
        ("precision", model.dtype_policy.name),
        ("steps", f"{all_steps}, {batches}"),
        ("folder", str(recipe.run_folder)),
    ]
    return [f"{name:<10} {value}" for name, value in rows]
