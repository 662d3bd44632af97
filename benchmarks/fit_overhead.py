"""Share of the time of `fit` that is spent outside the compiled step.

Two times of the same number of steps (an epoch), measured alternately in one process:

- `step`: the compiled train function in a bare loop, 32 steps per call as in `fit`, on
  one batch in memory, without input pipeline and callbacks.
- `fit`: an epoch of a run of the recipe: kgen's data pipeline with dynamic
  binarisation, Keras's loop, and all callbacks of `kgen fit` (non-finite check,
  history, sample grid, TensorBoard, health warnings, progress, checkpoints), including
  those at the end of the epoch, but no validation.

The share is 1 - step / fit for each pair; the median of the pairs is the result. Data
that another core prepares while the step runs counts only if it slows the step down.
The part of `fit` after the last step of an epoch (callbacks) is shown separately.

The default is the smallest model, 784-400-20, where the overhead is largest; `--preset`
takes one of the recipe's presets.

    python benchmarks/fit_overhead.py --data-dir path/to/tensorflow_datasets
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

from kgen import training
from kgen.recipes.vae import PRESETS, VAERecipe

TARGET = 0.10
SMALL = VAERecipe(
    data="mnist",
    likelihood="bernoulli",
    prior="normal",
    network="mlp",
    hidden_units=(400,),
    latent_dim=20,
    activation="relu",
    batch_size=128,
    jit_compile=True,
)


class BareLoop:
    """The compiled step of a separate model, on one constant batch."""

    def __init__(self, recipe, data):
        pipeline, _ = recipe.pipelines(data)
        self.num_steps = pipeline.steps_per_epoch
        self._model = recipe.make_model(data, self.num_steps)
        self._model.make_train_function()
        batch = next(iter(pipeline.dataset()))
        self._batches = tf.data.Dataset.from_tensors((batch,)).repeat(self.num_steps)

    def seconds(self):
        """Runs an epoch of steps and returns its seconds."""
        iterator = iter(self._batches)
        calls = -(-self.num_steps // self._model.steps_per_execution)
        start = time.perf_counter()
        for _ in range(calls):
            logs = self._model.train_function(iterator)
        float(logs["loss"])  # waits for the last step
        return time.perf_counter() - start


class Clock(keras.callbacks.Callback):
    """Callback that times each epoch of `fit`, and a bare loop before it.

    It must be the first callback: then an epoch is the time from the end of one bare
    loop to the start of the next.
    """

    def __init__(self, loop):
        super().__init__()
        self.loop = loop
        self.rows = []  # (step, fit, end of the epoch), in seconds
        self._step = None

    def on_epoch_begin(self, epoch, logs=None):
        """Ends the previous epoch, runs the bare loop and starts the clock."""
        self._finish()
        self._step = self.loop.seconds()
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Records the end of the last step."""
        self._trained = time.perf_counter()

    def on_train_end(self, logs=None):
        """Ends the last epoch."""
        self._finish()

    def _finish(self):
        now = time.perf_counter()
        if self._step is not None:
            self.rows.append((self._step, now - self._start, now - self._trained))


def measure(recipe):
    """Trains in a temporary folder; returns the rows of `Clock`, without the first."""
    data = recipe.open_data()
    pipeline, _ = recipe.pipelines(data)
    keras.utils.set_random_seed(recipe.seed)
    model = recipe.make_model(data, pipeline.steps_per_epoch)
    clock = Clock(BareLoop(recipe, data))
    with tempfile.TemporaryDirectory() as path:
        folder = training.RunFolder(os.path.join(path, "run"))
        folder.path.mkdir()
        total = recipe.epochs * pipeline.steps_per_epoch
        progress = training.Progress(
            pipeline.steps_per_epoch, pipeline.batch_size, lambda line: None, total
        )
        samples = training.Samples(
            lambda: recipe.sample(model, data), folder.samples, recipe.sample_epochs
        )
        callbacks = [  # as in `kgen.recipes.training_run`
            training.StopOnNonFinite(),
            training.History(folder.history),
            samples,
            training.TensorBoard(folder.tensorboard, samples),
            training.HealthWarnings(lambda text: None),
            progress,
            training.Checkpointer(
                folder.checkpoint, every_seconds=recipe.checkpoint_seconds
            ),
        ]
        with progress:
            training.fit(
                model,
                pipeline,
                epochs=recipe.epochs,
                callbacks=[clock, *callbacks],
            )
    return clock.loop.num_steps, clock.rows[1:]  # the first one compiles


def main():
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    test_data = os.environ.get("KGEN_TEST_DATA")
    parser.add_argument("--data", help="instead of the preset's (mnist)")
    parser.add_argument(
        "--data-dir",
        default=os.path.join(test_data, "tfds") if test_data else None,
        help="folder of prepared tensorflow-datasets",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), help="instead of the MLP")
    parser.add_argument("--rounds", type=int, default=15, help="epochs of each kind")
    options = parser.parse_args()

    recipe = PRESETS[options.preset] if options.preset else SMALL
    recipe = dataclasses.replace(
        recipe,
        data=options.data or recipe.data,
        data_dir=options.data_dir,
        epochs=options.rounds + 1,
    )
    load = os.getloadavg()[0]
    num_steps, rows = measure(recipe)
    shares = [1 - step / fit for step, fit, _ in rows]
    ends = [end / fit for _, fit, end in rows]
    print(f"milliseconds per step, {len(rows)} pairs of epochs of {num_steps} steps:")
    for name, column in (("step", 0), ("fit", 1)):
        values = [1000 * row[column] / num_steps for row in rows]
        print(
            f"{name:<5} median {statistics.median(values):.3f} "
            f"({min(values):.3f} to {max(values):.3f})"
        )
    print(
        f"outside the compiled step: median {statistics.median(shares):.1%} "
        f"({min(shares):.1%} to {max(shares):.1%}), of that at the end of epochs "
        f"{statistics.median(ends):.1%}; target below {TARGET:.0%}"
    )
    print(f"load average at the start: {load:.1f}; a quiet machine has less than 0.5")


if __name__ == "__main__":
    main()
