"""Arguments of a model's constructor: types that state the range of their values.

A constructor annotates its arguments with them, `latent_dim: PositiveInt = 20`, and
`GenerativeModel.keep_arguments` refuses values out of range.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import keras
import numpy as np


class Rule(NamedTuple):
    """Range of an argument, as metadata of its annotation.

    Attributes:
        text: What the argument must do, such as "be at least 1".
        is_kept: Whether a value is in range. Sequences arrive as tuples, and None,
            which stands for a default, does not arrive.
    """

    text: str
    is_kept: Callable[[Any], bool]


def at_least(low: int) -> Rule:
    """Finite numbers, alone or in a sequence, that are not below `low`."""

    def is_kept(value):
        numbers = np.asarray(value)
        return bool(np.all((low <= numbers) & (numbers < math.inf)))

    return Rule(f"be at least {low}" if low else "be 0 or more, and finite", is_kept)


def one_of(choices: Iterable[str]) -> Rule:
    """One of several words."""
    words = tuple(choices)
    return Rule(f"be one of {words}", lambda value: value in words)


def activation_name(example: str) -> Rule:
    """Name of a Keras activation."""
    return Rule(
        f"name an activation of Keras, such as {example}",
        lambda name: hasattr(keras.activations, name),
    )


PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
PositiveFloat = Annotated[float, Rule("be above 0", lambda value: value > 0)]
Share = Annotated[float, Rule("be in [0, 1)", lambda share: 0 <= share < 1)]
NumClasses = Annotated[int, at_least(2)]
ImageShape = Annotated[
    Sequence[int],
    Rule(
        "be three positive numbers: height, width, channels",
        lambda shape: len(shape) == 3 and min(shape) > 0,
    ),
]


def argument_names(constructor: Callable[..., None]) -> list[str]:
    """Names of the keyword-only arguments of a constructor."""
    parameters = inspect.signature(constructor).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def argument_rules(constructor: Callable[..., None]) -> dict[str, list[Rule]]:
    """Rules in the annotations of the keyword-only arguments, by name."""
    hints = typing.get_type_hints(constructor, include_extras=True)
    return {name: _rules(hints[name]) for name in argument_names(constructor)}


def _rules(hint: Any) -> list[Rule]:
    if isinstance(hint, Rule):
        return [hint]
    return [rule for part in typing.get_args(hint) for rule in _rules(part)]
