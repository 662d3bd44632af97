"""The options of `kgen fit vae`."""

import csv

import pytest

from kgen.recipes.vae import PRESETS, VAERecipe


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_named_after_themselves(preset):
    assert PRESETS[preset].name == f"vae-{preset.replace('_', '-')}"


@pytest.mark.slow
def test_default_options_train_on_larger_colour_images(test_data, tmp_path):
    recipe = VAERecipe(
        data=str(test_data / "data" / "celeba"),
        image_size=64,
        epochs=2,
        folder=str(tmp_path),
    )
    with open(recipe.run() / "history.csv") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    # In nats of 12,288 channels: 41,500 untrained, and where training goes wrong.
    assert losses[-1] < 0
