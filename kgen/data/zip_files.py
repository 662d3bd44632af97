"""Zip archives read in place: their members as files in folders."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Literal

_ENCRYPTED = 1  # a bit of a member's flags
_LEFT_BEHIND = ("thumbs.db", "desktop.ini", "__macosx")  # by systems, not by people
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADER_SIZE = 30  # of a member, before its name; ends with the sizes of name and extra


class ZipEntry:
    """A file or a folder in a zip archive: what a reader needs of a `pathlib.Path`.

    Nothing is unpacked to disk. Each read opens the archive for itself, so that threads
    and forked processes share neither a position nor a lock, and costs the bytes of one
    member, however many there are. (`zipfile.ZipFile` shares its position, and to open
    one for each thread reads the whole directory each time.)
    """

    def __init__(self, archive: Path, place: PurePosixPath):
        self._archive = archive
        self._place = place
        self._member: zipfile.ZipInfo | None = None
        self._children: dict[str, ZipEntry] = {}

    def __str__(self) -> str:
        return str(self._archive / self._place)

    @property
    def name(self) -> str:
        """The last part of the path in the archive."""
        return self._place.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._place.stem

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return self._place.suffix

    def is_dir(self) -> bool:
        """Returns whether this is a folder."""
        return self._member is None or bool(self._children)

    def iterdir(self) -> Iterator[ZipEntry]:
        """Yields what lies in a folder."""
        return iter(self._children.values())

    def identity(self) -> str:
        """Returns the place, size and checksum of a file, on one line."""
        member = self._file()
        return f"{self._place} {member.file_size} {member.CRC:08x}"

    def read_bytes(self) -> bytes:
        """Returns the content of a file.

        Raises:
            ValueError: The content is not what was packed. The message is a reason that
                does not name the file.
            OSError: The archive cannot be read, or is not there any more.
        """
        member = self._file()
        with self._archive.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(_HEADER_SIZE)
            if len(header) < _HEADER_SIZE or not header.startswith(b"PK\x03\x04"):
                raise ValueError(_DAMAGED)
            file.seek(sum(struct.unpack_from("<HH", header, 26)), os.SEEK_CUR)
            content = file.read(member.compress_size)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            try:  # never more than the directory announces, plus one byte to see it
                inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                content = inflate.decompress(content, member.file_size + 1)
            except zlib.error as error:
                raise ValueError(_DAMAGED) from error
        if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
            raise ValueError(_DAMAGED)
        return content

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        """Opens a file to read it piece by piece, however large it is.

        Slower to open than `read_bytes`: it reads the directory of the archive again.

        Raises:
            zipfile.BadZipFile: The content is not what was packed. Raised while it is
                read.
            OSError: The archive cannot be read, or is not there any more.
        """
        member = self._file()
        with zipfile.ZipFile(self._archive) as archive:
            return archive.open(member, mode="r")

    def _file(self) -> zipfile.ZipInfo:
        if self._member is None:
            raise IsADirectoryError(f"{self} is a folder.")
        return self._member

    def _add(self, member: zipfile.ZipInfo) -> None:
        entry = self
        for name in PurePosixPath(member.filename.lstrip("/")).parts:
            if name not in entry._children:
                child = ZipEntry(self._archive, entry._place / name)
                entry._children[name] = child
            entry = entry._children[name]
        if member.filename.endswith("/"):
            return
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(
                "Zip archives must not be encrypted: they are read without a password. "
                f"Received: {entry}. Unpack the archive and pass the folder."
            )
        if member.compress_type not in _METHODS:
            raise ValueError(
                "The files of a zip archive must be stored (method 0) or deflated (8). "
                f"Received: {entry} with method {member.compress_type}. Unpack the "
                "archive and pass the folder, or pack it again."
            )
        entry._member = member


_DAMAGED = "it is not what was packed: the zip is damaged. Copy or download it again."


def open_zip(path: Path) -> ZipEntry:
    """Returns the folder that a zip archive would be unpacked to.

    Only the directory of the archive is read. Of files with the same name the last
    counts, as for all who unpack it.

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
        root._add(member)
    return root


def open_root(path: Path) -> Path | ZipEntry:
    """Returns a folder as it is, and a zip as the folder that it unpacks to.

    A folder that is all there is in a zip stands for it: what packs a folder may put
    the folder itself in, or what is in it.
    """
    if path.is_dir():
        return path
    root = open_zip(path)
    top = visible(root)
    return top[0] if len(top) == 1 and top[0].is_dir() else root


def visible(folder: Path | ZipEntry) -> list[Path | ZipEntry]:
    """Returns what people put into a folder, by name; nothing that systems left."""
    children = [
        child
        for child in folder.iterdir()
        if not child.name.startswith(".") and child.name.lower() not in _LEFT_BEHIND
    ]
    return sorted(children, key=lambda child: child.name)
