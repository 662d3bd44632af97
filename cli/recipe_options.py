"""Command-line options made from the fields of a recipe's dataclass."""

import dataclasses
import types
import typing
from typing import Any, Literal

import click

from kgen.arguments import Rule, rules_of


def summary(recipe_class: type) -> str:
    """Returns the first line of the docstring: the model and its default data."""
    return (recipe_class.__doc__ or "").strip().split("\n", 1)[0]


def options(recipe_class: type) -> list[click.Option]:
    """Returns one option for each field, in the order of the fields.

    Raises:
        TypeError: If a field has a type that cannot be written on a command line.
    """
    hints = typing.get_type_hints(recipe_class)
    ranges = typing.get_type_hints(recipe_class, include_extras=True)
    fields: tuple[dataclasses.Field, ...] = dataclasses.fields(recipe_class)
    return [
        _option(f, hints[f.name], rules_of(ranges[f.name])) for f in fields if f.init
    ]


def _option(field: dataclasses.Field, hint: Any, rules: list[Rule]) -> click.Option:
    default = field.default
    flag = "--" + field.name.replace("_", "-")
    parts = [field.name, flag]
    ranges = [one.text[3:] for one in rules if one.text.startswith("be ")]
    text = "; ".join([field.metadata["help"].rstrip("."), *ranges])
    choices: dict[str, Any] = {"help": f"{text}.", "default": default}
    if hint is bool:
        parts[1] = f"{flag}/--no-{flag[2:]}"
        return click.Option(parts, show_default=True, **choices)
    if isinstance(default, tuple):
        choices["default"] = ",".join(map(str, default))
    return click.Option(
        parts, type=_parameter_type(field.name, hint), show_default=True, **choices
    )


def _parameter_type(name: str, hint: Any) -> click.ParamType:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # `None` is the value of an option that is not given.
        [hint] = [argument for argument in arguments if argument is not type(None)]
        return _parameter_type(name, hint)
    if origin is Literal:
        return click.Choice(arguments)
    if origin is tuple and arguments[1:] == (...,):
        return CommaSeparated(arguments[0])
    if hint in (int, float, str):
        return click.types.convert_type(hint)
    raise TypeError(
        f"A field of a recipe must be a bool, int, float, str, Literal, a tuple "
        f"of any length, or one of these or None. Received: {name}: {hint}"
    )


class CommaSeparated(click.ParamType):
    """Numbers or words with commas between them: `400,200`."""

    def __init__(self, item: type) -> None:
        self.item = item
        self.name = f"{item.__name__},..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple:
        """Turns the text into a tuple; the empty text is the empty tuple."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.item(part) for part in value.split(",") if value.strip())
        except ValueError:
            self.fail(
                f"{value!r} is not a list of {self.item.__name__} values with commas "
                "between them, such as 400,200.",
                param,
                ctx,
            )
