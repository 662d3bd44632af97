"""The folder of a run: its files, its lock, and what may be overwritten."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from kgen.files import write_text

LOCK = ".lock"
# All that a run, `kgen evaluate` and `kgen export` write, besides recipe.json and the
# versions of the SavedModel.
CONTENTS = (
    "model.keras checkpoint/state.npz history.csv metrics.json evaluate-unfinished.npz "
    "samples/epoch-*.png samples/epoch-*.txt tensorboard/events.out.tfevents.* "
    "{recipe}.onnx {recipe}.*.onnx {recipe}.onnx.sha256 {recipe}.*.onnx.sha256 "
    "tokenizer.json models.config batching.config compose.yaml "
    "triton/{recipe}/config.pbtxt triton/{recipe}_*/config.pbtxt "
    "triton/{recipe}/*/model.onnx triton/{recipe}_*/*/model.onnx"
).split()
# Files and folders that a killed process was writing: see `replacing` and `staged`.
UNFINISHED = (".*.????????.tmp", ".model.tmp.keras")


class RunFolder:
    """Names the files of a run, and guards other files and other processes' runs.

    Args:
        path: The folder; made by `claim`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.model = self.path / "model.keras"
        self.checkpoint = self.path / "checkpoint" / "state.npz"
        self.history = self.path / "history.csv"
        self.metrics = self.path / "metrics.json"
        self.samples = self.path / "samples"
        self.tensorboard = self.path / "tensorboard"
        self.unfinished_measures = self.path / "evaluate-unfinished.npz"

    def check_free(self, may_hold_run: bool) -> None:
        """Checks that the folder may be written to.

        Raises:
            FileExistsError: If it holds a run and may not, or other people's files.
        """
        if self.recipe.is_file():
            if not may_hold_run:
                raise FileExistsError(
                    f"{self.path} holds a run already. Go on with it (--resume), "
                    "replace it (--overwrite), or choose another folder (--name)."
                )
        elif self.path.is_dir():
            for path in self.path.iterdir():
                # A process that was killed at once leaves no more than these.
                if path.name != LOCK and not path.match(UNFINISHED[0]):
                    raise FileExistsError(
                        f"{self.path} holds files that are not a run's; nothing was "
                        "written. Choose another folder (--name) or empty this one."
                    )
        elif self.path.exists():
            raise FileExistsError(
                f"{self.path} is a file, and a run needs a folder. Choose another "
                "(--name)."
            )

    @contextlib.contextmanager
    def claim(
        self,
        *,
        resume: bool = False,
        overwrite: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ) -> Iterator[None]:
        """Holds the folder for this process alone, and clears up after killed ones.

        The folder is made if it is missing, and removed again if no run is started in
        it. The lock is the operating system's (flock) on the file .lock, which also
        names its owner: it ends with the process, however that ends, so that a dead
        owner's run can be taken over at once. It holds between machines where their
        shared file system passes locks on, as NFS, CephFS, GPFS and Lustre (mounted
        with `flock`) do; NFSv4 frees the lock of a machine that crashed or lost its
        network when its lease ends, usually after 90 seconds. It holds within one
        machine only where locks are local (NFS mounted with `nolock` or `local_lock`),
        and not at all on a file system without locks, such as a mounted object store,
        which is reported.

        Args:
            resume: Whether the folder may hold a run.
            overwrite: Whether it may hold a run, which `start` will remove.
            report: Called with a line if the file system has no locks.

        Raises:
            FileExistsError: If the folder holds a run, or other people's files.
            BlockingIOError: If another process has claimed it.
            OSError: If the folder cannot be written.
        """
        may_hold_run = resume or overwrite
        self.check_free(may_hold_run)  # before anything is written
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._lock(report):
                self.check_free(may_hold_run)  # Another process may have been faster.
                for pattern in UNFINISHED:
                    for path in [*self.path.rglob(pattern)]:
                        if path.is_dir():
                            shutil.rmtree(path)
                        else:
                            path.unlink(missing_ok=True)  # It was in such a folder.
                yield
        finally:
            for folder in made:
                with contextlib.suppress(OSError):  # A run is in it.
                    folder.rmdir()

    def start(self, record: dict[str, Any]) -> None:
        """Removes the run in the folder, if there is one, and records a new one."""
        # The old record goes last: after a kill, the folder is still that of a run.
        recipe = self._recipe_name()
        for pattern in CONTENTS:
            for path in [*self.path.glob(pattern.format(recipe=recipe))]:
                path.unlink()
                for folder in path.relative_to(self.path).parents[:-1]:
                    with contextlib.suppress(OSError):  # not empty
                        (self.path / folder).rmdir()
        self.remove_versions()
        self.write_record(record)

    def remove_versions(self) -> None:
        """Removes all versions of the SavedModel."""
        for file in [*self.path.glob("*/saved_model.pb")]:
            if file.parent.name.isdigit():
                shutil.rmtree(file.parent)

    def save_model(self, model: Any) -> None:
        """Writes model.keras, all or nothing."""
        temporary = self.path / ".model.tmp.keras"
        try:
            model.save(temporary)
            os.replace(temporary, self.model)
        finally:
            temporary.unlink(missing_ok=True)

    def write_record(self, record: dict[str, Any]) -> None:
        """Writes recipe.json, all or nothing."""
        write_text(self.recipe, json.dumps(record, indent=2) + "\n")

    @contextlib.contextmanager
    def _lock(self, report: Callable[[str], None]) -> Iterator[None]:
        while True:
            file = open(self.path / LOCK, "a+", encoding="utf-8")
            with file:
                self._take(file, report)
                if not os.fstat(file.fileno()).st_nlink:
                    continue  # The owner before has just removed it.
                try:
                    yield
                finally:
                    if not self.recipe.is_file():
                        (self.path / LOCK).unlink(missing_ok=True)
                return

    def _take(self, file: TextIO, report: Callable[[str], None]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            raise BlockingIOError(
                f"A run must have one writer. Received: {self.path}, which {owner} is "
                "writing. Wait until it ends, end it, or choose another folder "
                "(--name)."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            report(
                f"Warning: the file system of {self.path} has no locks: nothing keeps "
                "a second process from writing this run."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()

    def _recipe_name(self) -> str:
        """Returns the recipe in the record; "*", any, if it cannot be read."""
        try:
            name = json.loads(self.recipe.read_text(encoding="utf-8"))["recipe"]
        except (OSError, ValueError, KeyError, TypeError):
            name = None
        # Nothing else may become a part of a pattern of paths.
        return name if isinstance(name, str) and name.isidentifier() else "*"
