"""`kgen evaluate RUN`: metrics of a trained model."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from kgen.recipes import read_record, recipe_of_run

from .errors import Interrupted
from .options import RunFolder, debug_option, typed
from .startup import load_model, load_tensorflow


@click.command("evaluate")
@click.argument("run", type=RunFolder(trained=True))
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train"]),
    help="The part of the data to measure on; default: test.",
)
@click.option(
    "--num-samples",
    type=click.IntRange(min=1),
    help="Importance samples for the likelihood of each image, for models that have "
    "one; default: 5000.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Measure on so many images, users or windows of text only.",
)
@click.option("--data", help="Where the data are now, if they have been moved.")
@click.option(
    "--protocols",
    is_flag=True,
    help="Print how the numbers in metrics.json were measured, and measure nothing.",
)
@debug_option
@click.pass_context
def command(call: click.Context, run: Path, **options: Any) -> None:
    """Measure RUN on held-out data and write its metrics.json.

    Likelihoods of images can take an hour. After an interruption the same command
    resumes.
    """
    path, given = run / "metrics.json", typed(call, options)
    if given.pop("protocols", False):
        if given:
            raise click.UsageError("--protocols measures nothing: leave out the rest.")
        _print_protocols(path)
        return
    given.setdefault("split", "test")
    recipe, record = recipe_of_run(run), read_record(run)
    if "data" in given:
        recipe = dataclasses.replace(recipe, data=given.pop("data"))
    # Models that reconstruct images have a likelihood.
    if "num_samples" in given and "reconstruct" not in record["signatures"]:
        raise click.UsageError(
            f"The model of {run} has no likelihood of images, and takes no "
            "--num-samples."
        )
    if "recommend" in record["signatures"] and given["split"] == "train":
        raise click.UsageError(
            "No items of training users are held out: use --split test or validation."
        )
    load_tensorflow()
    import rich.console
    import rich.progress

    from kgen.evaluation import table, write_records

    unfinished = run / "evaluate-unfinished.npz"  # likelihoods computed so far
    opened = recipe.open_data()
    if opened.fingerprint != record["data"]["fingerprint"]:
        raise click.UsageError(
            f"The data of {run} are not its training data (their fingerprint has "
            "changed), so their test split may hold rows that it was trained on. Name "
            "the right data by --data, or train again with kgen fit."
        )
    model = load_model(run)
    with rich.progress.Progress(
        console=rich.console.Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("rows", total=None)
        try:
            records = recipe.evaluate(
                model,
                opened,
                progress=lambda done, all: bar.update(task, completed=done, total=all),
                unfinished=unfinished,
                **given,
            )
        except KeyboardInterrupt:
            raise Interrupted(
                "Interrupted. The same command goes on where this one stopped."
            ) from None
    write_records(path, records)
    unfinished.unlink(missing_ok=True)
    click.echo(table(records))
    click.echo(f"Written: {path}. How each was measured: --protocols")


def _print_protocols(path: Path) -> None:
    from kgen import evaluation

    if not path.is_file():
        raise click.UsageError(
            f"{path} does not exist yet: run kgen evaluate without --protocols first."
        )
    click.echo(evaluation.protocols(evaluation.read_records(path)))
