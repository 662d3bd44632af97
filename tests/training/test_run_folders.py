"""Folders of runs: their one writer, their leftovers, and atomic files."""

import errno
import fcntl
import json
import os
import resource
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import processes
from kgen.files import replacing
from kgen.training import RunFolder
from kgen.training.run_folders import LOCK

RECORD = {"recipe": "vae", "started": "today"}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "vae")


def contents(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != LOCK
    }


def start(folder, record=RECORD, **options):
    with folder.claim(**options):
        folder.start(record)


def write(folder, *names):
    for name in names:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text(name)


# -- whose folder it is -------------------------------------------------------


def test_a_new_folder_is_made_with_its_record(folder):
    start(folder)
    assert json.loads(folder.recipe.read_text()) == RECORD


def test_an_empty_folder_is_taken(folder):
    folder.path.mkdir(parents=True)
    start(folder)
    assert folder.recipe.is_file()


def test_a_claim_in_which_no_run_starts_leaves_nothing(folder, tmp_path):
    with folder.claim():
        pass
    assert list(tmp_path.iterdir()) == []
    folder.path.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), folder.claim():
        raise KeyboardInterrupt
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("other", [RECORD, {**RECORD, "recipe": "gan"}])
def test_a_folder_with_a_run_is_not_touched(folder, other):
    start(folder)
    before = contents(folder.path)
    with pytest.raises(FileExistsError, match="--resume.*--overwrite.*--name"):
        start(folder, other)
    assert contents(folder.path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_other_peoples_files_are_not_touched(folder, resume, overwrite):
    write(folder, "thesis.txt")
    with pytest.raises(FileExistsError, match="not a run's.*--name"):
        start(folder, resume=resume, overwrite=overwrite)
    assert [path.name for path in folder.path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_way_is_named(folder, overwrite):
    folder.path.parent.mkdir()
    folder.path.write_text("a file")
    with pytest.raises(FileExistsError, match="runs/vae is a file.*--name"):
        start(folder, overwrite=overwrite)
    assert folder.path.read_text() == "a file"


# -- one writer ---------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_second_writer_is_refused_while_the_first_lives(folder, options):
    with folder.claim():
        if options:
            folder.start(RECORD)
        before = contents(folder.path)
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(BlockingIOError, match=f"one writer.*{owner}.*--name"):
            start(RunFolder(folder.path), **options)
        assert contents(folder.path) == before
    start(RunFolder(folder.path), overwrite=True)


def hold(path, sender):
    with RunFolder(path).claim():
        RunFolder(path).start(RECORD)
        sender.send("claimed")
        time.sleep(processes.LIMIT_SECONDS)


def test_the_run_of_a_killed_process_is_taken_over(folder):
    receiver, sender = processes.pipe()
    with processes.Process(hold, folder.path, sender) as owner:
        assert receiver.poll(processes.LIMIT_SECONDS), owner.output
        with pytest.raises(BlockingIOError):
            start(folder, resume=True)
        owner.kill()
        assert owner.wait() == -9
    start(folder, overwrite=True)
    assert str(os.getpid()) in (folder.path / LOCK).read_text()


def test_a_lock_that_its_owner_has_just_removed_is_taken_anew(folder, monkeypatch):
    folder.path.mkdir(parents=True)
    flock, taken = fcntl.flock, []

    def slow_flock(file, operation):
        if not taken:  # The owner ends between `open` and `flock`.
            (folder.path / LOCK).unlink()
        taken.append(operation)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", slow_flock)
    with folder.claim():
        assert len(taken) == 2
        with pytest.raises(BlockingIOError):
            start(RunFolder(folder.path))


def test_a_file_system_without_locks_is_reported(folder, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    lines = []
    with folder.claim(report=lines.append):
        folder.start(RECORD)
    assert len(lines) == 1 and "has no locks" in lines[0]


# -- what is left of other runs -----------------------------------------------

LEFT = (
    "model.keras history.csv metrics.json evaluate-unfinished.npz "
    "samples/epoch-0001.png samples/epoch-0002.txt checkpoint/state.npz "
    "tensorboard/events.out.tfevents.1.host.2.3.v2 "
    "1/saved_model.pb 2/saved_model.pb 2/variables/variables.index "
    "vae.onnx vae.encode.onnx vae.onnx.sha256 vae.encode.onnx.sha256 tokenizer.json "
    "models.config batching.config compose.yaml "
    "triton/vae/config.pbtxt triton/vae/1/model.onnx triton/vae_encode/1/model.onnx"
).split()
# A kill leaves files and folders that were being written.
HALF_WRITTEN = (
    ".history.csv.x1y2z3_4.tmp .vae.onnx.0123abcd.tmp .model.tmp.keras "
    ".saved_model.0123abcd.tmp/variables/.variables.index.0123abcd.tmp "
    "samples/.epoch-0003.png.w3_sg3bj.tmp triton/vae/.version.0123abcd.tmp/model.onnx"
).split()
OTHER = (
    "notes.md 1notes/plan.txt 2024/photo.png samples/mine.png other.onnx "
    "triton/other/config.pbtxt triton/other/1/model.onnx .draft.tmp"
).split()


def test_overwrite_removes_all_that_a_run_leaves_and_nothing_else(folder):
    start(folder)
    write(folder, *LEFT, *HALF_WRITTEN, *OTHER)
    start(folder, RECORD | {"recipe": "gan"}, overwrite=True)
    now = contents(folder.path)
    assert json.loads(now.pop("recipe.json"))["recipe"] == "gan"
    assert sorted(now) == sorted(OTHER)
    assert not (folder.path / "checkpoint").exists()


def test_a_kill_while_a_run_is_replaced_does_not_lock_the_folder(folder, monkeypatch):
    start(folder)
    write(folder, *LEFT, *HALF_WRITTEN)
    monkeypatch.setattr(folder, "write_record", lambda record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(folder, overwrite=True)
    assert list(contents(folder.path)) == ["recipe.json"]
    start(RunFolder(folder.path), overwrite=True)


def test_a_kill_before_the_first_record_does_not_lock_the_folder(folder):
    write(folder, LOCK, ".recipe.json.x1y2z3_4.tmp")
    start(folder)
    assert [*contents(folder.path)] == ["recipe.json"]


def test_a_record_that_cannot_be_read_is_replaced_with_all_its_files(folder):
    write(folder, *LEFT, "recipe.json")
    start(folder, overwrite=True)
    assert list(contents(folder.path)) == ["recipe.json"]


def test_a_record_leads_to_no_file_outside_the_folder(folder):
    write(folder, "../other/vae.onnx")
    start(folder, {"recipe": "../other/vae"})
    start(folder, overwrite=True)
    assert (folder.path / "../other/vae.onnx").is_file()


def test_resume_clears_half_written_files_alone(folder):
    start(folder)
    write(folder, *LEFT, *HALF_WRITTEN, *OTHER)
    with folder.claim(resume=True):
        pass
    assert sorted(contents(folder.path)) == sorted([*LEFT, *OTHER, "recipe.json"])


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


def write_on_a_full_disk(file):
    """No file may grow beyond a megabyte: the error of writing two."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with replacing(file) as opened:
            np.savez(opened, values=np.zeros(2**18))
    except OSError as error:
        return error.errno, str(error)


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path):
    file = tmp_path / "state.npz"
    file.write_bytes(b"old")
    # In a process: the limit holds for the output of the tests, too.
    code, message = processes.run(write_on_a_full_disk, file)
    assert code == errno.EFBIG and "state.npz" in message
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
        start(RunFolder(read_only / "vae"))
    with pytest.raises(PermissionError, match="recipe.json"):
        RunFolder(read_only).write_record(RECORD)
    assert contents(read_only) == {"recipe.json": b"{}"}
