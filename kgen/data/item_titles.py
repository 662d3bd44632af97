"""Titles and genres of items, from the movie files of MovieLens, and their features."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse

from kgen.data.rating_columns import Titles, find_roles
from kgen.data.source_files import SourceFile

# An item's id, its title and its genres.
_Titled = tuple[str, tuple[str, tuple[str, ...]]]

_NO_GENRE = ("unknown", "(no genres listed)")
_YEAR = re.compile(r"\s*\((\d{4})[-\u2013]?\d*\)\s*$")  # "Heat (1995)"
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def read_titles(files: dict[str, SourceFile]) -> Titles | None:
    """Reads the titles and genres in the folder of the ratings.

    Args:
        files: The files of a folder by their names in lower case. The first of these is
            read:
            - "u.item" of ml-100k: id|title|date|date|address|flags of genres, with the
              names in "u.genre";
            - "movies.dat" of ml-1m and ml-10m: id::title::genre|genre;
            - "movies.csv" of all later sets: a header with an item, title and genres,
              separated by "|".

    Returns:
        Item id, as text -> title and genres; or None if there is no such file.

    Raises:
        ValueError: A line is broken. The message names it.
    """
    if "u.item" in files:
        genres = []
        if "u.genre" in files:
            lines = _text(files["u.genre"]).splitlines()
            genres = [line.split("|")[0] for line in lines if line.strip()]
        return dict(_flagged_titles(files["u.item"], genres))
    if "movies.dat" in files:
        return dict(_double_colon_titles(files["movies.dat"]))
    if "movies.csv" in files:
        return dict(_csv_titles(files["movies.csv"]))
    return None


def title_features(
    titles: Sequence[str], genres: Sequence[Sequence[str]]
) -> tuple[scipy.sparse.csr_array, list[str]]:
    """Returns features of items by their titles and genres.

    Features are the genres, called "genre:Comedy", the words of the titles in lower
    case, called "word:story", and the years at their ends, called "year:1995"; in this
    order, each ascending. Words and years of a single item are left out.

    Returns:
        float32 multi-hot rows, [items, features], and the names of the features.
    """
    of_genres = [{f"genre:{name}" for name in names} for names in genres]
    of_titles = [
        {f"word:{word}" for word in _WORD.findall(_YEAR.sub("", title).lower())}
        | {f"year:{year}" for year in _YEAR.findall(title)}
        for title in titles
    ]
    counts = Counter(word for one in of_titles for word in one)
    names = sorted(set().union(*of_genres))
    names += sorted(word for word, count in counts.items() if count > 1)
    column = {name: index for index, name in enumerate(names)}
    places = [
        (row, column[name])
        for row, sets in enumerate(zip(of_genres, of_titles, strict=True))
        for name in set.union(*sets) & column.keys()
    ]
    rows, columns = np.array(places, np.int32).reshape(-1, 2).T
    ones = np.ones(len(places), np.float32)
    shape = (len(titles), len(names))
    return scipy.sparse.csr_array((ones, (rows, columns)), shape=shape), names


def is_genre(name: str) -> bool:
    """Returns whether a genre has a meaning: "unknown" does not."""
    return bool(name) and name.lower() not in _NO_GENRE


def _text(file: SourceFile) -> str:
    """Returns the text of a file in UTF-8 or, as in the older sets, in Latin-1."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _numbered_lines(file: SourceFile) -> Iterator[tuple[int, str]]:
    # Not `splitlines`, which also ends lines at U+0085 in a title.
    for number, line in enumerate(_text(file).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _flagged_titles(file: SourceFile, genres: list[str]) -> Iterator[_Titled]:
    for number, line in _numbered_lines(file):
        fields = line.split("|")
        flags = fields[5:]
        if len(fields) < 5 or (genres and len(flags) != len(genres)):
            raise ValueError(
                "A line of u.item must be id|title|date|date|address, and a flag for "
                f"each of the {len(genres)} lines of u.genre. Received: {line[:200]!r} "
                f"in {file}, line {number}."
            )
        names = (name for name, flag in zip(genres, flags, strict=False) if flag == "1")
        yield fields[0], (fields[1], tuple(filter(is_genre, names)))


def _double_colon_titles(file: SourceFile) -> Iterator[_Titled]:
    for number, line in _numbered_lines(file):
        fields = line.split("::")
        if len(fields) < 3:
            raise ValueError(
                "A line of movies.dat must be id::title::genre|genre. Received: "
                f"{line[:200]!r} in {file}, line {number}."
            )
        title = "::".join(fields[1:-1])
        yield fields[0], (title, tuple(filter(is_genre, fields[-1].split("|"))))


def _csv_titles(file: SourceFile) -> Iterator[_Titled]:
    rows = csv.reader(io.StringIO(_text(file), newline=""))
    header = next(rows, [])
    roles = find_roles(header)
    if "item" not in roles or "title" not in roles:
        raise ValueError(
            "The first line of movies.csv must name the columns, movieId, title and "
            f"genres. Received: {','.join(header)[:200]!r} in {file}."
        )
    for row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(
                f"Each line must have {len(header)} values, as the first line has. "
                f"Received: {len(row)} in {file}, line {rows.line_num}."
            )
        genres = row[roles["genres"]].split("|") if "genres" in roles else []
        yield row[roles["item"]], (row[roles["title"]], tuple(filter(is_genre, genres)))
