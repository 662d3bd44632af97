"""Ratings by name: data sets of tensorflow-datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from kgen.data import named_builders
from kgen.data.item_titles import is_genre
from kgen.data.named_builders import DataDir
from kgen.data.rating_columns import (
    ALL_COLUMNS,
    ROLES,
    RatingColumns,
    RatingTable,
    Titles,
    Wanted,
    find_roles,
)

_CHUNK_ROWS = 2**16


def read_named_ratings(
    name: str, data_dir: DataDir, download: bool, wanted: Wanted = ALL_COLUMNS
) -> RatingTable:
    """Reads a data set of tensorflow-datasets; see `open_ratings` for the errors.

    Its splits are read one after the other, in the order of its files.
    """
    builder = named_builders.find_builder(name, data_dir)
    features, genre_names = _find_features(builder, name, wanted)
    named_builders.prepare(builder, name, download)
    columns = RatingColumns(name, "row")
    titles: Titles | None = {} if "title" in features else None
    first = 1
    for split in builder.info.splits:
        with named_builders.examples(builder, split, features.values()) as rows:
            for chunk in rows.ragged_batch(_CHUNK_ROWS):
                used = {
                    role: pa.array(chunk[features[role]].numpy())
                    for role in ROLES
                    if role in features
                }
                columns.add(used, first)
                first += len(used["user"])
                if titles is not None:
                    _add_titles(titles, chunk, features, genre_names)
    return columns.table(name, titles, named_builders.splits_note(builder))


def _find_features(
    builder: Any, name: str, wanted: Wanted
) -> tuple[dict[str, str], Sequence[str]]:
    """Returns the feature of each role, and the names of the genres."""
    import tensorflow_datasets as tfds

    found = named_builders.named_features(builder)
    names = list(found)
    indices = find_roles(names)
    indices = {role: indices[role] for role in ("title", "genres") if role in indices}
    indices |= wanted.find(names, name)
    roles = {role: names[index] for role, index in indices.items()}
    genres = found.get(roles.get("genres", ""))
    if isinstance(genres, tfds.features.Sequence):
        if isinstance(genres.feature, tfds.features.ClassLabel):
            return roles, genres.feature.names
    roles.pop("genres", None)
    return roles, ()


def _add_titles(
    titles: Titles, chunk: Any, features: dict[str, str], genre_names: Sequence[str]
) -> None:
    """Adds the titles and genres of the items that are new in a chunk."""
    items, rows = np.unique(chunk[features["item"]].numpy(), return_index=True)
    texts = chunk[features["title"]].numpy()
    if "genres" in features:
        flat = chunk[features["genres"]].flat_values.numpy()
        ends = chunk[features["genres"]].row_splits.numpy()
    for item, row in zip(items.tolist(), rows.tolist(), strict=True):
        key = item.decode().strip() if isinstance(item, bytes) else str(item)
        if key in titles:
            continue
        genres: tuple[str, ...] = ()
        if "genres" in features:
            numbers = flat[ends[row] : ends[row + 1]]
            genres = tuple(filter(is_genre, (genre_names[i] for i in numbers)))
        titles[key] = (texts[row].decode(), genres)
