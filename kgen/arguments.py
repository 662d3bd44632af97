"""Arguments of models and options of recipes: types that state their ranges.

A constructor annotates its arguments with them, and a recipe its fields:
`latent_dim: PositiveInt = 20`. `check` refuses values out of range.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NamedTuple

# Standard library only up here: `kgen fit NAME --help` costs what click costs.

# Those of `keras.activations`, which is not imported for a wrong option.
ACTIVATIONS = set(
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish "
    "hard_tanh leaky_relu linear log_sigmoid log_softmax mish relu relu6 selu sigmoid "
    "silu soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid sparsemax "
    "squareplus swish tanh tanh_shrink threshold".split()
)


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
        values = value if isinstance(value, tuple) else (value,)
        return all(low <= one < math.inf for one in values)

    return Rule(f"be at least {low}" if low else "be 0 or more, and finite", is_kept)


def one_of(choices: Iterable[str]) -> Rule:
    """One of several words."""
    words = tuple(choices)
    return Rule(f"be one of {words}", lambda value: value in words)


def activation_name(example: str) -> Rule:
    """Name of a Keras activation."""
    text = f"name an activation of Keras, such as {example}"
    return Rule(text, lambda name: name in ACTIVATIONS)


PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
PositiveFloat = Annotated[
    float, Rule("be above 0, and finite", lambda value: 0 < value < math.inf)
]
Share = Annotated[float, Rule("be in [0, 1)", lambda share: 0 <= share < 1)]
Fraction = Annotated[float, Rule("be in [0, 1]", lambda share: 0 <= share <= 1)]
ProperFraction = Annotated[
    float, Rule("be above 0 and below 1", lambda share: 0 < share < 1)
]
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


def check(name: str, value: Any, hint: Any) -> None:
    """Refuses a value out of the range that its annotation states; None passes.

    Args:
        name: Name of the argument, for the message.
        value: The value; sequences are tuples.
        hint: The annotation, as `typing.get_type_hints` returns it with its extras.

    Raises:
        ValueError: The value is out of range.
    """
    for rule in rules_of(hint):
        require(value is None or rule.is_kept(value), name, value, rule.text)


def check_fields(instance: Any) -> None:
    """Refuses a dataclass whose fields are out of the ranges of their annotations.

    Raises:
        ValueError: A field is out of its range.
    """
    hints = typing.get_type_hints(type(instance), include_extras=True)
    for field in dataclasses.fields(instance):
        check(field.name, getattr(instance, field.name), hints[field.name])


def require(kept: bool, name: str, value: Any, rule: str, hint: str = "") -> None:
    """Raises a ValueError with the argument's rule and value, unless it is kept.

    Args:
        kept: Whether the value keeps the rule.
        name: Name of the argument.
        value: Its value.
        rule: The rule, such as "be above 0".
        hint: End of the message: the way out.
    """
    if not kept:
        shown = repr(value) if isinstance(value, str) else value
        raise ValueError(f"`{name}` must {rule}. Received: {name}={shown}{hint}")


def check_integer(
    name: str, value: Any, least: int = 1, why: str = "", hint: str = ""
) -> None:
    """Raises a ValueError unless an argument is an integer of at least `least`."""
    kept = isinstance(value, numbers.Integral) and int(value) >= least
    require(kept, name, value, f"be an integer of at least {least}{why}", hint)


def check_seed(seed: Any) -> None:
    """Raises a ValueError unless a seed is an integer in [0, 2**63)."""
    kept = isinstance(seed, numbers.Integral) and 0 <= int(seed) < 2**63
    require(kept, "seed", seed, "be an integer in [0, 2**63)")


def rules_of(hint: Any) -> list[Rule]:
    """The rules in an annotation."""
    if isinstance(hint, Rule):
        return [hint]
    return [rule for part in typing.get_args(hint) for rule in rules_of(part)]
