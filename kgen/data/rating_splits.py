"""Split strategies: (user, item) pairs into histories and targets.

All are pure functions of the pairs and a seed; `open_ratings` describes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kgen.arguments import check_integer, check_seed, require
from kgen.data import pipeline
from kgen.data.dataset import SPLITS
from kgen.data.pipeline import permutation
from kgen.data.rating_columns import ROLES, RatingTable, Wanted

# As many as Liang et al. (2018) hold out of MovieLens 20M, in validation and in test.
HELD_OUT_LIMIT = 10_000


@dataclass(frozen=True, kw_only=True)
class RatingOptions:
    """Options of `open_ratings` that choose and split the pairs; checked at once."""

    min_rating: float | None = 4.0
    min_items: int = 5
    split_strategy: str = "strong"
    seed: int = 0
    held_out_users: int | None = None
    hidden_fraction: float = 0.2
    columns: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for an option out of its range."""
        least, strategy = self.min_rating, self.split_strategy
        finite = least is None or math.isfinite(least)
        require(finite, "min_rating", least, "be a finite number or None")
        check_integer("min_items", self.min_items)
        rule = f"be one of {', '.join(STRATEGIES)}"
        require(strategy in STRATEGIES, "split_strategy", strategy, rule)
        if self.held_out_users is not None and strategy != "strong":
            raise ValueError(
                "`held_out_users` is for split_strategy='strong' only. Received: "
                f"held_out_users={self.held_out_users} and split_strategy={strategy!r}"
            )
        check_seed(self.seed)
        share, rule = self.hidden_fraction, "be between 0 and 1, both excluded"
        require(0 < share < 1, "hidden_fraction", share, rule)
        names = self.columns
        if names is not None and (isinstance(names, str) or not 2 <= len(names) <= 4):
            raise ValueError(
                "`columns` must be the names of the columns of user, item, rating and "
                f"time, the first two at least. Received: columns={names!r}"
            )

    def wanted(self) -> Wanted:
        """Returns the columns that the other options use."""
        unused = set() if self.split_strategy == "leave-one-out" else {"time"}
        unused |= {"rating"} if self.min_rating is None else set()
        roles = tuple(role for role in ROLES if role not in unused)
        return Wanted(roles, self.columns)


class Pairs(NamedTuple):
    """Positive pairs, ascending by user and then by item.

    Attributes:
        users: int32 [n], positions in the ids of the users.
        items: int32 [n], positions in the ids of the items.
        times: float64 [n], or None.
        rows: int64 [n], their positions in the source.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    rows: np.ndarray


class Part(NamedTuple):
    """One split.

    Attributes:
        history: bool [n], the pairs of the histories.
        targets: bool [n], the pairs of the targets; or None.
        candidates: The items to rank, ascending; None for all.
    """

    history: np.ndarray
    targets: np.ndarray | None = None
    candidates: np.ndarray | None = None


def positive_pairs(
    table: RatingTable, options: RatingOptions
) -> tuple[Pairs, np.ndarray, np.ndarray, int]:
    """Selects the positive pairs.

    Returns:
        The pairs; the indices of their users and of their items in the table, int64,
        ascending; and the number of users with too few pairs.
    """
    min_rating, min_items = options.min_rating, options.min_items
    rows = np.arange(len(table.users))
    if min_rating is not None and table.ratings is not None:
        rows = np.flatnonzero(table.ratings >= min_rating)
    counts = np.bincount(table.users[rows], minlength=len(table.user_ids))
    rows = rows[counts[table.users[rows]] >= min_items]
    if not len(rows):
        rated = table.ratings
        best = "" if rated is None else f", rated {rated.max():g} at most"
        raise ValueError(
            f"There must be a user with {min_items} positive pairs. Received: "
            f"{table.name} with {len(table.users):,} pairs{best}, and at most "
            f"{counts.max()} positive ones of a user. Lower `min_rating` or "
            "`min_items`."
        )
    users, user_positions = np.unique(table.users[rows], return_inverse=True)
    items, item_positions = np.unique(table.items[rows], return_inverse=True)
    order = np.lexsort((item_positions, user_positions))
    pairs = Pairs(
        users=user_positions[order].astype(np.int32),
        items=item_positions[order].astype(np.int32),
        times=None if table.times is None else table.times[rows[order]],
        rows=rows[order],
    )
    return pairs, users, items, len(table.user_ids) - len(users)


def _rounded(numbers: Any) -> Any:
    """Returns the nearest integers, int64; halves go up."""
    return np.floor(np.asarray(numbers) + 0.5).astype(np.int64)


def _ranks_within_users(
    pairs: Pairs, num_users: int, keys: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks the pairs of each user.

    Args:
        pairs: All pairs.
        num_users: Number of users.
        keys: Sort keys of the pairs of a user; the last key is the primary one.

    Returns:
        int64 [n], the rank of each pair among the pairs of its user, from 0; and int64
        [n], the number of pairs of that user.
    """
    counts = np.bincount(pairs.users, minlength=num_users)
    starts = np.cumsum(counts) - counts
    order = np.lexsort((*keys, pairs.users))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - starts[pairs.users]
    return ranks, counts[pairs.users]


def _nested_parts(validation: np.ndarray, test: np.ndarray) -> dict[str, Part]:
    """Returns the splits by their targets: a test's history has those of validation."""
    train = ~validation & ~test
    return {
        "train": Part(train),
        "validation": Part(train, validation),
        "test": Part(~test, test),
    }


def split_users(
    pairs: Pairs, num_users: int, num_items: int, options: RatingOptions
) -> dict[str, Part]:
    """Splits by users: "strong"."""
    held = options.held_out_users
    if held is None:
        held = min(max(num_users // 10, 1), HELD_OUT_LIMIT)
    if not isinstance(held, (int, np.integer)) or held < 1 or 2 * held >= num_users:
        raise ValueError(
            "`held_out_users` must be at least 1, and twice that must leave a user to "
            f"train on. Received: held_out_users={held} for {num_users} users."
        )
    order = permutation(num_users, options.seed, pipeline.USERS_STREAM)
    role = np.zeros(num_users, np.int8)
    role[order[:held]] = SPLITS.index("test")
    role[order[held : 2 * held]] = SPLITS.index("validation")
    roles = role[pairs.users]
    shuffled = permutation(len(pairs.users), options.seed, pipeline.HIDDEN_STREAM)
    ranks, counts = _ranks_within_users(pairs, num_users, (shuffled,))
    num_hidden = np.clip(_rounded(options.hidden_fraction * counts), 1, counts - 1)
    hidden = ranks < num_hidden
    parts = {"train": Part(roles == 0)}
    for split in ("validation", "test"):
        in_split = roles == SPLITS.index(split)
        parts[split] = Part(in_split & ~hidden, in_split & hidden)
    return parts


def leave_one_out(
    pairs: Pairs, num_users: int, num_items: int, options: RatingOptions
) -> dict[str, Part]:
    """Splits off the last two items of each user: "leave-one-out"."""
    keys: tuple[np.ndarray, ...]
    if pairs.times is None:
        keys = (permutation(len(pairs.users), options.seed, pipeline.LAST_STREAM),)
    else:
        keys = (pairs.rows, pairs.times)
    ranks, counts = _ranks_within_users(pairs, num_users, keys)
    is_last = (ranks == counts - 1) & (counts > 1)
    is_before = (ranks == counts - 2) & (counts > 2)
    return _nested_parts(is_before, is_last)


def split_pairs(
    pairs: Pairs, num_users: int, num_items: int, options: RatingOptions
) -> dict[str, Part]:
    """Splits by pairs: "random"."""
    num_pairs = len(pairs.users)
    num_test = int(_rounded(options.hidden_fraction * num_pairs))
    num_validation = int(_rounded((num_pairs - num_test) / 10))
    order = permutation(num_pairs, options.seed, pipeline.PAIRS_STREAM)
    in_test, in_validation = np.zeros((2, num_pairs), bool)
    in_test[order[:num_test]] = True
    in_validation[order[num_test : num_test + num_validation]] = True
    return _nested_parts(in_validation, in_test)


def split_items(
    pairs: Pairs, num_users: int, num_items: int, options: RatingOptions
) -> dict[str, Part]:
    """Splits by items: "held-out-items"."""
    num_held = max(num_items // 10, 2)
    num_test = (num_held + 1) // 2
    order = permutation(num_items, options.seed, pipeline.ITEMS_STREAM)
    held = {
        "validation": np.sort(order[num_test:num_held]),
        "test": np.sort(order[:num_test]),
    }
    trained = ~np.isin(pairs.items, order[:num_held])
    parts = {"train": Part(trained)}
    for split, items in held.items():
        parts[split] = Part(trained, np.isin(pairs.items, items), items)
    return parts


STRATEGIES = {
    "strong": split_users,
    "leave-one-out": leave_one_out,
    "random": split_pairs,
    "held-out-items": split_items,
}
