"""Lists of recommended items: how they are made, and how good they are.

All of it follows one protocol: every item is ranked, no sample of them; what a user has
already seen is left out; users without a held-out item do not count.

The measures of each user take `top`, lists of item positions, int [users, k], the best
first, -1 for an empty place; and `targets`, csr_array [users, items], not zero where an
item was held out for a user. They return float64 [users]. k is the length of the lists,
also for a user to whom fewer items were left; n is the number of a user's targets. They
raise ValueError on shapes that do not fit, on lists with an item twice or with numbers
that are no positions, and on users without targets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

BLOCK_USERS = 256  # whose scores are in memory together


def top_items(
    scores: np.ndarray,
    seen: sparse.csr_array | None,
    k: int,
    candidates: np.ndarray | None = None,
) -> np.ndarray:
    """The k best items of each user, the best first.

    Of items with equal scores the one at the lower position comes first, also where the
    k-th place is at stake: the lists are a pure function of the scores.

    Args:
        scores: The higher, the better; finite: [users, items].
        seen: Not zero where a user has already seen an item, which is then never
            recommended: [users, items]. None: nothing has been seen.
        k: Length of the lists.
        candidates: Positions of the only items that may be recommended. None: all.

    Returns:
        Positions of items, int64 [users, k]; -1 where fewer than k items are left.

    Raises:
        ValueError: On shapes that do not fit, scores that are not finite, k below 1, or
            candidates that are no positions of items.
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
    allowed = np.ones(scores.shape, bool)
    if candidates is not None:
        allowed[:] = False
        allowed[:, _checked_positions(candidates, num_items)] = True
    if seen is not None:
        allowed[seen.nonzero()] = False
    scores = np.where(allowed, scores, -np.inf)

    length = min(k, num_items)
    # The score in the last place. All above it are in the list; of those equal to it,
    # the first ones, until the list is full.
    last = np.partition(scores, num_items - length, axis=1)[:, -length, None]
    above, equal = scores > last, scores == last
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
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The k best items of each user that are not in the history, in blocks of users.

    Items with equal scores come in an order drawn once, the same for all. In that of
    their positions, a model that knows nothing of some items would rank them by what
    their ids tell: MovieLens numbers well-known films first.

    Args:
        score: Takes rows of `history`, and returns a score of each item, as `top_items`
            takes them.
        history: Not zero where a user has an item: [users, items].
        k: Length of the lists.
        candidates: Positions of the only items that may be recommended. None: all.
        progress: Called with the number of users that are done, and their total.

    Returns:
        Positions of items, int64 [users, k]; -1 where fewer than k items are left.
    """
    num_users, num_items = history.shape
    order = np.random.default_rng(0).permutation(num_items)
    if candidates is not None:
        candidates = np.flatnonzero(np.isin(order, candidates))
    blocks = [np.zeros((0, k), np.int64)]
    for start in range(0, num_users, BLOCK_USERS):
        seen = history[start : start + BLOCK_USERS]
        places = top_items(score(seen)[:, order], seen[:, order], k, candidates)
        blocks.append(np.where(places < 0, -1, order[places]))
        if progress:
            progress(min(start + BLOCK_USERS, num_users), num_users)
    return np.concatenate(blocks)


# -- One number for each user --------------------------------------------------


def recall(top: np.ndarray, targets: sparse.csr_array) -> np.ndarray:
    """Targets in the list, over min(k, n): 1 where no list could be better.

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
    """Normalised discounted cumulative gain, binary: early places count for more.

    The sum of 1 / log2(place + 1) over the places of targets, the first place being 1,
    over that of the ideal list, which has targets in its first min(k, n) places.

    Reference:
        Järvelin and Kekäläinen, 2002, Cumulated Gain-Based Evaluation of IR Techniques;
        the ideal list as in Liang et al., 2018.
    """
    hits, num_targets = _hits(top, targets)
    discounts = 1 / np.log2(_places(hits) + 1)
    ideal = np.cumsum(discounts)[np.minimum(hits.shape[1], num_targets) - 1]
    return hits @ discounts / ideal


def average_precision(top: np.ndarray, targets: sparse.csr_array) -> np.ndarray:
    """Sum of the precisions at the places of targets, over min(k, n).

    The precision at a place is that of the list up to there. Others divide by n, or by
    the number of targets in the list: their numbers do not compare.
    """
    hits, num_targets = _hits(top, targets)
    precisions = np.cumsum(hits, axis=1) / _places(hits)
    return (hits * precisions).sum(axis=1) / np.minimum(hits.shape[1], num_targets)


def reciprocal_rank(top: np.ndarray, targets: sparse.csr_array) -> np.ndarray:
    """One over the place of the first target, the first place being 1; 0 without."""
    hits, _ = _hits(top, targets)
    return (hits / _places(hits)).max(axis=1)


# -- One number for all lists --------------------------------------------------


def coverage(top: np.ndarray, num_items: int) -> float:
    """The share of the catalogue that is recommended to anybody.

    It grows with the number of users and the length of the lists.

    Args:
        top: Lists of items, -1 for an empty place: [users, k].
        num_items: Size of the catalogue.

    Raises:
        ValueError: Where lists do not fit the catalogue.
    """
    top = _checked_lists(top, num_items)
    return len(np.unique(top[top >= 0])) / num_items


def novelty(top: np.ndarray, train: sparse.csr_array) -> float:
    """How surprising the recommended items are, in bits.

    The mean of -log2 of the share of training users who have the item, over all
    recommendations. An item that nobody has counts as if half a user had it: one bit
    above an item that a single user has.

    Args:
        top: Lists of items, -1 for an empty place: [users, k].
        train: Not zero where a training user has an item: [training users, items].

    Raises:
        ValueError: Where lists do not fit the items, or all are empty.

    Reference:
        Zhou et al., 2010, Solving the Apparent Diversity-Accuracy Dilemma of
        Recommender Systems (mean self-information). Half a user is our choice.
    """
    top = _checked_lists(top, train.shape[1])
    items = top[top >= 0]
    if not len(items):
        raise ValueError(
            "Novelty needs at least one recommended item. Received: empty lists only."
        )
    shares = np.maximum(_num_users_with(train), 0.5) / train.shape[0]
    return float(-np.log2(shares[items]).mean())


def popularity_bias(
    top: np.ndarray, history: sparse.csr_array, train: sparse.csr_array
) -> float:
    """By how much recommended items are more popular than what users had before.

    The popularity of an item is the share of training users who have it. It is averaged
    over each user's list and then over users, and likewise for the users' histories;
    the first of the two means over the second, less 1, is the bias, which is also known
    as popularity lift. 0: lists are as popular as histories. 1: twice as popular.

    Args:
        top: Lists of items, -1 for an empty place: [users, k].
        history: Not zero where a user had an item before: [users, items].
        train: Not zero where a training user has an item: [training users, items].

    Raises:
        ValueError: On shapes that do not fit, on users with an empty list or history,
            and where no training user has an item of any history.

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
            "of items that no training user has."
        )
    return float(listed.mean() / before.mean() - 1)


# -- What they share -----------------------------------------------------------


def _places(hits: np.ndarray) -> np.ndarray:
    """1 for the first place of a list, 2 for the second, ...: [k]."""
    return np.arange(1, hits.shape[1] + 1)


def _num_users_with(train: sparse.csr_array) -> np.ndarray:
    """How many users have each item: [items]."""
    return (sparse.csr_array(train) != 0).sum(axis=0)


def _hits(top: np.ndarray, targets: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Which places hold a target, bool [users, k]; how many targets there are [users].

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
            "Each user must have at least one target: users without leave the mean, "
            "and must be dropped before. Received: "
            f"{(num_targets == 0).sum()} such users of {len(num_targets)}, the first "
            f"in row {num_targets.argmin()}."
        )
    # An empty place, -1, reads the last item, which the second half undoes.
    users = np.arange(len(top))[:, None]
    return relevant[users, top].toarray() & (top >= 0), num_targets


def _check_length(k: int) -> None:
    if k < 1:
        raise ValueError(
            f"A list of recommendations must have at least one place. Received: k={k}"
        )


def _checked_lists(top: np.ndarray, num_items: int) -> np.ndarray:
    """Returns the lists as an array, once it is sure that they are lists of items."""
    top = np.asarray(top)
    if top.ndim != 2 or not np.issubdtype(top.dtype, np.integer):
        raise ValueError(
            "`top` must be positions of items, integers [users, k]. Received: "
            f"{top.dtype} {top.shape}."
        )
    _check_length(top.shape[1])
    if len(top) and not -1 <= top.min() <= top.max() < num_items:
        raise ValueError(
            f"`top` must hold positions from 0 to {num_items - 1}, or -1 for an empty "
            f"place. Received: {top.min()} to {top.max()}."
        )
    ordered = np.sort(top, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ValueError(
            "A list must hold an item once. Received: one with an item in two places."
        )
    return top


def _checked_positions(candidates: np.ndarray, num_items: int) -> np.ndarray:
    """Returns the candidates as an array, once it is sure that they are positions."""
    positions = np.asarray(candidates)
    if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
        raise ValueError(
            "`candidates` must be positions of items, integers [candidates]. Received: "
            f"{positions.dtype} {positions.shape}. Of a mask, take `np.flatnonzero`."
        )
    if len(positions) and not 0 <= positions.min() <= positions.max() < num_items:
        raise ValueError(
            f"`candidates` must be positions from 0 to {num_items - 1}. Received: "
            f"{positions.min()} to {positions.max()}."
        )
    return positions
