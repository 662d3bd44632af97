"""`kgen fit`: options made from a recipe's fields, and their way to its run."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Literal

import click
import pytest

import kgen_cli.fit
from kgen import recipes
from kgen_cli import recipe_options
from kgen_cli.main import run


def field(default, text, **metadata):
    return dataclasses.field(default=default, metadata={"help": text, **metadata})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeUpRecipe:
    """Trains nothing on nothing.

    This second paragraph is the lab record.
    """

    data: str = field("digits", "Where the images come from.")
    data_dir: str | None = field(None, "Where prepared data are.")
    start_from: str | None = field(None, "Where the weights come from.")
    batch_size: int = field(128, "Images in a step, at least 1.")
    beta: float = field(1.0, "Weight of the KL term, at least 0.", is_setting=True)
    widths: tuple[int, ...] = field((400, 200), "Units of each layer.")
    precision: Literal["float32", "mixed_float16"] = field("float32", "Arithmetic.")
    conditional: bool = field(False, "Use the labels.")
    limit: int | None = field(None, "Rows at most.")
    folder: str = field("saved_models", "Folder of the runs.", is_setting=True)
    name: str | None = field(None, "Folder of the run in it.", is_setting=True)

    recipe_name = "made_up"
    strategy = "auto"
    runs = []

    @property
    def run_folder(self):
        return Path(self.folder) / (self.name or "made_up")

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1. Received: {self}")

    def run(self, *, resume, overwrite, dry_run, report):
        report(f"batches of {self.batch_size}")
        if dry_run:
            return None
        self.runs.append((self, resume, overwrite))
        if self.data == "interrupt":
            raise KeyboardInterrupt
        report("epoch 1")
        self.run_folder.mkdir(parents=True, exist_ok=True)
        signatures = {"recommend": {"inputs": {}, "outputs": {"item_ids": "items"}}}
        record = {"recipe": "made_up", "options": {}, "signatures": signatures}
        (self.run_folder / "recipe.json").write_text(json.dumps(record))
        return self.run_folder


@pytest.fixture(autouse=True)
def made_up_recipe(tmp_path, monkeypatch):
    """Puts the recipe above into the table, and keeps TensorFlow out."""
    module = types.ModuleType("kgen.recipes.made_up")
    module.MadeUpRecipe = MadeUpRecipe
    module.PRESETS = {"wide": MadeUpRecipe(widths=(1000,), batch_size=64)}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(recipes.RECIPES, "made_up", "kgen.recipes.made_up:MadeUpRecipe")
    monkeypatch.setattr(kgen_cli.fit, "load_tensorflow", lambda: None)
    monkeypatch.chdir(tmp_path)
    MadeUpRecipe.runs.clear()


def fit(*arguments: str) -> int:
    return run(["fit", "made_up", *arguments])


def test_without_a_recipe_the_recipes_are_listed(capsys):
    assert run(["fit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split(maxsplit=1) == ["made_up", "Trains nothing on nothing."]


def test_help_shows_every_field_with_its_default(capsys):
    assert fit("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Images in a step, at least 1. [default: 128]" in text
    assert "Units of each layer. [default: 400,200]" in text
    assert "--precision [float32|mixed_float16]" in text
    assert "--conditional / --no-conditional" in text
    assert "--limit INTEGER Rows at most. --folder" in text
    assert "wide" in text


def test_defaults_are_those_of_the_dataclass(capsys):
    assert fit() == 0
    assert MadeUpRecipe.runs == [(MadeUpRecipe(), False, False)]


def test_options_reach_the_fields_with_their_types():
    assert (
        fit(
            *("--batch-size", "7", "--beta", "0.5", "--widths", "8,4"),
            *("--precision", "mixed_float16", "--conditional"),
            *("--limit", "3", "--folder", "here", "--resume"),
        )
        == 0
    )
    expected = MadeUpRecipe(
        batch_size=7,
        beta=0.5,
        widths=(8, 4),
        precision="mixed_float16",
        conditional=True,
        limit=3,
        folder="here",
    )
    assert MadeUpRecipe.runs == [(expected, True, False)]


def test_an_option_wins_over_the_preset_and_the_preset_over_the_default():
    assert fit("--preset", "wide", "--batch-size", "128") == 0
    [(recipe, _, _)] = MadeUpRecipe.runs
    assert recipe == MadeUpRecipe(widths=(1000,), batch_size=128)


def test_resume_takes_the_options_of_the_run_but_for_those_typed_again(tmp_path):
    """It was started with a preset, which nobody has to remember."""
    folder = tmp_path / "saved_models" / "made_up"
    folder.mkdir(parents=True)
    options = dataclasses.asdict(MadeUpRecipe(widths=(1000,), batch_size=64, beta=3.0))
    record = {"recipe": "made_up", "options": options, "signatures": {}}
    (folder / "recipe.json").write_text(json.dumps(record))
    assert fit("--resume", "--beta", "2") == 0
    [(recipe, resume, _)] = MadeUpRecipe.runs
    assert (recipe.widths, recipe.batch_size, recipe.beta) == ((1000,), 64, 2.0)
    assert resume and recipe.run_folder == Path("saved_models/made_up")


def test_a_run_of_other_options_is_not_resumed_before_tensorflow_is_loaded(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "saved_models" / "made_up"
    folder.mkdir(parents=True)
    options = dataclasses.asdict(MadeUpRecipe(widths=(1000,)))
    record = {"recipe": "made_up", "options": options, "signatures": {}}
    (folder / "recipe.json").write_text(json.dumps(record))
    monkeypatch.setattr(kgen_cli.fit, "load_tensorflow", lambda: 1 / 0)
    assert fit("--resume", "--batch-size", "32") == 2
    message = "started otherwise: batch_size=128 (now 32)"
    assert message in capsys.readouterr().err.replace("--batch-size ", "batch_size=")


def test_the_next_commands_come_last(capsys):
    assert fit() == 0
    assert capsys.readouterr().out.splitlines() == [
        "batches of 128",
        "epoch 1",
        "The run is in saved_models/made_up. What to type next:",
        "  kgen recommend made_up --items ID,ID,ID -k 10",
        "  kgen evaluate made_up",
        "  tensorboard --logdir saved_models/made_up",
    ]


def test_a_dry_run_prints_the_plan_and_trains_nothing(capsys):
    assert fit("--dry-run") == 0
    assert capsys.readouterr().out == "batches of 128\n"
    assert MadeUpRecipe.runs == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1."),
        (["--batch-size", "many"], "not a valid integer"),
        (["--widths", "8,wide"], "such as 400,200"),
        (["--precision", "float3"], "float32"),
        (["--preset", "wied"], "There is no preset 'wied'. Did you mean wide?"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_wrong_usage_trains_nothing(arguments, message, capsys):
    assert fit(*arguments) == 2
    assert message in capsys.readouterr().err
    assert MadeUpRecipe.runs == []


def test_a_folder_that_holds_a_run_is_refused_before_tensorflow_is_loaded(
    monkeypatch, capsys
):
    folder = Path("saved_models/made_up")
    folder.mkdir(parents=True)
    options = dataclasses.asdict(MadeUpRecipe())
    record = {"recipe": "made_up", "options": options, "signatures": {}}
    (folder / "recipe.json").write_text(json.dumps(record))
    with monkeypatch.context() as patch:
        patch.setattr(kgen_cli.fit, "load_tensorflow", lambda: 1 / 0)
        assert fit() == 1
    assert "holds a run already. Go on with it (--resume)" in capsys.readouterr().err
    assert fit("--resume") == fit("--overwrite") == fit("--dry-run") == 0
    # A worker comes after the chief has written its record.
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert fit() == 0


def test_an_unknown_recipe_gets_a_suggestion(capsys):
    assert run(["fit", "madeup"]) == 2
    assert "no recipe 'madeup'. Did you mean made_up?" in capsys.readouterr().err


def test_ctrl_c_prints_the_command_that_goes_on(capsys):
    assert fit("--data", "interrupt", "--beta", "2", "--overwrite") == 130
    assert capsys.readouterr().err == (
        "Interrupted. To go on: kgen fit made_up --data interrupt --beta 2 --resume\n"
    )


def test_a_field_that_cannot_be_typed_is_an_error():
    recipe = dataclasses.make_dataclass("Odd", [("table", dict, field(None, "What."))])
    with pytest.raises(TypeError, match="Received: table"):
        recipe_options.options(recipe)


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_recipe_explains_itself(name):
    recipe_class = recipes.recipe_class(name)
    assert len(recipe_options.summary(recipe_class)) > 20
    for option in recipe_options.options(recipe_class):
        assert isinstance(option, click.Option)
        assert option.help and option.help.endswith(".")
    for preset in recipes.presets(name).values():
        assert isinstance(preset, recipe_class)
