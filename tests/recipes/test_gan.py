"""The options of `kgen fit gan`: what the recipe makes of them, and what it refuses."""

import numpy as np
import pytest

from kgen.data import open_images
from kgen.recipes.gan import PRESETS, GANRecipe


@pytest.mark.parametrize("rate", [0.0, -1e-4, float("nan")])
def test_a_discriminator_that_cannot_learn_is_refused(rate):
    with pytest.raises(ValueError, match="`discriminator_learning_rate` must be above"):
        GANRecipe(discriminator_learning_rate=rate)


def test_each_network_has_its_own_rate():
    recipe = GANRecipe(width=4, learning_rate=1e-3, discriminator_learning_rate=4e-3)
    model = recipe.make_model(recipe.open_data(), steps_per_epoch=10)
    assert float(model.generator_optimizer.learning_rate) == pytest.approx(1e-3)
    assert float(model.discriminator_optimizer.learning_rate) == pytest.approx(4e-3)


def test_small_data_is_augmented_unless_told_otherwise():
    recipe = GANRecipe(width=4)
    data = recipe.open_data()  # 8x8
    assert recipe.make_model(data, 10).augmentation == ("translation",)
    assert GANRecipe(width=4, augmentation=()).make_model(data, 10).augmentation == ()
    larger = open_images(np.zeros([30, 16, 16, 1], np.uint8))
    every = ("color", "translation", "cutout")
    assert recipe.make_model(larger, 10).augmentation == every
    data.splits["train"] = 10_001
    assert recipe.make_model(data, 10).augmentation == ()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_named_after_themselves(preset):
    assert PRESETS[preset].name == f"gan-{preset.replace('_', '-')}"
