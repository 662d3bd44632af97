"""Ranking of items, and metrics of ranked lists.

The protocol is full ranking: every item is ranked, not a sample; seen items are left
out; users without a held-out item are left out of the mean.

The metrics by user take `top`, lists of item positions, int [users, k], the best first,
-1 for an empty rank; and `targets`, csr_array [users, items], not zero for held-out
items. They return float64 [users]. k is the length of the lists, also of a user with
fewer items left; n is the number of a user's targets. They raise ValueError on shapes
that do not fit, on lists with an item twice or with numbers that are not positions, and
on users without targets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from kgen.evaluation.blocks import Progress, row_blocks

BLOCK_USERS = 256  # users whose scores are in memory together


def top_items(
    scores: np.ndarray,
    seen: sparse.csr_array | None,
    k: int,
    candidates: np.ndarray | None = None,
) -> np.ndarray:
    """Return the k items of each user with the highest scores, the highest first.

    Ties are in the order of the positions, also at rank k: the lists are a pure
    function of the scores.

    Args:
        scores: Finite: [users, items].
        seen: Not zero for seen items, which are left out: [users, items]. None: no item
            was seen.
        k: Length of the lists.
        candidates: Positions of the only items to rank. None: all.

    Returns:
        Positions of items, int64 [users, k]; -1 at ranks without an item.

    Raises:
        ValueError: On shapes that do not fit, scores that are not finite, k below 1, or
            candidates that are not positions of items.
    """
    scores = np.asarray(scores)
    _check_length(k)
    seen_shape = scores.shape if seen is None else seen.shape
    if scores.ndim != 2 or not scores.shape[1] or seen_shape != scores.shape:
        raise ValueError(
            "`scores` and `seen` must be [users, items], with an item. Received: "
            f"{scores.shape} and {seen_shape}."
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            "`scores` must be finite. Received: NaN or infinity. To leave out items, "
            "name the others in `candidates`."
        )
    num_users, num_items = scores.shape
    allowed = np.full(scores.shape, candidates is None)
    if candidates is not None:
        last = num_items - 1
        rule = f"[candidates], positions from 0 to {last} (of a mask `np.flatnonzero`)"
        only = _checked_integers("candidates", candidates, rule, 1, 0, last)
        allowed[:, only] = True
    if seen is not None:
        allowed[seen.nonzero()] = False
    scores = np.where(allowed, scores, -np.inf)

    length = min(k, num_items)
    # The score at the last rank. Items above it are in the list; of items equal to it,
    # the first ones, until the list is full.
    lowest = np.partition(scores, num_items - length, axis=1)[:, -length, None]
    above, equal = scores > lowest, scores == lowest
    room = length - above.sum(axis=1, keepdims=True)
    equal &= np.cumsum(equal, axis=1, dtype=np.int32) <= room
    positions = np.nonzero(above | equal)[1].reshape(num_users, length)  # ascending
    listed = np.take_along_axis(scores, positions, axis=1)
    order = np.argsort(-listed, axis=1, kind="stable")
    left = np.isfinite(np.take_along_axis(listed, order, axis=1))
    top = np.full((num_users, k), -1, np.int64)
    top[:, :length] = np.where(left, np.take_along_axis(positions, order, axis=1), -1)
    return top


def recommended(
    score: Callable[[sparse.csr_array], np.ndarray],
    history: sparse.csr_array,
    k: int,
    candidates: np.ndarray | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the k best items of each user that are not in the history.

    Ties are in one random order, the same for all users. In the order of the positions
    a model that does not know some items would rank them by their ids: MovieLens
    numbers well-known films first.

    Args:
        score: From rows of `history` to scores of all items, as of `top_items`.
        history: Not zero for the items of a user: [users, items].
        k: Length of the lists.
        candidates: Positions of the only items to rank. None: all.
        progress: Called with the number of processed users, and their total.

    Returns:
        Positions of items, int64 [users, k]; -1 at ranks without an item.
    """
    num_users, num_items = history.shape
    order = np.random.default_rng(0).permutation(num_items)
    if candidates is not None:
        candidates = np.flatnonzero(np.isin(order, candidates))
    blocks = [np.zeros((0, k), np.int64)]
    for users in row_blocks(num_users, BLOCK_USERS, progress):
        seen = history[users]
        top = top_items(score(seen)[:, order], seen[:, order], k, candidates)
        blocks.append(np.where(top < 0, -1, order[top]))
    return np.concatenate(blocks)


# -- Metrics by user -----------------------------------------------------------


def recall(top: np.ndarray, targets: sparse.csr_array) -> np.ndarray:
    """Targets in the list, over min(k, n): 1 for the best possible list.

    Reference:
        Liang et al., 2018, Variational Autoencoders for Collaborative Filtering.
    """
    hits, num_targets = _hits(top, targets)
    return hits.sum(axis=1) / np.minimum(hits.shape[1], num_targets)


def recall_over_n(top: np.ndarray, targets: sparse.csr_array) -> np.ndarray:
    """Targets in the list, over n: below 1 for each user with more than k targets."""
    hits, num_targets = _hits(top, targets)
    return hits.sum(axis=1) / num_targets


def precision(top: np.ndarray, targets: sparse.csr_array) -> np.ndarray:
    """Targets in the list, over k: below 1 for each user with fewer than k targets."""
    hits, _ = _hits(top, targets)
    return hits.mean(axis=1)


def ndcg(top: np.ndarray, targets: sparse.csr_array) -> np.ndarray:
    """Normalised discounted cumulative gain, binary.

    The sum of 1 / log2(rank + 1) over the ranks of targets, the first rank being 1,
    over the sum of the ideal list, with targets at its first min(k, n) ranks.

    Reference:
        Järvelin and Kekäläinen, 2002, Cumulated Gain-Based Evaluation of IR Techniques;
        the ideal list as in Liang et al., 2018.
    """
    hits, num_targets = _hits(top, targets)
    discounts = 1 / np.log2(_ranks(hits) + 1)
    ideal = np.cumsum(discounts)[np.minimum(hits.shape[1], num_targets) - 1]
    return hits @ discounts / ideal


def average_precision(top: np.ndarray, targets: sparse.csr_array) -> np.ndarray:
    """Sum of the precisions at the ranks of targets, over min(k, n).

    The precision at a rank is of the list up to it. Other definitions divide by n, or
    by the number of targets in the list: their numbers do not compare.
    """
    hits, num_targets = _hits(top, targets)
    precisions = np.cumsum(hits, axis=1) / _ranks(hits)
    return (hits * precisions).sum(axis=1) / np.minimum(hits.shape[1], num_targets)


def reciprocal_rank(top: np.ndarray, targets: sparse.csr_array) -> np.ndarray:
    """One over the rank of the first target, the first rank being 1; 0 without one."""
    hits, _ = _hits(top, targets)
    return (hits / _ranks(hits)).max(axis=1)


# -- Metrics of all lists ------------------------------------------------------


def coverage(top: np.ndarray, num_items: int) -> float:
    """Return the share of the catalogue that is in any list.

    It grows with the number of users and the length of the lists.

    Args:
        top: Lists of items, -1 for an empty rank: [users, k].
        num_items: Size of the catalogue.

    Raises:
        ValueError: If lists do not fit the catalogue.
    """
    top = _checked_lists(top, num_items)
    return len(np.unique(top[top >= 0])) / num_items


def novelty(top: np.ndarray, train: sparse.csr_array) -> float:
    """Return the mean self-information of the recommended items, in bits.

    The self-information is -log2 of the share of training users with the item. An item
    without users counts as half a user's: one bit above an item of one user.

    Args:
        top: Lists of items, -1 for an empty rank: [users, k].
        train: Not zero for the items of a training user: [training users, items].

    Raises:
        ValueError: If lists do not fit the items, or all are empty.

    Reference:
        Zhou et al., 2010, Solving the Apparent Diversity-Accuracy Dilemma of
        Recommender Systems (mean self-information). Half a user is our choice.
    """
    top = _checked_lists(top, train.shape[1])
    items = top[top >= 0]
    if not len(items):
        raise ValueError(
            "Novelty needs at least one recommended item. Received: only empty lists."
        )
    shares = np.maximum(_num_users_with(train), 0.5) / train.shape[0]
    return float(-np.log2(shares[items]).mean())


def popularity_bias(
    top: np.ndarray, history: sparse.csr_array, train: sparse.csr_array
) -> float:
    """Return the popularity of lists over the popularity of histories, less 1.

    The popularity of an item is the share of training users with it. It is averaged
    over the list of each user and then over users, and likewise for the histories. The
    bias is also known as popularity lift. 0: lists are as popular as histories. 1:
    twice as popular.

    Args:
        top: Lists of items, -1 for an empty rank: [users, k].
        history: Not zero for the items of a user: [users, items].
        train: Not zero for the items of a training user: [training users, items].

    Raises:
        ValueError: On shapes that do not fit, on users with an empty list or history,
            and if no training user has an item of any history.

    Reference:
        Abdollahpouri et al., 2019, The Unfairness of Popularity Bias in Recommendation
        (relative difference of group average popularity), all users being one group.
    """
    top = _checked_lists(top, train.shape[1])
    had = sparse.csr_array(history) != 0
    if had.shape != (len(top), train.shape[1]):
        raise ValueError(
            "`history` must be [users, items], of the users of `top` and the items of "
            f"`train`. Received: {had.shape}; {len(top)} users, {train.shape[1]} items."
        )
    num_listed, num_had = (top >= 0).sum(axis=1), had.sum(axis=1)
    if not (num_listed.all() and num_had.all()):
        raise ValueError(
            "Each user must have a recommended item and a history. Received: "
            f"{(num_listed == 0).sum()} empty lists and {(num_had == 0).sum()} empty "
            "histories. Drop these users."
        )
    popularity = _num_users_with(train) / train.shape[0]
    listed = np.where(top >= 0, popularity[top], 0).sum(axis=1) / num_listed
    before = had @ popularity / num_had
    if not before.any():
        raise ValueError(
            "A training user must have an item of some history. Received: histories "
            "without items of training users."
        )
    return float(listed.mean() / before.mean() - 1)


# -- Checks ---------------------------------------------------------------------


def _ranks(hits: np.ndarray) -> np.ndarray:
    """Ranks from 1: [k]."""
    return np.arange(1, hits.shape[1] + 1)


def _num_users_with(train: sparse.csr_array) -> np.ndarray:
    """Number of users with each item: [items]."""
    return (sparse.csr_array(train) != 0).sum(axis=0)


def _hits(top: np.ndarray, targets: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Whether ranks hold a target, bool [users, k]; and numbers of targets [users].

    Raises:
        ValueError: As the docstring of the module says.
    """
    relevant = sparse.csr_array(targets) != 0
    top = _checked_lists(top, relevant.shape[1])
    if len(top) != relevant.shape[0]:
        raise ValueError(
            "`top` and `targets` must have one row for each user. Received: "
            f"{len(top)} and {relevant.shape[0]} rows."
        )
    num_targets = relevant.sum(axis=1)
    if not num_targets.all():
        raise ValueError(
            "Each user must have at least one target. Drop users without. Received: "
            f"{(num_targets == 0).sum()} such users of {len(num_targets)}, the first "
            f"in row {num_targets.argmin()}."
        )
    # At an empty rank, -1 reads the last item; the second factor clears it.
    users = np.arange(len(top))[:, None]
    return relevant[users, top].toarray() & (top >= 0), num_targets


def _check_length(k: int) -> None:
    if k < 1:
        raise ValueError(
            f"A list of recommendations must have at least one rank. Received: k={k}"
        )


def _checked_lists(top: np.ndarray, num_items: int) -> np.ndarray:
    """Return the lists as an array, or raise a ValueError."""
    last = num_items - 1
    rule = f"[users, k], positions from 0 to {last}, or -1 for an empty rank"
    top = _checked_integers("top", top, rule, 2, -1, last)
    _check_length(top.shape[1])
    ordered = np.sort(top, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ValueError(
            "A list must hold an item once. Received: one with an item at two ranks."
        )
    return top


def _checked_integers(
    name: str, values: np.ndarray, rule: str, num_axes: int, low: int, high: int
) -> np.ndarray:
    """Return integers as an array, or raise a ValueError."""
    array = np.asarray(values)
    if array.ndim != num_axes or not np.issubdtype(array.dtype, np.integer):
        received = f"{array.dtype} {array.shape}"
    elif array.size and not low <= array.min() <= array.max() <= high:
        received = f"{array.min()} to {array.max()}"
    else:
        return array
    raise ValueError(f"`{name}` must be integers {rule}. Received: {received}.")
