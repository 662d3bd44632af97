"""Images per second of worker processes on one machine against those of one process.

Both sides train the same recipe, with the same global batch and so the same steps, on
the same cores: what the second is slower by is the price of working together (the
gradients' way through the loopback, a call for each step), for there is no second
machine to gain from. Each side is as `kgen fit` makes it, its data pipeline included,
without callbacks and validation; one process takes `--steps-per-execution` steps a
call, workers one.

All processes are started at once and take turns, an epoch each, so both sides are warm
and meet the same machine; the others wait meanwhile. The first epochs, which compile,
are dropped. Rates are those of the epochs; the result is the median of the paired
ratios, with their range.

    python benchmarks/workers.py vae
    python benchmarks/workers.py --rounds 20 vae --batch-size 256 --network conv
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from click.core import ParameterSource

from kgen import recipes
from kgen_cli.fit import recipe_command


def make_recipe(words):
    """Returns the recipe that `kgen fit` makes of these words."""
    name = words[0]
    context = recipe_command(name).make_context("fit", list(words[1:]))
    preset = context.params["preset"]
    start = recipes.presets(name)[preset] if preset else recipes.recipe_class(name)()
    typed = {
        field.name: context.params[field.name]
        for field in dataclasses.fields(start)
        if context.get_parameter_source(field.name) is ParameterSource.COMMANDLINE
    }
    return dataclasses.replace(start, **typed)


def train(recipe, rounds):
    """Is one of the processes: takes an epoch for each line it reads.

    Prints the images per second of each.
    """
    import keras

    from kgen import training

    # The strategy first: it refuses once TensorFlow has been used.
    strategy = training.make_strategy("auto")
    data = recipe.open_data()
    pipeline, _ = recipe.pipelines(data)
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope():
        model = recipe.make_model(data, pipeline.steps_per_epoch)
    images = pipeline.steps_per_epoch * pipeline.batch_size

    class Turns(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            sys.stdin.readline()
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            print(images / (time.perf_counter() - self.started), flush=True)

    training.fit(
        model, pipeline, epochs=rounds + 1, strategy=strategy, callbacks=[Turns()]
    )


class Side:
    """The processes of one side.

    Args:
        arguments: Of this script.
        configs: TF_CONFIG of each process; None for a single one.
    """

    def __init__(self, arguments, configs):
        common = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", *arguments],
                env=common | ({"TF_CONFIG": json.dumps(config)} if config else {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for config in configs
        ]

    def rate(self):
        """Has an epoch trained; returns the rate of the slowest process."""
        for process in self.processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            raise RuntimeError("a process ended; what it said is above")
        return min(map(float, lines))

    def end(self):
        """Ends all processes."""
        for process in self.processes:
            process.kill()
            process.wait()


def cluster(num_workers):
    """Returns TF_CONFIG of each of so many workers on this machine."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(num_workers)]
    addresses = [f"localhost:{opened.getsockname()[1]}" for opened in sockets]
    for opened in sockets:
        opened.close()
    return [
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        for index in range(num_workers)
    ]


def main():
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--rounds", type=int, default=10, help="pairs (default 10)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("recipe", help="as in kgen fit RECIPE ...")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="... OPTIONS")
    arguments = parser.parse_args()
    recipe = make_recipe([arguments.recipe, *arguments.options])
    if arguments.child:
        train(recipe, arguments.rounds)
        return
    load = os.getloadavg()[0]
    sides = {
        "one process": Side(sys.argv[1:], [None]),
        f"{arguments.workers} workers": Side(sys.argv[1:], cluster(arguments.workers)),
    }
    try:
        for side in sides.values():
            side.rate()  # the first epoch compiles
        pairs = [
            [side.rate() for side in sides.values()] for _ in range(arguments.rounds)
        ]
    finally:
        for side in sides.values():
            side.end()
    print(
        f"images per second, {arguments.rounds} epochs each in turn, batches of "
        f"{recipe.batch_size}:"
    )
    for name, rates in zip(sides, zip(*pairs, strict=True), strict=True):
        print(
            f"{name:<12} median {statistics.median(rates):,.0f} "
            f"({min(rates):,.0f} to {max(rates):,.0f})"
        )
    ratios = [workers / one for one, workers in pairs]
    print(
        f"workers / one: median {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(f"load average at the start: {load:.1f}; a quiet machine has less than 0.5")


if __name__ == "__main__":
    main()
