"""Who may write into a run's folder, and files that are old or new, never half."""

import errno
import json
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest

from kgen.files import replacing
from kgen.training import RunFolder

RECORD = {
    "recipe": "vae",
    "options": {"epochs": 3, "seed": 0, "folder": "a", "name": None},
    "data": {"description": "digits", "fingerprint": "1234"},
    "started": "today",
}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "vae")


def contents(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


# -- claim ------------------------------------------------------------------


def test_a_new_folder_is_made_with_its_record(folder):
    folder.claim(RECORD)
    assert json.loads(folder.recipe.read_text()) == RECORD


def test_an_empty_folder_is_taken(folder):
    folder.path.mkdir(parents=True)
    folder.claim(RECORD)
    assert folder.recipe.is_file()


@pytest.mark.parametrize("other", [RECORD, {**RECORD, "recipe": "gan"}])
def test_a_folder_with_a_run_is_not_touched(folder, other):
    folder.claim(RECORD)
    before = contents(folder.path)
    with pytest.raises(FileExistsError, match="--resume.*--overwrite.*--name"):
        folder.claim(other)
    assert contents(folder.path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_other_peoples_files_are_not_touched(folder, resume, overwrite):
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.txt").write_text("ten years")
    with pytest.raises(FileExistsError, match="not a run's.*--name"):
        folder.claim(RECORD, resume=resume, overwrite=overwrite)
    assert contents(folder.path) == {"thesis.txt": b"ten years"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_way_is_named(folder, overwrite):
    folder.path.parent.mkdir()
    folder.path.write_text("a file")
    with pytest.raises(FileExistsError, match="runs/vae is a file.*--name"):
        folder.claim(RECORD, overwrite=overwrite)
    assert folder.path.read_text() == "a file"


def test_the_same_run_is_resumed_wherever_its_folder_is_now(folder):
    folder.claim(RECORD)
    before = contents(folder.path)
    moved = {**RECORD, "started": "tomorrow"}
    moved["options"] = RECORD["options"] | {
        "folder": "b",
        "name": "c",
        "data_dir": "moved",
        "checkpoint_seconds": 1.0,
    }
    folder.claim(moved, resume=True)
    assert contents(folder.path) == before


def test_resuming_nothing_starts_a_run(folder):
    folder.claim(RECORD, resume=True)
    assert json.loads(folder.recipe.read_text()) == RECORD


def test_resuming_clears_what_a_kill_has_left_half_written(folder):
    folder.claim(RECORD)
    (folder.path / "samples").mkdir()
    half = folder.path / "samples" / ".epoch-0003.png.w3_sg3bj.tmp"
    half.touch()
    folder.claim(RECORD, resume=True)
    assert not half.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": RECORD["options"] | {"seed": 1}}, r"seed=0 \(now 1\)"),
        ({"data": {"description": "digits", "fingerprint": "9"}}, "other data"),
        ({"recipe": "gan"}, r"recipe vae \(now gan\)"),
    ],
)
def test_another_run_is_not_resumed(folder, change, message):
    folder.claim(RECORD)
    before = contents(folder.path)
    with pytest.raises(ValueError, match=message):
        folder.claim(RECORD | change, resume=True)
    assert contents(folder.path) == before


def test_overwrite_removes_what_a_run_leaves_and_nothing_else(folder):
    folder.claim(RECORD)
    left = ("model.keras", "history.csv", "metrics.json", "vae.onnx")
    left += ("samples/epoch-0001.png", "checkpoint/state.npz", "1/saved_model.pb")
    left += ("2/variables/variables.index", "tensorboard/events.out")
    left += (".history.csv.x1y2.tmp", ".vae.onnx.x1y2.tmp")  # it was killed once
    for name in (*left, "notes.md", "1notes/plan.txt"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text(name)
    folder.claim({**RECORD, "started": "again"}, overwrite=True)
    now = contents(folder.path)
    assert json.loads(now.pop("recipe.json"))["started"] == "again"
    assert now == {"notes.md": b"notes.md", "1notes/plan.txt": b"1notes/plan.txt"}


# -- files ------------------------------------------------------------------


def test_a_file_appears_once_it_is_complete(tmp_path):
    file = tmp_path / "model"
    with replacing(file) as opened:
        opened.write(b"new")
        assert not file.exists()
    assert contents(tmp_path) == {"model": b"new"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_the_old_file(tmp_path, error):
    file = tmp_path / "model"
    file.write_bytes(b"old")
    with pytest.raises(error), replacing(file) as opened:
        opened.write(b"half of the new")
        raise error
    assert contents(tmp_path) == {"model": b"old"}


@pytest.fixture
def full_disk():
    """Lets no file grow beyond a megabyte: a write beyond it fails like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, full_disk):
    file = tmp_path / "state.npz"
    file.write_bytes(b"old")
    with pytest.raises(OSError, match="state.npz") as caught, replacing(file) as opened:
        np.savez(opened, values=np.zeros(2**18))  # two megabytes
    assert caught.value.errno == errno.EFBIG
    assert contents(tmp_path) == {"state.npz": b"old"}


@pytest.fixture
def read_only():
    """A folder that this process cannot write into, also if it is root's."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        (path / "recipe.json").write_text("{}")
        path.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # nobody: permissions do not bind root
        yield path
        os.seteuid(user)
        path.chmod(0o755)


def test_an_unwritable_folder_is_named(read_only):
    with pytest.raises(PermissionError, match=f"denied: '{read_only}"):
        RunFolder(read_only / "vae").claim(RECORD)
    with pytest.raises(PermissionError, match="recipe.json"):
        RunFolder(read_only).write_json(read_only / "recipe.json", RECORD)
    assert contents(read_only) == {"recipe.json": b"{}"}
