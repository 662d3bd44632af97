"""Batches of a finite collection, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.arguments import check_integer, check_seed, require

# The purpose of an order is part of its key: no two purposes share random bits.
ORDER_STREAM, SPLIT_STREAM = 0, 3
USERS_STREAM, HIDDEN_STREAM, LAST_STREAM, PAIRS_STREAM, ITEMS_STREAM = 4, 5, 6, 7, 8

_EPOCH_LIMIT = 2**24  # the key of an order gives the epoch 24 bits

Batch = dict[str, tf.Tensor | tf.RaggedTensor]
Read = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Batch]


def permutation(num_rows: int, seed: int, stream: int, epoch: int = 0) -> np.ndarray:
    """Returns int64 [num_rows], the order of the rows for (seed, epoch)."""
    key = np.array([seed, stream * 2**56 + epoch * 2**32], np.uint64)
    # NumPy keeps these raw bits the same in all versions, unlike its shuffles. Sorting
    # them with the rows in their low bits is seven times as fast as `argsort`; equal
    # draws keep the order of their rows.
    draws = np.random.Philox(key=key).random_raw(num_rows)
    low_bits = np.uint64(2 ** num_rows.bit_length() - 1)
    rows = np.arange(num_rows, dtype=np.uint64)
    return (np.sort((draws & ~low_bits) | rows) & low_bits).astype(np.int64)


@dataclass(eq=False)
class Pipeline:
    """Reads the rows of a finite collection in batches, in a reproducible order.

    The order of a pass is a pure function of (seed, epoch): one permutation, sliced
    into batches, and the batches into the shares of the replicas. It does not depend on
    earlier reads, so a position is two numbers, (epoch, batch), and
    `dataset(skip=batch)` resumes there.

    Args:
        num_rows: Rows in the collection, at least 1.
        read: Function `read(rows, epoch, positions)` that returns a dict of tensors
            with leading dimension n for `rows`, int64 [n], possibly ragged. It is
            traced into the tf.data graph and may be slow (decoding): several calls run
            at once, and their results keep their order. Random draws are keyed by
            `epoch`, an int64 scalar, and `positions`, int64 [n], the positions of the
            rows in the pass.
        batch_size: Rows in a global batch, over all ranks and replicas.
        seed: Integer in [0, 2**63). Keys the order and the noise.
        shuffle: Whether each epoch has an order (and noise) of its own. If False every
            pass is epoch 0 and reads the rows in the order of their numbers.
        drop_remainder: Whether a last batch of fewer than `batch_size` rows is left
            out. For training only: an evaluation sees every row.
        rows_per_read: Approximate number of rows in a call of `read`, in whole batches,
            where all batches are full. More than a batch pays where reading takes less
            time than a call. 1 for ragged tensors.

    Attributes:
        epoch: None or an integer. None: each dataset counts its own passes, and the
            k-th pass that is read has epoch k; an iterator without a request for an
            element does not count. An integer: the epoch of every pass that begins from
            now on. Without effect when `shuffle` is False.

    Raises:
        ValueError: An argument is out of its range, or `drop_remainder` would drop
            every row.

    Example:
        >>> squares = tf.range(10) ** 2
        >>> def read(rows, epoch, positions):
        ...     return {"squares": tf.gather(squares, rows)}
        >>> pipeline = Pipeline(10, read, batch_size=4, seed=1, shuffle=True)
        >>> [int(tf.shape(batch["squares"])[0]) for batch in pipeline.dataset()]
        [4, 4, 2]
    """

    num_rows: int
    read: Read
    _: KW_ONLY
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    drop_remainder: bool = False
    rows_per_read: int = 1
    _pinned: dict[str, Any] = field(
        default_factory=lambda: {"epoch": None}, init=False, repr=False
    )

    @property
    def epoch(self) -> int | None:
        """Epoch of every pass that begins from now on; None: passes are counted."""
        return self._pinned["epoch"]

    @epoch.setter
    def epoch(self, value: int | None) -> None:
        self._pinned["epoch"] = value

    def __post_init__(self) -> None:
        """Raises ValueError for an argument out of its range."""
        check_integer("num_rows", self.num_rows, why=": there is nothing to read")
        check_integer("batch_size", self.batch_size)
        check_seed(self.seed)
        if self.drop_remainder and self.batch_size > self.num_rows:
            raise ValueError(
                "`batch_size` must not exceed the number of rows when the last, "
                "incomplete batch is dropped, because no batch would be left. "
                f"Received: batch_size={self.batch_size} for {self.num_rows} rows. Try "
                f"batch_size={self.num_rows}{' or less' * (self.num_rows > 1)}."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in a whole pass."""
        if self.drop_remainder:
            return self.num_rows // self.batch_size
        return -(-self.num_rows // self.batch_size)

    def check_divides(self, shares: int) -> None:
        """Checks that a batch has the same number of rows for each replica.

        Raises:
            ValueError: With `drop_remainder`, if the batch size does not divide by the
                number of shares.
        """
        if self.drop_remainder and self.batch_size % shares:
            down = max(self.batch_size // shares, 1) * shares
            raise ValueError(
                "`batch_size` must be divisible by the number of replicas, here "
                f"{shares}. Received: batch_size={self.batch_size}. Try {down} or "
                f"{down + shares}."
            )

    def dataset(
        self, *, skip: int = 0, rank: int = 0, num_ranks: int = 1, replicas: int = 1
    ) -> tf.data.Dataset:
        """Returns a dataset whose every iteration is one pass.

        Global batch i of a pass is `order[i * batch_size : (i + 1) * batch_size]`. It
        is cut into num_ranks * replicas consecutive shares, and this dataset yields the
        shares of its rank's replicas one after the other, as
        `strategy.distribute_datasets_from_function` expects of a worker. An incomplete
        last batch is divided as evenly as possible; a share of it can be empty.

        Args:
            skip: Global batches to leave out at the start of each pass. 0 to
                `steps_per_epoch`.
            rank: Index of this worker, 0 to num_ranks - 1.
            num_ranks: Number of workers.
            replicas: Replicas on this worker.

        Returns:
            A dataset of (steps_per_epoch - skip) * replicas elements, each the dict
            that `read` returned. It can be iterated any number of times.

        Raises:
            ValueError: A position out of range, or, with `drop_remainder`, a batch
                size that does not divide by the number of replicas of all ranks.
        """
        shares = num_ranks * replicas
        last = self.steps_per_epoch
        rule = f"be between 0 and steps_per_epoch={last}"
        require(0 <= skip <= last, "skip", skip, rule)
        if replicas < 1 or not 0 <= rank < num_ranks:
            raise ValueError(
                "`replicas` must be at least 1 and `rank` in [0, num_ranks). Received: "
                f"rank={rank}, num_ranks={num_ranks}, replicas={replicas}"
            )
        self.check_divides(shares)
        every_batch_is_full = self.drop_remainder or not self.num_rows % self.batch_size
        rows_per_share = None
        elements_per_read = 1
        if every_batch_is_full and not self.batch_size % shares:
            rows_per_share = self.batch_size // shares  # a shape known to the compiler
            elements_per_read = max(self.rows_per_read // rows_per_share, 1)
        num_elements = (self.steps_per_epoch - skip) * replicas
        passes = itertools.count()
        pinned, shuffle = self._pinned, self.shuffle
        total_rows, seed = self.num_rows, self.seed

        def begin_pass() -> tuple[np.int64, np.ndarray]:
            # Runs in Python once a pass, when its first element is requested. It does
            # not refer to `self`, and so to the rows: TensorFlow never frees it
            # (https://github.com/tensorflow/tensorflow/pull/123530).
            epoch = next(passes) if pinned["epoch"] is None else int(pinned["epoch"])
            rule = f"be in [0, {_EPOCH_LIMIT})"
            require(0 <= epoch < _EPOCH_LIMIT, "epoch", epoch, rule)
            if not shuffle:
                return np.int64(0), np.arange(total_rows)
            return np.int64(epoch), permutation(total_rows, seed, ORDER_STREAM, epoch)

        def open_pass(_: tf.Tensor) -> tf.data.Dataset:
            epoch, order = tf.numpy_function(begin_pass, [], [tf.int64, tf.int64])
            epoch = tf.ensure_shape(epoch, [])
            order = tf.ensure_shape(order, [self.num_rows])
            # Each element refers to the order, which is not copied. No function is
            # nested here: to set one up would take longer than a small pass.
            elements = tf.data.Dataset.range(
                skip * replicas, self.steps_per_epoch * replicas
            )
            # One at a time there is no remainder, and so a shape that is known.
            elements = elements.batch(elements_per_read, elements_per_read == 1)
            order_again = tf.data.Dataset.from_tensors((epoch, order)).repeat()
            return tf.data.Dataset.zip(elements, order_again)

        def read(elements: tf.Tensor, position: tuple[tf.Tensor, tf.Tensor]) -> Batch:
            epoch, order = position
            share = rank * replicas + elements % replicas  # [elements]
            start = elements // replicas * self.batch_size
            if rows_per_share is not None:
                first, num_rows = share * rows_per_share, rows_per_share
            else:  # One element of a batch that is divided as evenly as possible.
                length = tf.minimum(self.num_rows - start, self.batch_size)
                first = share * length // shares
                num_rows = ((share + 1) * length // shares - first)[0]
            positions = (start + first)[:, None] + tf.range(num_rows, dtype=tf.int64)
            positions = tf.reshape(positions, [-1])  # [elements * rows]
            values = self.read(tf.gather(order, positions), epoch, positions)
            if elements_per_read == 1:
                return values
            # [elements * rows, ...] -> [elements, rows, ...]
            leading = [tf.size(elements), rows_per_share]
            return {
                name: tf.reshape(value, [*leading, *value.shape[1:]])
                for name, value in values.items()
            }

        options = tf.data.Options()
        # Autotuning gains nothing over a call for each core, and makes a pass wait for
        # seconds until the tuner of the previous pass ends.
        options.autotune.enabled = False
        # Parallel reads keep the cores busy; operations with several threads each would
        # slow the training step down.
        options.threading.max_intra_op_parallelism = 1
        # A pass begins with its first element, not with its iterator.
        options.experimental_warm_start = False
        # These rows are already distributed; sharding them again would lose some.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.OFF
        )
        options.deterministic = True
        dataset: Any = tf.data.Dataset.range(1).flat_map(open_pass)
        dataset = dataset.map(read, num_parallel_calls=os.cpu_count() or 1)
        if elements_per_read > 1:  # TensorFlow crashes if it unbatches an empty share.
            dataset = dataset.unbatch()
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_elements))
        return dataset.prefetch(2).with_options(options)
