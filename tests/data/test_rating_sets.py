"""Rating data sets: positive pairs, splits and batches."""

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from kgen.data import open_ratings, pipeline, rating_splits, ratings
from kgen.data.pipeline import permutation
from kgen.data.rating_splits import SPLITS, STRATEGIES

EVALUATED = ("validation", "test")


def made_up(num_users=30, num_items=40, per_user=12, seed=0):
    """Users with `per_user` different items each, in no order, rated 1 to 5 and timed.

    Ids are ten times the positions, so that none is taken for the other.
    """
    generator = np.random.default_rng(seed)
    users = np.repeat(np.arange(num_users), per_user)
    items = np.concatenate(
        [generator.permutation(num_items)[:per_user] for _ in range(num_users)]
    )
    stars = generator.integers(1, 6, len(users))
    times = generator.permutation(len(users))
    return {"user": users * 10, "item": items * 10, "rating": stars, "time": times}


@pytest.fixture(scope="module", params=STRATEGIES)
def opened(request):
    return open_ratings(made_up(), split_strategy=request.param, min_rating=2, seed=3)


def pairs_of(opened, split, part):
    """A set of (user id, item id)."""
    matrix = getattr(opened, part)(split).tocoo()
    users = opened.user_ids[opened.user_rows(split)[matrix.coords[0]]]
    items = opened.item_ids[matrix.coords[1]]
    return set(zip(users.tolist(), items.tolist(), strict=True))


# Positive pairs


def test_positives_are_rated_high_enough_and_users_have_enough_of_them():
    source = {
        "user": [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5],
        "item": [7, 8, 9, 7, 8, 7, 8, 6, 7, 9, 5],
        "rating": [4, 5, 3.5, 4, 1, 4, 4, 4, 5, 4, 1],
    }
    opened = open_ratings(source, min_items=2)
    # 9 of user 1 is rated too low, and 2 and 5 have too few; nobody else has 5.
    assert opened.user_ids.tolist() == [1, 3, 4]
    assert opened.item_ids.tolist() == [6, 7, 8, 9]
    kept = set().union(
        *(pairs_of(opened, split, "history") for split in SPLITS),
        *(pairs_of(opened, split, "targets") for split in EVALUATED),
    )
    assert kept == {(1, 7), (1, 8), (3, 6), (3, 7), (3, 8), (4, 7), (4, 9)}
    assert opened.num_pairs == 7
    assert opened.notes[0] == "left out, users with fewer than 2 items: 2"
    everything = open_ratings(source, min_items=1, min_rating=None)
    assert everything.num_pairs == 11 and everything.num_users == 5


def test_the_last_of_repeated_ratings_decides():
    source = ([1, 1, 1, 1, 1, 2, 2, 3, 3], [7, 8, 9, 7, 8, 7, 8, 7, 8])
    stars = [5, 1, 5, 1, 5, 5, 5, 5, 5]
    opened = open_ratings((*source, stars), min_items=2)
    rows = opened.user_rows("train").tolist() + opened.user_rows("test").tolist()
    assert rows.count(0) + opened.user_rows("validation").tolist().count(0) == 1
    assert opened.item_ids.tolist() == [7, 8, 9]
    assert opened.num_pairs == 6  # user 1 likes 8 and 9, and 7 no more
    assert opened.notes[0] == "repeated pairs, of which the last counts: 2"


def test_data_without_ratings_are_positive_throughout():
    source = made_up()
    del source["rating"]
    opened = open_ratings(source)
    assert opened.num_pairs == 360
    assert "no ratings: every pair is positive" in opened.notes
    assert " rated " not in opened.describe()
    assert open_ratings(source, min_rating=None).notes == opened.notes[1:]


# Splits


def test_targets_and_history_are_disjoint_and_sorted_float32(opened):
    assert opened.targets("train") is None
    for split in SPLITS:
        matrices = [opened.history(split)]
        if split != "train":
            matrices.append(opened.targets(split))
            assert matrices[0].multiply(matrices[1]).nnz == 0
        for matrix in matrices:
            assert matrix.shape == (opened.splits[split], opened.num_items)
            assert matrix.dtype == np.float32 and np.all(matrix.data == 1)
            assert np.all(np.diff(matrix.indptr) > 0)  # no empty row
            for row in np.split(matrix.indices, matrix.indptr[1:-1]):
                assert np.all(np.diff(row) > 0)
        rows = opened.user_rows(split)
        assert len(rows) == opened.splits[split] and np.all(np.diff(rows) > 0)


def test_no_target_is_trained_on(opened):
    trained = pairs_of(opened, "train", "history")
    for split in EVALUATED:
        assert not trained & pairs_of(opened, split, "targets")
    validation = pairs_of(opened, "validation", "targets")
    assert not validation & pairs_of(opened, "test", "targets")


def test_a_split_is_a_pure_function_of_the_seed_and_the_pairs(opened):
    kind = opened.split_strategy
    source = made_up()
    order = np.random.default_rng(1).permutation(len(source["user"]))
    shuffled = {name: column[order] for name, column in source.items()}
    options = {"split_strategy": kind, "min_rating": 2}
    again = open_ratings(shuffled, seed=3, **options)
    assert again.fingerprint == opened.fingerprint
    for split in SPLITS:
        assert pairs_of(again, split, "history") == pairs_of(opened, split, "history")
    other = open_ratings(source, seed=4, **options)
    # The last item is the last, whatever the seed.
    assert (other.fingerprint == opened.fingerprint) == (kind == "leave-one-out")


def test_the_fingerprint_sees_every_change(opened):
    source = made_up()
    source["item"] = source["item"] + 1
    options = {"min_rating": 2, "seed": 3}
    moved = open_ratings(source, split_strategy=opened.split_strategy, **options)
    assert moved.fingerprint != opened.fingerprint
    # The same ids and numbers of items, but of other users.
    mirrored = made_up()
    mirrored["item"] = 390 - mirrored["item"]
    options["min_rating"] = None
    both = [open_ratings(one, **options) for one in (made_up(), mirrored)]
    assert both[0].item_ids.tolist() == both[1].item_ids.tolist()
    assert both[0].fingerprint != both[1].fingerprint
    options["min_rating"] = 2
    strong = open_ratings(made_up(), hidden_fraction=0.3, **options)
    assert strong.fingerprint != open_ratings(made_up(), **options).fingerprint


def test_no_two_purposes_share_a_stream():
    streams = [
        value for name, value in vars(pipeline).items() if name.endswith("_STREAM")
    ]
    assert len(streams) == len(set(streams)) == 7


def test_the_splits_of_a_seed_stay_what_they_are():
    # Recorded once: a change here changes the test set of every recorded run.
    found = {}
    for kind in STRATEGIES:
        opened = open_ratings(made_up(), split_strategy=kind, min_rating=2, seed=3)
        row = opened.targets("test")[[0]]
        found[kind] = (opened.user_rows("test")[:4].tolist(), row.indices.tolist())
    assert found == {
        "strong": ([2, 14, 26], [29, 36]),
        "leave-one-out": ([0, 1, 2, 3], [22]),
        "random": ([0, 1, 2, 3], [1, 3, 22]),
        "held-out-items": ([2, 12, 13, 15], [29]),
    }


@pytest.mark.parametrize(
    ("num_users", "held"), [(3, 1), (10, 1), (19, 1), (20, 2), (55, 5)]
)
def test_strong_holds_out_a_tenth_of_the_users_twice(num_users, held):
    opened = open_ratings(made_up(num_users), min_rating=None)
    assert opened.splits == {
        "train": num_users - 2 * held,
        "validation": held,
        "test": held,
    }
    rows = np.concatenate([opened.user_rows(split) for split in SPLITS])
    assert sorted(rows.tolist()) == list(range(num_users))


def test_strong_holds_out_ten_thousand_users_at_most(monkeypatch):
    monkeypatch.setattr(rating_splits, "HELD_OUT_LIMIT", 2)
    assert open_ratings(made_up(40), min_rating=None).splits["test"] == 2
    opened = open_ratings(made_up(40), min_rating=None, held_out_users=7)
    assert opened.splits == {"train": 26, "validation": 7, "test": 7}


def test_strong_takes_the_first_users_of_a_permutation():
    opened = open_ratings(made_up(), min_rating=None, seed=5, held_out_users=4)
    order = permutation(30, 5, pipeline.USERS_STREAM)
    assert opened.user_rows("test").tolist() == sorted(order[:4])
    assert opened.user_rows("validation").tolist() == sorted(order[4:8])


@pytest.mark.parametrize(
    ("per_user", "fraction", "hidden"),
    # 2.4 -> 2, 2.5 -> 3, at least 1, and at least 1 of the others is shown
    [(12, 0.2, 2), (5, 0.5, 3), (4, 0.1, 1), (12, 0.99, 11), (2, 0.9, 1)],
)
def test_strong_hides_a_rounded_share_of_each_user(per_user, fraction, hidden):
    opened = open_ratings(
        made_up(per_user=per_user),
        min_rating=None,
        min_items=1,
        hidden_fraction=fraction,
    )
    for split in EVALUATED:
        assert set(opened.targets(split).sum(axis=1)) == {hidden}
        assert set(opened.history(split).sum(axis=1)) == {per_user - hidden}
    assert set(opened.history("train").sum(axis=1)) == {per_user}
    assert opened.candidates("test") is None


def test_every_item_of_a_user_is_hidden_as_often():
    counts = np.zeros(12)
    source = made_up(num_users=60, num_items=12, per_user=12)
    for seed in range(20):
        opened = open_ratings(
            source, min_rating=None, seed=seed, hidden_fraction=0.25, held_out_users=20
        )
        counts += opened.targets("test").sum(axis=0)
    # 400 users hide 3 of 12 items: 100 each, standard deviation 8.7.
    assert counts.sum() == 1200 and np.all(np.abs(counts - 100) < 40)


def test_a_user_with_one_item_is_not_evaluated():
    users, items = [1, 2, 3, 4, 4, 5, 5, 6, 6], [1, 1, 1, 1, 2, 1, 2, 1, 2]
    opened = open_ratings((users, items), min_items=1, held_out_users=2)
    evaluated = opened.splits["validation"] + opened.splits["test"]
    assert opened.splits["train"] == 2 and evaluated < 4
    for split in EVALUATED:
        assert set(opened.history(split).sum(axis=1)) == {1}


def test_leave_one_out_takes_the_last_two_by_time_and_then_by_place():
    users = [1, 1, 1, 1, 2, 2, 3]
    items = [10, 20, 30, 40, 10, 20, 30]
    times = [3, 1, 2, 3, 5, 4, 1]
    opened = open_ratings(
        (users, items, None, times), split_strategy="leave-one-out", min_items=1
    )
    # User 1 in time: 20, 30, 10, 40. User 2: 20, 10. Of user 3 there is one item.
    assert pairs_of(opened, "train", "history") == {(1, 20), (1, 30), (2, 20), (3, 30)}
    assert pairs_of(opened, "validation", "history") == {(1, 20), (1, 30)}
    assert pairs_of(opened, "validation", "targets") == {(1, 10)}
    assert pairs_of(opened, "test", "history") == {(1, 20), (1, 30), (1, 10), (2, 20)}
    assert pairs_of(opened, "test", "targets") == {(1, 40), (2, 10)}
    assert opened.user_rows("test").tolist() == [0, 1]
    assert opened.notes[-1] == "items unseen in training: 2"


def test_leave_one_out_without_times_takes_a_random_item_and_notes_it():
    source = made_up()
    del source["time"]
    first, same, other = (
        open_ratings(source, split_strategy="leave-one-out", min_rating=None, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first.notes == ("no times: the last item of a user is a random one",)
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert set(first.targets("test").sum(axis=1)) == {1}


def test_random_splits_pairs():
    opened = open_ratings(made_up(), split_strategy="random", min_rating=None)
    # Of 360 pairs 72 are for the test, and 29 (28.8) of 288 for the validation.
    counts = [opened.targets(split).nnz for split in EVALUATED]
    assert counts == [29, 72]
    trained = pairs_of(opened, "train", "history")
    assert len(trained) == 259
    assert pairs_of(opened, "validation", "history") <= trained
    everything = trained | pairs_of(opened, "validation", "targets")
    assert pairs_of(opened, "test", "history") <= everything
    # 0.8 ** 12: one user in fifteen has no test item.
    assert opened.splits["train"] == 30
    with_targets = {user for user, _ in pairs_of(opened, "test", "targets")}
    assert opened.splits["test"] == len(with_targets)


def test_known_pairs_are_those_of_all_users_that_are_no_targets():
    opened = open_ratings(
        made_up(), split_strategy="random", min_rating=None, hidden_fraction=0.1
    )
    known = opened.known_pairs("test")
    # A user without a target is in no row of the history, but has a row here.
    assert known.shape == (30, 40) and opened.splits["test"] < 30
    assert known.nnz == 360 - 36 and known.has_sorted_indices
    for split in SPLITS:
        rows = opened.known_pairs(split)[opened.user_rows(split)]
        np.testing.assert_array_equal(rows.toarray(), opened.history(split).toarray())


def test_held_out_items_are_in_no_history_and_are_the_candidates():
    opened = open_ratings(made_up(), split_strategy="held-out-items", min_rating=None)
    assert opened.num_items == 40 and opened.candidates("train") is None
    held = {split: opened.candidates(split) for split in EVALUATED}
    assert [len(held[split]) for split in EVALUATED] == [2, 2]
    assert not set(held["test"]) & set(held["validation"])
    both = np.concatenate(list(held.values()))
    for split in SPLITS:
        assert opened.history(split)[:, both].nnz == 0
    for split in EVALUATED:
        assert np.all(np.diff(held[split]) > 0)
        targets = opened.targets(split)
        assert set(targets.indices) == set(held[split])
        # All who have one of these items are evaluated, with all of them.
        having = np.isin(made_up()["item"], opened.item_ids[held[split]])
        assert targets.nnz == having.sum()
    assert "items unseen in training: 4" in opened.notes


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_rating": float("nan")}, "`min_rating` must be a finite number"),
        ({"min_items": 0}, "min_items=0"),
        ({"min_items": 2.5}, "min_items=2.5"),
        (
            {"split_strategy": "weak"},
            "one of strong, leave-one-out.*split_strategy='weak'",
        ),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, r"\[0, 2\*\*63\)"),
        ({"hidden_fraction": 0}, "both excluded"),
        ({"hidden_fraction": 1.0}, "hidden_fraction=1.0"),
        ({"held_out_users": 0}, "held_out_users=0 for 30 users"),
        ({"held_out_users": 15}, "held_out_users=15 for 30 users"),
        (
            {"held_out_users": 3, "split_strategy": "random"},
            "for split_strategy='strong' only",
        ),
        ({"min_rating": 6}, "rated 5 at most, and at most 0 positive ones"),
        ({"min_items": 13, "min_rating": None}, "at most 12 positive ones of a user"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        open_ratings(made_up(), **({"min_rating": None} | options))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_too_few_users_to_split_are_refused(kind):
    message = "leave a user to train on" if kind == "strong" else "Each split must have"
    with pytest.raises(ValueError, match=message):
        open_ratings(([1, 2], [7, 7]), min_items=1, split_strategy=kind)


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        open_ratings(tmp_path / "nothing")
    with pytest.raises(TypeError, match="`source` must be a name, a path"):
        open_ratings(None)


@pytest.mark.parametrize("method", ["history", "targets", "user_rows", "candidates"])
def test_an_unknown_split_is_refused(opened, method):
    with pytest.raises(ValueError, match="train, validation, test.*split='dev'"):
        getattr(opened, method)("dev")
    with pytest.raises(ValueError, match="split='dev'"):
        opened.pipeline("dev", batch_size=2)


# Batches


def lists(matrix, rows):
    return [
        matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]].tolist()
        for row in rows
    ]


def all_lists(dataset, name):
    return [row for batch in dataset for row in batch[name].to_list()]


def test_batches_are_ragged_int32_rows_of_the_matrices(opened):
    for split in SPLITS:
        made = opened.pipeline(split, batch_size=4)
        dataset = made.dataset()
        expected = {"items": opened.history(split)}
        if split != "train":
            expected["targets"] = opened.targets(split)
        if opened.candidates(split) is not None:
            row = np.isin(np.arange(opened.num_items), opened.candidates(split))
            expected["candidates"] = scipy.sparse.csr_array(
                np.tile(row, (opened.splits[split], 1))
            )
        assert set(dataset.element_spec) == set(expected)
        for name, matrix in expected.items():
            spec = dataset.element_spec[name]
            assert isinstance(spec, tf.RaggedTensorSpec) and spec.dtype == tf.int32
            rows = range(opened.splits[split])
            assert all_lists(dataset, name) == lists(matrix, rows)


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_shuffled_batches_hold_the_rows_of_the_permutation(drop_remainder):
    opened = open_ratings(made_up(), min_rating=None)
    made = opened.pipeline(
        "train", batch_size=5, seed=9, shuffle=True, drop_remainder=drop_remainder
    )
    assert made.steps_per_epoch == (4 if drop_remainder else 5)  # 24 users
    kept = 20 if drop_remainder else 24
    dataset = made.dataset()
    for epoch in (0, 1):
        order = permutation(24, 9, pipeline.ORDER_STREAM, epoch)[:kept]
        assert all_lists(dataset, "items") == lists(opened.history("train"), order)
    shape = [5 if drop_remainder else None, None]
    assert dataset.element_spec["items"].shape.as_list() == shape


@pytest.mark.parametrize("batch_size", [4, 5])
def test_shares_of_ranks_and_skipped_batches_fit_together(batch_size):
    opened = open_ratings(made_up(12), min_rating=None, held_out_users=5)
    # The last batch (1 row of 5, or of 4) does not divide by 4 shares.
    made = opened.pipeline("test", batch_size=batch_size, seed=1, shuffle=True)
    made.epoch = 2
    for name in ("items", "targets"):
        whole = [batch[name].to_list() for batch in made.dataset()]
        tail = [batch[name].to_list() for batch in made.dataset(skip=1)]
        assert tail == whole[1:]
        ranks = [
            [
                batch[name].to_list()
                for batch in made.dataset(rank=rank, num_ranks=2, replicas=2)
            ]
            for rank in (0, 1)
        ]
        for step, expected in enumerate(whole):
            shares = [rank[step * 2 + replica] for rank in ranks for replica in (0, 1)]
            assert sum(shares, []) == expected


def test_ratings_trains_shuffled_and_evaluates_every_user():
    source, options = made_up(), {"min_rating": None, "seed": 2}
    opened = open_ratings(source, **options)
    training = ratings(source, batch_size=5, **options)
    order = permutation(24, 2, pipeline.ORDER_STREAM)[:20]
    assert all_lists(training, "items") == lists(opened.history("train"), order)
    evaluation = ratings(source, split="test", batch_size=2, **options)
    assert all_lists(evaluation, "targets") == lists(opened.targets("test"), range(3))
    with pytest.raises(ValueError, match="Try batch_size=24 or less"):
        ratings(source, batch_size=25, **options)


def test_a_model_of_keras_takes_the_batches():
    import keras

    opened = open_ratings(made_up(), min_rating=None)

    class Counts(keras.Model):
        def train_step(self, batch):
            return {
                "items": tf.reduce_mean(
                    tf.cast(batch["items"].row_lengths(), tf.float32)
                )
            }

    model = Counts()
    model.compile()
    dataset = opened.pipeline("train", batch_size=5, drop_remainder=True).dataset()
    history = model.fit(dataset, epochs=1, shuffle=False, verbose=0).history
    assert history == {"items": [12.0]}


# Items


@pytest.fixture
def titled(tmp_path):
    """Five films; film 3 is liked by nobody."""
    movies = [
        "1::Toy Story (1995)::Animation|Comedy",
        "2::Toy Story 2 (1995)::Animation",
        "3::The Story (2001)::Drama",
        "4::Léon, a Child's Toy (1994)::",
        "5::1984 (1984)::Drama",
    ]
    (tmp_path / "movies.dat").write_text("\n".join(movies))
    rows = [f"{user}::{item}" for user in range(4) for item in (1, 2, 4, 5)]
    (tmp_path / "ratings.dat").write_text("\n".join(rows))
    return open_ratings(tmp_path, min_items=1)


def test_titles_and_genres_are_those_of_the_items(titled):
    assert titled.item_ids.tolist() == [1, 2, 4, 5]
    assert titled.item_titles[2] == "Léon, a Child's Toy (1994)"
    assert titled.item_genres == [
        ("Animation", "Comedy"),
        ("Animation",),
        (),
        ("Drama",),
    ]


def test_item_features_are_genres_words_and_years_of_two_titles(titled):
    features, names = titled.item_features()
    # The years 1994 and 1984, "2", "1984" and "child's" are in one title only.
    assert names == [
        "genre:Animation",
        "genre:Comedy",
        "genre:Drama",
        "word:story",
        "word:toy",
        "year:1995",
    ]
    assert features.dtype == np.float32
    assert features.toarray().tolist() == [
        [1, 1, 0, 1, 1, 1],
        [1, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 0],
    ]


def test_item_features_need_titles():
    with pytest.raises(ValueError, match="Received: array, which has none"):
        open_ratings(made_up()).item_features()


def test_positions_are_those_of_the_ids(titled):
    positions = titled.positions([5, 1, 1, "4"])
    assert positions.tolist() == [3, 0, 0, 2] and positions.dtype == np.int32
    assert titled.positions(np.array([2])).tolist() == [1]
    assert titled.positions([]).tolist() == []


def test_unknown_ids_are_named_with_what_could_be_meant(titled):
    with pytest.raises(
        ValueError, match=r"Received: 3, 'x' \(2 unknown\).*from 1 to 5"
    ):
        titled.positions([1, 3, "x"])
    with pytest.raises(ValueError, match=r"Received: 1.5 \(1 unknown\)"):
        titled.positions([1.5])
    users = np.repeat(np.arange(4), 2)
    named = open_ratings((users, ["apple", "pear"] * 4), min_items=1)
    assert named.positions(["pear"]).tolist() == [1]
    with pytest.raises(ValueError, match="'appel'.*Did you mean apple?"):
        named.positions(["appel"])


def test_describe_is_one_line_with_the_notes(titled):
    assert str(titled) == titled.describe()
    assert str(titled).endswith(
        ": 4 users, 4 items, 16 pairs (100 % of all); strong split, users: train 2, "
        "validation 1, test 1; no ratings: every pair is positive"
    )


# Real data


def test_movielens_100k_has_the_known_counts(test_data):
    path = test_data / "data" / "movielens" / "ml-100k.zip"
    opened = open_ratings(path, held_out_users=100)
    assert (opened.num_users, opened.num_items) == (938, 1447)
    assert opened.num_pairs == 55_361
    assert opened.splits == {"train": 738, "validation": 100, "test": 100}
    assert opened.positions([50]) == opened.item_titles.index("Star Wars (1977)")
    # The most popular items new to a user find .190 of the hidden ones in
    # 20 (over min(20, n)), with a standard deviation of .020 over the draws of users.
    popularity = opened.history("train").sum(axis=0)
    seen, hidden = (opened.history("test").toarray(), opened.targets("test").toarray())
    ranked = np.argsort(-popularity * (1 - seen), axis=1, kind="stable")[:, :20]
    found = np.take_along_axis(hidden, ranked, axis=1).sum(axis=1)
    recall = np.mean(found / np.minimum(20, hidden.sum(axis=1)))
    assert 0.11 < recall < 0.27


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_million_pairs_are_split(test_data, kind):
    path = test_data / "data" / "movielens" / "ml-1m-partial"
    opened = open_ratings(path, split_strategy=kind)
    assert opened.num_pairs == 1_000_209
    evaluated = sum(opened.splits[split] for split in EVALUATED)
    assert evaluated == 1208 if kind == "strong" else evaluated > 10_000
