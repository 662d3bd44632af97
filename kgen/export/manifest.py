"""Checksums of the files of an export, in the format of `sha256sum -c`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kgen.files import write_text

FOLDER_SUMS = "SHA256SUMS"


class ExportError(RuntimeError):
    """A failed export, of which nothing is kept, or one that was changed since."""


def sums_of(path: str | os.PathLike[str]) -> Path:
    """The file of an export's checksums: in a SavedModel's folder, beside an ONNX file.

    `sha256sum -c` checks it in its own folder.
    """
    path = Path(path)
    return path / FOLDER_SUMS if path.is_dir() else Path(f"{path}.sha256")


def write_sums(path: str | os.PathLike[str], beside: tuple[str, ...] = ()) -> None:
    """Writes the SHA-256 of each file of an export.

    Args:
        path: The version's folder of a SavedModel, or an ONNX file.
        beside: Names of files beside an ONNX file that belong to it.
    """
    path, sums = Path(path), sums_of(path)
    files = _files_in(path) if path.is_dir() else [path.name, *beside]
    lines = [f"{_sha256(sums.parent / name)}  {name}\n" for name in files]
    write_text(sums, "".join(lines))


def check_sums(path: str | os.PathLike[str]) -> int:
    """Checks that the files of an export have not changed since it was written.

    Checksums protect against damage, not against an attacker who can change them as
    well. A SavedModel is a program: run only exports that you trust.

    Returns:
        The number of files that were checked.

    Raises:
        ExportError: A file was changed, removed or added, or there are no checksums.
    """
    path, sums = Path(path), sums_of(path)
    if not sums.is_file():
        raise ExportError(
            f"{path} has no checksums: {sums} is missing. Export the run "
            "again: kgen export."
        )
    expected: dict[str, str] = {}
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        number, _, name = line.partition("  ")
        inside = name and not Path(name).is_absolute() and ".." not in Path(name).parts
        if not inside:
            raise ExportError(f"{sums} is damaged. Received: the line {line[:100]!r}.")
        expected[name] = number
    problems = [
        f"{name} is {'changed' if (sums.parent / name).is_file() else 'missing'}"
        for name, number in expected.items()
        if not (sums.parent / name).is_file() or _sha256(sums.parent / name) != number
    ]
    present = _files_in(path) if path.is_dir() else [path.name]
    problems += [f"{name} was added" for name in present if name not in expected]
    if problems:
        raise ExportError(
            f"{path} is not what was exported: {'; '.join(problems)}. Export the run "
            "again: kgen export."
        )
    return len(expected)


def _files_in(folder: Path) -> list[str]:
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in files]
    return [name for name in names if name != FOLDER_SUMS]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
