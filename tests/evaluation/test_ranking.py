"""Lists and their measures: by hand, and counted one by one in plain Python."""

import math

import numpy as np
import pytest
from scipy import sparse

from kgen.evaluation import ranking
from kgen.evaluation.ranking import (
    average_precision,
    coverage,
    ndcg,
    novelty,
    popularity_bias,
    precision,
    recall,
    recall_over_n,
    reciprocal_rank,
    top_items,
)

MEASURES = (
    recall,
    recall_over_n,
    precision,
    ndcg,
    average_precision,
    reciprocal_rank,
)


def rows(*values):
    return sparse.csr_array(np.array(values, float))


# -- lists --------------------------------------------------------------------


def test_top_items_by_hand():
    scores = np.array([[0.1, 0.9, 0.5, 0.7], [4, 3, 2, 1]])
    seen = rows([0, 1, 0, 0], [0, 0, 0, 0])
    np.testing.assert_array_equal(top_items(scores, None, 2), [[1, 3], [0, 1]])
    np.testing.assert_array_equal(top_items(scores, seen, 2), [[3, 2], [0, 1]])
    assert top_items(scores, seen, 2).dtype == np.int64


def test_ties_are_in_the_order_of_positions():
    # Four items share the second place of three; those at 1 and 3 stay.
    scores = np.array([[1.0, 2, 0, 2, 5, 2, 2]])
    np.testing.assert_array_equal(top_items(scores, None, 3), [[4, 1, 3]])
    np.testing.assert_array_equal(top_items(scores, None, 6), [[4, 1, 3, 5, 6, 0]])
    np.testing.assert_array_equal(top_items(np.zeros((1, 9)), None, 4), [[0, 1, 2, 3]])
    # -0.0 equals 0.0.
    np.testing.assert_array_equal(top_items(np.array([[0.0, -0.0]]), None, 1), [[0]])


def test_ranks_without_an_item_hold_minus_one():
    scores = np.array([[1.0, 2, 3], [1, 2, 3], [1, 2, 3]])
    seen = rows([0, 0, 1], [1, 1, 1], [0, 0, 0])
    expected = [[1, 0, -1, -1], [-1, -1, -1, -1], [2, 1, 0, -1]]
    np.testing.assert_array_equal(top_items(scores, seen, 4), expected)


def test_only_candidates_are_recommended():
    scores = np.array([[9.0, 2, 3, 8], [9, 2, 3, 8]])
    seen = rows([0, 0, 1, 0], [0, 0, 0, 0])
    expected = [[1, -1], [2, 1]]
    np.testing.assert_array_equal(
        top_items(scores, seen, 2, np.array([2, 1])), expected
    )
    none = np.array([], int)
    np.testing.assert_array_equal(top_items(scores, seen, 1, none), [[-1], [-1]])


def test_a_stored_zero_is_not_seen():
    seen = sparse.csr_array((np.array([0.0, 1.0]), ([0, 0], [1, 0])), shape=(1, 2))
    np.testing.assert_array_equal(top_items(np.ones((1, 2)), seen, 1), [[1]])


@pytest.mark.parametrize("seed", range(20))
def test_top_items_are_those_of_a_full_sort(seed):
    rng = np.random.default_rng(seed)
    num_users, num_items = rng.integers(1, 30, 2)
    k = int(rng.integers(1, num_items + 3))
    dtype = rng.choice(["float16", "float32", "float64", "int64"])
    # Six different scores only: nearly every list ends within a tie.
    scores = rng.integers(-3, 3, (num_users, num_items)).astype(dtype)
    seen = rng.random(scores.shape) < 0.4
    candidates = np.flatnonzero(rng.random(num_items) < 0.8)
    found = top_items(scores, sparse.csr_array(seen), k, candidates)
    for user in range(num_users):
        left = [item for item in candidates if not seen[user, item]]
        expected = sorted(left, key=lambda item: (-scores[user, item], item))[:k]
        expected += [-1] * (k - len(expected))
        np.testing.assert_array_equal(found[user], expected)


# -- measures of each user ----------------------------------------------------

# k = 3. User 0 has n = 2 targets, at the places 1 and 3; user 1 has n = 4, one of them
# at place 2; user 2 has n = 1, at place 1, and a single item left; user 3 misses.
TOP = np.array([[4, 2, 0], [1, 3, 2], [2, -1, -1], [0, 1, 2]])
TARGETS = rows([1, 0, 0, 0, 1], [1, 0, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0])
TARGETS = sparse.hstack([TARGETS, rows([0], [5], [0], [0])], format="csr")
THIRD = 1 / math.log2(3)  # gain of the second place; the third has 1 / log2(4) = 1/2
BY_HAND = {
    recall: [2 / 2, 1 / 3, 1, 0],
    recall_over_n: [2 / 2, 1 / 4, 1, 0],
    precision: [2 / 3, 1 / 3, 1 / 3, 0],
    ndcg: [1.5 / (1 + THIRD), THIRD / (1.5 + THIRD), 1, 0],
    average_precision: [(1 + 2 / 3) / 2, (1 / 2) / 3, 1, 0],
    reciprocal_rank: [1, 1 / 2, 1, 0],
}


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_metrics_by_hand(measure):
    found = measure(TOP, TARGETS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, BY_HAND[measure], rtol=1e-15)


def counted(measure, items, targets, k):
    """One user's number by its definition: `items` a list, `targets` a set."""
    n = len(targets)
    hits = [place for place, item in enumerate(items, start=1) if item in targets]
    if measure is recall:
        return len(hits) / min(k, n)
    if measure is recall_over_n:
        return len(hits) / n
    if measure is precision:
        return len(hits) / k
    if measure is ndcg:
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, n) + 1))
        return sum(1 / math.log2(place + 1) for place in hits) / ideal
    if measure is average_precision:
        before = [len([hit for hit in hits if hit <= place]) / place for place in hits]
        return sum(before) / min(k, n)
    return 1 / hits[0] if hits else 0.0


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_metrics_equal_a_count_one_by_one(measure, seed):
    rng = np.random.default_rng(seed)
    num_users, num_items, k = rng.integers(1, 40, 3)
    seen = rng.random((num_users, num_items)) < 0.5
    targets = ~seen & (rng.random(seen.shape) < 0.3)
    targets[np.arange(num_users), rng.integers(0, num_items, num_users)] = True
    top = top_items(rng.random(seen.shape), sparse.csr_array(seen), int(k))
    found = measure(top, sparse.csr_array(targets))
    expected = [
        counted(measure, list(top[user]), set(np.flatnonzero(targets[user])), k)
        for user in range(num_users)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert ((found >= 0) & (found <= 1 + 1e-12)).all()


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_an_ideal_list_reaches_one(n, k):
    top, targets = np.arange(k)[None], rows([1] * n + [0] * (10 - n))
    for measure in (recall, ndcg, average_precision, reciprocal_rank):
        np.testing.assert_allclose(measure(top, targets), 1, rtol=1e-12)
    np.testing.assert_allclose(recall_over_n(top, targets), min(k, n) / n)
    np.testing.assert_allclose(precision(top, targets), min(k, n) / k)


def test_stored_zeros_are_not_targets_and_duplicates_count_once():
    data = np.array([0.0, 1.0, 1.0])
    targets = sparse.csr_array((data, np.array([0, 1, 1]), [0, 3]), shape=(1, 3))
    np.testing.assert_array_equal(recall_over_n(np.array([[1]]), targets), [1])
    np.testing.assert_array_equal(precision(np.array([[0]]), targets), [0])


# -- measures of all lists ----------------------------------------------------

# Of 4 training users 4, 1, 0 and 2 have the items: the shares are 1, 1/4, 0 and 1/2.
TRAIN = rows([1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 3])


def test_coverage_by_hand():
    assert coverage(np.array([[0, 1], [1, -1]]), num_items=5) == 2 / 5
    assert coverage(np.array([[-1, -1]]), num_items=5) == 0


def test_novelty_by_hand():
    # 0, 2 and 1 bits; the item without users counts as half a user of 4: 3 bits.
    assert novelty(np.array([[0, 1], [3, -1]]), TRAIN) == pytest.approx((0 + 2 + 1) / 3)
    assert novelty(np.array([[2]]), TRAIN) == pytest.approx(3)


def test_popularity_bias_by_hand():
    # Lists: means 1 and 1/8. Histories: means (1/4 + 1/2) / 2 and 1/2.
    top, history = np.array([[0, -1], [1, 2]]), rows([0, 1, 0, 5], [0, 0, 0, 1])
    expected = (9 / 8) / (7 / 8) - 1
    assert popularity_bias(top, history, TRAIN) == pytest.approx(expected)
    # Lists that equal the histories have none.
    top = np.array([[3, 1], [3, -1]])
    assert popularity_bias(top, history, TRAIN) == pytest.approx(0)


@pytest.mark.parametrize("seed", range(10))
def test_metrics_of_all_lists_equal_a_count_one_by_one(seed):
    rng = np.random.default_rng(seed)
    num_users, num_items, k = rng.integers(3, 30, 3)
    train = rng.random((20, num_items)) < rng.random(num_items) * 0.5
    train[0, 0] = True
    history = rng.random((num_users, num_items)) < 0.5
    history[:, 0], history[:, 1] = True, False  # no history is empty, none is full
    scores = rng.random(history.shape)
    top = top_items(scores, sparse.csr_array(history), int(k))
    lists = [[item for item in row if item >= 0] for row in top]

    shares = [sum(train[:, item]) / 20 for item in range(num_items)]
    bits = [-math.log2(shares[i] or 0.5 / 20) for items in lists for i in items]
    listed = [np.mean([shares[item] for item in items]) for items in lists]
    had = [np.mean([shares[item] for item in np.flatnonzero(row)]) for row in history]
    train, history = sparse.csr_array(train), sparse.csr_array(history)
    union = {item for items in lists for item in items}
    assert coverage(top, num_items) == pytest.approx(len(union) / num_items)
    assert novelty(top, train) == pytest.approx(np.mean(bits))
    expected = (np.mean(listed) - np.mean(had)) / np.mean(had)
    assert popularity_bias(top, history, train) == pytest.approx(expected)


# -- wrong arguments ----------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_users_without_targets_are_refused(measure):
    with pytest.raises(
        ValueError, match="Drop users without. Received: 1 .* of 2.* row 1"
    ):
        measure(np.array([[0], [1]]), rows([1, 0], [0, 0]))


def test_lists_must_be_lists_of_items():
    targets = rows([1, 0, 0])
    for top, message in (
        (np.array([0]), "integers"),
        (np.array([[0.0]]), "integers"),
        (np.array([[3]]), "from 0 to 2.*Received: 3 to 3"),
        (np.array([[-2]]), "from 0 to 2"),
        (np.array([[1, 0, 1]]), "an item once"),
        (np.zeros((1, 0), int), "at least one rank"),
        (np.array([[0], [0]]), "one row for each user.*2 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            recall(top, targets)


def test_scores_must_be_finite_and_fit():
    scores = np.ones((2, 3))
    with pytest.raises(ValueError, match="finite"):
        top_items(np.array([[np.nan, 1]]), None, 1)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(1, 3\)"):
        top_items(scores, rows([0, 0, 0]), 1)
    with pytest.raises(ValueError, match="with an item"):
        top_items(np.ones((2, 0)), None, 1)
    with pytest.raises(ValueError, match="k=0"):
        top_items(scores, None, 0)
    with pytest.raises(ValueError, match="positions from 0 to 2"):
        top_items(scores, None, 1, np.array([3]))
    with pytest.raises(ValueError, match="flatnonzero"):
        top_items(scores, None, 1, np.array([True, False, True]))


def test_empty_means_are_refused():
    top, train = np.array([[0], [-1]]), rows([1, 0])
    with pytest.raises(ValueError, match="at least one recommended item"):
        novelty(top[1:], train)
    with pytest.raises(ValueError, match="1 empty lists and 0 empty histories"):
        popularity_bias(top, rows([1, 0], [1, 0]), train)
    with pytest.raises(ValueError, match="0 empty lists and 1 empty histories"):
        popularity_bias(top[:1], rows([0, 0]), train)
    with pytest.raises(ValueError, match="without items of training users"):
        popularity_bias(top[:1], rows([0, 1]), train)
    with pytest.raises(ValueError, match="users of `top`"):
        popularity_bias(top, rows([1, 0]), train)


def test_every_metric_is_tested():
    public = {
        name
        for name, value in vars(ranking).items()
        if getattr(value, "__module__", "") == ranking.__name__
    }
    public = {name for name in public if not name.startswith("_")}
    tested = {function.__name__ for function in MEASURES}
    others = {"coverage", "novelty", "popularity_bias", "recommended", "top_items"}
    assert public == tested | others


def test_recommended_are_the_best_items_in_blocks_of_users(monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_USERS", 2)
    rng = np.random.default_rng(0)
    history = sparse.csr_array(rng.random((5, 9)) < 0.3, dtype=np.float32)
    weights = rng.normal(size=(9, 9))
    seen_by_progress = []
    top = ranking.recommended(
        lambda rows: rows @ weights + np.arange(9),
        history,
        9,
        candidates=np.array([1, 3, 4, 8]),
        progress=lambda done, total: seen_by_progress.append((done, total)),
    )
    expected = top_items(
        history @ weights + np.arange(9), history, 9, np.array([1, 3, 4, 8])
    )
    np.testing.assert_array_equal(top, expected)
    assert seen_by_progress == [(2, 5), (4, 5), (5, 5)]


def test_ties_are_not_in_the_order_of_ids():
    history = sparse.csr_array((3, 1000))
    top = ranking.recommended(lambda rows: np.zeros(rows.shape), history, 500)
    assert (top == top[0]).all()
    # The mean of 500 positions out of 1,000, within four standard deviations.
    assert abs(top[0].mean() - 499.5) < 4 * 9.2
    assert abs(top[0, :10].mean() - 499.5) < 4 * 91
