"""Images per second of worker processes on one machine against those of one process.

Both sides train the same recipe, with the same global batch and so the same steps, on
the same cores: what the second is slower by is the price of working together (the
gradients' way through the loopback, a call for each step), for there is no second
machine to gain from. Each side is as `kgen fit` makes it, its data pipeline included,
without callbacks and validation; one process takes `--steps-per-execution` steps a
call, workers one.

An epoch is a turn (see paired_timing.py); the rate of several processes is the slowest
one's.

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
    """Is one of the processes: takes an epoch for each turn."""
    turn = paired_timing.Turns()
    import keras

    from kgen import training

    # The strategy first: it refuses once TensorFlow has been used.
    strategy = training.make_strategy("auto")
    data = recipe.open_data()
    pipeline, _ = recipe.pipelines(data)
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope():
        model = recipe.make_model(data, pipeline.steps_per_epoch)
    with training.unoptimized_graphs():  # as `kgen fit` trains them
        paired_timing.fit_in_turns(turn, model, pipeline, rounds, strategy=strategy)


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
