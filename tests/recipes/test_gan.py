"""The options of `kgen fit gan`: defaults, and values that are refused."""

import numpy as np
import pytest

from kgen.data import open_images
from kgen.recipes.gan import PRESETS, GANRecipe


@pytest.mark.parametrize("rate", [0.0, -1e-4, float("nan")])
def test_a_discriminator_that_cannot_learn_is_refused(rate):
    with pytest.raises(ValueError, match="`discriminator_learning_rate` must be above"):
        GANRecipe(discriminator_learning_rate=rate)


@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match=r"`adam_beta` must be in \[0, 1\). Received"):
        GANRecipe(adam_beta=beta)


def test_an_infinite_rate_is_refused():
    with pytest.raises(ValueError, match="above 0, and finite. Received: learning_ra"):
        GANRecipe(learning_rate=float("inf"))


def test_each_network_has_its_own_rate():
    recipe = GANRecipe(
        base_channels=4, learning_rate=1e-3, discriminator_learning_rate=4e-3
    )
    model = recipe.make_model(recipe.open_data(), steps_per_epoch=10)
    assert float(model.generator_optimizer.learning_rate) == pytest.approx(1e-3)
    assert float(model.discriminator_optimizer.learning_rate) == pytest.approx(4e-3)


def test_small_data_is_augmented_unless_told_otherwise():
    recipe = GANRecipe(base_channels=4)
    data = open_images(np.zeros([30, 16, 16, 1], np.uint8))
    every = ("color", "translation", "cutout")
    assert recipe.make_model(data, 10).augmentation == every
    assert (
        GANRecipe(base_channels=4, augmentation=()).make_model(data, 10).augmentation
        == ()
    )
    data.splits["train"] = 10_001
    assert recipe.make_model(data, 10).augmentation == ()


def test_tiny_images_get_residual_networks_and_no_augmentation():
    recipe = GANRecipe(base_channels=4)
    tiny = recipe.make_model(recipe.open_data(), 10)  # 8x8
    larger = recipe.make_model(open_images(np.zeros([30, 16, 16, 1], np.uint8)), 10)
    assert (tiny.network, larger.network) == ("residual", "dcgan")
    assert tiny.augmentation == ()
    chosen = GANRecipe(base_channels=4, network="r3gan", augmentation=("cutout",))
    model = chosen.make_model(recipe.open_data(), 10)
    assert (model.network, model.augmentation) == ("r3gan", ("cutout",))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_named_after_themselves(preset):
    assert PRESETS[preset].name == f"gan-{preset.replace('_', '-')}"
