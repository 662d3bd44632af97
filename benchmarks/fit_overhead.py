"""Share of the time of `fit` that is spent outside the compiled step.

Two times of the same number of steps (an epoch), measured in turn in one process:

- `step`: the compiled train function, called in a bare loop as `fit` calls it (32 steps
  a call), on one batch that lies ready in memory. Nothing is read, no callback runs.
- `fit`: an epoch of a run of the recipe: kgen's data pipeline with dynamic
  binarisation, Keras's loop, and all the callbacks of `kgen fit` (non-finite check,
  history, sample grid, TensorBoard, health warnings, progress, checkpoints), those at
  the epoch's end included. The epoch ends where the next begins. Without validation,
  which is compiled work of another kind.

The share is 1 - step / fit for each pair; the median of the pairs is the result. Data
that is read by another core while the step runs does not count, unless it slows the
step down. The part of `fit` after the last step of an epoch (callbacks at its end) is
shown apart.

The default is the smallest and so the hardest model, 784-400-20; `--preset` takes one
of the recipe's.

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
    """The compiled step of a model of its own, on a batch that never changes."""

    def __init__(self, recipe, data):
        pipeline, _ = recipe.pipelines(data)
        self.num_steps = pipeline.steps_per_epoch
        self._model = recipe.make_model(data, self.num_steps)
        self._model.make_train_function()
        batch = next(iter(pipeline.dataset()))
        self._batches = tf.data.Dataset.from_tensors((batch,)).repeat(self.num_steps)

    def seconds(self):
        """Takes an epoch of steps."""
        iterator = iter(self._batches)
        calls = -(-self.num_steps // self._model.steps_per_execution)
        start = time.perf_counter()
        for _ in range(calls):
            logs = self._model.train_function(iterator)
        float(logs["loss"])  # waits for the last step
        return time.perf_counter() - start


class Clock(keras.callbacks.Callback):
    """Times each epoch of `fit`, and before it the same steps in a bare loop.

    Put it before all other callbacks: then an epoch is all that lies between the end of
    one bare loop and the beginning of the next.
    """

    def __init__(self, loop):
        super().__init__()
        self.loop = loop
        self.rows = []  # (step, fit, end of the epoch), in seconds
        self._step = None

    def on_epoch_begin(self, epoch, logs=None):
        """Ends the epoch before, runs the bare loop and starts the clock."""
        self._finish()
        self._step = self.loop.seconds()
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Notes when the last step was done."""
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
            pipeline.steps_per_epoch, recipe.batch_size, lambda line: None, total
        )
        callbacks = [  # those of `Recipe.run`
            training.StopOnNonFinite(),
            *recipe.chief_callbacks(model, data, folder, progress, lambda line: None),
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
    print(f"milliseconds per step, of {len(rows)} epochs of {num_steps} steps in turn:")
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
