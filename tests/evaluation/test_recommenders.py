"""The evaluation of recommenders: numbers by hand, and baselines beside them."""

import types

import numpy as np
import pytest

from kgen.data import open_ratings
from kgen.evaluation import evaluate_recommender, table

NUM_PEOPLE, NUM_ITEMS = 60, 12


def liked():
    """Half of the users like six of twelve items, half the other six."""
    rng = np.random.default_rng(0)
    users, items = [], []
    for user in range(NUM_PEOPLE):
        for item in rng.permutation(6)[:5] + 6 * (user % 2):
            users.append(user)
            items.append(item)
    return open_ratings((np.array(users), np.array(items)), held_out_users=10)


class Oracle:
    """Knows the two groups: the best that is possible."""

    item_ids = list(range(NUM_ITEMS))

    def score(self, rows):
        dense = rows.toarray()
        first = dense[:, :6].sum(axis=1) > dense[:, 6:].sum(axis=1)
        low, high = np.arange(NUM_ITEMS) < 6, np.arange(NUM_ITEMS) >= 6
        return np.where(first[:, None], low, high).astype(np.float32)

    def recommend(self, histories, k):
        return types.SimpleNamespace(item_ids=np.zeros([len(histories), k]))


@pytest.fixture(scope="module")
def records():
    return evaluate_recommender(Oracle(), liked())


def value(records, metric, subject=""):
    [found] = [r.value for r in records if (r.metric, r.subject) == (metric, subject)]
    return found


def test_an_oracle_of_the_groups_reaches_one(records):
    # Of six items four are shown and one is hidden: two places can hold it.
    assert value(records, "recall@20") == value(records, "recall_over_n@20") == 1.0
    assert value(records, "precision@5") == pytest.approx(0.2)
    assert 1 / np.log2(3) <= value(records, "ndcg@100") <= 1.0
    assert value(records, "coverage@20") == 1.0


def test_baselines_have_records_beside_the_model(records):
    subjects = dict.fromkeys(record.subject for record in records)
    kinds = [subject.split(" (")[0] for subject in subjects]
    assert kinds == ["", "popularity", "item KNN", "EASE"]
    ease = next(subject for subject in subjects if subject.startswith("EASE"))
    [ndcg] = [r for r in records if r.metric == "ndcg@100" and not r.subject]
    assert ndcg.baseline == (ease, value(records, "ndcg@100", ease))
    assert f"mean difference from {ease} per user" in ndcg.protocol
    # Popularity does not know whom it is talking to.
    assert value(records, "mrr@100", "popularity") < value(records, "mrr@100")


def test_the_table_marks_what_is_better(records):
    lines = table(records).splitlines()
    assert max(map(len, lines)) <= 80
    [first, second] = [line.split() for line in lines if line.startswith("recall@20")]
    assert first[1] == second[1]
    assert not second[2].endswith("*")  # popularity
    assert any(line.startswith("request_time (ms)") for line in lines)
    header = "metric model popularity item KNN EASE"
    assert header in [" ".join(line.split()) for line in lines]
    short = table(record for record in records if record.headline)
    assert "recall@20" in short and "mrr@100" not in short and "EASE" in short


def test_held_out_items_are_ranked_among_themselves():
    users, items = np.divmod(np.arange(400), 20)
    data = open_ratings((users, items), split_strategy="held-out-items")
    model = Oracle()
    model.item_ids = list(range(20))
    model.score = lambda rows: np.tile(
        np.arange(20, dtype=np.float32), rows.shape[:1] + (1,)
    )
    records = evaluate_recommender(model, data)
    # One item is held out for the test, and everybody has it.
    assert value(records, "recall@20") == value(records, "mrr@100") == 1.0
    assert value(records, "coverage@20") == 1.0
    # EASE and the item-kNN know nothing of it.
    assert {record.subject for record in records} == {"", "popularity"}
    assert "1 held-out items ranked" in records[0].protocol


def test_items_without_users_are_compared_with_a_content_knn(tmp_path):
    genres = ["Drama", "Comedy"]
    films = [f"{i}::Film {i} (1990)::{genres[i % 2]}" for i in range(200)]
    (tmp_path / "movies.dat").write_text("\n".join(films))
    rng = np.random.default_rng(0)
    rows = [
        f"{user}::{2 * film + user % 2}"
        for user in range(30)
        for film in rng.permutation(100)[:50]
    ]
    (tmp_path / "ratings.dat").write_text("\n".join(rows))
    data = open_ratings(tmp_path, split_strategy="held-out-items")

    class LikesTheirGenre(Oracle):
        item_ids = data.item_ids.tolist()

        def score(self, rows):
            of_genre = np.array(self.item_ids) % 2 == 0
            prefers = (rows.toarray() * np.where(of_genre, 1, -1)).sum(axis=1) > 0
            return (prefers[:, None] == of_genre).astype(np.float32)

    records = evaluate_recommender(LikesTheirGenre(), data)
    subjects = list(dict.fromkeys(record.subject for record in records))
    assert subjects == ["", "popularity", "content KNN"]
    assert records[0].baseline[0] == "content KNN"
    assert "difference from content KNN" in records[0].protocol
    knows, does_not = (
        value(records, "ndcg@20", subject) for subject in ("content KNN", "popularity")
    )
    assert knows == value(records, "ndcg@20") > does_not + 0.1


def test_other_items_and_training_users_are_refused():
    model = Oracle()
    with pytest.raises(ValueError, match="no items of training users are held out"):
        evaluate_recommender(model, liked(), split="train")
    model.item_ids = [*range(11), 99]
    with pytest.raises(ValueError, match="the same items in the same order"):
        evaluate_recommender(model, liked())
