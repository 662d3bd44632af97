"""The interface of every data set: splits, one line of description, batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf

from kgen.arguments import check_seed, require
from kgen.data.pipeline import Pipeline, Read

SPLITS = ("train", "validation", "test")

_BATCH_OPTIONS = ("batch_size", "seed", "shuffle", "drop_remainder")


class DataSet:
    """A named collection of rows with splits.

    Attributes:
        name: Name of the data set.
        splits: Size of "train", "validation" and "test", as far as they exist.
        notes: Remarks on what was left out or is out of the ordinary.
    """

    default_batch_size: ClassVar[int] = 128

    name: str
    splits: dict[str, int]
    notes: tuple[str, ...]

    # (split, seed, shuffle, further options) -> `read` and `rows_per_read` of Pipeline
    _reader: Callable[..., tuple[Read, int]]
    _split_hint = ""

    def describe(self) -> str:
        """Returns one line: what the set holds, the size of its splits, the notes."""
        counts = ", ".join(f"{split} {count:,}" for split, count in self.splits.items())
        return "; ".join([f"{self.name}: {self._content()}{counts}", *self.notes])

    def __str__(self) -> str:
        return self.describe()

    def num_rows(self, split: str, *, shuffle: bool = False) -> int:
        """Returns the number of rows of a pipeline: images, users or windows.

        Raises:
            ValueError: There is no such split.
        """
        self._check_split(split)
        return self.splits[split]

    def fitting_batch_size(self, default: int, replicas: int = 1) -> int:
        """Returns a default batch size, lowered if there are fewer rows to train on.

        Args:
            default: The batch size where there are enough rows.
            replicas: Number of replicas, by which a lowered batch size is divisible.
        """
        num_rows = self.num_rows("train", shuffle=True)
        if default <= num_rows:
            return default
        return max(num_rows // replicas, 1) * replicas

    def pipeline(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        drop_remainder: bool = False,
        **options: Any,
    ) -> Pipeline:
        """Returns the pipeline of one split; the class describes its batches.

        Args:
            split: "train", "validation" or "test".
            batch_size: Rows in a global batch.
            seed: Integer in [0, 2**63), keys the order and all random draws.
            shuffle: Whether each epoch has an order, and random draws, of its own.
            drop_remainder: Whether a last, smaller batch is left out.
            **options: Further options of the class.

        Raises:
            ValueError: An unknown split, an argument out of range, or a batch size
                above the number of rows when the remainder is dropped.
        """
        check_seed(seed)
        num_rows = self.num_rows(split, shuffle=shuffle)
        read, rows_per_read = self._reader(split, seed, shuffle, **options)
        return Pipeline(
            num_rows,
            read,
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_remainder=drop_remainder,
            rows_per_read=rows_per_read,
        )

    def batches(
        self,
        split: str = "train",
        *,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        drop_remainder: bool | None = None,
        **options: Any,
    ) -> tf.data.Dataset:
        """Returns the batches of one split.

        Every iteration is one pass. The order of the k-th pass is a pure function of
        (seed, k); without shuffling all passes are alike.

        Args:
            split: "train", "validation" or "test".
            batch_size: Rows in a batch. None: `default_batch_size`, lowered with a
                warning where there are fewer rows to train on.
            shuffle: Whether each pass has an order of its own. By default only in
                training.
            drop_remainder: Whether a last, smaller batch is left out. By default only
                in training.
            **options: seed, and further options of the class; see `pipeline`.

        Raises:
            ValueError: See `pipeline`.
        """
        training = split == "train"
        drop_remainder = training if drop_remainder is None else drop_remainder
        options["shuffle"] = training if shuffle is None else shuffle
        if batch_size is None:
            batch_size = self.default_batch_size
            fitting = self.fitting_batch_size(batch_size)
            if training and drop_remainder and fitting < batch_size:
                warnings.warn(
                    f"batch_size={fitting} in place of the default {batch_size}: "
                    f"{self.name} has no more rows to train on.",
                    stacklevel=3,
                )
                batch_size = fitting
        pipeline = self.pipeline(
            split, batch_size=batch_size, drop_remainder=drop_remainder, **options
        )
        return pipeline.dataset()

    def _content(self) -> str:
        """Returns the part of `describe` between the name and the sizes of splits."""
        raise NotImplementedError

    def _check_split(self, split: str) -> None:
        rule = f"be one of {', '.join(self.splits)}"
        require(split in self.splits, "split", split, rule, self._split_hint)


def take_batch_options(options: dict[str, Any]) -> dict[str, Any]:
    """Removes the options of `DataSet.batches` from the others, and returns them."""
    return {name: options.pop(name) for name in _BATCH_OPTIONS if name in options}
