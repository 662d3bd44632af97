"""Ranges of recipes' options are those of the models' arguments of the same name."""

import dataclasses
import inspect
import typing

import pytest

from kgen import models
from kgen.arguments import rules_of
from kgen.recipes import RECIPES, recipe_class

# Names that only a model can check.
OF_MODELS = {"augmentation", "prior_weights"}


@pytest.mark.parametrize("name", RECIPES)
def test_options_have_the_ranges_of_the_arguments(name):
    recipe = recipe_class(name)
    constructor = getattr(models, recipe.model_name).__init__
    arguments = typing.get_type_hints(constructor, include_extras=True)
    options = typing.get_type_hints(recipe, include_extras=True)
    shared = inspect.signature(constructor).parameters.keys() & {
        field.name for field in dataclasses.fields(recipe)
    }
    compared = 0
    for option in shared - OF_MODELS:
        if "Literal" in str(options[option]):
            continue  # The command line offers the choices.
        ours, theirs = (
            [rule.text for rule in rules_of(hints[option])]
            for hints in (options, arguments)
        )
        if theirs:
            assert ours == theirs, option
            compared += 1
    assert compared >= 4
