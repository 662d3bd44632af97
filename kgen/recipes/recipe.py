"""Options that all recipes share, and the methods that each recipe defines."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from kgen.arguments import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rule,
    check_fields,
)

# Standard library only up here: `kgen fit NAME --help` costs what click costs.


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Makes a field with a default and the help text of its command-line option."""
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


def setting(default: Any, help: str) -> Any:
    """Makes an option that does not affect training: a resumed run may change it."""
    return option(default, help, is_setting=True)


def batch_size_option(size: int, rows: str = "Rows") -> Any:
    """Makes the option `batch_size`, whose default shrinks for smaller data."""
    default = f"{size}, or all where there are fewer"
    text = f"{rows} in a batch, over all devices together; default: {default}."
    return option(None, text, size=size)


Seed = Annotated[int, Rule("be in [0, 2**63)", lambda seed: 0 <= seed < 2**63)]
Source = Annotated[str, Rule("name a data set, a folder or a file", bool)]
FolderName = Annotated[
    str,
    Rule(
        "be the name of a folder, without a path to it, which is what `folder` is for",
        lambda name: name not in ("", "..") and Path(name).name == name,
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of every recipe; `run` leads from them to a trained model.

    A recipe adds fields, and defines `open_data`, `model_options` and `sample`. All its
    values can be written on a command line and in JSON.

    Attributes:
        recipe_name: Its name in `kgen fit NAME`.
        model_name: Name of the class of its model in `kgen.models`.
        evaluations: Names of the functions of `kgen.evaluation` that measure its model.
    """

    recipe_name: ClassVar[str]
    model_name: ClassVar[str]
    evaluations: ClassVar[tuple[str, ...]]

    # Data may be moved; their fingerprint is compared.
    data: Source = setting(
        "digits", "Data set: a name, or the path of a folder or file."
    )
    data_dir: str | None = setting(
        None, "Folder of prepared tensorflow-datasets; default: their own."
    )
    epochs: PositiveInt = option(20, "Passes over the training data.")
    batch_size: PositiveInt | None = batch_size_option(32)
    learning_rate: PositiveFloat = option(2e-3, "Highest learning rate of Adam.")
    warmup_steps: NonNegativeInt = option(
        0, "Steps over which the learning rate rises from 0."
    )
    gradient_clip_norm: PositiveFloat | None = option(
        None, "Largest norm of the gradient; default: any."
    )
    start_from: str | None = option(
        None, "Run, or .keras file, whose weights training starts with."
    )
    seed: Seed = option(0, "Keys the order of the data and all noise.")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"] = option(
        "float32", "Number type of the layers; auto: mixed_bfloat16 on a GPU or TPU."
    )
    strategy: Literal["auto", "none", "mirrored", "multiworker", "tpu"] = option(
        "auto", "How to spread over devices and machines."
    )
    deterministic: bool = option(
        True,
        "With several replicas, run graphs as written, neither fused nor reordered: "
        "workers then equal replicas bit for bit.",
    )
    steps_per_execution: PositiveInt = option(
        32, "Steps in one call of the compiled function; 1 with several replicas."
    )
    worker_timeout: PositiveFloat = setting(
        600.0, "Seconds to wait for the other workers to start."
    )
    jit_compile: bool = option(
        False,
        "Compile the step with XLA, on one device: on a CPU it saves a fifth of a "
        "small dense network and slows convolutions down.",
    )
    checkpoint_seconds: NonNegativeFloat = setting(
        60.0, "Seconds of work that a kill may cost at most; an epoch with workers."
    )
    sample_epochs: PositiveInt = setting(
        1, "Epochs from one file of samples to the next."
    )
    measure: Literal["none", "quick", "full"] = setting(
        "quick",
        "Measurement after training; quick: up to 1,000 rows of the validation split; "
        "full: as kgen evaluate does, which can take an hour.",
    )
    export: Literal["none", "saved_model", "onnx", "all"] = setting(
        "all", "Formats to export after training; all: both."
    )
    folder: str = setting("saved_models", "Folder that holds the runs.")
    name: FolderName | None = setting(
        None, "Folder of this run in it; default: the recipe's name."
    )

    def __post_init__(self) -> None:
        """Checks what can be checked without the data."""
        check_fields(self)

    @property
    def run_folder(self) -> Path:
        """The run's folder, which may not exist yet."""
        return Path(self.folder) / (self.name or self.recipe_name)

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
            BlockingIOError: If another process is writing the run.
            ValueError: If options, data or devices do not go together.
            FloatingPointError: If the loss or a weight stops being finite.
        """
        from kgen.recipes.training_run import train

        return train(
            self, resume=resume, overwrite=overwrite, dry_run=dry_run, report=report
        )

    # -- methods that a recipe defines ---------------------------------------

    def open_data(self, *, download: bool = True) -> Any:
        """Opens the data; the result has `describe()` and `fingerprint`."""
        raise NotImplementedError

    def pipeline_options(self) -> dict[str, Any]:
        """Returns further arguments of the pipelines."""
        return {}

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns arguments of the model that are not options, or have other values."""
        raise NotImplementedError

    def optimizers(self, steps_per_epoch: int) -> list[Any]:
        """Returns the optimizers of the model."""
        return [self.adam(steps_per_epoch)]

    def sample(self, model: Any, data: Any) -> Any:
        """Makes images, or a text, to look at after an epoch."""
        raise NotImplementedError

    @property
    def default_batch_size(self) -> int:
        """The batch size of data that have as many rows."""
        return self.__dataclass_fields__["batch_size"].metadata["size"]

    # -- shared parts ---------------------------------------------------------

    def rows_per_batch(self, data: Any, num_replicas: int = 1) -> int:
        """Returns `batch_size`, or its default, which smaller data make smaller."""
        if self.batch_size is not None:
            return self.batch_size
        return data.fitting_batch_size(self.default_batch_size, num_replicas)

    def pipelines(self, data: Any) -> tuple[Any, Any]:
        """Returns shuffled training batches, and the validation data as they are."""
        shared = {
            "batch_size": self.rows_per_batch(data),
            "seed": self.seed,
            **self.pipeline_options(),
        }
        return (
            data.pipeline("train", shuffle=True, drop_remainder=True, **shared),
            data.pipeline("validation", **shared),
        )

    def call(
        self, function: Callable[..., Any], *positional: Any, **others: Any
    ) -> Any:
        """Calls a function or class with the options that it takes by name."""
        # Keras layers have a `__new__` that takes anything.
        called = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
        names = inspect.signature(called).parameters.keys()
        shared = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in names
        }
        return function(*positional, **(shared | others))

    def evaluate(self, model: Any, data: Any, **options: Any) -> list[Any]:
        """Measures the model by each function of `evaluations`.

        Args:
            model: The model.
            data: The result of `open_data`.
            **options: Options of the functions, such as split, limit and num_samples; a
                function without an option of that name does not get it.

        Returns:
            A list of records.
        """
        from kgen import evaluation

        records = []
        for name in self.evaluations:
            function = getattr(evaluation, name)
            names = options.keys() & inspect.signature(function).parameters.keys()
            given = {name: options[name] for name in names}
            records += self.call(function, model, data, **given)
        return records

    def make_model(self, data: Any, steps_per_epoch: int) -> Any:
        """Makes a compiled model; called in the strategy's scope."""
        import tensorflow as tf

        from kgen import models
        from kgen.nn import MeanGradient

        model_class = getattr(models, self.model_name)
        others = self.model_options(data, steps_per_epoch)
        model = self.call(model_class, dtype=self._dtype(), **others)
        model.compile(
            *self.optimizers(steps_per_epoch),
            seed=self.seed,
            estimator=MeanGradient(self.gradient_clip_norm),
            steps_per_execution=min(self.steps_per_execution, steps_per_epoch),
            # XLA cannot reach the variables of another replica.
            jit_compile=self.jit_compile and not tf.distribute.has_strategy(),
        )
        return model

    def adam(
        self, steps_per_epoch: int, rate: float | None = None, **options: Any
    ) -> Any:
        """Returns Adam, whose rate rises, and falls to 0 by a cosine, over the run."""
        from kgen.nn.gradients import Adam, warmup_cosine

        total = self.epochs * steps_per_epoch
        peak = self.learning_rate if rate is None else rate
        schedule = warmup_cosine(peak, total, self.warmup_steps)
        return Adam(schedule, **options)

    def _dtype(self) -> str:
        """Returns the dtype policy behind `precision`."""
        if self.precision != "auto":
            return self.precision
        import tensorflow as tf

        accelerators = tf.config.list_logical_devices("GPU")
        accelerators += tf.config.list_logical_devices("TPU")
        return "mixed_bfloat16" if accelerators else "float32"
