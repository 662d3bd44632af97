"""Options, argument types and the command group shared by the verbs."""

import dataclasses
import difflib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

RUNS_FOLDER = Path("saved_models")


@dataclasses.dataclass
class Settings:
    """The command line, and options of the whole command."""

    arguments: list[str] = dataclasses.field(default_factory=list)
    debug: bool = False
    names: list[str] = dataclasses.field(default_factory=list)  # of Python arguments


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Settings).debug = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    # Parsed before the other options, so that their errors show the traceback too.
    is_eager=True,
    callback=_set_debug,
    help="Show the whole traceback of an error.",
)


class SuggestingGroup(click.Group):
    """A command group that suggests the nearest name for an unknown one."""

    def __init__(self, *args: Any, kind: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = kind

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the known names."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            ctx.fail(unknown(self.kind, args[0], known))
        return super().resolve_command(ctx, args)


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """Return the error message for an unknown name."""
    nearest = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"Did you mean {nearest[0]}? " if nearest else ""
    listed = f"Known: {', '.join(known)}." if known else "There are none yet."
    return f"There is no {kind} {name!r}. {hint}{listed}"


class IntegerRanges(click.ParamType):
    """Whole numbers written as `0,1,4-6`, with both ends of a range included."""

    name = "ranges"
    # A typing error (0-6300000000) must not fill the memory.
    limit = 1_000_000

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse the text into numbers, in the order of the text."""
        if isinstance(value, tuple):
            return value
        ranges = [self._range(part, param, ctx) for part in value.split(",")]
        count = sum(len(numbers) for numbers in ranges)
        if count > self.limit:
            self.fail(f"{value!r} are {count} numbers, at most {self.limit}.", param)
        return tuple(number for numbers in ranges for number in numbers)

    def _range(
        self, part: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        found = re.fullmatch(r"\s*([0-9]+)(?:-([0-9]+))?\s*", part)
        if found is None:
            self.fail(
                f"{part!r} is not a whole number nor a range of them. Write them as "
                "0,1,4-6.",
                param,
                ctx,
            )
        start, stop = int(found[1]), int(found[2] or found[1])
        if stop < start:
            self.fail(f"{part!r} runs backwards. Write {stop}-{start}.", param, ctx)
        if stop >= 2**63:
            self.fail(f"{part!r} does not fit in 64 bits.", param, ctx)
        return range(start, stop + 1)


def typed(call: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the options that were typed, and so are no defaults."""
    source = call.get_parameter_source
    return {
        k: v for k, v in options.items() if source(k) is ParameterSource.COMMANDLINE
    }


class RunFolder(click.ParamType):
    """A run: the path of its folder, or its name under saved_models/.

    Args:
        trained: Whether it must hold a model.
    """

    name = "run"

    def __init__(self, *, trained: bool = False) -> None:
        self.trained = trained

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Find the folder, or fail with the existing runs."""
        if isinstance(value, Path):
            return value
        for folder in (Path(value), RUNS_FOLDER / value):
            if is_run(folder):
                if self.trained and not (folder / "model.keras").is_file():
                    self.fail(
                        f"{folder} has no model.keras yet: its training did not "
                        "finish. Continue with kgen fit RECIPE --resume.",
                        param,
                        ctx,
                    )
                return folder
        names = [folder.name for folder in runs_in(RUNS_FOLDER)]
        hint = "" if names else " Train one: kgen fit vae."
        self.fail(
            f"{unknown('run', str(value), names)} A run is a folder that holds a "
            f"recipe.json: a path, or a name under {RUNS_FOLDER}/.{hint}",
            param,
            ctx,
        )


def is_run(folder: Path) -> bool:
    """Whether `kgen fit` wrote this folder."""
    return (folder / "recipe.json").is_file()


def model_config(run: Path) -> dict[str, Any]:
    """Return the constructor arguments of a run's model, without loading TensorFlow."""
    file = run / "model.keras"
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read("config.json"))["config"]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of the runs under `folder`, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if is_run(child))


def name_of_run(folder: Path) -> str:
    """Return the shortest RUN argument for a folder."""
    inside = folder.resolve().parent == RUNS_FOLDER.resolve()
    return folder.name if inside else os.fspath(folder)


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: 1 file, 2 files."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    rows = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
