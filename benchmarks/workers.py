"""Training rate of several workers on one machine against one process.

Both sides train the same recipe with the same global batch, and so the same steps, on
the same cores: the difference is the cost of distribution (gradients through the
loopback device, one call per step), without the gain of a second machine. Each side
runs as in `kgen fit`, with its data pipeline but without callbacks and validation; one
process runs `--steps-per-execution` steps per call, workers one.

A round is an epoch (see paired_timing.py); the slowest process of a side counts.

    python benchmarks/workers.py vae
    python benchmarks/workers.py --rounds 20 vae --batch-size 256 --network conv
"""

import argparse
import dataclasses
import json
import os
import socket
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import paired_timing
from click.core import ParameterSource

from kgen import recipes
from kgen_cli.fit import recipe_command


def make_recipe(words):
    """Returns the recipe that `kgen fit` makes from these arguments."""
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
    """Trains in a side's process, one epoch per round."""
    reporter = paired_timing.Reporter()
    import keras

    from kgen import training

    # First, because the strategy cannot be made once TensorFlow has been used.
    strategy = training.make_strategy("auto")
    data = recipe.open_data()
    pipeline, _ = recipe.pipelines(data)
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope():
        model = recipe.make_model(data, pipeline.steps_per_epoch)
    with training.unoptimized_graphs():  # as `kgen fit` trains them
        paired_timing.fit_in_rounds(
            reporter, model, pipeline, rounds, strategy=strategy
        )


def cluster(num_workers):
    """Returns the TF_CONFIG of each worker of a cluster on this machine."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(num_workers)]
    addresses = [f"localhost:{opened.getsockname()[1]}" for opened in sockets]
    for opened in sockets:
        opened.close()
    return [
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        for index in range(num_workers)
    ]


def main():
    """Reads the command line, measures and prints the rates."""
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
    command = [sys.executable, __file__, "--child", *sys.argv[1:]]
    one, several = "one process", f"{arguments.workers} workers"
    configs = map(json.dumps, cluster(arguments.workers))
    environments = {
        one: [{"TF_CONFIG": ""}],
        several: [{"TF_CONFIG": config} for config in configs],
    }
    commands = dict.fromkeys(environments, command)
    paired_timing.compare(
        commands, arguments.rounds, {(several, one): None}, environments
    )


if __name__ == "__main__":
    main()
