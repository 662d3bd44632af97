"""The items of a recommender: original ids in, original ids out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kgen.models.shared.batches import assert_range
from kgen.models.shared.model import trace
from kgen.models.shared.signatures import Signature
from kgen.nn.interactions import batch_ndcg, multi_hot, multi_hot_from_padded, top_items

EXPORTED_ITEMS = 100  # so many items, at most, come out of the signature `recommend`

ScoreRows = Callable[[tf.Tensor], tf.Tensor]


class Recommendations(NamedTuple):
    """Items for people, the best first.

    Attributes:
        item_ids: Original ids, [people, k]; "" or -1 where no unseen item is left.
        scores: float32 [people, k]; minus infinity there.
    """

    item_ids: np.ndarray
    scores: np.ndarray


class ItemCatalogue:
    """The items that a model scores, in the order of its columns.

    Args:
        item_ids: Whole numbers or strings, each once.
        item_counts: How many people of the training data have each item: what people
            without a history are recommended by. None: all alike.
        item_features: Names of what is known of each item, a list for each. None:
            nothing.

    Attributes:
        features: 1 where an item has a feature, the features in the order of their
            names, and 0 elsewhere: uint8 [num_items, num_features]; or None.

    Raises:
        ValueError: If there are no ids, an id comes twice, ids are of several kinds, or
            there is not one count, or one list of features, for each.
    """

    def __init__(
        self,
        item_ids: Sequence[Any],
        item_counts: Sequence[int] | None = None,
        item_features: Sequence[Sequence[str]] | None = None,
    ):
        ids = np.asarray(item_ids)
        kind = ids.dtype.kind
        if ids.ndim != 1 or not ids.size or kind not in "iuU":
            raise ValueError(
                "`item_ids` must be a list of whole numbers or of strings, one for "
                f"each item. Received: shape {ids.shape}, type {ids.dtype}."
            )
        if kind == "U" and not all(isinstance(one, str) for one in item_ids):
            raise ValueError(
                "`item_ids` must be all whole numbers, or all strings. Received: both."
            )
        padding = "" if kind == "U" else -1
        if len(np.unique(ids)) < len(ids) or padding in ids:
            raise ValueError(
                f"`item_ids` must name each item once, and none by {padding!r}, which "
                f"stands for no item. Received: {len(ids)} ids, {len(np.unique(ids))} "
                "of them different."
            )
        counts = np.zeros(len(ids)) if item_counts is None else np.asarray(item_counts)
        if counts.shape != ids.shape or (counts < 0).any():
            raise ValueError(
                "`item_counts` must be a number of people for each item, 0 or more. "
                f"Received: shape {counts.shape} for {len(ids)} items."
            )
        self.num_items = len(ids)
        self.is_text = kind == "U"
        self.item_ids = ids if self.is_text else ids.astype(np.int64)
        self.item_counts = counts.astype(np.float32)
        self.features = None
        if item_features is not None:
            self.features, self._feature_names = _feature_rows(item_features, len(ids))
        self._positions = {item: i for i, item in enumerate(self.item_ids.tolist())}

    @property
    def item_features(self) -> list[list[str]] | None:
        """The names of each item's features, in order."""
        if self.features is None:
            return None
        return [
            [self._feature_names[column] for column in np.flatnonzero(row)]
            for row in self.features
        ]

    def positions(self, histories: Sequence[Sequence[Any]]) -> np.ndarray:
        """Maps original ids to positions, padded with -1: int64 [people, longest].

        Raises:
            ValueError: If an id is unknown, or `histories` is not a list of lists.
        """
        rows = []
        for history in histories:
            if isinstance(history, (str, bytes)) or np.ndim(history) != 1:
                raise ValueError(
                    "`histories` must be a list of lists of item ids, one list for "
                    f"each person. Received: {history!r} in it."
                )
            items = np.asarray(history).tolist()
            unknown = [item for item in items if item not in self._positions]
            if unknown:
                raise ValueError(
                    "`histories` must hold items that the model was trained on, "
                    f"{self.num_items:,} of them. Received: {unknown[0]!r}"
                    + (f" and {len(unknown) - 1} more." if unknown[1:] else ".")
                    + " Leave out what is unknown."
                )
            rows.append([self._positions[item] for item in items])
        columns = list(itertools.zip_longest(*rows, fillvalue=-1))
        return np.array(columns, np.int64).reshape(len(columns), len(rows)).T

    def recommend(
        self,
        graphs: dict[str, Any],
        score_rows: ScoreRows,
        histories: Sequence[Sequence[Any]],
        k: int,
        remove_seen: bool,
    ) -> Recommendations:
        """Finds the best items for each history; `graphs` keeps what is traced."""
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= self.num_items:
            raise ValueError(
                f"`k` must be a whole number in [1, {self.num_items}], the number of "
                f"items. Received: k={k}"
            )
        positions = self.positions(histories)
        key = f"recommend/{k}/{remove_seen}"
        if key not in graphs:
            graphs[key] = trace(
                lambda items: self._best(score_rows, items, int(k), remove_seen),
                items=tf.TensorSpec([None, None], tf.int64),
            )
        ids = np.zeros([0, k], self.item_ids.dtype)
        scores = np.zeros([0, k], np.float32)
        for start in range(0, len(positions), 256):  # bounds the memory
            part = tf.constant(positions[start : start + 256])
            best, columns = (tensor.numpy() for tensor in graphs[key](items=part))
            found = self.item_ids[columns]
            found[best == -np.inf] = "" if self.is_text else -1
            ids, scores = np.concatenate([ids, found]), np.concatenate([scores, best])
        return Recommendations(ids, scores)

    def score(
        self, graphs: dict[str, Any], score_rows: ScoreRows, rows: Any
    ) -> np.ndarray:
        """Scores all items for rows of ones; `graphs` keeps what is traced."""
        if "score" not in graphs:
            spec = tf.TensorSpec([None, self.num_items], tf.float32)
            graphs["score"] = trace(score_rows, rows=spec)
        dense = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
        return graphs["score"](rows=tf.constant(dense, tf.float32)).numpy()

    def ndcg(self, batch: dict[str, Any], logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """The log `ndcg`, NDCG@100 of the targets, if the batch holds any."""
        if "targets" not in batch:
            return {}
        names = batch.keys() & {"items", "targets", "candidates"}
        rows = {name: multi_hot(batch[name], self.num_items) for name in names}
        left_out, targets = rows["items"], rows["targets"]
        if "candidates" in rows:
            left_out = 1.0 - rows["candidates"] * (1.0 - left_out)
        return {"ndcg": batch_ndcg(logits, left_out, targets, k=100)}

    def signatures(
        self, score_rows: ScoreRows, layers: tuple[keras.layers.Layer, ...]
    ) -> list[Signature]:
        """`recommend`, by original ids in SavedModel and by positions in ONNX.

        ONNX has no tables of strings: its metadata hold the list of ids instead.
        """
        k = min(EXPORTED_ITEMS, self.num_items)
        blank = "" if self.is_text else -1
        table = _position_table(self.item_ids)

        def recommend_ids(item_ids):
            # What it does not know, the padding included, is passed over.
            scores, columns = self._best(score_rows, table.lookup(item_ids), k, True)
            found = tf.gather(tf.constant(self.item_ids), columns)
            found = tf.where(
                tf.math.is_inf(scores), tf.constant(blank, found.dtype), found
            )
            return {"item_ids": found, "scores": scores}

        def recommend_positions(items):
            scores, columns = self._best(score_rows, items, k, True)
            found = tf.where(tf.math.is_inf(scores), -1, columns)
            return {"recommended": found, "scores": scores}

        def example_positions(num_rows):
            rng = np.random.default_rng(num_rows)
            longest = min(20, self.num_items)
            rows = [rng.permutation(self.num_items)[:longest] for _ in range(num_rows)]
            keep = rng.integers(0, longest + 1, num_rows)[:, None]
            return np.where(np.arange(longest) < keep, np.array(rows, np.int64), -1)

        def example_ids(num_rows):
            positions = example_positions(num_rows)
            return np.where(positions < 0, blank, self.item_ids[positions])

        matrix = [None, None]
        return [
            Signature(
                "recommend",
                recommend_ids,
                {"item_ids": tf.TensorSpec(matrix, table.key_dtype)},
                {"item_ids": "items", "scores": "scores"},
                layers,
                lambda num_rows: {"item_ids": example_ids(num_rows)},
                runtimes=("saved_model",),
                resources=(table,),
            ),
            Signature(
                "recommend",
                recommend_positions,
                {"items": tf.TensorSpec(matrix, tf.int64)},
                {"recommended": "items", "scores": "scores"},
                layers,
                lambda num_rows: {"items": example_positions(num_rows)},
                runtimes=("onnx",),
                metadata={"item_ids": json.dumps(self.item_ids.tolist())},
            ),
        ]

    def _best(self, score_rows, items, k, remove_seen):
        rows = multi_hot_from_padded(items, self.num_items)
        scores = score_rows(rows)
        empty = tf.reduce_max(rows, axis=1, keepdims=True) == 0
        scores = tf.where(empty, tf.constant(self.item_counts), scores)
        return top_items(scores, rows if remove_seen else None, k)


class RecommenderMixin:
    """What every model that recommends items has, beside `GenerativeModel`.

    The model has a `catalogue`, and defines `_score_rows`: rows of ones, [batch,
    num_items], to scores of the same shape.
    """

    batch_names = ("items", "targets")
    compatibility_arguments: tuple[str, ...] = ("item_ids",)

    catalogue: ItemCatalogue
    _graphs: dict[str, Any]
    _score_rows: ScoreRows

    @property
    def item_ids(self) -> list[Any]:
        """Original ids, in the order of the positions."""
        return self.catalogue.item_ids.tolist()

    @property
    def item_counts(self) -> list[float]:
        """People of the training data that have each item."""
        return self.catalogue.item_counts.tolist()

    def check_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Refuses items that are not positions."""
        return assert_items(batch, self.catalogue.num_items)

    def recommend(
        self, histories: Sequence[Sequence[Any]], k: int = 10, remove_seen: bool = True
    ) -> Recommendations:
        """Finds the best items for people, whom the model need not have seen before.

        Args:
            histories: The original ids of the items of each person. Who has none gets
                the items with the highest `item_counts`, which are then the scores.
            k: How many for each.
            remove_seen: Whether items of the history are left out.

        Returns:
            Ids and scores, [people, k], the best first: a score compares the items of
            one person and nothing else. Where no unseen item is left, the id is -1 (or
            "") and the score minus infinity.

        Raises:
            ValueError: If an item is unknown, or `k` above the number of items.
        """
        return self.catalogue.recommend(
            self._graphs, self._score_rows, histories, k, remove_seen
        )

    def score(self, rows: Any) -> np.ndarray:
        """Scores all items for people by their rows of ones: float32 [n, num_items].

        Args:
            rows: A NumPy or SciPy sparse array [n, num_items].
        """
        return self.catalogue.score(self._graphs, self._score_rows, rows)


def _feature_rows(
    item_features: Sequence[Sequence[str]], num_items: int
) -> tuple[np.ndarray, list[str]]:
    """Ones at each item's features, and the features' names."""
    lists = [list(features) for features in item_features]
    names = sorted({name for features in lists for name in features})
    text = not any(isinstance(features, str) for features in item_features)
    if len(lists) != num_items or not names or not text:
        raise ValueError(
            "`item_features` must be a list of names for each item, and one of them "
            f"must have one. Received: {len(lists)} for {num_items} items, with "
            f"{len(names)} names, the first ones {names[:3]}."
        )
    columns = {name: column for column, name in enumerate(names)}
    rows = np.zeros((num_items, len(names)), np.uint8)
    for row, features in zip(rows, lists, strict=True):
        row[[columns[name] for name in features]] = 1
    return rows, names


def _position_table(item_ids: np.ndarray) -> tf.lookup.StaticHashTable:
    """A table from original ids to positions; -1 for what it does not know."""
    positions = tf.range(len(item_ids), dtype=tf.int64)
    pairs = tf.lookup.KeyValueTensorInitializer(tf.constant(item_ids), positions)
    table = tf.lookup.StaticHashTable(pairs, default_value=-1)
    # TensorFlow notes a None for it in the graph of its first version, of which it
    # complains whenever something is converted to ONNX.
    noted = tf.compat.v1.get_collection_ref(tf.compat.v1.GraphKeys.TABLE_INITIALIZERS)
    noted[:] = [operation for operation in noted if operation is not None]
    return table


def assert_items(
    batch: dict[str, tf.RaggedTensor], num_items: int
) -> dict[str, tf.RaggedTensor]:
    """Refuses inside a compiled step what is no ragged batch of positions."""
    checked = dict(batch)
    for name in ("items", "targets", "candidates"):
        if name not in batch:
            continue
        items = batch[name]
        ragged = isinstance(items, tf.RaggedTensor)
        if not ragged or items.shape.rank != 2 or not items.dtype.is_integer:
            raise ValueError(
                f"`{name}` must be a RaggedTensor of whole numbers [batch, None], the "
                "positions of the items of each person, as `kgen.data.ratings` makes "
                f"them. Received: {type(items).__name__} {items.dtype.name} "
                f"{items.shape}."
            )
        flat = tf.concat([items.values, tf.zeros([1], items.dtype)], axis=0)
        message = f"`{name}` must lie in [0, {num_items}). Received values from"
        with tf.control_dependencies([assert_range(flat, 0, num_items - 1, message)]):
            items = items.with_values(tf.identity(items.values))
        most = tf.reduce_max(multi_hot(items, num_items))
        message = f"`{name}` must hold an item once for each person. Received: it comes"
        once = tf.debugging.Assert(most <= 1, [message, most, "times"])
        with tf.control_dependencies([once]):
            checked[name] = items.with_values(tf.identity(items.values))
    return checked
