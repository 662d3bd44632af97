"""Columns of (user, item, rating, time): checked piece by piece, joined to a table."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROLES = ("user", "item", "rating", "time")
_ITEM_WORDS = "item movie product book song track artist business".split()
# Names of a column of each role, in lower case, letters and digits only; the earlier
# name counts where a table has two of them.
_NAMES = {
    "user": ("userid", "user", "users", "uid"),
    "item": (
        *(f"{word}id" for word in _ITEM_WORDS),
        *_ITEM_WORDS,
        *("items", "iid", "isbn", "asin"),
    ),
    "rating": ("rating", "ratings", "userrating", "bookrating", "stars", "score"),
    "time": ("timestamp", "time", "times", "datetime", "date"),
    "title": ("title", "movietitle", "itemtitle", "name"),
    "genres": ("genres", "moviegenres"),
}
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # as Python prints it, and int64
_UTC = r"\s*(UTC|GMT|z)$"
_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_TEXT = pa.large_binary()  # of all texts, once they are trimmed
_NUMBER = pa.float64()
_TIME, _ZONED_TIME = pa.timestamp("us"), pa.timestamp("us", "UTC")

# item id, as text -> its title and genres
Titles = dict[str, tuple[str, tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class RatingTable:
    """Ratings of a source, each (user, item) once.

    Attributes:
        name: Name of the source.
        user_ids: int64 or str [num_users], ascending: int64 where all are whole
            numbers.
        item_ids: The same for the items, [num_items].
        users: int32 [n], the position in `user_ids` of each rating, in the order of
            the source.
        items: int32 [n], the same for the items.
        ratings: float64 [n], or None where the source has none.
        times: float64 [n], or None. Only their order has a meaning.
        titles: A title for each item, "" for an unknown one; None without titles.
        genres: The genres of each item, or None.
        notes: Remarks on unused content, one phrase each.
    """

    name: str
    user_ids: np.ndarray
    item_ids: np.ndarray
    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray | None
    times: np.ndarray | None
    titles: list[str] | None
    genres: list[tuple[str, ...]] | None
    notes: tuple[str, ...]


def find_roles(names: Sequence[str]) -> dict[str, int]:
    """Returns the column of each role, as far as the names tell.

    Upper and lower case, spaces and punctuation make no difference: "User-ID" is
    userid.

    Args:
        names: The names of all columns.

    Returns:
        Role (of `ROLES`, and title and genres) -> position in `names`.
    """
    plain = [re.sub(r"[\W_]", "", name).lower() for name in names]
    return {
        role: plain.index(next(name for name in known if name in plain))
        for role, known in _NAMES.items()
        if not set(plain).isdisjoint(known)
    }


class Wanted(NamedTuple):
    """The columns to read.

    Attributes:
        roles: Roles that are used, of `ROLES`; "user" and "item" at least.
        names: Given names of the columns of `ROLES`, in this order, or None. The other
            columns have one of the usual names.
    """

    roles: tuple[str, ...] = ROLES
    names: Sequence[str] | None = None

    def known(self, names: Sequence[str]) -> dict[str, int]:
        """Returns role, of `ROLES` -> position in `names`, as far as it is known."""
        positions = {name: index for index, name in enumerate(names)}
        given = {
            role: positions[name]
            for role, name in zip(ROLES, self.names or (), strict=False)
            if name in positions
        }
        usual = {
            role: index
            for role, index in find_roles(names).items()
            if role in ROLES and index not in given.values()
        }
        return usual | given

    def find(self, names: Sequence[str], origin: str) -> dict[str, int]:
        """Returns role -> position in `names` for the roles that are used.

        Raises:
            ValueError: There is no user, no item, or a column of `self.names` is
                missing.
        """
        known = self.known(names)
        given = set(self.names or ())
        if not {"user", "item"} <= set(known) or not given <= set(names):
            raise ValueError(
                f"The columns must be called {self.describe()}. Received: "
                f"{', '.join(names) or 'no names'} in {origin}. Rename them, or pass "
                "their names as `columns`, those of user, item, rating and time."
            )
        return {role: known[role] for role in self.roles if role in known}

    def describe(self) -> str:
        """Returns the names of the columns, for an error."""
        if self.names:
            return ", ".join(self.names)
        return (
            "user (user_id, uid), item (item_id, movie_id, product_id ...), rating "
            "(stars, score, user_rating) and time (timestamp, date), the first two at "
            "least"
        )


ALL_COLUMNS = Wanted()


class RatingColumns:
    """Collects the columns of one source, and refuses broken values.

    Args:
        origin: Name of the source in an error.
        unit: The unit that rows are counted in: "line" or "row". A line without any
            value is left out; a row must have values.
    """

    def __init__(self, origin: str, unit: str):
        self._origin = origin
        self._unit = unit
        self._codes: dict[str, dict[str, int]] = {"user": {}, "item": {}}
        self._pieces: dict[str, list[np.ndarray]] = defaultdict(list)
        self._time_type: Any = None

    def add(self, columns: Mapping[str, Any], first: int) -> None:
        """Adds some rows.

        Args:
            columns: Role -> pyarrow array [n] of text (or UTF-8 bytes), numbers, or,
                for "time", dates; "user" and "item" at least.
            first: The number of their first row, counted from 1.

        Raises:
            ValueError: A missing id, or a broken rating or time.
        """
        texts = {role: _trimmed(column) for role, column in columns.items()}
        numbers = np.arange(first, first + len(texts["user"]))
        if self._unit == "line":
            lengths = [pc.binary_length(text).to_numpy() for text in texts.values()]
            rows = np.flatnonzero(np.sum(lengths, axis=0))
            if len(rows) < len(numbers):
                texts = {role: text.take(rows) for role, text in texts.items()}
                numbers = numbers[rows]
        for role, column in texts.items():
            numbered = self._ids if role in self._codes else self._floats
            self._pieces[role].append(numbered(role, column, numbers))

    def refuse(self, number: int, rule: str, received: str) -> NoReturn:
        """Raises the error that names a row."""
        raise ValueError(
            f"{rule} Received: {received} in {self._origin}, {self._unit} {number}."
        )

    def table(
        self, name: str, titles: Titles | None, notes: tuple[str, ...]
    ) -> RatingTable:
        """Returns all added rows, each (user, item) as it was added last.

        Raises:
            ValueError: Nothing was added.
        """
        columns = {role: np.concatenate(many) for role, many in self._pieces.items()}
        if not len(columns.get("user", ())):
            rule = "There must be at least one (user, item) pair."
            raise ValueError(f"{rule} Received: none in {self._origin}.")
        user_ids, columns["user"] = _ascending(self._codes["user"], columns["user"])
        item_ids, columns["item"] = _ascending(self._codes["item"], columns["item"])
        last = _last_of_each(columns["user"], columns["item"], len(item_ids))
        repeated = len(columns["user"]) - len(last)
        if repeated:
            notes += (f"repeated pairs, of which the last counts: {repeated:,}",)
            columns = {role: column[last] for role, column in columns.items()}
        found = None
        if titles is not None:
            names = [str(item) for item in item_ids.tolist()]
            found = [titles.get(name, ("", ())) for name in names]
            unknown = sum(name not in titles for name in names)
            if unknown:
                notes += (f"items without a title: {unknown:,}",)
        return RatingTable(
            name=name,
            user_ids=user_ids,
            item_ids=item_ids,
            users=columns["user"],
            items=columns["item"],
            ratings=columns.get("rating"),
            times=columns.get("time"),
            titles=None if found is None else [title for title, _ in found],
            genres=None if found is None else [genres for _, genres in found],
            notes=notes,
        )

    def _ids(self, role: str, column: Any, numbers: np.ndarray) -> np.ndarray:
        """Returns int32 [n]: each id as its index in the order of first appearance."""
        if column.type != _TEXT and not pa.types.is_integer(column.type):
            self.refuse(
                int(numbers[0]) if len(numbers) else 1,
                f"The id of each {role} must be text or a whole number.",
                f"a column of type {column.type}",
            )
        encoded = column.dictionary_encode()
        # A missing value has index -1, which is the last of `codes`.
        indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        values = encoded.dictionary.to_pylist()
        codes = np.full(len(values) + 1, -1, np.int32)
        known = self._codes[role]
        for index, value in enumerate(values):
            try:
                text = value.decode() if isinstance(value, bytes) else str(value)
            except UnicodeDecodeError:
                text = "\n"
            if "\n" in text or "\r" in text:
                self.refuse(
                    int(numbers[np.argmax(indices == index)]),
                    f"The id of each {role} must be UTF-8 text without line breaks.",
                    _shown(value),
                )
            if text:
                codes[index] = known.setdefault(text, len(known))
        piece = codes[indices]
        if (piece < 0).any():
            self.refuse(
                int(numbers[np.argmax(piece < 0)]),
                f"Each {self._unit} must have the id of its {role}.",
                "none",
            )
        return piece

    def _floats(self, role: str, column: Any, numbers: np.ndarray) -> np.ndarray:
        """Returns float64 [n] of ratings or times."""
        wanted, kind = _NUMBER, "finite number"
        if role == "time":
            if self._time_type is None and len(column):
                self._time_type = _time_type(column)
            wanted = self._time_type or wanted
            kind = "number, or each an ISO 8601 date, all or none with a zone"
        try:
            floats = _as_floats(column, wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            floats = np.array([_float_or_nan(value, wanted) for value in column])
        if not np.isfinite(floats).all():
            index = int(np.argmin(np.isfinite(floats)))
            self.refuse(
                int(numbers[index]),
                f"Each {role} must be a {kind}, and none may be missing.",
                _shown(column[index].as_py()),
            )
        return floats


def _shown(value: Any) -> str:
    """Returns a value as an error shows it."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return f"{text!r:.200}"


def _trimmed(column: Any) -> Any:
    """Returns text as bytes without spaces around, and other values unchanged."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type not in _TEXTS:
        return column
    # Viewed, not cast: it may be no UTF-8, and only text can be trimmed.
    text = column.cast(_TEXT).view(pa.large_string())
    return pc.ascii_trim_whitespace(text).view(_TEXT)


def _time_type(column: Any) -> Any:
    """Returns the type of all times: the first type that fits the first time."""
    if column.type == _TEXT:
        for kind in (_NUMBER, _TIME, _ZONED_TIME):
            if np.isfinite(_float_or_nan(column[0], kind)):
                return kind
    return _NUMBER


def _as_floats(column: Any, kind: Any) -> np.ndarray:
    if column.type == _TEXT:
        column = column.cast(pa.large_string())
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        column = column.cast(pa.int64())
    if kind != _NUMBER:
        column = pc.replace_substring_regex(column, pattern=_UTC, replacement="Z")
        column = column.cast(kind).cast(pa.int64())
    floats = column.cast(pa.float64(), safe=False)
    return floats.fill_null(np.nan).to_numpy(zero_copy_only=False)


def _float_or_nan(value: Any, kind: Any) -> float:
    """Returns a value as a float, a date as microseconds; NaN for a broken value.

    Reads all dates of ISO 8601 that Python knows; Arrow is faster and knows fewer.
    """
    if kind == _NUMBER:
        try:
            return float(_as_floats(pa.array([value.as_py()], value.type), kind)[0])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return np.nan
    text = (value.as_py() or b"").decode(errors="replace")
    try:
        moment = datetime.fromisoformat(re.sub(_UTC, "Z", text))
    except ValueError:
        return np.nan
    if (moment.tzinfo is None) == (kind == _ZONED_TIME):
        return np.nan
    since = moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.fromtimestamp(0, UTC)
    return since / timedelta(microseconds=1)


def _ascending(
    codes: Mapping[str, int], column: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids in ascending order, and the column as positions in them."""
    whole = all(_WHOLE_NUMBER.fullmatch(text) for text in codes)
    ids = np.array([int(text) if whole else text for text in codes])
    ids, positions = np.unique(ids, return_inverse=True)
    return ids, positions.astype(np.int32)[column]


def _last_of_each(users: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    """Returns the rows, ascending, of the last occurrence of each (user, item)."""
    pairs = users.astype(np.int64) * num_items + items
    order = np.argsort(pairs, kind="stable")
    pairs = pairs[order]
    is_last = np.append(pairs[1:] != pairs[:-1], True)
    return np.sort(order[is_last])
