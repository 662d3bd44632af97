"""`kgen evaluate RUN`: measures a trained model."""

import dataclasses
import sys
from pathlib import Path

import click
from click.core import ParameterSource

from .errors import Interrupted
from .options import RunFolder, debug_option
from .startup import load_tensorflow


@click.command("evaluate")
@click.argument("run", type=RunFolder())
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train"]),
    default="test",
    show_default=True,
    help="The part of the data to measure on.",
)
@click.option(
    "--num-samples",
    type=click.IntRange(min=1),
    help="Importance samples for each image's likelihood, of a model that has one; "
    "default: 5000.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Measure on the first images, people or windows of text only, this many.",
)
@click.option("--data", help="Where the data are now, if they have been moved.")
@click.option(
    "--protocols",
    is_flag=True,
    help="Print how the numbers in metrics.json were measured, and measure nothing.",
)
@debug_option
def command(
    run: Path,
    split: str,
    num_samples: int | None,
    limit: int | None,
    data: str | None,
    protocols: bool,
) -> None:
    """Measure RUN on held-out data and write its metrics.json.

    Likelihoods of images can take an hour. If it is interrupted, the same command goes
    on where it was.
    """
    path = run / "metrics.json"
    if protocols:
        _print_protocols(path)
        return
    load_tensorflow()
    import rich.console
    import rich.progress

    import kgen
    from kgen.evaluation import table, write_records
    from kgen.recipes import read_record, recipe_of_run

    # The likelihoods of the images that are done.
    unfinished = run / "evaluate-unfinished.npz"
    recipe = recipe_of_run(run)
    if data is not None:
        recipe = dataclasses.replace(recipe, data=data)
    opened = recipe.open_data()
    if opened.fingerprint != read_record(run)["data"]["fingerprint"]:
        raise click.UsageError(
            f"The data of {run} are not those it was trained on (their fingerprint has "
            "changed), so what is held out of them now may have been trained on. Name "
            "the right ones by --data, or train anew with kgen fit."
        )
    model = kgen.load(run)
    options = {} if num_samples is None else {"num_samples": num_samples}
    if options and not hasattr(model, "log_likelihood"):
        raise click.UsageError(
            f"A {type(model).__name__} has no likelihood. Received: --num-samples "
            f"{num_samples}. Leave it out."
        )
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
                split=split,
                limit=limit,
                progress=lambda done, all: bar.update(task, completed=done, total=all),
                unfinished=unfinished,
                **options,
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

    context = click.get_current_context()
    typed = [
        f"--{name.replace('_', '-')}"
        for name in ("split", "num_samples", "limit", "data")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if typed:
        raise click.UsageError(
            f"--protocols measures nothing, and takes no {', '.join(typed)}."
        )
    if not path.is_file():
        raise click.UsageError(
            f"{path} does not exist yet: run kgen evaluate without --protocols first."
        )
    click.echo(evaluation.protocols(evaluation.read_records(path)))
