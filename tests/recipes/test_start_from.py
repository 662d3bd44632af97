"""A recipe that starts with the weights of an earlier run."""

import numpy as np
import pytest

import kgen
from kgen.recipes import VAERecipe
from kgen.recipes.records import with_absolute_paths

STEPS_PER_EPOCH = 11  # 1,439 training rows in batches of 128, the rest dropped


def run(folder, name, **options):
    sizes = {"latent_dim": 4, "hidden_units": (16,), "batch_size": 128, "epochs": 2}
    sizes |= {"prior": "normal", "sample_epochs": 2, "measure": "none"}
    recipe = VAERecipe(export="none", **sizes | options, folder=str(folder), name=name)
    return recipe.run(report=lambda line: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs"), "first")


def test_training_starts_with_the_weights_of_the_run_at_step_0(trained):
    """A learning rate of 1e-20 changes no weight in float32; the step counts anew."""
    options = {"start_from": "first", "learning_rate": 1e-20, "epochs": 1, "seed": 1}
    model, source = (
        kgen.load(run(trained.parent, "second", **options)),
        kgen.load(trained),
    )
    assert int(model.step) == STEPS_PER_EPOCH == int(source.step) / 2
    assert int(model.examples_seen) == int(source.examples_seen) / 2 > 0
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        if ours is not model.step and ours is not model.examples_seen:
            np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)


def test_a_run_of_other_sizes_is_refused_before_anything_is_written(trained):
    with pytest.raises(ValueError, match="`start_from` must be a model with the same"):
        run(trained.parent, "other", start_from="first", latent_dim=5)
    assert not (trained.parent / "other").exists()


def test_a_run_does_not_start_from_itself(trained):
    recipe = VAERecipe(start_from="first", folder=str(trained.parent), name="first")
    before = (trained / "model.keras").read_bytes()
    with pytest.raises(ValueError, match="another run than the one that is written"):
        recipe.run(overwrite=True, report=lambda line: None)
    assert (trained / "model.keras").read_bytes() == before


def test_a_file_that_is_no_model_is_named(trained):
    with pytest.raises(ValueError, match="recipe.json is no .keras file, or a damaged"):
        run(trained.parent, "other", start_from=str(trained / "recipe.json"))


def test_the_record_of_a_run_holds_in_any_folder(trained, monkeypatch):
    """Paths are recorded as absolute ones; the name of a bundled set stays a name."""
    monkeypatch.chdir(trained.parent)
    (trained.parent / "digits").mkdir()
    recipe = VAERecipe(data_dir="first", start_from="first/model.keras")
    located = with_absolute_paths(recipe)
    assert located.data == "digits"
    assert located.data_dir == str(trained)
    assert located.start_from == str(trained / "model.keras")


def test_a_run_that_is_not_there_is_named(trained):
    with pytest.raises(FileNotFoundError, match="Received: frist"):
        run(trained.parent, "other", start_from="frist")
