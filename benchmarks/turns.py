"""Two or more programs that train in turn, and how they compare.

Each side is a process of its own. It compiles and warms up, and then trains a piece
whenever it is its turn, while the others sleep. So a change of the machine's speed
meets all sides alike, and a ratio is the median of the ratios of each round.

Standard library only: PyTorch's interpreter need not have kgen, nor kgen's PyTorch.
"""

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

    def report(self, images, loss):
        """Stops the clock and sends rate and mean loss."""
        rate = images / (time.perf_counter() - self._start)
        self._write({"rate": rate, "loss": loss})

    def _write(self, record):
        self._output.write(json.dumps(record) + "\n")
        self._output.flush()


class _Side:
    """The benchmark's end of the pipe."""

    def __init__(self, name, command, log):
        self.name, self.log = name, log
        self.rates, self.losses = [], []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "w"),
            text=True,
        )
        print(f"{name:<17} {self._read()['what']}", flush=True)

    def train(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        record = self._read()
        self.rates.append(record["rate"])
        self.losses.append(record["loss"])

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} has failed:\n{Path(self.log).read_text()[-3000:]}")
        return json.loads(line)


def compare(commands, rounds, ratios):
    """Lets all sides take turns and prints rates and ratios.

    Args:
        commands: By the name of a side, the command that starts its process.
        rounds: Turns of each side.
        ratios: By a pair of sides, the target of the first's rate over the second's, or
            None if it is only measured. Pairs that do not take part are left out.
    """
    load = os.getloadavg()[0]
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, command in commands.items():
                log = os.path.join(folder, f"{name}.log")
                sides[name] = _Side(name, command, log)
            print(f"images per second, {rounds} rounds in turn:")
            for round_ in range(1, rounds + 1):
                for side in sides.values():
                    side.train()
                now = (f"{side.name} {side.rates[-1]:,.0f}" for side in sides.values())
                print(f"{round_:>4}  {'  '.join(now)}", flush=True)
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.wait()
    print(f"{'':<17} {'median':>9} {'lowest':>9} {'highest':>9}   loss at the end")
    for side in sides.values():
        middle, low, high = _spread(side.rates)
        print(
            f"{side.name:<17} {middle:>9,.0f} {low:>9,.0f} {high:>9,.0f}   "
            f"{side.losses[-1]:.2f}"
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
