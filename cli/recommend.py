"""`kgen recommend RUN`: items for a user, from the ids of items that the user likes."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import click

from kgen.recipes import read_record

from .options import RunFolder, aligned, debug_option, model_config
from .runtimes import find_session, runtime_option
from .startup import load_model
from .tasks import check_ranges, find_task

MOST_EXPORTED = 100  # items that an export recommends


@click.command("recommend")
@click.argument("run", type=RunFolder(trained=True))
@click.option(
    "--items",
    default="",
    help="Ids of items that the user likes, separated by commas, in quotes where an id "
    "has a comma; default: none, and the most popular items are recommended.",
)
@click.option(
    "-k",
    "--count",
    type=int,
    help="Items to recommend; default: 10, or as many as there are.",
)
@click.option(
    "--remove-seen/--no-remove-seen",
    default=True,
    show_default=True,
    help="Whether the items of --items are left out.",
)
@runtime_option
@debug_option
def command(
    run: Path, items: str, count: int | None, remove_seen: bool, runtime: str
) -> None:
    """Recommend items by RUN to a user who likes --items."""
    find_task(run, "recommend")
    known = model_config(run)["item_ids"]
    history = _history(items, known)
    count = min(10, len(known)) if count is None else count
    limits = {"dtype": "int32", "low": 1, "high": len(known)}
    check_ranges({"count": limits}, {"count": count})
    titles = read_record(run).get("item_titles") or {}
    best = _recommended(run, history, count, remove_seen, runtime)
    if not history:
        click.echo("Without --items: the most popular.")
    rows = [
        (str(rank), str(item), f"{score:.3f}", titles.get(str(item), ""))
        for rank, (item, score) in enumerate(best, start=1)
        if score > -float("inf")
    ]
    for line in aligned([("", "item", "score", "title"), *rows]):
        click.echo(line)


def _history(text: str, known: list[Any]) -> list[int | str]:
    """Return the typed ids, each an item of the model."""
    rows = csv.reader([text], skipinitialspace=True)
    typed = [part.strip() for row in rows for part in row if part.strip()]
    history: list[int | str] = [*typed]
    if not isinstance(known[0], str):
        for item in typed:
            if not re.fullmatch(r"[+-]?[0-9]+", item):
                raise click.UsageError(
                    "--items must be whole numbers, as the items of this run are. "
                    f"Received: {item!r}."
                )
        history = [int(item) for item in typed]
    ids = {*known}
    unknown = [item for item in history if item not in ids]
    if unknown:
        raise click.UsageError(
            f"--items must hold items that the model was trained on, {len(known):,} of "
            f"them. Received: {', '.join(map(str, unknown))}."
        )
    return history


def _recommended(run, history, count, remove_seen, runtime):
    """Return the best items and their scores, by the run's ONNX file or by Keras."""
    # Where an option has its default, the file leaves it out.
    given = {} if remove_seen else {"remove_seen": [remove_seen]}
    few = count <= MOST_EXPORTED
    session = find_session(run, runtime, {"items", *given}, suffices=few)
    if session is None:
        best = load_model(run).recommend([history], k=count, remove_seen=remove_seen)
        return zip(best.item_ids[0].tolist(), best.scores[0].tolist(), strict=True)
    ids = json.loads(session.metadata["item_ids"])
    positions = {item: position for position, item in enumerate(ids)}
    found = session(items=[[positions[item] for item in history]], **given)
    ranked = zip(found["recommended"][0], found["scores"][0].tolist(), strict=True)
    return [(ids[position], score) for position, score in ranked][:count]
