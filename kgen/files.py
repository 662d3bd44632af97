"""Atomic writes: a file is complete, or the old one, or missing."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for writing that replaces the old one when it is complete.

    It is written to a temporary file and renamed: after a kill, an error or a full disk
    the old file, or none, is there.

    Args:
        path: The file to write, in a folder that exists.

    Yields:
        A binary file, open for writing.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # A failed write does not name its file.
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8, all or nothing; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())
