"""Temporary folders of exports, beside the place that they take once verified."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"


@contextlib.contextmanager
def staged(parent: Path, name: str) -> Iterator[Path]:
    """Yields a path in a temporary folder of `parent`, to be renamed into place.

    The folder is removed at the end, and so are those of exports that were killed. If
    the block fails, folders that were made for it go, too.

    Args:
        parent: The folder of the export; made if it is missing.
        name: The file or folder that the block makes.
    """
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parent)
    folder = parent / f".export.{uuid.uuid4().hex[:8]}.tmp"
    folder.mkdir()
    try:
        with open(folder / "unlocked", "w") as lock:
            # It gets its name once it is locked: without one, nobody tries it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "unlocked").rename(folder / _LOCK)
            yield folder / name
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(parent / name)  # A write that fails names no file.
        _remove(folder)
        for path in made:
            with contextlib.suppress(OSError):  # Another program's file lies in it.
                path.rmdir()
        raise
    _remove(folder)


def remove_leftovers(parent: Path) -> None:
    """Removes temporary folders of exports that were killed: their locks are free."""
    for lock in parent.glob(f".export.*.tmp/{_LOCK}"):
        with contextlib.suppress(OSError), open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock.parent)


def _remove(folder: Path) -> None:
    """Removes the lock last: a kill in between leaves a folder that can be found."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def rename_to_next_version(temporary: Path, parent: Path) -> Path:
    """Moves a folder to the next number among the versions in `parent`."""
    while True:
        names = [path.name for path in parent.iterdir()]
        version = 1 + max((int(name) for name in names if name.isdigit()), default=0)
        target = parent / str(version)
        try:
            return temporary.rename(target)
        except OSError:
            # Another export may have taken the number in between.
            if not target.exists():
                raise


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
