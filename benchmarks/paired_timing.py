"""Paired timing of two or more programs that train in alternation.

Each side is a process of its own, or a group of workers, which compiles and warms up.
Then, in each round, the sides train one piece each, one after the other, while the
others sleep. So a change of the machine's speed affects all sides alike, and a ratio is
the median of the ratios of the rounds.

The module imports the standard library only, because PyTorch's environment may lack
kgen, and kgen's environment PyTorch.
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

BUSY = 0.5  # load average of competing programs over the last minute


class Reporter:
    """A side's end of the pipe: waits for the start of a round, reports its rate."""

    def __init__(self):
        # Output of libraries must not mix with the reports.
        self._output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start = 0.0

    def ready(self, what):
        """Reports the end of the warm-up."""
        self._write({"what": what})

    def wait(self):
        """Sleeps until this side's part of the next round, and starts the clock."""
        if not sys.stdin.readline():
            sys.exit("The benchmark has ended.")
        self._start = time.perf_counter()

    def report(self, images, loss=None):
        """Stops the clock and sends the rate, and the mean loss as a check."""
        rate = images / (time.perf_counter() - self._start)
        self._write({"rate": rate, "loss": loss})

    def _write(self, record):
        self._output.write(json.dumps(record) + "\n")
        self._output.flush()


def fit_in_rounds(reporter, model, pipeline, rounds, loss=None, **options):
    """Runs kgen's side: one call of `fit`, each epoch but the first a round.

    Args:
        reporter: This side's `Reporter`.
        model: A compiled model.
        pipeline: Its training data.
        rounds: Number of rounds.
        loss: The log to report, or None.
        **options: Options of `kgen.training.fit`.
    """
    import keras
    import tensorflow as tf

    from kgen import training

    class Epochs(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                reporter.wait()

        def on_epoch_end(self, epoch, logs=None):
            if epoch:
                images = pipeline.steps_per_epoch * pipeline.batch_size
                reporter.report(images, loss and float(tf.reduce_mean(logs[loss])))
            else:
                reporter.ready(
                    f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
                )

    training.fit(model, pipeline, epochs=1 + rounds, callbacks=[Epochs()], **options)


def parser_of_sides(description, sides):
    """Returns a parser with the options of all benchmarks against PyTorch.

    `side` is None in the main process, and the name of the side in a side's process.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--torch-python",
        default=sys.executable,
        help="Python interpreter with PyTorch, if not this one",
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds to measure")
    parser.add_argument("--sides", nargs="+", default=list(sides), choices=sides)
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    return parser


class _Side:
    """The main process's end of the pipes to a side."""

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
    """Runs all sides in alternation and prints rates and ratios.

    Args:
        commands: By the name of a side, the command that starts its process.
        rounds: Number of rounds.
        ratios: By a pair of sides, the target of the first's rate over the second's, or
            None if there is no target. Pairs of absent sides are left out.
        environments: By the name of a side, a dict of environment variables per
            process; the slowest process counts. Default: one process.
        unit: Unit of the rates, per second.
    """
    load = os.getloadavg()[0]
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, command in commands.items():
                log = os.path.join(folder, f"{name}.log")
                each = (environments or {}).get(name, [{}])
                sides[name] = _Side(name, command, each, log)
            print(f"{unit} per second, {rounds} rounds in alternation:")
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
