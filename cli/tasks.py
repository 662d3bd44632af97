"""Tasks: the verbs that work on a run, by the signatures in its recipe.json."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from kgen.recipes import read_record

# The signatures that a verb calls, in the order in which one is looked for.
VERBS = {
    "generate": ("generate", "beam_search", "fill"),
    "recommend": ("recommend",),
}
# Options to try a verb with, by the kind of its output; None: no verb shows this kind.
EXAMPLES = {
    "image": "",
    "items": " --items ID,ID,ID -k 10",
    "latent": None,
    "scores": " --prompt 'text with [MASK]'",
    "state": None,
    "text": " --prompt TEXT --stream",
    "tokens": " --prompt TEXT --stream",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A verb on a run.

    Attributes:
        verb: The verb.
        kind: Kind of the output.
        inputs: The inputs that the signatures take, as `InputSpec.describe` has them.
    """

    verb: str
    kind: str
    inputs: dict[str, dict[str, Any]]

    def example(self, run: str) -> str:
        """Returns a command to try."""
        return f"kgen {self.verb} {run}{EXAMPLES[self.kind]}"


def tasks(run: Path) -> dict[str, Task]:
    """Returns the tasks of a run by verb."""
    described = read_record(run)["signatures"]
    found = {}
    for verb, names in VERBS.items():
        called = [described[name] for name in names if name in described]
        kind = next(iter(called[0]["outputs"].values())) if called else "state"
        if EXAMPLES[kind] is not None:
            inputs = {k: one for each in called for k, one in each["inputs"].items()}
            found[verb] = Task(verb, kind, inputs)
    return found


def find_task(run: Path, verb: str) -> Task:
    """Returns the task of a run that a verb names.

    Raises:
        click.UsageError: It has none; the message names a verb that works.
    """
    found = tasks(run)
    if verb not in found:
        others = [f"kgen {other} {run}" for other in found] or [f"kgen export {run}"]
        raise click.UsageError(
            f"The model of {run} has no signature for kgen {verb}. Use: "
            f"{' or '.join(others)}"
        )
    return found[verb]


def check_ranges(inputs: dict[str, dict[str, Any]], typed: dict[str, Any]) -> None:
    """Refuses typed values out of the ranges of described inputs, as click does."""
    call = click.get_current_context()
    for option in call.command.params:
        if option.name in typed and option.name in inputs:
            given, described = typed[option.name], inputs[option.name]
            is_float = described["dtype"].startswith("float")
            number = (click.FloatRange if is_float else click.IntRange)(
                min=described.get("low"),
                max=described.get("high"),
                min_open=described.get("above", False),
            )
            for value in given if isinstance(given, tuple) else (given,):
                number.convert(value, option, call)
