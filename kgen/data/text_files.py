"""Text files: plain, gzipped, JSON Lines, and folders and zips of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kgen.data.source_files import SourceFile, files_below, open_root, read_unpacked


class Documents(NamedTuple):
    """The documents of a source.

    Attributes:
        name: Name of the data set.
        texts: The documents, none of them empty.
        notes: Remarks on unused content, one phrase each.
    """

    name: str
    texts: list[str]
    notes: tuple[str, ...]


def read_text_files(path: Path, text_key: str) -> Documents:
    """Reads the documents of a file, a folder or a zip; see `open_text`.

    Args:
        path: An existing path.
        text_key: The key of the text in a line of JSON.

    Raises:
        FileNotFoundError: A folder or zip without files.
        ValueError: A damaged file, or a file in another encoding than UTF-8; a line
            without JSON or without text; empty texts alone. The message names the file
            and the line.
    """
    if not path.is_dir() and path.suffix.lower() != ".zip":
        return filled(path.name, _read_file(path, text_key), str(path))
    files = list(files_below(open_root(path)))
    if not files:
        raise FileNotFoundError(f"There is no file in {path}.")
    texts = [text for file in files for text in _read_file(file, text_key)]
    name = path.resolve().name if path.is_dir() else path.stem
    return filled(name, texts, str(path))


def read_text_list(source: Sequence[Any]) -> Documents:
    """Checks documents from Python.

    Raises:
        TypeError: The source is not a list of str.
        ValueError: All documents are empty, or one has a lone surrogate.
    """
    if not isinstance(source, (list, tuple)):
        raise TypeError(
            "`source` must be a name, a path or a list of str. Received: "
            f"{type(source).__name__}"
        )
    for index, text in enumerate(source):
        if not isinstance(text, str):
            raise TypeError(
                "Each document must be a str. Received: "
                f"{type(text).__name__} at {index} of `source`"
            )
        check_unicode(text, f"document {index} of `source`")
    return filled("list", list(source), "`source`")


def filled(
    name: str, texts: list[str], origin: str, notes: tuple[str, ...] = ()
) -> Documents:
    """Returns the documents without the empty ones.

    Raises:
        ValueError: All documents are empty.
    """
    kept = [text for text in texts if text]
    if not kept:
        raise ValueError(
            f"A source must have text. Received: {origin}, which is empty."
        )
    if len(kept) < len(texts):
        notes = (*notes, f"left out, empty documents: {len(texts) - len(kept):,}")
    return Documents(name, kept, notes)


def decode_utf8(content: bytes, origin: str) -> str:
    """Returns the text of bytes, newlines unchanged.

    Raises:
        ValueError: The bytes are no UTF-8, or hold a zero byte, as tar archives and
            UTF-16 do. The message names the byte.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"A text must be in UTF-8. Received: {origin}, with the byte "
            f"0x{content[error.start]:02x} at {error.start} ({error.reason}). Convert "
            "it to UTF-8, or leave it out if it is no text."
        ) from error
    if "\0" in text:
        raise ValueError(
            "A text must be in UTF-8, without zero bytes. Received: "
            f"{origin}, with the byte 0x00 at {content.index(0)}. Convert UTF-16 to "
            "UTF-8, unpack an archive and pass the folder, or leave it out if it is no "
            "text."
        )
    return text


def check_unicode(text: str, origin: str = "the text") -> None:
    """Refuses lone surrogates: characters in Python, but not in UTF-8.

    Raises:
        ValueError: There is one. The message names it and its index.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            "A text must not have lone surrogates, which are no characters. Received: "
            f"{text[error.start]!r} at {error.start} of {origin}. Leave them out."
        ) from error


def _read_file(file: SourceFile, text_key: str) -> list[str]:
    """Returns the documents of a file: the lines of JSON Lines, or the whole file."""
    text = decode_utf8(read_unpacked(file), str(file)).removeprefix("\ufeff")
    if not file.name.lower().endswith((".jsonl", ".jsonl.gz")):
        return [text]
    return [
        _text_of_line(line, text_key, f"{file}, line {number}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def _text_of_line(line: str, text_key: str, origin: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Each line must be an object in JSON. Received: {line[:200]!r} in "
            f"{origin} (of this line: {error})."
        ) from error
    if isinstance(value, dict) and not isinstance(value.get(text_key, ""), str):
        raise ValueError(
            f"The value of the key {text_key!r} must be a text. Received: "
            f"{type(value[text_key]).__name__} in {origin}."
        )
    if not isinstance(value, dict) or text_key not in value:
        keys = ", ".join(value) if isinstance(value, dict) else "no object"
        raise ValueError(
            f"Each line must be an object with a text under the key {text_key!r}. "
            f"Received: {keys or 'no keys'} in {origin}. Name the key with `text_key`."
        )
    check_unicode(value[text_key], origin)
    return value[text_key]
