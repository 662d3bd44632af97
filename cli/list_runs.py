"""`kgen list`: recipes and runs."""

import csv
from datetime import datetime
from pathlib import Path

import click

from kgen.recipes import read_record

from .fit import recipe_lines
from .options import RUNS_FOLDER, aligned, debug_option, runs_in


@click.command("list")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help=f"Where the runs are.  [default: {RUNS_FOLDER}]",
)
@debug_option
def command(folder: Path | None) -> None:
    """List the recipes and the runs."""
    click.echo("Recipes:")
    for line in recipe_lines():
        click.echo(f"  {line}")
    folder = folder or RUNS_FOLDER
    rows = [_describe(run) for run in runs_in(folder)]
    if not rows:
        click.echo(f"No runs in {folder}/. Start one: kgen fit vae")
        return
    click.echo(f"Runs in {folder}/:")
    for line in aligned([("run", "recipe", "data", "epochs", "loss", "date"), *rows]):
        click.echo(f"  {line}")


def _describe(run: Path) -> tuple[str, ...]:
    """Return the table row of a run; a damaged file is named in it."""
    try:
        recipe = read_record(run)
        epochs, loss = _progress(run / "history.csv")
        started = datetime.fromisoformat(recipe["started"]).astimezone()
        options = recipe["options"]
        return (
            run.name,
            recipe["recipe"],
            options["data"],
            f"{epochs} of {options['epochs']}",
            loss,
            f"{started:%Y-%m-%d %H:%M}",
        )
    except (ValueError, KeyError, OSError):
        return run.name, "unreadable recipe.json or history.csv", "", "", "", ""


def _progress(history: Path) -> tuple[str, str]:
    """Return the number of finished epochs and the last validation loss."""
    if not history.is_file():
        return "0", ""
    with history.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return "0", ""
    loss = rows[-1].get("val_loss") or rows[-1].get("loss") or ""
    return str(len(rows)), f"{float(loss):.2f}" if loss else ""
