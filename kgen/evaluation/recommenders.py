"""Evaluation of recommenders, beside baselines without a network."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from kgen.data.rating_sets import RatingSet
from kgen.evaluation import ranking
from kgen.evaluation.blocks import Progress
from kgen.evaluation.recommender_baselines import (
    EASE,
    Baseline,
    ContentKNN,
    ItemKNN,
    Popularity,
    choose,
)
from kgen.evaluation.records import Record, bootstrap_interval
from kgen.evaluation.split_rows import check_at_least_1
from kgen.evaluation.timing import call_seconds

LIST_LENGTH = 100
_CATALOGUE_LENGTH = 20  # length of the lists for coverage, novelty, popularity bias
_NUM_TIMED = 200  # single requests

# Name, function of lists and targets, and lengths of lists.
_METRICS = (
    ("recall", ranking.recall, (20, 50)),
    ("recall_over_n", ranking.recall_over_n, (20,)),
    ("precision", ranking.precision, (5, 20)),
    ("ndcg", ranking.ndcg, (5, 20, LIST_LENGTH)),
    ("map", ranking.average_precision, (LIST_LENGTH,)),
    ("mrr", ranking.reciprocal_rank, (LIST_LENGTH,)),
)
# Options of the baselines; the best for the validation users are chosen.
_EASE_L2 = (100.0, 200.0, 300.0, 500.0, 1000.0)
_KNN_OPTIONS = ((20, 10.0), (50, 10.0), (100, 10.0), (200, 10.0), (100, 100.0))


class _Users(NamedTuple):
    """Users of a split.

    Attributes:
        history: Items given to the model, csr_array [users, items].
        targets: Held-out items, csr_array [users, items].
        candidates: Positions of the ranked items, or None: all.
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
    progress: Progress | None = None,
) -> list[Record]:
    """Measure the ranking of held-out items, diversity, and the time of a request.

    All items except those of the history are ranked. Popularity, item kNN and EASE
    (and, if the items have titles and genres, a kNN of these) are measured on the same
    users; their options are chosen by NDCG@100 of the validation users. EASE is the
    baseline of each record, and the protocol has the mean difference from it per user.
    In a split of held-out items only these are ranked, only popularity and the kNN of
    titles and genres can score them, and the latter is the baseline.

    Args:
        model: Has `score(rows)`, scores [users, items] of multi-hot rows; `item_ids`;
            and `recommend(histories, k)`.
        rating_set: The data the model was trained on.
        split: "test" or "validation".
        limit: Only the first users of the split, this many.
        seed: Of the intervals.
        progress: Called with the number of processed users, and their total, for the
            model and for each baseline.

    Returns:
        Records `recall@20`, `recall@50`, `recall_over_n@20`, `precision@5`,
        `precision@20`, `ndcg@5`, `ndcg@20`, `ndcg@100`, `map@100`, `mrr@100`,
        `coverage@20`, `novelty@20`, `popularity_bias@20` and `request_time`; then the
        same of the baselines, with their `subject`.

    Raises:
        ValueError: An argument is out of its range, model and data have different
            items, or the split has no targets.

    Example:
        >>> ratings = kgen.data.open_ratings("ml-100k.zip")
        >>> print(table(evaluate_recommender(model, ratings)))
    """
    check_at_least_1(limit=limit)
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
    protocol = (
        f"{rating_set.name}, {rating_set.split_strategy} split, "
        f"{users.history.shape[0]:,} {split} users, {train.nnz:,} pairs to train on"
    )
    if users.candidates is not None:
        protocol += (
            f", {len(users.candidates):,} held-out items ranked, ties in random order"
        )
    scorers = {"": model} | {baseline.name: baseline for baseline in baselines}
    lists = {
        name: ranking.recommended(
            scorer.score, users.history, LIST_LENGTH, users.candidates, progress
        )
        for name, scorer in scorers.items()
    }
    values = {name: _user_values(top, users.targets) for name, top in lists.items()}
    ease = [baseline for baseline in baselines if isinstance(baseline, EASE)]
    reference = (ease or baselines)[-1].name
    records = []
    for subject, top in lists.items():
        records += _user_records(subject, values, reference, protocol, seed)
        records += _catalogue_records(subject, top, users, train, protocol)
        if not subject:
            records.append(_request_time(model, rating_set, users))
    return records


def _users(rating_set: RatingSet, split: str, limit: int | None) -> _Users:
    history, targets = rating_set.history(split), rating_set.targets(split)
    if targets is None:
        raise ValueError(
            "`split` must be validation or test: no items of training users are held "
            f"out. Received: split={split!r}"
        )
    return _Users(history[:limit], targets[:limit], rating_set.candidates(split))


def _fitted_baselines(rating_set, train) -> list[Baseline]:
    """One baseline of each kind, with the best options for the validation users."""
    history, targets, candidates = _users(rating_set, "validation", None)
    kinds: list[list[Baseline]] = [[Popularity()]]
    if candidates is None:
        kinds.append([ItemKNN(num_neighbors=n, shrinkage=s) for n, s in _KNN_OPTIONS])
        kinds.append([EASE(l2=l2) for l2 in _EASE_L2])
    if rating_set.item_titles is not None:
        kinds.append([ContentKNN(rating_set.item_features()[0])])
    return [
        choose(kind, train, history, targets, ranking.ndcg, candidates=candidates)[0]
        for kind in kinds
    ]


def _user_values(top, targets) -> dict[str, np.ndarray]:
    """Values [users] of every metric at every length."""
    return {
        f"{name}@{k}": metric(top[:, :k], targets)
        for name, metric, lengths in _METRICS
        for k in lengths
    }


def _user_records(subject, values, reference, protocol, seed) -> list[Record]:
    """Means over users of every metric, and their differences from the reference's."""
    records = []
    for metric, others in values[reference].items():
        difference = ""
        if subject != reference:
            gains = values[subject][metric] - others
            low, high = bootstrap_interval(gains, seed=seed)
            difference = (
                f"; mean difference from {reference} per user: {gains.mean():+.4f} "
                f"({low:+.4f} to {high:+.4f})"
            )
        records.append(
            Record.of_mean(
                values[subject][metric],
                metric=metric,
                headline=metric in ("recall@20", "ndcg@100"),
                subject=subject,
                protocol=f"{protocol}, full ranking, seen items left out{difference}",
                seed=seed,
                higher_is_better=True,
                baseline=(reference, float(others.mean())),
            )
        )
    return records


def _catalogue_records(subject, top, users, train, protocol):
    """Coverage, novelty and popularity bias of all lists together."""
    top = top[:, :_CATALOGUE_LENGTH]
    num_items = train.shape[1]
    num_ranked = num_items if users.candidates is None else len(users.candidates)
    covered = ranking.coverage(top, num_items) * num_items / num_ranked
    rows = [("coverage", covered, "", "share of the ranked items", True)]
    if users.candidates is None:  # Held-out items are all equally unpopular.
        bias = ranking.popularity_bias(top, users.history, train)
        rows += [
            ("novelty", ranking.novelty(top, train), "bits", "by training users", True),
            ("popularity_bias", bias, "", "lists over histories, less 1", False),
        ]
    return [
        Record(
            metric=f"{name}@{_CATALOGUE_LENGTH}",
            headline=name == "coverage",
            subject=subject,
            value=value,
            unit=unit,
            protocol=f"{protocol}; {detail}",
            n=len(top),
            higher_is_better=higher_is_better,
        )
        for name, value, unit, detail, higher_is_better in rows
    ]


def _request_time(model, rating_set, users: _Users) -> Record:
    """Milliseconds of `recommend` for one user, warm."""
    rows = users.history[np.arange(_NUM_TIMED) % users.history.shape[0]]
    histories = [rating_set.item_ids[row.indices].tolist() for row in rows]
    k = min(10, rating_set.num_items)
    calls = [functools.partial(model.recommend, [one], k=k) for one in histories]
    call_seconds(calls[:1])  # compiles the graph
    low, middle, high = np.quantile(1000 * call_seconds(calls), (0.05, 0.5, 0.95))
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
