"""What all recipes share: their common options, and the one path of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib
import importlib.metadata
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from kgen.recipes import RECIPES

# Standard library only up here: `kgen fit NAME --help` costs what click costs.

FORMATS = {"saved_model", "onnx"}
# Arguments of `Recipe.evaluate`. IS-100 of 1,000 images takes seconds; 5,000 samples of
# each image, as in the literature, can take an hour.
MEASURES: dict[str, dict[str, Any]] = {
    "quick": {"split": "validation", "num_samples": 100, "limit": 1000},
    "full": {},
}


def option(default: Any, help: str) -> Any:
    """Returns a field with a default and the help text of its command-line option."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options that every recipe has, and the path from them to a trained model.

    A recipe adds fields, and defines `open_data`, `make_model`, `sample` and
    `evaluate`. All its values can be written on a command line and in JSON.

    Attributes:
        recipe_name: What `kgen fit` knows it by.
        task: Output of its model: "images", "text", "filled masks" or "items".
        extra_options: Options of `kgen generate` and `kgen evaluate` that its model
            takes and others of the task do not.
        next_command: A command that uses a trained run, which `{run}` stands for.
    """

    recipe_name: ClassVar[str]
    task: ClassVar[str]
    extra_options: ClassVar[tuple[str, ...]] = ()
    next_command: ClassVar[str]

    data: str = option("digits", "Data set: a name, or the path of a folder or file.")
    data_dir: str | None = option(
        None, "Folder of prepared tensorflow-datasets; default: their own."
    )
    epochs: int = option(20, "Passes over the training data, 1 or more.")
    batch_size: int = option(32, "Rows in a batch, over all devices together.")
    learning_rate: float = option(2e-3, "Highest learning rate of Adam, above 0.")
    warmup_steps: int = option(0, "Steps over which the learning rate rises from 0.")
    gradient_clip_norm: float | None = option(
        None, "Largest norm of the gradient; default: any."
    )
    start_from: str | None = option(
        None, "Run, or .keras file, whose weights training starts with."
    )
    seed: int = option(0, "Keys the order of the data and all noise, 0 or more.")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"] = option(
        "float32", "Number type of the layers; auto: mixed_bfloat16 on a GPU or TPU."
    )
    strategy: Literal["auto", "none", "mirrored", "multiworker", "tpu"] = option(
        "auto", "How to spread over devices and machines."
    )
    steps_per_execution: int = option(
        32, "Steps in one call of the compiled function; 1 with several replicas."
    )
    worker_timeout: float = option(
        600.0, "Seconds to wait for the other workers to start, above 0."
    )
    jit_compile: bool = option(
        False,
        "Compile the step with XLA: on a CPU it saves a fifth of a small dense network "
        "and slows convolutions down.",
    )
    checkpoint_seconds: float = option(
        60.0, "Seconds of work that a kill may cost at most; an epoch with workers."
    )
    sample_epochs: int = option(1, "Epochs from one file of samples to the next.")
    measure: Literal["none", "quick", "full"] = option(
        "quick",
        "What is measured after training; quick: up to 1,000 rows of the validation "
        "split; full: as kgen evaluate does, which can take long.",
    )
    export: Literal["none", "saved_model", "onnx", "all"] = option(
        "all", "Formats of the trained model besides Keras's; all: both."
    )
    folder: str = option("saved_models", "Folder that holds the runs.")
    name: str | None = option(
        None, "Folder of this run in it; default: the recipe's name."
    )

    def __post_init__(self) -> None:
        """Checks what can be checked without the data."""
        for name in ("epochs", "batch_size", "steps_per_execution", "sample_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be 1 or more. Received: {getattr(self, name)}"
                )
        self._check_above_0("learning_rate", "worker_timeout", "gradient_clip_norm")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"`seed` must be in [0, 2**63). Received: {self.seed}")
        if self.name is not None and (
            self.name in ("", "..") or Path(self.name).name != self.name
        ):
            raise ValueError(
                "`name` must be the name of a folder, without a path to it: that is "
                f"what `folder` is for. Received: name={self.name}"
            )
        if self.warmup_steps < 0 or not self.checkpoint_seconds >= 0:
            raise ValueError(
                "`warmup_steps` and `checkpoint_seconds` must be 0 or more. Received: "
                f"{self.warmup_steps} and {self.checkpoint_seconds}"
            )

    @property
    def run_folder(self) -> Path:
        """Where the run is, or will be."""
        return Path(self.folder) / (self.name or self.recipe_name)

    # -- what a recipe defines ----------------------------------------------

    def open_data(self, *, download: bool = True) -> Any:
        """Opens the data; the result has `describe()` and `fingerprint`."""
        raise NotImplementedError

    def pipelines(self, data: Any) -> tuple[Any, Any]:
        """Returns shuffled training batches, and the validation data as they are."""
        shared = {
            "batch_size": self.batch_size,
            "seed": self.seed,
            **self.pipeline_options(),
        }
        return (
            data.pipeline("train", shuffle=True, drop_remainder=True, **shared),
            data.pipeline("validation", **shared),
        )

    def pipeline_options(self) -> dict[str, Any]:
        """Further arguments of the pipelines."""
        return {}

    def make_model(self, data: Any, steps_per_epoch: int) -> Any:
        """Returns a compiled model; called in the strategy's scope."""
        raise NotImplementedError

    def sample_callbacks(self, model: Any, data: Any, folder: Any) -> list[Any]:
        """Returns callbacks that show what the model makes: files, and TensorBoard.

        By default they write the text that `sample` returns.
        """
        from kgen import training

        return [
            training.SampleText(
                lambda: self.sample(model, data), folder.samples, self.sample_epochs
            ),
            training.TensorBoard(folder.tensorboard),
        ]

    def sample(self, model: Any, data: Any) -> Any:
        """Returns what the model makes, to be looked at after an epoch."""
        raise NotImplementedError

    def evaluate(self, model: Any, data: Any, **options: Any) -> list[Any]:
        """Measures the model and returns a list of records."""
        raise NotImplementedError

    # -- the run ------------------------------------------------------------

    def run(
        self,
        *,
        resume: bool = False,
        overwrite: bool = False,
        dry_run: bool = False,
        report: Callable[[str], None] = print,
    ) -> Path | None:
        """Trains, saves, measures and exports: what `kgen fit` does.

        Args:
            resume: Go on with the run in the folder; start one if there is none.
            overwrite: Replace the run in the folder.
            dry_run: Report the plan and do nothing else.
            report: Called with each line of output.

        Returns:
            The run's folder; None for a dry run, and for all but the chief of several
            processes.

        Raises:
            FileExistsError: If the folder holds another run or other files.
            ValueError: If options, data or devices do not go together.
            FloatingPointError: If the loss or a weight stops being finite.
        """
        import keras

        from kgen import training
        from kgen.training.strategies import is_chief, num_processes

        strategy = training.make_strategy(
            self.strategy,
            worker_timeout=self.worker_timeout,
            join=not dry_run,
            report=report,
        )
        chief = is_chief(strategy)
        folder = training.RunFolder(self.run_folder)
        if chief and not dry_run:
            folder.check_free(resume=resume, overwrite=overwrite)
        data = self.open_data(download=not dry_run)
        pipeline, validation = self.pipelines(data)
        pipeline.check_divides(strategy.num_replicas_in_sync)
        keras.utils.set_random_seed(self.seed % 2**32)  # of the initial weights
        with strategy.scope():
            model = self.make_model(data, pipeline.steps_per_epoch)
            if self.start_from and not (resume and folder.checkpoint.is_file()):
                self._take_weights(model, self.start_from)
        total = self.epochs * pipeline.steps_per_epoch
        if chief:
            for line in self._plan(data, pipeline, model, strategy):
                report(line)
        else:
            report("This worker trains along; the chief reports and writes the files.")
        if dry_run:
            return None

        record = self._record(data, model, strategy)
        training.check_same_run(strategy, record)
        if chief:
            for change in folder.claim(record, resume=resume, overwrite=overwrite):
                report(f"Warning: not bit for bit as if never stopped: {change}")
        checkpointer = training.Checkpointer(
            folder.checkpoint,
            every_seconds=self.checkpoint_seconds,
            mid_epoch=num_processes(strategy) == 1,
            write=chief,
        )
        with strategy.scope():
            restored = resume and checkpointer.restore(model)
        done = int(model.step.numpy())
        training.check_same_step(strategy, done, folder.path)
        if resume and not restored and chief:
            report(f"no checkpoint in {folder.path} yet: starting at step 0")
        if restored and chief:
            report(f"resumed at step {done:,} of {total:,}")
            if "finished" in read_record(folder.path):
                report(
                    "The run is finished; there is nothing left to train. To measure "
                    "or export it again: kgen evaluate, kgen export."
                )
                training.barrier(strategy)
                return folder.path
        progress = training.Progress(
            pipeline.steps_per_epoch, self.batch_size, report, total
        )
        callbacks = [training.StopOnNonFinite()]
        if chief:
            callbacks += self.chief_callbacks(model, data, folder, progress, report)
        # Last: a checkpoint says that all the other files of its epoch are written.
        callbacks.append(checkpointer)
        bar = progress if chief else contextlib.nullcontext()
        with bar, checkpointer.saving_on_interrupt():
            training.fit(
                model,
                pipeline,
                epochs=self.epochs,
                validation=validation,
                strategy=strategy,
                callbacks=callbacks,
            )
        if chief:
            self._finish(model, data, folder, report)
        # A worker that had ended would not start again, were the chief killed till now.
        training.barrier(strategy)
        return folder.path if chief else None

    def _take_weights(self, model: Any, run: str) -> None:
        """Gives a new model the weights of a trained one, but not its step."""
        from kgen.models import load

        beside = Path(self.folder) / run
        source = beside if beside.is_dir() else Path(run)
        if source.resolve() == self.run_folder.resolve():
            raise ValueError(
                "`start_from` must be another run than the one that is written. "
                f"Received: start_from={run}. Choose another `name`."
            )
        trained = load(source)
        for name in model.compatibility_arguments:
            if getattr(trained, name, None) != getattr(model, name):
                raise ValueError(
                    f"`start_from` must be a model with the same {name} as the one to "
                    f"train. Received: start_from={run}, with others."
                )
        weights = trained.get_weights()
        pairs = itertools.zip_longest(weights, model.weights)
        for given, needed in pairs:
            shapes = [None if x is None else tuple(x.shape) for x in (given, needed)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    "`start_from` must be a model with the same networks as the one to "
                    f"train. Received: start_from={run}, which has a weight of shape "
                    f"{shapes[0]} where {shapes[1]} is needed."
                )
        model.set_weights(weights)
        model.step.assign(0)  # Schedules, noise and the order of the data start anew.

    def chief_callbacks(self, model, data, folder, progress, report) -> list[Any]:
        """The callbacks that write files or lines: those of the chief alone."""
        from kgen import training

        return [
            training.History(folder.history),
            *self.sample_callbacks(model, data, folder),
            training.HealthWarnings(lambda text: report(f"Warning: {text}")),
            progress,
        ]

    def _finish(self, model, data, folder, report) -> None:
        """Saves, measures and exports a trained model, and marks the run finished."""
        from kgen import evaluation, export

        report("saving, measuring and exporting")
        folder.save_model(model)
        if self.measure != "none":
            records = self.evaluate(model, data, **MEASURES[self.measure])
            evaluation.write_records(folder.metrics, records)
            report(evaluation.table(records))
        offered = {one for item in model.signatures() for one in item.runtimes}
        wanted = FORMATS if self.export == "all" else {self.export} - {"none"}
        about = export_metadata(folder.path)
        for runtime in sorted(wanted - offered):
            report(
                f"Not exported: a {type(model).__name__} has no {runtime} signature."
            )
        if "saved_model" in wanted & offered:
            folder.remove_versions()  # by a `_finish` that was killed
            export.to_saved_model(model, folder.path, metadata=about)
        if "onnx" in wanted & offered:
            onnx_file = folder.path / f"{self.recipe_name}.onnx"
            export.to_onnx(model, onnx_file, metadata=about)
        finished = {
            "finished": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
        }
        folder.write_json(folder.recipe, read_record(folder.path) | finished)

    def _plan(self, data, pipeline, model, strategy) -> list[str]:
        import tensorflow as tf

        from kgen.training.strategies import num_processes

        present = {device.device_type for device in tf.config.list_logical_devices()}
        kind = next(kind for kind in ("TPU", "GPU", "CPU") if kind in present)
        count = strategy.num_replicas_in_sync
        processes = num_processes(strategy)
        devices = f"{count} replicas on {kind}, in {processes} processes"
        if processes == 1:
            devices = f"{count} replicas on {kind}"
        if count == 1:
            devices = f"one {kind}"
        steps = pipeline.steps_per_epoch
        rows = [
            ("recipe", self.recipe_name),
            ("data", data.describe()),
            ("model", f"{type(model).__name__}, {model.count_params():,} parameters"),
            ("device", devices),
            ("precision", model.dtype_policy.name),
            (
                "steps",
                f"{self.epochs:,} epochs x {steps:,} = {self.epochs * steps:,}, "
                f"batches of {self.batch_size}",
            ),
            ("folder", str(self.run_folder)),
        ]
        return [f"{name:<10} {value}" for name, value in rows]

    def _record(self, data, model, strategy) -> dict[str, Any]:
        """What recipe.json holds."""
        import tensorflow as tf

        import kgen

        packages = ("keras", "tensorflow", "numpy", "tensorflow-datasets")
        versions = {name: importlib.metadata.version(name) for name in packages}
        return {
            "recipe": self.recipe_name,
            "options": json.loads(json.dumps(dataclasses.asdict(self._located()))),
            "data": {"description": data.describe(), "fingerprint": data.fingerprint},
            "class_names": self._class_names(model, data),
            "precision": model.dtype_policy.name,
            "strategy": type(strategy).__name__,
            "replicas": strategy.num_replicas_in_sync,
            "threads": {
                "cores": os.cpu_count(),
                "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
                "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
            },
            "versions": {"kgen": kgen.__version__} | versions,
            "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        }

    def _class_names(self, model, data) -> list[str] | None:
        """The names of the labels that the model takes, or None."""
        takes_labels = getattr(model, "num_classes", None) is not None
        return [str(name) for name in data.class_names] if takes_labels else None

    def _located(self) -> Recipe:
        """This recipe with paths that hold in any working directory."""
        bundled = {field.default for field in dataclasses.fields(self)}
        changed: dict[str, Any] = {}
        for name in ("data", "data_dir", "start_from"):
            value = getattr(self, name)
            if value not in bundled and Path(value).expanduser().exists():
                changed[name] = str(Path(value).expanduser().absolute())
        return dataclasses.replace(self, **changed)

    def _check_above_0(self, *names: str) -> None:
        """Refuses these options where they are given and not above 0."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"`{name}` must be above 0, and finite. Received: {name}={value}"
                )

    def _schedule(self, peak: float, steps_per_epoch: int) -> Any:
        """A learning rate over the whole run: it rises, and falls to 0 by a cosine."""
        from kgen.nn.schedules import warmup_cosine

        return warmup_cosine(peak, self.epochs * steps_per_epoch, self.warmup_steps)

    def _compile_options(self, steps_per_epoch: int) -> dict[str, Any]:
        """What every model's `compile` takes besides its optimizers."""
        return {
            "seed": self.seed,
            "gradient_clip_norm": self.gradient_clip_norm,
            "steps_per_execution": min(self.steps_per_execution, steps_per_epoch),
            "jit_compile": self.jit_compile,
        }

    def _dtype(self) -> str:
        """The dtype policy behind `precision`."""
        if self.precision != "auto":
            return self.precision
        import tensorflow as tf

        accelerators = tf.config.list_logical_devices("GPU")
        accelerators += tf.config.list_logical_devices("TPU")
        return "mixed_bfloat16" if accelerators else "float32"


def recipe_class(name: str) -> type[Recipe]:
    """Returns the recipe of that name in the recipe table."""
    module, _, attribute = RECIPES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def presets(name: str) -> dict[str, Recipe]:
    """Returns the named instances beside the class of that name."""
    module, _, _ = RECIPES[name].partition(":")
    return importlib.import_module(module).PRESETS


def read_record(folder: str | Path) -> dict[str, Any]:
    """Returns what a run's recipe.json says.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the file is not the JSON that `kgen fit` wrote.
    """
    file = Path(folder) / "recipe.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"A run's folder holds recipe.json, and {folder} does not. `kgen list` "
            "shows the runs there are; `kgen fit` makes one."
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(record, dict) or not {"recipe", "options"} <= record.keys():
        raise ValueError(
            f"{file} must hold an object with the recipe and its options, as `kgen "
            f"fit` writes it. Received: {str(record)[:40]}"
        )
    return record


def export_metadata(folder: str | Path) -> dict[str, str]:
    """What the exports of a run say of it: its recipe, and its classes as JSON.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its recipe.json is damaged.
    """
    record = read_record(folder)
    about = {"recipe": record["recipe"]}
    if record.get("class_names"):
        about["class_names"] = json.dumps(record["class_names"])
    return about


def recipe_of_run(folder: str | Path) -> Recipe:
    """Returns the recipe of a run, with the options it was started with.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its recipe.json is not what `kgen fit` wrote.
    """
    record = read_record(folder)
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in record["options"].items()
    }
    # The folder may have been moved since.
    path = Path(folder)
    options |= {"folder": str(path.parent), "name": path.name}
    if record["recipe"] not in RECIPES:
        raise ValueError(
            f"{path / 'recipe.json'} must name a recipe: {', '.join(RECIPES)}. "
            f"Received: {record['recipe']!r}"
        )
    return recipe_class(record["recipe"])(**options)
