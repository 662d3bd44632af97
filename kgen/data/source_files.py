"""Files of a source: in folders and, read in place, in zips; plain or gzipped."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

_ENCRYPTED = 1  # a bit of a member's flags
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADER_SIZE = 30  # of a member, before its name; ends with the sizes of name and extra


class ZipEntry:
    """A file or a folder in a zip archive, with the needed part of `pathlib.Path`.

    Nothing is unpacked to disk. Each read opens the archive anew, so that threads and
    forked processes share neither a position nor a lock, and costs the bytes of one
    member, however many there are. (`zipfile.ZipFile` shares its position, and one for
    each thread would read the whole directory each time.)
    """

    def __init__(self, archive: Path, place: PurePosixPath):
        self.name, self.stem, self.suffix = place.name, place.stem, place.suffix
        self._archive = archive
        self._place = place
        self._member: zipfile.ZipInfo | None = None  # None for a folder
        self._children: dict[str, ZipEntry] = {}

    def __str__(self) -> str:
        return str(self._archive / self._place)

    def is_dir(self) -> bool:
        """Returns whether this is a folder."""
        return self._member is None or bool(self._children)

    def iterdir(self) -> Iterator[ZipEntry]:
        """Yields the files and folders in a folder."""
        return iter(self._children.values())

    def identity(self) -> str:
        """Returns the place, size and checksum of a file, on one line."""
        member = self._member or zipfile.ZipInfo()
        return f"{self._place} {member.file_size} {member.CRC:08x}"

    def open(self, mode: Literal["rb"] = "rb") -> zipfile.ZipExtFile:
        """Opens a file to read it piece by piece.

        Raises:
            zipfile.BadZipFile: The content differs from the packed one; also raised
                while it is read, as are zlib.error and EOFError.
            OSError: The archive cannot be read, or does not exist any more.
        """
        member = self._member or zipfile.ZipInfo()
        file = self._archive.open(mode)
        try:
            file.seek(member.header_offset)
            header = file.read(_HEADER_SIZE)
            file.seek(sum(struct.unpack_from("<HH", header, 26)), os.SEEK_CUR)
        except (OSError, ValueError, OverflowError, struct.error):
            header = b""
        if not header.startswith(b"PK\x03\x04"):
            file.close()
            raise zipfile.BadZipFile("no member where the directory says")
        return zipfile.ZipExtFile(file, "r", member, close_fileobj=True)

    def read_bytes(self) -> bytes:
        """Returns the content of a file.

        Raises:
            ValueError: The content differs from the packed one, or the archive cannot
                be read any more. The message names the file.
        """
        size = self._member.file_size if self._member else 0
        try:
            with self.open() as file:
                return file.read(size + 1)  # never inflates more than is announced
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise ValueError(
                f"Cannot read {self}: the zip is damaged, or not there any more "
                f"({error}). Copy or download it again."
            ) from error


def open_zip(path: Path) -> ZipEntry:
    """Returns the folder that a zip archive would be unpacked to.

    Only the directory of the archive is read. Of files with the same name the last
    counts, as in unpacking. Backslashes separate folders, as in archives of Windows.

    Raises:
        ValueError: The file is no zip archive or not complete, or a member of it is
            encrypted or compressed in another way than by deflate.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise ValueError(
            f"Cannot read {path}: it is no zip archive, or not complete ({error}). "
            "Copy or download it again."
        ) from error
    root = ZipEntry(path, PurePosixPath())
    for member in members:
        name = member.filename.replace("\\", "/").lstrip("/")
        entry = root
        for part in PurePosixPath(name).parts:
            child = ZipEntry(path, entry._place / part)
            entry = entry._children.setdefault(part, child)
        if name.endswith("/"):
            continue
        encrypted = member.flag_bits & _ENCRYPTED
        if encrypted or member.compress_type not in _METHODS:
            raise ValueError(
                "The files of a zip archive must be stored (method 0) or deflated (8), "
                f"and not be encrypted. Received: {entry}, "
                f"{'encrypted' if encrypted else f'method {member.compress_type}'}. "
                "Unpack the archive and pass the folder, or pack it again."
            )
        entry._member = member
    return root


SourceFile = Path | ZipEntry  # or a folder of them


def open_root(path: Path) -> SourceFile:
    """Returns a folder as it is, and a zip as the folder that it unpacks to.

    A single folder in a zip stands for the zip: some programs pack a folder, others its
    content.
    """
    if path.is_dir():
        return path
    root = open_zip(path)
    top = visible(root)
    return top[0] if len(top) == 1 and top[0].is_dir() else root


def visible(folder: SourceFile) -> list[SourceFile]:
    """Returns the content of a folder by name.

    Left out are hidden files, files that systems leave behind, and symbolic links to a
    folder around them.
    """
    children = [
        child
        for child in folder.iterdir()
        if not child.name.startswith(".")
        and child.name.lower() not in _SYSTEM_FILES
        and not _links_around(child)
    ]
    return sorted(children, key=lambda child: child.name)


def files_below(path: SourceFile) -> Iterator[SourceFile]:
    """Yields all visible files at or below a path, by name, folder by folder."""
    if path.is_dir():
        for child in visible(path):
            yield from files_below(child)
    else:
        yield path


def _links_around(child: SourceFile) -> bool:
    if not isinstance(child, Path) or not child.is_symlink():
        return False
    parents = map(os.path.realpath, child.absolute().parents)
    return os.path.realpath(child) in parents


def _is_gzipped(file: SourceFile) -> bool:
    return file.name.lower().endswith(".gz")


@contextmanager
def opened(file: SourceFile) -> Iterator[Any]:
    """Opens a file to read its bytes piece by piece, unpacked if it is gzipped."""
    with file.open("rb") as stream:
        yield gzip.GzipFile(fileobj=stream) if _is_gzipped(file) else stream


def read_unpacked(file: SourceFile) -> bytes:
    """Returns the content of a file, unpacked if it is gzipped.

    Raises:
        ValueError: The file is damaged, or not gzipped. The message names it.
    """
    with damage_named(file):
        content = file.read_bytes()
        return gzip.decompress(content) if _is_gzipped(file) else content


@contextmanager
def damage_named(
    file: SourceFile, error_type: type[Exception] = EOFError
) -> Iterator[None]:
    """Turns an error that damage causes into one that names the file.

    Args:
        file: The file that is read.
        error_type: A further type of error that damage causes.

    Raises:
        ValueError: The file is damaged, or of another kind than its name says.
    """
    try:
        yield
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error, error_type) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the file system, with its reason
        raise ValueError(
            f"Cannot read {file}: it is damaged, or of another kind than its name says "
            f"({str(error).strip()[:400]}). Copy or download it again."
        ) from error
