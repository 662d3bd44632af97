"""Files of ratings: MovieLens as published, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, open_csv

from kgen.data.item_titles import read_titles
from kgen.data.rating_columns import (
    ALL_COLUMNS,
    ROLES,
    RatingColumns,
    RatingTable,
    Wanted,
)
from kgen.data.source_files import SourceFile, damage_named, open_root, opened, visible

_RATINGS_NAME = re.compile(r"u\.data|ratings\.(dat|csv|tsv|parquet)(\.gz)?")
_TABLE_NAME = re.compile(r".+\.(csv|tsv|parquet|(csv|tsv)\.gz)")
_SEPARATORS = ("::", "\t", ";", ",", "|")
_BLOCK_BYTES = 2**23  # parsed at a time: a fifth of a million lines
_ROWS_PER_READ = 2**18
_HEAD_BYTES = 2**16
_SAMPLE_LINES = 1000  # that the separator and the header are found by


def read_rating_files(path: Path, wanted: Wanted = ALL_COLUMNS) -> RatingTable:
    """Reads the ratings of a folder, a zip or a file; see `open_ratings`.

    Args:
        path: An existing path.
        wanted: The columns to read.

    Raises:
        FileNotFoundError: A folder or zip without a table of ratings.
        ValueError: Two tables in one folder; a damaged file, or a file of an unknown
            format; a broken line. The message names the file and the line.
    """
    if path.is_dir() or path.suffix.lower() == ".zip":
        folder = open_root(path)
        file = _find_table(folder, path)
        name = path.resolve().name if path.is_dir() else path.stem
        titles = read_titles(_files_of(folder))
    else:
        file = path
        name = path.name
        # A table with a name of MovieLens has its titles in the same folder.
        beside = _RATINGS_NAME.fullmatch(path.name.lower())
        titles = read_titles(_files_of(path.parent)) if beside else None
    is_parquet = file.name.lower().endswith(".parquet")
    columns = RatingColumns(str(file), "row" if is_parquet else "line")
    read = _read_parquet if is_parquet else _read_lines
    with damage_named(file, pa.ArrowInvalid):
        unread = read(file, columns, wanted)
    notes = (f"not read: the columns {', '.join(unread)}",) if unread else ()
    return columns.table(name, titles, notes)


def _files_of(folder: SourceFile) -> dict[str, SourceFile]:
    return {file.name.lower(): file for file in visible(folder) if not file.is_dir()}


def _find_table(folder: SourceFile, path: Path) -> SourceFile:
    """Returns the table of ratings in a folder.

    It is called u.data or ratings.*, or is the only CSV, TSV or Parquet file.
    """
    files = _files_of(folder)
    for pattern in (_RATINGS_NAME, _TABLE_NAME):
        found = [files[name] for name in files if pattern.fullmatch(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                "A folder of ratings must have one table of them, called u.data, "
                "ratings.dat, ratings.csv or ratings.parquet. Received: "
                f"{', '.join(file.name for file in found)} in {path}. Pass the path of "
                "the file, or leave one in the folder."
            )
    raise FileNotFoundError(
        f"There is no table of ratings in {path}: no u.data, ratings.dat, ratings.csv "
        "or ratings.parquet, and no other CSV, TSV or Parquet file."
    )


class _Layout(NamedTuple):
    """The format of the lines of a table.

    Attributes:
        separator: One of `_SEPARATORS`.
        num_columns: Number of values in a line.
        roles: Role -> index of its column, for the columns to read.
        unread: Names of the columns without a role.
        header_lines: Lines to skip.
    """

    separator: str
    num_columns: int
    roles: dict[str, int]
    unread: list[str]
    header_lines: int


def _read_lines(file: SourceFile, columns: RatingColumns, wanted: Wanted) -> list[str]:
    """Reads a table of lines; returns the names of the columns without a role."""
    with opened(file) as stream:
        layout = _find_layout(stream.read(_HEAD_BYTES), str(file), wanted)
    if layout is None:
        return []  # there are no rows, which is refused at the end
    # The parser sees a separator of two characters as an empty column between two.
    separator, roles = layout.separator, layout.roles.items()
    step = len(separator)
    width = (layout.num_columns - 1) * step + 1
    broken: list[Any] = []

    def refuse(row: Any) -> str:
        broken.append(row)
        return "error"

    names = [str(index) for index in range(width)]
    skip = layout.header_lines
    # With threads the lines are not numbered. Empty lines count.
    read_options = ReadOptions(
        use_threads=False, block_size=_BLOCK_BYTES, column_names=names, skip_rows=skip
    )
    parse_options = ParseOptions(
        delimiter=separator[0], ignore_empty_lines=False, invalid_row_handler=refuse
    )
    convert_options = ConvertOptions(column_types=dict.fromkeys(names, pa.binary()))
    first = skip + 1
    try:
        with (
            opened(file) as stream,
            open_csv(stream, read_options, parse_options, convert_options) as batches,
        ):
            for batch in batches:
                used = {role: batch.column(index * step) for role, index in roles}
                _check_lines(batch, layout, columns, first)
                columns.add(used, first)
                first += batch.num_rows
    except pa.ArrowInvalid:
        if not broken:
            raise
        row = broken[0]
        columns.refuse(
            _line_number(file, row),
            f"Each line must have {layout.num_columns} values, separated by "
            f"{separator!r}, as the first line has.",
            f"{row.text!r:.200}",
        )
    return layout.unread


def _line_number(file: SourceFile, row: Any) -> int:
    """Returns the line of a broken row.

    It is the number of the row, unless a value before it, in quotes, has line breaks.
    """
    beginning = row.text.split("\n")[0].rstrip("\r").encode()
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            if number >= row.number and line.rstrip(b"\r\n") == beginning:
                return number
    return row.number


def _check_lines(
    batch: Any, layout: _Layout, columns: RatingColumns, first: int
) -> None:
    """Refuses quoted line breaks, and text between two characters of a separator.

    A quotation mark without its partner swallows the lines up to the next one, and
    the lines after it would have wrong numbers.
    """
    for index, column in enumerate(batch.columns):
        wrong = "." if index % len(layout.separator) else "\n"
        found = pyarrow.compute.match_substring_regex(column, wrong)
        if pyarrow.compute.any(found).as_py():
            row = int(np.argmax(found.to_numpy(zero_copy_only=False)))
            columns.refuse(
                first + row,
                f"Each value must be on one line, and between {layout.separator!r}.",
                f"{column[row].as_py().decode(errors='replace')!r:.200}",
            )


def _find_layout(head: bytes, origin: str, wanted: Wanted) -> _Layout | None:
    """Finds the separator, and the role of each column; None without a row.

    The first line is a header if it names a user and an item, or if names are given;
    then the columns are found by their names. Otherwise it is a row, and the columns
    are user, item, rating and time, of which there may be two, three or four.
    """
    if b"\0" in head:
        raise ValueError(
            "A table must be text (CSV, TSV, MovieLens) in UTF-8, or Parquet with a "
            f"name that ends in .parquet. Received: {origin}, which is neither."
        )
    lines = [line.decode("utf-8-sig", "replace") for line in head.splitlines()]
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if not filled:
        return None
    first, place = lines[filled[0]], f"{origin}, line {filled[0] + 1}"
    sample = [lines[number] for number in filled[:_SAMPLE_LINES]]
    separator, (values, *below) = _find_separator(sample, wanted)
    if len(values) < 2 or first.lstrip().startswith(("{", "[")):
        raise ValueError(
            "The values of a line must be separated by a comma, a tab, ';', '|' or "
            f"'::'. Received: {first[:200]!r} in {place}."
        )
    known = wanted.known(values)
    if wanted.names or {"user", "item"} <= set(known):
        roles = wanted.find(values, place)
        if not below:
            return None
        unread = [name for i, name in enumerate(values) if i not in known.values()]
        return _Layout(separator, len(values), roles, unread, filled[0] + 1)
    rows = [row for row in below if len(row) == len(values)]
    numeric = any(all(map(_is_number, column)) for column in zip(*rows, strict=True))
    like_a_row = any(row[0] == values[0] or row[1] == values[1] for row in rows)
    like_a_row = like_a_row or re.search(r"\d", first) is not None
    if not any(map(_is_number, values)) and (known or numeric or not like_a_row):
        raise ValueError(
            f"A header must name the columns {wanted.describe()}. Received: "
            f"{first[:200]!r} in {place}, which looks like a header. Pass its names as "
            "`columns`, those of user, item, rating and time; or, if it is a row, put "
            "a header before it."
        )
    if not 2 <= len(values) <= len(ROLES):
        raise ValueError(
            "Without a header there must be two to four columns: user, item, rating "
            f"and time. Received: {len(values)} in {place}. Put a first line with the "
            "names of the columns before it."
        )
    roles = {role: i for i, role in enumerate(ROLES[: len(values)])}
    roles = {role: i for role, i in roles.items() if role in wanted.roles}
    return _Layout(separator, len(values), roles, [], 0)


def _find_separator(lines: list[str], wanted: Wanted) -> tuple[str, list[list[str]]]:
    """Returns the separator, and the values of the lines.

    It is the separator by which the first line is a header; or else by which the most
    lines have as many values as the first, at least two; or else by which there are the
    most numbers.
    """

    def evidence(rows: list[list[str]]) -> tuple[bool, int, int]:
        alike = [row for row in rows if len(row) == len(rows[0]) > 1]
        header = {"user", "item"} <= set(wanted.known(rows[0]))
        return header, len(alike), sum(map(_is_number, itertools.chain(*alike)))

    found = {sign: [_split(line, sign) for line in lines] for sign in _SEPARATORS}
    best = max(found, key=lambda sign: evidence(found[sign]))
    return best, found[best]


def _split(line: str, separator: str) -> list[str]:
    values = [v.strip() for v in next(csv.reader([line], delimiter=separator[0]))]
    if len(separator) == 1:
        return values
    is_double = len(values) % 2 and not any(values[1::2])
    return values[::2] if is_double else [line]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(
    file: SourceFile, columns: RatingColumns, wanted: Wanted
) -> list[str]:
    """Reads a Parquet file; returns the names of the columns without a role."""
    source = file if isinstance(file, Path) else io.BytesIO(file.read_bytes())
    with pyarrow.parquet.ParquetFile(source) as table:
        names = table.schema_arrow.names
        found = wanted.find(names, str(file))
        used = {role: names[index] for role, index in found.items()}
        first = 1
        for batch in table.iter_batches(_ROWS_PER_READ, columns=[*used.values()]):
            columns.add({role: batch.column(used[role]) for role in used}, first)
            first += batch.num_rows
    used_columns = wanted.known(names).values()
    return [name for index, name in enumerate(names) if index not in used_columns]


def read_rating_arrays(source: Any, wanted: Wanted = ALL_COLUMNS) -> RatingTable:
    """Reads ratings from Python.

    Args:
        source: A tuple (users, items[, ratings[, times]]); or a dict or a data frame
            with names as in a file.
        wanted: The columns to read.

    Raises:
        ValueError: Arrays of different lengths or more than one dimension, unknown
            names, a missing id, a rating that is not a number.
    """
    if hasattr(source, "keys"):
        names = list(source.keys())
        roles = wanted.find([str(name) for name in names], "`source`")
        found = {role: source[names[index]] for role, index in roles.items()}
    else:
        if not isinstance(source, (tuple, list)) or not 2 <= len(source) <= len(ROLES):
            raise TypeError(
                "`source` must be a name, a path, a tuple (users, items[, ratings[, "
                "times]]) of arrays, or a dict of them. Received: "
                f"{type(source).__name__}"
            )
        if wanted.names:
            raise ValueError(
                "`columns` names the columns of a file, a dict or a data frame. "
                f"Received: columns={wanted.names} and a tuple of arrays."
            )
        found = dict(zip(ROLES, source, strict=False))
    found = {role: found[role] for role in wanted.roles if role in found}
    arrays = {role: np.asarray(v) for role, v in found.items() if v is not None}
    shapes = {role: array.shape for role, array in arrays.items()}
    if len(set(shapes.values())) != 1 or len(shapes["user"]) != 1:
        raise ValueError(
            "The columns must be one-dimensional and of one length. Received: shapes "
            f"{', '.join(f'{shape} ({role})' for role, shape in shapes.items())}"
        )
    columns = RatingColumns("`source`", "row")
    columns.add({role: _as_arrow(role, array) for role, array in arrays.items()}, 1)
    return columns.table("array", None, ())


def _as_arrow(role: str, array: np.ndarray) -> Any:
    try:
        return pa.array(array, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"The {role} column must hold values of one kind, numbers or text. "
            f"Received: {array.dtype} ({error})"
        ) from error
