"""Tasks of a run: the verbs that work, by the signatures in its recipe.json."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import click

from kgen.recipes import read_record

# The signatures that a verb calls; its output is that of the first that a model has.
VERBS = {
    "generate": ("generate", "beam_search", "fill"),
    "recommend": ("recommend",),
}
# Options to try a verb with, by the kind of its output; None: no verb shows this kind.
EXAMPLES = {
    "image": "",
    "items": "--items ID,ID,ID -k 10",
    "latent": None,
    "scores": "--prompt 'text with [MASK]'",
    "state": None,
    "text": "--prompt TEXT --stream",
    "tokens": "--prompt TEXT --stream",
}

Inputs = dict[str, dict[str, Any]]


class Task(NamedTuple):
    """Output and inputs of a verb, for the model of a run.

    Attributes:
        kind: Kind of the output.
        inputs: The inputs of its signatures, as `InputSpec.describe` has them.
    """

    kind: str
    inputs: Inputs


def tasks(run: Path) -> dict[str, Task]:
    """Return the tasks of a run by verb."""
    described = read_record(run)["signatures"]
    found = {}
    for verb, names in VERBS.items():
        called = [described[name] for name in names if name in described]
        kinds = [kind for one in called for kind in one["outputs"].values()]
        if kinds and EXAMPLES[kinds[0]] is not None:
            inputs = {k: spec for one in called for k, spec in one["inputs"].items()}
            found[verb] = Task(kinds[0], inputs)
    return found


def find_task(run: Path, verb: str) -> Task:
    """Return the task of a run for a verb.

    Raises:
        click.UsageError: There is none; the message names a verb that works.
    """
    found = tasks(run)
    if verb not in found:
        others = " or ".join(f"kgen {other} {run}" for other in found or ["export"])
        raise click.UsageError(
            f"The model of {run} has no signature for kgen {verb}. Use: {others}"
        )
    return found[verb]


def check_ranges(inputs: Inputs, given: dict[str, Any]) -> None:
    """Refuse values out of the ranges of described inputs, as click does."""
    call = click.get_current_context()
    for option in call.command.params:
        name = str(option.name)
        if name not in given or name not in inputs:
            continue
        is_float = inputs[name]["dtype"].startswith("float")
        limits = {
            "min": inputs[name].get("low"),
            "max": inputs[name].get("high"),
            "min_open": inputs[name].get("above", False),
        }
        numbers = click.FloatRange(**limits) if is_float else click.IntRange(**limits)
        values = given[name] if isinstance(given[name], tuple) else (given[name],)
        for value in (min(values), max(values)):
            if not math.isfinite(value):
                raise click.BadParameter(f"{value} is not finite.", call, option)
            numbers.convert(value, option, call)
