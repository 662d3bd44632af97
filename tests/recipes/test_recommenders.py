"""Recipes of recommenders: from ratings to the arguments of the model."""

import dataclasses

import pytest

from kgen import recipes


@pytest.fixture
def films(tmp_path):
    """Twelve users who each rate eight of ten films, in the files of MovieLens 1M."""
    rows = [
        f"{user}::{film}::5::{film}"
        for user in range(12)
        for film in range(10)
        if (film + user) % 10 < 8
    ]
    (tmp_path / "ratings.dat").write_text("\n".join(rows))
    titles = [
        f"{i}::Part {i} ({1990 + i % 2})::{['War', 'Crime'][i % 2]}" for i in range(10)
    ]
    (tmp_path / "movies.dat").write_text("\n".join(titles))
    return tmp_path


def content_recipe(path):
    preset = recipes.presets("multvae")["ml_100k_content"]
    sizes = {"hidden_units": (8,), "latent_dim": 2, "batch_size": 4}
    return dataclasses.replace(preset, data=str(path), **sizes)


def test_a_model_gets_the_features_of_its_items(films):
    recipe = content_recipe(films)
    data = recipe.open_data()
    model = recipe.make_model(data, 3)
    assert model.item_features[0] == ["genre:War", "word:part", "year:1990"]
    assert model.item_features[9] == ["genre:Crime", "word:part", "year:1991"]
    held_out = [*data.candidates("test"), *data.candidates("validation")]
    assert [count > 0 for count in model.item_counts] == [
        item not in held_out for item in range(10)
    ]
    plain = dataclasses.replace(recipe, item_features=False)
    assert plain.make_model(data, 3).item_features is None


def test_features_need_titles(films):
    (films / "movies.dat").unlink()
    recipe = content_recipe(films)
    with pytest.raises(ValueError, match="which has none. MovieLens has them"):
        recipe.make_model(recipe.open_data(), 3)


def test_weights_of_other_items_are_not_taken(films):
    recipe = content_recipe(films)
    data = recipe.open_data()
    recipe = dataclasses.replace(recipe, folder=str(films / "runs"), name="one")
    model = recipe.make_model(data, 3)
    (films / "runs").mkdir()
    model.save(films / "runs" / "one.keras")
    text = (films / "ratings.dat").read_text()
    (films / "ratings.dat").write_text(text.replace("::9::", "::99::"))
    other = dataclasses.replace(recipe, start_from=str(films / "runs" / "one.keras"))
    with pytest.raises(ValueError, match="with the same item_ids"):
        dataclasses.replace(other, name="two", epochs=1).run(report=lambda line: None)


@pytest.mark.parametrize("kl_warmup", [float("nan"), 5.0, -0.1])
def test_a_warm_up_is_a_share_of_the_run(kl_warmup):
    with pytest.raises(ValueError, match="`kl_warmup` must be in"):
        recipes.MultVAERecipe(kl_warmup=kl_warmup)
