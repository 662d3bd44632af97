"""Two or more programs that train in turn, and how they compare.

Each side is a process of its own, or several that train together. It compiles and warms
up, and then trains a piece whenever it is its turn, while the others sleep. So a change
of the machine's speed meets all sides alike, and a ratio is the median of the ratios of
each round.

Standard library only up here: PyTorch's interpreter need not have kgen, nor kgen's
PyTorch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUSY = 0.5  # programs that compete, on average over the last minute


class Turns:
    """A side's end of the pipe: it waits for its turn and reports what it did."""

    def __init__(self):
        # What libraries print must not end up between the reports.
        self._output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start = 0.0

    def ready(self, what):
        """Says that the warm-up is over."""
        self._write({"what": what})

    def wait(self):
        """Sleeps until it is this side's turn and starts the clock."""
        if not sys.stdin.readline():
            sys.exit("The benchmark has ended.")
        self._start = time.perf_counter()

    def report(self, images, loss=None):
        """Stops the clock and sends the rate and, for a look, the mean loss."""
        rate = images / (time.perf_counter() - self._start)
        self._write({"rate": rate, "loss": loss})

    def _write(self, record):
        self._output.write(json.dumps(record) + "\n")
        self._output.flush()


def fit_in_turns(turn, model, pipeline, rounds, loss=None, **options):
    """Kgen's side: one call of `fit`, whose epochs after the first are the turns.

    Args:
        turn: This side's `Turns`.
        model: A compiled model.
        pipeline: Its training data.
        rounds: Turns to take.
        loss: The log to report, or None.
        **options: Of `kgen.training.fit`.
    """
    import keras
    import tensorflow as tf

    from kgen import training

    class Epochs(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                turn.wait()

        def on_epoch_end(self, epoch, logs=None):
            if epoch:
                images = pipeline.steps_per_epoch * pipeline.batch_size
                turn.report(images, loss and float(tf.reduce_mean(logs[loss])))
            else:
                turn.ready(f"TensorFlow {tf.__version__}, Keras {keras.__version__}")

    training.fit(model, pipeline, epochs=1 + rounds, callbacks=[Epochs()], **options)


def parser_of_sides(description, sides):
    """A parser of what benchmarks against PyTorch have in common.

    `side` is None in the process that compares, and its name in that of a side.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--torch-python",
        default=sys.executable,
        help="Python interpreter that has PyTorch, if it is not this one",
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side")
    parser.add_argument("--sides", nargs="+", default=list(sides), choices=sides)
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    return parser


class _Side:
    """The benchmark's end of the pipes."""

    def __init__(self, name, command, environments, log):
        self.name, self.log = name, log
        self.rates, self.losses = [], []
        with open(log, "w") as errors:
            self.processes = [
                subprocess.Popen(
                    command,
                    env=os.environ | environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
                for environment in environments
            ]
        print(f"{name:<17} {self._read()[0]['what']}", flush=True)

    def train(self):
        for process in self.processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        records = self._read()
        self.rates.append(min(record["rate"] for record in records))
        self.losses.append(records[0]["loss"])

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()

    def _read(self):
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            sys.exit(f"{self.name} has failed:\n{Path(self.log).read_text()[-3000:]}")
        return [json.loads(line) for line in lines]


def compare(commands, rounds, ratios, environments=None, unit="images"):
    """Lets all sides take turns and prints rates and ratios.

    Args:
        commands: By the name of a side, the command that starts its process.
        rounds: Turns of each side.
        ratios: By a pair of sides, the target of the first's rate over the second's, or
            None if it is only measured. Pairs that do not take part are left out.
        environments: By the name of a side, a dict of environment variables for each of
            its processes; the rate is that of the slowest. By default there is one.
        unit: What the rates count.
    """
    load = os.getloadavg()[0]
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, command in commands.items():
                log = os.path.join(folder, f"{name}.log")
                each = (environments or {}).get(name, [{}])
                sides[name] = _Side(name, command, each, log)
            print(f"{unit} per second, {rounds} rounds in turn:")
            for round_ in range(1, rounds + 1):
                for side in sides.values():
                    side.train()
                now = (f"{side.name} {side.rates[-1]:,.0f}" for side in sides.values())
                print(f"{round_:>4}  {'  '.join(now)}", flush=True)
        finally:
            for side in sides.values():
                side.end()
    print(f"{'':<17} {'median':>9} {'lowest':>9} {'highest':>9}   loss at the end")
    for side in sides.values():
        middle, low, high = _spread(side.rates)
        print(
            f"{side.name:<17} {middle:>9,.0f} {low:>9,.0f} {high:>9,.0f}"
            + ("" if side.losses[-1] is None else f"   {side.losses[-1]:.2f}")
        )
    for (first, second), target in ratios.items():
        if first in sides and second in sides:
            ours, theirs = sides[first].rates, sides[second].rates
            pairs = zip(ours, theirs, strict=True)
            middle, low, high = _spread([one / other for one, other in pairs])
            print(
                f"{first} / {second}: median {middle:.2f} ({low:.2f} to {high:.2f}) of "
                f"{rounds} pairs; highest rates {max(ours) / max(theirs):.2f}"
                + (f"; target {target}" if target else "")
            )
    if load > BUSY:
        print(
            f"Warning: other programs were running (load average {load:.1f} at the "
            "start): the ratios come out too high. Stop them and measure again."
        )


def _spread(values):
    return statistics.median(values), min(values), max(values)
