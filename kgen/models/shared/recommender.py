"""Base of recommenders: item catalogue, top-k recommendation, item scores."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import InputSpec, ItemSpec
from kgen.nn.interactions import batch_ndcg, multi_hot, multi_hot_from_padded, top_items

EXPORTED_ITEMS = 100  # largest k of the signature `recommend`

ScoreRows = Callable[[tf.Tensor], tf.Tensor]


class BoolSpec(InputSpec):
    """True or false for each row.

    Args:
        default: Value of each row where a call gives none; None: it must be given.
    """

    def __init__(self, default: bool | None = None):
        super().__init__(dtype="bool", default=default)

    @property
    def values_rule(self) -> str:
        """Values in words."""
        return "true or false,"

    def takes(self, dtype: tf.DType) -> bool:
        """Whether this is bool."""
        return dtype.is_bool

    def is_valid(self, values: Any) -> Any:
        """Every bool is valid."""
        return True

    def example(self, rng: np.random.Generator, num_rows: int) -> np.ndarray:
        """Alternates between both values."""
        return np.arange(num_rows) % 2 == 0


REMOVE_SEEN = BoolSpec(default=True)


class Recommendations(NamedTuple):
    """Top-k items of users, the best first.

    Attributes:
        item_ids: Original ids, [users, k]; "" or -1 where no unseen item is left.
        scores: float32 [users, k]; minus infinity there.
    """

    item_ids: np.ndarray
    scores: np.ndarray


class ItemCatalogue:
    """The items that a model scores, in the order of its columns.

    Args:
        item_ids: Whole numbers or strings, each once.
        item_counts: Number of training users of each item: the scores for users
            without a history. None: all alike.
        item_features: Names of each item's features, a list for each. None: none.

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
        no_item: Any = "" if kind == "U" else min(0, int(ids.min())) - 1
        if len(np.unique(ids)) < len(ids) or no_item in ids:
            raise ValueError(
                f"`item_ids` must name each item once, and none by {no_item!r}, which "
                f"stands for no item. Received: {len(ids)} ids, {len(np.unique(ids))} "
                "of them different."
            )
        counts = np.zeros(len(ids)) if item_counts is None else np.asarray(item_counts)
        if counts.shape != ids.shape or (counts < 0).any():
            raise ValueError(
                "`item_counts` must be a number of users for each item, 0 or more. "
                f"Received: shape {counts.shape} for {len(ids)} items."
            )
        self.num_items = len(ids)
        self.is_text = kind == "U"
        self.no_item = no_item
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
        """Maps original ids to positions, padded with -1: int64 [users, longest].

        Raises:
            ValueError: If an id is unknown, or `histories` is not a list of lists.
        """
        rows = []
        for history in histories:
            if isinstance(history, (str, bytes)) or np.ndim(history) != 1:
                raise ValueError(
                    "`histories` must be a list of lists of item ids, one list for "
                    f"each user. Received: {history!r} in it."
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
        """Returns `recommend`, by original ids in SavedModel and positions in ONNX.

        ONNX has no tables of strings: its metadata hold the list of ids instead. And
        `score`: from multi-hot rows to the scores of all items.
        """
        k = min(EXPORTED_ITEMS, self.num_items)
        table = _position_table(self.item_ids)
        by_position = self.recommend_by_position(score_rows, layers, k)

        def recommend_ids(item_ids, remove_seen):
            # Unknown ids, the padding among them, have the position -1.
            found = by_position.function(table.lookup(item_ids), remove_seen)
            columns = tf.maximum(found["recommended"], 0)
            ids = tf.gather(tf.constant(self.item_ids), columns)
            no_item = tf.constant(self.no_item, ids.dtype)
            ids = tf.where(found["recommended"] < 0, no_item, ids)
            return {"item_ids": ids, "scores": found["scores"]}

        def example_ids(num_rows):
            values = by_position.example(num_rows)
            positions = values.pop("items")
            ids = np.where(positions < 0, self.no_item, self.item_ids[positions])
            return {"item_ids": ids, **values}

        ids_type = "string" if self.is_text else "int64"
        return [
            Signature(
                "recommend",
                recommend_ids,
                {"item_ids": IdSpec((None,), ids_type), "remove_seen": REMOVE_SEEN},
                {"item_ids": "items", "scores": "scores"},
                layers,
                (example_ids,),
                runtimes=("saved_model",),
                resources=(table,),
            ),
            dataclasses.replace(by_position, runtimes=("onnx",)),
            Signature(
                "score",
                lambda rows: {"scores": score_rows(rows)},
                {"rows": InputSpec((self.num_items,), low=0)},
                {"scores": "scores"},
                layers,
                (lambda num_rows: {"rows": self._example_rows(num_rows)},),
            ),
        ]

    def recommend_by_position(
        self, score_rows: ScoreRows, layers: tuple[keras.layers.Layer, ...], k: int
    ) -> Signature:
        """Returns the signature from positions, padded with -1, to the best k items."""

        def recommend(items, remove_seen):
            scores, columns = self._best(score_rows, items, k, remove_seen)
            found = tf.where(tf.math.is_inf(scores), -1, columns)
            return {"recommended": found, "scores": scores}

        def example(num_rows):
            rng = np.random.default_rng(num_rows)
            longest = min(20, self.num_items)
            rows = [rng.permutation(self.num_items)[:longest] for _ in range(num_rows)]
            keep = rng.integers(0, longest + 1, num_rows)[:, None]
            items = np.where(np.arange(longest) < keep, np.array(rows, np.int64), -1)
            return {"items": items, "remove_seen": np.arange(num_rows) % 3 > 0}

        return Signature(
            "recommend",
            recommend,
            {"items": IdSpec((None,), "int64"), "remove_seen": REMOVE_SEEN},
            {"recommended": "items", "scores": "scores"},
            layers,
            (example,),
            metadata={"item_ids": json.dumps(self.item_ids.tolist())},
        )

    def _example_rows(self, num_rows):
        rng = np.random.default_rng(num_rows)
        return (rng.random((num_rows, self.num_items)) < 0.2).astype(np.float32)

    def _best(self, score_rows, items, k, remove_seen):
        rows = multi_hot_from_padded(items, self.num_items)
        scores = score_rows(rows)
        empty = tf.reduce_max(rows, axis=1, keepdims=True) == 0
        scores = tf.where(empty, tf.constant(self.item_counts), scores)
        seen = rows * tf.cast(remove_seen, tf.float32)[:, None]
        return top_items(scores, seen, k)


class RecommenderMixin:
    """Methods of recommenders, to be mixed in with `GenerativeModel`.

    The model has a `catalogue`, and defines `_score_rows`: multi-hot rows,
    [batch, num_items], to scores of the same shape.
    """

    compatibility_arguments: tuple[str, ...] = ("item_ids",)

    catalogue: ItemCatalogue
    batch_specs: dict[str, InputSpec]
    encoder: keras.layers.Layer
    decoder: keras.layers.Layer
    read: Any
    run: Any
    _score_rows: ScoreRows

    @property
    def item_ids(self) -> list[Any]:
        """Original ids, in the order of the positions."""
        return self.catalogue.item_ids.tolist()

    @property
    def item_counts(self) -> list[float]:
        """Number of training users of each item."""
        return self.catalogue.item_counts.tolist()

    def declare_batches(self, has_row_losses: bool) -> None:
        """Declares interactions, and weights of rows where the loss is by row."""
        num_items = self.catalogue.num_items
        self._recommend: dict[int, Signature] = {}  # by the number of items
        self.batch_specs = {
            "items": ItemSpec(num_items),
            "targets": ItemSpec(num_items, optional=True),
            "candidates": ItemSpec(num_items, optional=True),
        }
        if has_row_losses:
            self.batch_specs["sample_weight"] = InputSpec(low=0, optional=True)

    def call(self, data: Any, training: bool = False) -> tf.Tensor:
        """Scores all items for a batch of users: [batch, num_items]."""
        items = self.read(data)["items"]
        return self._score_rows(multi_hot(items, self.catalogue.num_items))

    def scoring_layers(self) -> tuple[keras.layers.Layer, ...]:
        """Returns the layers that score items."""
        return (self.encoder, self.decoder)

    def signatures(self) -> list[Signature]:
        """Returns `recommend` and `score`."""
        return self.catalogue.signatures(self._score_rows, self.scoring_layers())

    def recommend(
        self, histories: Sequence[Sequence[Any]], k: int = 10, remove_seen: bool = True
    ) -> Recommendations:
        """Recommends the top-k items for users by their histories.

        Args:
            histories: The original item ids of each user, not necessarily a training
                user. An empty history gets the items with the highest `item_counts`,
                which are then the scores.
            k: Number of items for each user.
            remove_seen: Whether items of the history are left out.

        Returns:
            Ids and scores, [users, k], the best first: scores are comparable within
            one user only. Where no unseen item is left, the id is -1 (or
            "") and the score minus infinity.

        Raises:
            ValueError: If an item is unknown, or `k` above the number of items.
        """
        catalogue = self.catalogue
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= catalogue.num_items:
            raise ValueError(
                f"`k` must be an integer in [1, {catalogue.num_items}], the number of "
                f"items. Received: k={k}"
            )
        positions = catalogue.positions(histories)
        if k not in self._recommend:
            self._recommend[k] = catalogue.recommend_by_position(
                self._score_rows, self.scoring_layers(), int(k)
            )
        best = self._recommend[k](items=positions, remove_seen=remove_seen)
        ids = catalogue.item_ids[best["recommended"]]
        ids[best["recommended"] < 0] = catalogue.no_item
        return Recommendations(ids, best["scores"])

    def score(self, rows: Any) -> np.ndarray:
        """Scores all items for users by their multi-hot rows: float32 [n, num_items].

        Args:
            rows: A NumPy or SciPy sparse array [n, num_items].
        """
        dense = rows.toarray() if hasattr(rows, "toarray") else rows
        return self.run("score", rows=dense)["scores"]


class IdSpec(InputSpec):
    """Item ids, or positions, in rows of any length: unknown ones are ignored."""

    def takes(self, dtype: tf.DType) -> bool:
        """Whether this is the type of the ids."""
        return dtype.is_integer if self.dtype == "int64" else dtype == tf.string

    def assert_in_graph(self, name: str, tensor: Any) -> Any:
        """Returns the ids as they are: any id is valid."""
        return tensor


def _feature_rows(
    item_features: Sequence[Sequence[str]], num_items: int
) -> tuple[np.ndarray, list[str]]:
    """Multi-hot features of each item, and the features' names."""
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
    """Lookup table from original ids to positions; -1 for unknown ids."""
    positions = tf.range(len(item_ids), dtype=tf.int64)
    pairs = tf.lookup.KeyValueTensorInitializer(tf.constant(item_ids), positions)
    table = tf.lookup.StaticHashTable(pairs, default_value=-1)
    # TensorFlow notes a None for it in the graph of its first version, of which it
    # complains whenever something is converted to ONNX.
    noted = tf.compat.v1.get_collection_ref(tf.compat.v1.GraphKeys.TABLE_INITIALIZERS)
    noted[:] = [operation for operation in noted if operation is not None]
    return table
