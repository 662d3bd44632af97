"""What a recommender is measured by, beside what needs no network."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from kgen.data.rating_sets import RatingSet
from kgen.evaluation import ranking
from kgen.evaluation.recommender_baselines import (
    EASE,
    Baseline,
    ContentKNN,
    ItemKNN,
    Popularity,
    choose,
)
from kgen.evaluation.records import Record, bootstrap_interval

LIST_LENGTH = 100  # of the longest lists that are measured
_CATALOGUE_LENGTH = 20  # of those that coverage, novelty and popularity bias look at
_NUM_TIMED = 200  # single requests whose median is the speed

# Name, the function of the lists and targets, and the lengths of lists.
_MEASURES = (
    ("recall", ranking.recall, (20, 50)),
    ("recall_over_n", ranking.recall_over_n, (20,)),
    ("precision", ranking.precision, (5, 20)),
    ("ndcg", ranking.ndcg, (5, 20, LIST_LENGTH)),
    ("map", ranking.average_precision, (LIST_LENGTH,)),
    ("mrr", ranking.reciprocal_rank, (LIST_LENGTH,)),
)
# Options of baselines, the best of which for validation users is taken.
_EASE_L2 = (100.0, 200.0, 300.0, 500.0, 1000.0)
_KNN_OPTIONS = ((20, 10.0), (50, 10.0), (100, 10.0), (200, 10.0), (100, 100.0))


class _Users(NamedTuple):
    """Users of a split.

    Attributes:
        history: csr_array [users, items], what is shown.
        targets: csr_array [users, items], what is hidden.
        candidates: Positions of the items that are ranked, or None: all.
    """

    history: sparse.csr_array
    targets: sparse.csr_array
    candidates: np.ndarray | None


def evaluate_recommender(
    model: Any,
    rating_set: RatingSet,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Measures how well hidden items are found, and how varied and fast.

    All items are ranked, but for those of the history. Popularity, the item-kNN and
    EASE (and, where the items have titles and genres, a kNN of these) are measured on
    the same users; their options are chosen by NDCG@100 of the validation users. Each
    record of the model has EASE as its baseline, and the protocol says how far the two
    are apart, user by user. In a split of held-out items these alone are ranked, and
    popularity and the kNN of titles and genres, the baseline, are all there is to
    compare with: the others know nothing of such items.

    Args:
        model: Has `score(rows)`, scores [users, items] of rows of ones; `item_ids`; and
            `recommend(histories, k)`.
        rating_set: The data the model was trained on.
        split: "test" or "validation".
        limit: Only the first users of the split, this many.
        seed: Keys the intervals.
        progress: Called with the number of users that are done, and their total, for
            the model and each baseline anew.

    Returns:
        Records `recall@20`, `recall@50`, `recall_over_n@20`, `precision@5`,
        `precision@20`, `ndcg@5`, `ndcg@20`, `ndcg@100`, `map@100`, `mrr@100`,
        `coverage@20`, `novelty@20`, `popularity_bias@20` and `request_time`; then those
        of the baselines, with their `subject`.

    Raises:
        ValueError: The model has other items than the set, or the split no targets.

    Example:
        >>> ratings = kgen.data.open_ratings("ml-100k.zip")
        >>> print(table(evaluate_recommender(model, ratings)))
    """
    if list(model.item_ids) != rating_set.item_ids.tolist():
        raise ValueError(
            "The model and the ratings must have the same items in the same order. "
            f"Received: a model of {len(model.item_ids):,} items and {rating_set.name} "
            f"with {rating_set.num_items:,}, or others. Open the ratings with the "
            "options the model was trained with."
        )
    users = _users(rating_set, split, limit)
    train = rating_set.history("train")
    baselines = _fitted_baselines(rating_set, train)
    what = (
        f"{rating_set.name}, {rating_set.split_strategy} split, "
        f"{users.history.shape[0]:,} {split} users, {train.nnz:,} pairs to train on"
    )
    if users.candidates is not None:
        what += (
            f", {len(users.candidates):,} held-out items ranked, equal scores by chance"
        )
    lists = {
        name: ranking.recommended(
            score, users.history, LIST_LENGTH, users.candidates, progress
        )
        for name, score in [("", model.score)]
        + [(baseline.name, baseline.score) for baseline in baselines]
    }
    values = {name: _user_values(top, users.targets) for name, top in lists.items()}
    reference = next(
        one.name
        for one in reversed(baselines)
        if isinstance(one, EASE) or users.candidates is not None
    )
    records = []
    for subject, top in lists.items():
        records += _user_records(subject, values, reference, what, seed)
        records += _catalogue_records(subject, top, users, train, what)
        if not subject:
            records.append(_request_time(model, rating_set, users))
    return records


def _users(rating_set: RatingSet, split: str, limit: int | None) -> _Users:
    history, targets = rating_set.history(split), rating_set.targets(split)
    if targets is None:
        raise ValueError(
            "`split` must be validation or test: nothing is hidden of training users. "
            f"Received: split={split!r}"
        )
    return _Users(history[:limit], targets[:limit], rating_set.candidates(split))


def _fitted_baselines(rating_set, train) -> list[Baseline]:
    """Each kind with the options that are best for validation users."""
    shown = _users(rating_set, "validation", None)
    kinds: list[list[Baseline]] = [[Popularity()]]
    if shown.candidates is None:
        kinds += [
            [ItemKNN(num_neighbors=n, shrinkage=s) for n, s in _KNN_OPTIONS],
            [EASE(l2=l2) for l2 in _EASE_L2],
        ]
    if rating_set.item_titles is not None:
        kinds.append([ContentKNN(rating_set.item_features()[0])])
    return [
        choose(
            kind,
            train,
            shown.history,
            shown.targets,
            ranking.ndcg,
            candidates=shown.candidates,
        )[0]
        for kind in kinds
    ]


def _user_values(top, targets) -> dict[str, np.ndarray]:
    """One number for each user, for every measure at every length."""
    return {
        f"{name}@{k}": measure(top[:, :k], targets)
        for name, measure, lengths in _MEASURES
        for k in lengths
    }


def _user_records(subject, values, reference, what, seed) -> list[Record]:
    """Means over users of every measure, and how far they are from the reference's."""
    records = []
    for metric, others in values[reference].items():
        gains = values[subject][metric] - others
        low, high = bootstrap_interval(gains, seed=seed)
        apart = (
            f"; less {reference}, user by user: {gains.mean():+.4f} "
            f"({low:+.4f} to {high:+.4f})"
        )
        records.append(
            Record.of_mean(
                values[subject][metric],
                metric=metric,
                headline=metric in ("recall@20", "ndcg@100"),
                subject=subject,
                unit="",
                protocol=f"{what}, full ranking, seen items left out"
                + ("" if subject == reference else apart),
                seed=seed,
                higher_is_better=True,
                baseline=(reference, float(others.mean())),
            )
        )
    return records


def _catalogue_records(subject, top, users, train, what):
    """Numbers of all lists together: what of the catalogue they show."""
    top = top[:, :_CATALOGUE_LENGTH]
    num_items = train.shape[1]
    num_ranked = num_items if users.candidates is None else len(users.candidates)
    covered = ranking.coverage(top, num_items) * num_items / num_ranked
    rows = [("coverage", covered, "", "of all items that are ranked", True)]
    if users.candidates is None:  # Of items that nobody has had, all are as unpopular.
        bias = ranking.popularity_bias(top, users.history, train)
        rows += [
            ("novelty", ranking.novelty(top, train), "bits", "of training users", True),
            ("popularity_bias", bias, "", "of lists over histories, less 1", False),
        ]
    return [
        Record(
            metric=f"{name}@{_CATALOGUE_LENGTH}",
            headline=name == "coverage",
            subject=subject,
            value=value,
            unit=unit,
            protocol=f"{what}; {detail}",
            n=len(top),
            higher_is_better=higher_is_better,
        )
        for name, value, unit, detail, higher_is_better in rows
    ]


def _request_time(model, rating_set, users: _Users) -> Record:
    """Milliseconds of `recommend` for one person, warm."""
    histories = [
        rating_set.item_ids[row.indices].tolist()
        for row in (
            users.history[[i % users.history.shape[0]]] for i in range(_NUM_TIMED)
        )
    ]
    k = min(10, rating_set.num_items)
    model.recommend(histories[:1], k=k)
    milliseconds = []
    for history in histories:
        start = time.perf_counter()
        model.recommend([history], k=k)
        milliseconds.append(1000 * (time.perf_counter() - start))
    low, middle, high = np.quantile(milliseconds, (0.05, 0.5, 0.95))
    return Record(
        metric="request_time",
        headline=True,
        value=float(middle),
        unit="ms",
        protocol=f"recommend, one history, k={k}, warm, median; interval: 5 % to 95 % "
        "of the requests",
        n=_NUM_TIMED,
        higher_is_better=False,
        interval=(float(low), float(high)),
    )
