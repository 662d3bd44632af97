"""`kgen recommend RUN`: items for somebody who likes some."""

import csv
import re
from pathlib import Path

import click

from .options import RunFolder, aligned, debug_option
from .startup import load_tensorflow


@click.command("recommend")
@click.argument("run", type=RunFolder())
@click.option(
    "--items",
    default="",
    help="Ids of the items that the person likes, with commas between them, in quotes "
    "where an id has a comma; without any, the most popular items are recommended.",
)
@click.option(
    "-k",
    "--count",
    type=click.IntRange(min=1),
    help="How many items to recommend; default: 10, or as many as there are.",
)
@click.option(
    "--remove-seen/--no-remove-seen",
    default=True,
    show_default=True,
    help="Whether items that the person likes already are left out.",
)
@debug_option
def command(run: Path, items: str, count: int | None, remove_seen: bool) -> None:
    """Recommend items by RUN to a person who likes --items."""
    load_tensorflow()
    import kgen
    from kgen.recipes import recipe_of_run

    model = kgen.load(run)
    if not hasattr(model, "recommend"):
        raise click.UsageError(
            f"A {type(model).__name__} recommends nothing. Use kgen generate."
        )
    typed = csv.reader([items], skipinitialspace=True)
    history: list[int | str] = [part.strip() for row in typed for part in row]
    history = [item for item in history if item]
    if not model.catalogue.is_text:
        history = [_whole_number(item) for item in history]
    titles = _titles(recipe_of_run(run))
    count = count or min(10, model.catalogue.num_items)
    try:
        best = model.recommend([history], k=count, remove_seen=remove_seen)
    except ValueError as error:
        text = str(error).replace("`histories`", "--items").replace("`k`", "-k")
        raise click.UsageError(text.replace("k=", "-k ")) from error
    if not history:
        click.echo("Without --items: what most people like.")
    found = zip(best.item_ids[0].tolist(), best.scores[0].tolist(), strict=True)
    rows = [
        (str(place), str(item), f"{score:.3f}", titles.get(item, ""))
        for place, (item, score) in enumerate(found, start=1)
        if score > -float("inf")
    ]
    for line in aligned([("", "item", "score", "title"), *rows]):
        click.echo(line)


def _whole_number(text: str | int) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", str(text)):
        raise click.UsageError(
            f"--items must be whole numbers, as the items of this run are. Received: "
            f"{text!r}."
        )
    return int(text)


def _titles(recipe) -> dict[int | str, str]:
    """The titles of the items, where the run's data are still there and have some."""
    try:
        data = recipe.open_data(download=False)
    except (OSError, ValueError) as error:
        click.echo(f"No titles: {error}", err=True)
        return {}
    if data.item_titles is None:
        return {}
    return dict(zip(data.item_ids.tolist(), data.item_titles, strict=True))
