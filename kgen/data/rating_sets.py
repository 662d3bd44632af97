"""Rating data sets: the liked items of each user, split, and read in batches."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

from kgen.data.dataset import SPLITS, DataSet, take_batch_options
from kgen.data.item_titles import title_features
from kgen.data.named_builders import NAME, DataDir
from kgen.data.named_ratings import read_named_ratings
from kgen.data.pipeline import Batch, Read
from kgen.data.rating_columns import RatingTable, Wanted
from kgen.data.rating_files import read_rating_arrays, read_rating_files
from kgen.data.rating_splits import STRATEGIES, Part, RatingOptions, positive_pairs


def ratings(
    source: Any, *, split: str = "train", seed: int = 0, **options: Any
) -> tf.data.Dataset:
    """Returns batches of users, each with the items the user likes.

    Every iteration is one pass. The order of the k-th pass is a pure function of
    (seed, k); without shuffling all passes are alike.

    Args:
        source: See `open_ratings`.
        split: "train", "validation" or "test".
        seed: Integer in [0, 2**63), keys the split and the order. The splits of one
            experiment are disjoint only if all are read with the same seed.
        **options: min_rating, min_items, split_strategy, held_out_users,
            hidden_fraction, columns, data_dir and download of `open_ratings`;
            batch_size (by default 128), shuffle and drop_remainder of
            `RatingSet.batches`.

    Returns:
        A dataset of dicts: "items", ragged int32 [batch, None], ascending positions in
        `RatingSet.item_ids`, and, for validation and test, "targets" likewise.

    Raises:
        FileNotFoundError: See `open_ratings`.
        ValueError: See `open_ratings`; and a batch size above the number of training
            users.

    Example:
        >>> batches = kgen.data.ratings("ml-100k.zip", batch_size=64)
        >>> batches.element_spec["items"].shape
        TensorShape([64, None])
    """
    batching = take_batch_options(options) | {"seed": seed}
    return open_ratings(source, seed=seed, **options).batches(split, **batching)


def open_ratings(
    source: Any,
    *,
    min_rating: float | None = 4.0,
    min_items: int = 5,
    split_strategy: str = "strong",
    seed: int = 0,
    held_out_users: int | None = None,
    hidden_fraction: float = 0.2,
    columns: Sequence[str] | None = None,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
) -> RatingSet:
    """Opens a data set of (user, item) pairs: the items that each user likes.

    A pair is positive, and kept, if its rating is at least `min_rating`. Of repeated
    pairs the last in the source counts, whatever its time. Then users with fewer than
    `min_items` positive pairs are dropped, and the items of the other users are the
    catalogue; it includes items of test users alone, which training never sees
    (`notes` counts these). So MovieLens 100K is 938 users, 1,447 items, 55,361 pairs.

    An evaluation measures how well hidden items (the targets) of a user are predicted
    from other items (the history) of the same user. A user without a history or without
    a target has no row in that split. The split strategies, all of them pure functions
    of the seed and the set:

    - "strong": validation and test have `held_out_users` users each, drawn at random,
      whom training never sees. Of a user's n items, `hidden_fraction` * n, rounded
      to the nearest (halves up), at least 1 and at most n - 1, are targets, drawn at
      random.
    - "leave-one-out": a user's last item is the target of the test, the item before it
      the target of the validation, as far as one item is left to train on. The order is
      by time, and for equal times the order of the source; without times it is random.
    - "random": `hidden_fraction` of all pairs, drawn at random, are the targets of the
      test, and a tenth of the others the targets of the validation (both rounded as
      above).
    - "held-out-items": a tenth of the items, rounded down and at least 2, are in no
      history. Drawn at random, half of them (rounded up) are the targets of the test
      and the others those of the validation: `candidates` are the items to rank.

    The history holds all training items of the user; in the test of "leave-one-out" and
    "random" also the targets of the validation.

    Args:
        source: One of
            - a path (which has precedence over an equal name) of a folder or a .zip of
              MovieLens as published, of any edition: u.data, ratings.dat, ratings.csv
              or ratings.parquet, and the titles and genres of u.item, movies.dat or
              movies.csv; or the path of the table itself. A zip is read in place and
              never unpacked to disk;
            - a path of another table of users and items, text (CSV, TSV, .gz of them;
              separated by a tab, comma, ";", "|" or "::") or Parquet, or of a folder or
              zip with just one. Columns are found by their names: user, user_id, uid;
              item, item_id, movie_id, product_id and the like; rating, stars, score,
              user_rating; time, timestamp, date (numbers, or ISO 8601 dates, with a
              zone or without); other names are given by `columns`. The first line of a
              text is a header if it names a user and an item. If not, the two to four
              columns are user, item, rating and time;
            - the name of a data set of tensorflow-datasets with such features:
              "movielens/100k-ratings" and the like. Its splits are read as one;
            - a tuple of arrays (users, items[, ratings[, times]]), or a dict of them or
              a data frame, by the names above.
            Ids are whole numbers or text. Where all ids of users (or items) are whole
            numbers without leading zeros they are int64, also if they were text.
        min_rating: The lowest positive rating. None: every pair is positive, as in data
            without ratings.
        min_items: Positive pairs that a user must have, at least 1.
        split_strategy: "strong", "leave-one-out", "random" or "held-out-items".
        seed: Integer in [0, 2**63), keys the split.
        held_out_users: Users in validation and in test, for "strong" only. By default
            a tenth of all users, at least 1 and at most 10,000.
        hidden_fraction: In (0, 1); for "strong" and "random".
        columns: Names of the columns of user, item, rating and time, in this order, the
            first two at least, where they are called otherwise.
        data_dir: The folder in which tensorflow-datasets keeps its data sets. None: its
            own default, ~/tensorflow_datasets. For names only.
        download: Whether a missing data set of tensorflow-datasets may be downloaded
            and prepared.

    Raises:
        FileNotFoundError: A path that does not exist, a folder or zip without ratings,
            or a missing data set that cannot be downloaded.
        ValueError: An unknown name, a damaged file, a broken line, a missing id, a
            rating that is not a finite number, an argument out of range, too few users.
            The message names the file and the line.

    Example:
        >>> print(kgen.data.open_ratings("ml-100k.zip"))
        ml-100k: 938 users, 1,447 items, 55,361 pairs rated 4 or more ...

    Reference: Liang et al., 2018, Variational Autoencoders for Collaborative Filtering
    (the "strong" split; there the catalogue has the items of training users alone).
    """
    options = RatingOptions(  # checked before a large file is read
        min_rating=min_rating,
        min_items=min_items,
        split_strategy=split_strategy,
        seed=seed,
        held_out_users=held_out_users,
        hidden_fraction=hidden_fraction,
        columns=columns,
    )
    return RatingSet(_read(source, data_dir, download, options.wanted()), options)


def _read(
    source: Any, data_dir: DataDir, download: bool, wanted: Wanted
) -> RatingTable:
    if not isinstance(source, (str, os.PathLike)):
        return read_rating_arrays(source, wanted)
    path = Path(source).expanduser()
    if path.exists():
        return read_rating_files(path, wanted)
    if not isinstance(source, str) or not NAME.fullmatch(source):
        raise FileNotFoundError(f"There is no file or folder {path}.")
    return read_named_ratings(source, data_dir, download, wanted)


class RatingSet(DataSet):
    """Liked items of each user, with splits; see `open_ratings`.

    A batch is a dict: "items", the history, ragged int32 [batch, None] of ascending
    positions in `item_ids`; for validation and test "targets" likewise; and, where not
    all items are ranked, "candidates", the same for each row. Unshuffled, row i is row
    i of `history(split)`.

    Args:
        table: The ratings of a source.
        options: See `open_ratings`.

    Attributes:
        name: Name of the data set.
        split_strategy: The way the pairs are split.
        num_users: Number of users.
        num_items: Number of items.
        num_pairs: Number of positive pairs.
        user_ids: int64 or str [num_users], ascending.
        item_ids: int64 or str [num_items], ascending.
        item_titles: A title for each item, "" for an unknown one; or None.
        item_genres: The genres of each item; or None.
        splits: Number of users in "train", "validation" and "test".
        notes: Remarks on what was left out or is out of the ordinary.

    Raises:
        ValueError: Too few users, items or pairs to split.
    """

    def __init__(self, table: RatingTable, options: RatingOptions):
        self.name = table.name
        self.split_strategy = strategy = options.split_strategy
        min_rating, min_items = options.min_rating, options.min_items
        rated = table.ratings is not None and min_rating is not None
        self._rated = f" rated {min_rating:g} or more" if rated else ""
        self._pairs, users, items, left_out = positive_pairs(table, options)
        self.user_ids = table.user_ids[users]
        self.item_ids = table.item_ids[items]
        self.num_users = len(users)
        self.num_items = len(items)
        self.num_pairs = len(self._pairs.users)
        self.item_titles: list[str] | None = None
        self.item_genres: list[tuple[str, ...]] | None = None
        if table.titles is not None and table.genres is not None:
            self.item_titles = [table.titles[item] for item in items]
            self.item_genres = [table.genres[item] for item in items]
        split = STRATEGIES[strategy]
        self._parts = split(self._pairs, self.num_users, self.num_items, options)
        self._user_rows = {name: self._complete_users(name) for name in SPLITS}
        self.splits = {name: len(rows) for name, rows in self._user_rows.items()}
        empty = [name for name, count in self.splits.items() if not count]
        if empty:
            raise ValueError(
                f"Each split must have a user. Received: none in {' and '.join(empty)} "
                f"of {self.name}, split {strategy!r}, with {self.num_users} "
                f"users and {self.num_pairs} pairs. Take more data, or another split."
            )
        notes = list(table.notes)
        if table.ratings is None and min_rating is not None:
            notes.append("no ratings: every pair is positive")
        if left_out:
            notes.append(
                f"left out, users with fewer than {min_items} items: {left_out:,}"
            )
        if table.times is None and strategy == "leave-one-out":
            notes.append("no times: the last item of a user is a random one")
        seen = np.unique(self._pairs.items[self._parts["train"].history])
        if len(seen) < self.num_items:
            notes.append(f"items unseen in training: {self.num_items - len(seen):,}")
        self.notes = tuple(notes)

    def _complete_users(self, split: str) -> np.ndarray:
        """Returns the users with a history and, if the split has them, targets."""
        complete = np.full(self.num_users, True)
        part = self._parts[split]
        for mask in (part.history, part.targets):
            if mask is not None:
                users = self._pairs.users[mask]
                complete &= np.bincount(users, minlength=self.num_users) > 0
        return np.flatnonzero(complete)

    def _content(self) -> str:
        share = 100 * self.num_pairs / (self.num_users * self.num_items)
        return (
            f"{self.num_users:,} users, {self.num_items:,} items, "
            f"{self.num_pairs:,} pairs{self._rated} ({share:.3g} % of all); "
            f"{self.split_strategy} split, users: "
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the ids, the pairs and the splits."""
        digest = hashlib.sha256(repr((self.split_strategy, self.splits)).encode())
        for ids in (self.user_ids, self.item_ids):
            digest.update("\n".join(map(str, ids.tolist())).encode() + b"\0")
        digest.update(self._pairs.users.astype("<i4").data)
        digest.update(self._pairs.items.astype("<i4").data)
        for part in self._parts.values():
            for mask in (part.history, part.targets):
                if mask is not None:
                    digest.update(np.packbits(mask).data)
        return digest.hexdigest()

    def user_rows(self, split: str) -> np.ndarray:
        """Returns int64 [users of the split], ascending positions in `user_ids`."""
        self._check_split(split)
        return self._user_rows[split]

    def _part(self, split: str) -> Part:
        self._check_split(split)
        return self._parts[split]

    def history(self, split: str) -> scipy.sparse.csr_array:
        """Returns the history of each user of a split, as multi-hot rows.

        Args:
            split: "train", "validation" or "test".

        Returns:
            float32, [users of the split, num_items], in the order of
            `user_rows(split)`, with sorted indices.

        Raises:
            ValueError: There is no such split.
        """
        return self._rows(self._part(split).history)[self._user_rows[split]]

    def targets(self, split: str) -> scipy.sparse.csr_array | None:
        """Returns the targets of each user of a split, as multi-hot rows.

        Args:
            split: "train", "validation" or "test".

        Returns:
            A matrix as `history` returns it, disjoint from it; None for "train".

        Raises:
            ValueError: There is no such split.
        """
        mask = self._part(split).targets
        return None if mask is None else self._rows(mask)[self._user_rows[split]]

    def known_pairs(self, split: str) -> scipy.sparse.csr_array:
        """Returns the content of `history`, with a row for every user.

        It includes users without a history or without a target, who have no row in
        `history`: for the test of "leave-one-out" and "random" all pairs except the
        targets of the test.

        Args:
            split: "train", "validation" or "test".

        Returns:
            float32 multi-hot rows, [num_users, num_items], with sorted indices.

        Raises:
            ValueError: There is no such split.
        """
        return self._rows(self._part(split).history)

    def candidates(self, split: str) -> np.ndarray | None:
        """Returns the items to rank in a split, ascending positions in `item_ids`.

        None means all items: for "train", and for all strategies but "held-out-items".

        Raises:
            ValueError: There is no such split.
        """
        return self._part(split).candidates

    def item_counts(self) -> np.ndarray:
        """Returns the number of training users of each item: int64 [num_items]."""
        return np.bincount(self.history("train").indices, minlength=self.num_items)

    def _rows(self, mask: np.ndarray) -> scipy.sparse.csr_array:
        """Returns the multi-hot rows of some pairs: float32 [num_users, num_items]."""
        places = self._pairs.users[mask], self._pairs.items[mask]
        ones = np.ones(len(places[0]), np.float32)
        shape = (self.num_users, self.num_items)
        return scipy.sparse.csr_array((ones, places), shape=shape)

    def _reader(self, split: str, seed: int, shuffle: bool) -> tuple[Read, int]:
        matrices = {"items": self.history(split), "targets": self.targets(split)}
        candidates = self.candidates(split)
        with tf.device("CPU:0"):  # tf.data reads there; captured, never copied
            ranked = tf.constant([] if candidates is None else candidates, tf.int32)
            rows_of = {
                name: (tf.constant(matrix.indptr), tf.constant(matrix.indices))
                for name, matrix in matrices.items()
                if matrix is not None
            }

        def read(rows: tf.Tensor, epoch: tf.Tensor, positions: tf.Tensor) -> Batch:
            batch = {}
            for name, (starts, items) in rows_of.items():
                first, end = tf.gather(starts, rows), tf.gather(starts, rows + 1)
                wanted = tf.ragged.range(first, end)
                batch[name] = wanted.with_values(tf.gather(items, wanted.values))
            if candidates is not None:
                wanted = tf.ragged.range(tf.zeros_like(rows), len(candidates))
                items = tf.gather(ranked, wanted.values)
                batch["candidates"] = wanted.with_values(items)
            return batch

        return read, 1

    def item_features(self) -> tuple[scipy.sparse.csr_array, list[str]]:
        """Returns features from the titles and genres of the items.

        Returns:
            See `kgen.data.item_titles.title_features`.

        Raises:
            ValueError: The source has no titles.
        """
        if self.item_titles is None or self.item_genres is None:
            raise ValueError(
                "Item features are made of titles and genres. Received: "
                f"{self.name}, which has none. MovieLens has them in u.item, "
                "movies.dat or movies.csv, beside its ratings."
            )
        return title_features(self.item_titles, self.item_genres)

    def positions(self, original_ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Returns the positions in `item_ids` of items by their ids in the source.

        Args:
            original_ids: Ids [n], numbers or text, in any order.

        Returns:
            int32 [n].

        Raises:
            ValueError: An id that is not in the set.
        """
        kind: type = int if self.item_ids.dtype.kind == "i" else str
        known = {item: index for index, item in enumerate(self.item_ids.tolist())}
        wanted = np.asarray(original_ids, object).reshape(-1).tolist()
        found = [known.get(_as_id(one, kind)) for one in wanted]
        unknown = [one for one, at in zip(wanted, found, strict=True) if at is None]
        if unknown:
            near = difflib.get_close_matches(str(unknown[0]), map(str, known), 3)
            first, last = self.item_ids[0], self.item_ids[-1]
            hint = f"They run from {first} to {last}."
            if kind is str and near:
                hint = f"Did you mean {' or '.join(near)}?"
            shown = ", ".join(repr(one) for one in unknown[:5])
            raise ValueError(
                f"Items must be among the {self.num_items:,} of {self.name} with a "
                f"positive pair. Received: {shown}"
                f"{', ...' if len(unknown) > 5 else ''} ({len(unknown)} unknown). "
                f"{hint}"
            )
        return np.array(found, np.int32)


def _as_id(value: Any, kind: type) -> int | str | None:
    """Returns an id in the type of the set, a number or text."""
    if kind is str:
        return str(value)
    try:
        return int(value) if float(value) == int(value) else None
    except (TypeError, ValueError):
        return None
