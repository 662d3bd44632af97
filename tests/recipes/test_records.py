"""Records of runs: which changes a resumed run may have, and which not."""

import dataclasses

import pytest

from kgen import recipes
from kgen.recipes.records import check_resumable, training_options

RECORD = {
    "recipe": "vae",
    "options": {"epochs": 3, "seed": 0, "data": "a", "folder": "a", "name": None},
    "data": {"description": "digits", "fingerprint": "1234"},
    "versions": {"keras": "3.15"},
    "replicas": 2,
}


def test_the_same_run_is_resumed_wherever_its_folder_and_its_data_are_now():
    moved = {"folder": "b", "name": "c", "data_dir": "moved", "data": "b"}
    moved |= {"checkpoint_seconds": 1.0, "sample_epochs": 9, "worker_timeout": 9.0}
    moved |= {"measure": "none", "export": "none"}
    again = RECORD | {"started": "today", "options": RECORD["options"] | moved}
    assert check_resumable(again, RECORD) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": RECORD["options"] | {"seed": 1}}, r"seed=0 \(now 1\)"),
        ({"options": {"seed": 0}}, r"epochs=3 \(now None\)"),
        ({"data": {"description": "digits", "fingerprint": "9"}}, "other data"),
        ({"recipe": "gan"}, r"recipe vae \(now gan\)"),
    ],
)
def test_another_run_is_not_resumed(change, message):
    with pytest.raises(ValueError, match=f"started otherwise: {message}.*--name"):
        check_resumable(RECORD | change, RECORD)


def test_another_version_or_machine_is_reported():
    now = RECORD | {"versions": {"keras": "3.16"}, "replicas": 4}
    assert check_resumable(now, RECORD) == [
        "versions {'keras': '3.15'} then, {'keras': '3.16'} now",
        "replicas 2 then, 4 now",
    ]


def test_workers_must_share_the_options_that_affect_training_alone():
    assert training_options(RECORD) == {"epochs": 3, "seed": 0}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_setting_with_another_default_stays_a_setting(name):
    shared = {field.name: field for field in dataclasses.fields(recipes.Recipe)}
    for field in dataclasses.fields(recipes.recipe_class(name)):
        before = shared.get(field.name, field).metadata
        assert ("is_setting" in field.metadata) == ("is_setting" in before), field.name
