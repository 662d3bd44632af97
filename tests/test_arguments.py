"""Arguments of constructors: kept under their names, in the ranges of their types."""

import math
from collections.abc import Sequence

import keras
import pytest

from kgen.arguments import ACTIVATIONS, NonNegativeFloat, PositiveInt, Share
from kgen.models import GenerativeModel


class Toy(GenerativeModel):
    def __init__(
        self,
        *,
        sizes: Sequence[PositiveInt] = (1,),
        weight: NonNegativeFloat | None = None,
        dropout: Share = 0.0,
        names: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.upper_names = [name.upper() for name in names]

    @property
    def names(self):
        return [name.lower() for name in self.upper_names]


class Bigger(Toy):
    def __init__(self, *, depth: int, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth


def test_arguments_are_attributes_and_configuration():
    toy = Toy(sizes=[2, 3], weight=0, names=["a"])
    assert (toy.sizes, toy.weight, toy.dropout, toy.names) == ((2, 3), 0, 0.0, ["a"])
    config = toy.get_config()
    assert (config["sizes"], config["weight"], config["names"]) == ((2, 3), 0, ["a"])
    assert Toy.from_config(config).get_config() == config


def test_a_subclass_may_have_arguments_of_its_own():
    bigger = Bigger(depth=5, sizes=[4])
    assert (bigger.depth, bigger.sizes) == (5, (4,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [2, 0]}, r"`sizes` must be at least 1. Received: sizes=\(2, 0\)"),
        ({"weight": -0.1}, "`weight` must be 0 or more, and finite. Received: weight="),
        ({"weight": math.nan}, "Received: weight=nan"),
        ({"weight": math.inf}, "Received: weight=inf"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\). Received: dropout=1.0"),
    ],
)
def test_an_argument_out_of_the_range_of_its_type_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Toy(**arguments)


def test_activations_are_those_of_keras():
    functions = {"deserialize", "get", "serialize"}
    assert ACTIVATIONS == {*vars(keras.activations)} - functions - {
        name for name in vars(keras.activations) if name.startswith("_")
    }
