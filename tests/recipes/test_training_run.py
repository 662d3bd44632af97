"""The path of a run: its plan, what follows the last epoch, and batches of few rows."""

import dataclasses
import inspect
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import kgen
from kgen import export, models, recipes, training
from kgen.recipes import GANRecipe, VAERecipe, read_record, training_run

SMALL = {"hidden_units": (4,), "latent_dim": 2, "prior": "normal", "epochs": 1}


def small(folder, **options):
    return VAERecipe(folder=str(folder), name="run", **SMALL | options)


def plan(recipe):
    lines = []
    recipe.run(dry_run=True, report=lines.append)
    return "\n".join(lines)


# -- the plan -----------------------------------------------------------------


def test_the_plan_counts_trainable_parameters(tmp_path):
    # 64 pixels to 4 units to mean and log variance of 2 latents, and back:
    # 64 * 4 + 4, 4 * 4 + 4, 2 * 4 + 4, 4 * 64 + 64.
    text = plan(small(tmp_path, likelihood="bernoulli"))
    assert "VAE, 612 trainable parameters" in text
    lines = [line for line in text.splitlines() if not line.startswith("folder")]
    assert all(len(line) <= 80 for line in lines)


def test_the_plan_says_that_a_strategy_excludes_xla(tmp_path):
    for strategy, device in (("none", "one CPU"), ("mirrored", "one CPU, without XLA")):
        text = plan(small(tmp_path, jit_compile=True, strategy=strategy))
        assert f"\ndevice     {device}\n" in text


def test_a_moving_average_is_not_counted(tmp_path):
    plans = [
        plan(GANRecipe(base_channels=4, latent_dim=4, ema_half_life=half_life))
        for half_life in (0, 100)
    ]
    assert plans[0] == plans[1]


# -- batches ------------------------------------------------------------------


@pytest.fixture
def eight_photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(8):
        pixels = np.full((8, 8, 3), 30 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return str(folder)  # six to train on, one for validation, one for test


def test_the_default_batch_size_shrinks_for_few_rows(tmp_path, eight_photographs):
    recipe = small(tmp_path, data=eight_photographs, measure="none", export="none")
    lines = []
    folder = recipe.run(report=lines.append)
    assert "batches of 6 instead of 32, for 6 rows" in "\n".join(lines)
    assert read_record(folder)["options"]["batch_size"] == 6
    recipe.run(resume=True, report=lines.append)
    recipes.recipe_of_run(folder).run(resume=True, report=lines.append)
    assert lines[-1].startswith("The run is finished")


def test_a_chosen_batch_size_is_refused_for_few_rows(tmp_path, eight_photographs):
    recipe = small(tmp_path, data=eight_photographs, batch_size=32)
    with pytest.raises(ValueError, match="batch_size=32 for 6 rows. Try batch_size=6"):
        recipe.run(report=lambda line: None)
    assert not recipe.run_folder.exists()


# -- after the last epoch -----------------------------------------------------


@pytest.fixture
def exports(monkeypatch):
    """Exporters that write an empty file each; returns the list of calls."""
    calls = []

    def to_saved_model(model, folder, metadata):
        calls.append("saved_model")
        versions = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        version = folder / str(max(versions, default=0) + 1)
        version.mkdir()
        (version / "saved_model.pb").touch()

    def to_onnx(model, path, metadata):
        calls.append("onnx")
        path.touch()

    monkeypatch.setattr(export, "to_saved_model", to_saved_model)
    monkeypatch.setattr(export, "to_onnx", to_onnx)
    return calls


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The arguments that `_finish` takes besides the recipe: a run without exports."""
    recipe = small(tmp_path_factory.mktemp("runs"), measure="none", export="none")
    folder = training.RunFolder(recipe.run(report=lambda line: None))
    return kgen.load(folder.path), recipe.open_data(), folder


def finish(trained, **options):
    """Finishes the run once more with these options; returns the lines it prints."""
    model, data, folder = trained
    lines = []
    recipe = dataclasses.replace(recipes.recipe_of_run(folder.path), **options)
    training_run._finish(recipe, model, data, folder, lines.append)
    return lines


def test_the_record_describes_the_signatures(trained):
    described = read_record(trained[-1].path)["signatures"]
    assert described.keys() == {one.name for one in trained[0].signatures()}
    assert described["generate"]["outputs"] == {"images": "image"}
    temperature = described["generate"]["inputs"]["temperature"]
    assert (temperature["low"], temperature["default"]) == (0, 1.0)


@pytest.mark.parametrize("choice", ["none", "saved_model", "onnx", "all"])
def test_formats_are_chosen(trained, exports, choice):
    finish(trained, export=choice, measure="none")
    expected = {"none": [], "all": ["saved_model", "onnx"]}
    assert exports == expected.get(choice, [choice])
    folder = trained[-1]
    assert "finished" in read_record(folder.path)
    assert not folder.metrics.exists()


@pytest.mark.parametrize("runtimes", [(), ("saved_model",)])
def test_a_model_without_signatures_for_a_format_finishes(
    trained, exports, monkeypatch, runtimes
):
    model = trained[0]
    signatures = [
        dataclasses.replace(one, runtimes=runtimes) for one in model.signatures()
    ]
    monkeypatch.setattr(model, "signatures", lambda: signatures)
    lines = finish(trained, export="all", measure="none")
    assert "Not exported: a VAE has no onnx signature." in lines
    assert exports == [*runtimes]


def test_measures_are_chosen(trained, monkeypatch):
    asked, folder = [], trained[-1]

    def evaluate(self, model, data, *, unfinished, **options):
        unfinished.touch()
        asked.append(options)
        return []

    monkeypatch.setattr(VAERecipe, "evaluate", evaluate)
    for measure in ("quick", "full"):
        finish(trained, measure=measure, export="none")
    # `kgen evaluate` leaves out all of these, too.
    assert asked == [training_run.QUICK, {}]
    assert training_run.QUICK["split"] == "validation"
    assert json.loads(folder.metrics.read_text()) == []
    assert not folder.unfinished_measures.exists()


def test_the_headlines_and_a_picture_are_shown_in_80_columns(trained):
    lines = "\n".join(finish(trained, measure="quick", export="none")).splitlines()
    folder = trained[-1]
    assert lines[-1] == f"Samples: {folder.samples / 'epoch-0001.png'}"
    table = lines[1:-1]
    assert max(map(len, table)) <= 80 and len(table) < 15
    written = [one["metric"] for one in json.loads(folder.metrics.read_text())]
    assert {"elbo", "nll[is-100]"} < {*written}
    shown = [name for name in written if any(row.startswith(name) for row in table)]
    assert "nll[is-100]" in shown and "elbo" not in shown


def test_a_run_killed_while_it_exports_is_finished_by_resume(
    tmp_path, exports, monkeypatch
):
    class Killed(BaseException):
        pass

    def killed(*arguments, **options):
        raise Killed

    recipe = small(tmp_path, measure="none")
    lines = []
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(export, "to_onnx", killed)
            recipe.run(resume=True, report=lines.append)
        half = recipe.run_folder / ".saved_model.0123abcd.tmp" / "variables"
        half.mkdir(parents=True)
        assert "finished" not in read_record(recipe.run_folder)
    recipe.run(resume=True, report=lines.append)
    written = sorted(path.name for path in recipe.run_folder.glob("*saved_model*"))
    versions = [path.parent.name for path in recipe.run_folder.glob("*/saved_model.pb")]
    assert (written, versions) == ([], ["1"])
    assert exports == ["saved_model", "saved_model", "saved_model", "onnx"]

    recipe.run(resume=True, report=lines.append)
    assert lines[-1].startswith("The run is finished; there is nothing left to train.")
    assert len(exports) == 4


def test_a_run_without_its_checkpoint_is_trained_and_finished_again(tmp_path, exports):
    recipe = small(tmp_path, measure="none")
    folder = recipe.run(report=lambda line: None)
    (folder / "checkpoint" / "state.npz").unlink()

    finished = {}

    def look(line):
        finished[line.split()[0]] = "finished" in read_record(folder)

    recipe.run(resume=True, report=look)
    assert finished["recipe"] and not finished["epoch"]
    assert len(exports) == 4 and "finished" in read_record(folder)


# -- the model's arguments ----------------------------------------------------

# Arguments that cannot be typed, or that the data give.
# The texts of a recipe are windows: none ends at an end token.
FREE = {"encoder", "decoder", "generator", "discriminator", "vocab_size", "kwargs"}
FREE |= {"end_token"}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_has_an_option_for_each_argument_of_its_model(name):
    recipe_class = recipes.recipe_class(name)
    model_class = getattr(models, recipe_class.model_name)
    given = "".join(
        inspect.getsource(base.model_options)
        for base in recipe_class.__mro__
        if hasattr(base, "model_options")
    )
    fields = recipe_class.__dataclass_fields__.keys()
    for argument in inspect.signature(model_class.__init__).parameters.keys() - FREE:
        known = (
            argument in fields or f"{argument}=" in given or f'"{argument}"' in given
        )
        assert known or argument == "self", argument


# -- devices ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "deterministic", "optimized"),
    [(2, True, False), (2, False, True), (1, True, True)],
)
def test_graphs_of_several_replicas_run_as_written(
    tmp_path, monkeypatch, replicas, deterministic, optimized
):
    seen = []

    def look(*arguments):
        seen.append(tf.config.optimizer.get_experimental_options())

    strategy = types.SimpleNamespace(
        num_replicas_in_sync=replicas, cluster_resolver=None
    )
    monkeypatch.setattr(training, "make_strategy", lambda *_, **__: strategy)
    monkeypatch.setattr(training_run, "_train", look)
    small(tmp_path, deterministic=deterministic).run()
    [options] = seen
    names = ("remapping", "arithmetic_optimization", "constant_folding")
    assert {options.get(name, True) for name in names} == {optimized}
