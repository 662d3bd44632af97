"""Mult-VAE and Mult-DAE: the loss by hand, dropout, recommendations, features."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kgen
from kgen.models import MultVAE
from kgen.nn import random
from kgen.nn.interactions import normalized_multi_hot

ITEMS = ["a", "b", "c", "d", "e", "f"]


def make(**options):
    keras.utils.set_random_seed(0)
    model = MultVAE(
        **{"item_ids": ITEMS, "hidden_units": (5,), "latent_dim": 2} | options
    )
    model.compile(keras.optimizers.SGD(0.1))
    return model


def ragged(*rows):
    return tf.ragged.constant(rows, dtype=tf.int32, ragged_rank=1)


def groups(num_users, seed=0):
    """People who like the first three items or the last three: two of them each."""
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.permutation(3)[:2] + 3 * (i % 2)) for i in range(num_users)]
    return tf.ragged.constant(rows, dtype=tf.int32)


def test_the_loss_by_hand():
    model = make(input_dropout=0.0, kl_weight=0.7)
    items = ragged([0, 1, 4], [5])
    terms, logits = model._bound(items, 0.7, training=False)

    rows = np.array([[1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1.0]])
    kernels = [np.asarray(w, np.float64) for w in model.encoder.get_weights()]
    hidden = np.tanh(
        rows / np.sqrt(rows.sum(1, keepdims=True)) @ kernels[0] + kernels[1]
    )
    mean, log_variance = np.split(hidden @ kernels[2] + kernels[3], 2, axis=1)
    kernels = [np.asarray(w, np.float64) for w in model.decoder.get_weights()]
    scores = np.tanh(mean @ kernels[0] + kernels[1]) @ kernels[2] + kernels[3]
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    reconstruction = -(rows * log_probs).sum(axis=1)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1).sum(axis=1)
    np.testing.assert_allclose(logits, scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(terms["reconstruction"], reconstruction, rtol=1e-5)
    np.testing.assert_allclose(terms["loss"], reconstruction + 0.7 * kl, rtol=1e-5)


def test_a_denoising_autoencoder_has_no_kl_and_no_noise():
    model = make(variational=False, input_dropout=0.0)
    items = ragged([0, 1], [2, 3])
    terms, logits = model._bound(items, 0.2, training=True)
    _, again = model._bound(items, 0.2, training=False)
    np.testing.assert_array_equal(terms["kl"], [0, 0])
    np.testing.assert_array_equal(logits, again)
    assert model.encoder.output_shape == (None, 2)


def test_half_of_the_items_are_left_out_and_the_others_count_twice():
    model = make(item_ids=range(1000))
    items = ragged(*[range(1000)] * 20)
    keys = model.noise_keys(items.row_lengths(), random.STREAM_TRAIN)
    kept = normalized_multi_hot(items, 1000, keys, 0.5).numpy() * np.sqrt(1000)
    np.testing.assert_allclose(kept, np.where(kept > 1, 2.0, 0.0), rtol=1e-5)
    assert abs(kept.mean() - 1.0) < 0.03  # 20,000 draws: 4 standard deviations
    assert len(np.unique(kept, axis=0)) == 20  # each user has their own noise


def test_the_noise_of_a_user_does_not_depend_on_the_others():
    model = make()
    whole = ragged([0, 1, 2], [3], [1, 4, 5])
    keys = model.noise_keys(whole.row_lengths(), random.STREAM_TRAIN)
    together = normalized_multi_hot(whole, 6, keys, 0.5)
    alone = normalized_multi_hot(whole[2:], 6, keys[2:], 0.5)
    np.testing.assert_array_equal(together[2:], alone)


def test_weight_decay_adds_the_gradient_of_the_squares():
    plain, decayed = make(), make(weight_decay=0.01)
    before = plain.decoder.get_weights()
    for model in (plain, decayed):
        model.train_step({"items": groups(8)})
    for old, one, other in zip(
        before, plain.decoder.get_weights(), decayed.decoder.get_weights(), strict=True
    ):
        extra = 0.1 * 2 * 0.01 * old if old.ndim > 1 else 0.0
        np.testing.assert_allclose(one - other, extra, atol=1e-6)


def test_the_kl_weight_rises_over_the_warm_up():
    model = make(kl_weight=0.5, kl_warmup_steps=4)
    items, shares = {"items": groups(8)}, []
    for _ in range(6):
        model.reset_metrics()
        logs = {k: float(v) for k, v in model.train_step(items).items()}
        shares.append((logs["loss"] - logs["reconstruction"]) / logs["kl"])
    np.testing.assert_allclose(shares, [0, 0.125, 0.25, 0.375, 0.5, 0.5], atol=1e-4)


@pytest.fixture(scope="module")
def trained():
    model = make(item_counts=[9, 8, 7, 3, 2, 1])
    model.compile(keras.optimizers.Adam(0.02))
    batches = tf.data.Dataset.from_tensors({"items": groups(64)}).repeat(100)
    model.fit(batches, steps_per_epoch=100, verbose=0)
    return model


def test_it_finds_the_item_that_is_missing(trained):
    best = trained.recommend([["a", "b"], ["f", "d"]], k=1)
    assert best.item_ids.tolist() == [["c"], ["e"]]
    assert best.scores.dtype == np.float32


def test_items_of_the_history_come_back_only_when_asked_for(trained):
    seen = trained.recommend([["a", "b"]], k=3, remove_seen=False)
    assert set(seen.item_ids[0]) == {"a", "b", "c"}
    rest = trained.recommend([["a", "b"]], k=6)
    assert set(rest.item_ids[0, :4]) == {"c", "d", "e", "f"}
    assert rest.item_ids[0, 4:].tolist() == ["", ""]
    assert np.isneginf(rest.scores[0, 4:]).all()


def test_users_without_history_get_the_most_popular_items(trained):
    best = trained.recommend([[], ["d"]], k=3)
    assert best.item_ids[0].tolist() == ["a", "b", "c"]
    assert best.scores[0].tolist() == [9, 8, 7]


def test_order_and_repetition_in_a_history_do_not_matter(trained):
    one = trained.recommend([["a", "b"]], k=3)
    other = trained.recommend([["b", "a", "b"]], k=3)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_scores_are_those_behind_the_recommendations(trained):
    rows = np.array([[1, 1, 0, 0, 0, 0.0]])
    scores = trained.score(rows)
    best = trained.recommend([["a", "b"]], k=4)
    np.testing.assert_allclose(np.sort(scores[0, 2:])[::-1], best.scores[0], rtol=1e-6)


def test_nothing_asked_is_nothing_answered(trained):
    best = trained.recommend([], k=2)
    assert best.item_ids.shape == best.scores.shape == (0, 2)


@pytest.mark.parametrize(
    ("histories", "k", "message"),
    [
        ([["a", "z"]], 1, "trained on, 6 of them. Received: 'z'"),
        ([["z", "y", "x"]], 1, "'z' and 2 more"),
        (["ab"], 1, "list of lists"),
        (["a", "b"], 1, "list of lists"),
        ([["a"]], 7, r"\[1, 6\].*Received: k=7"),
        ([["a"]], 1.5, "an integer in"),
    ],
)
def test_wrong_requests_are_refused(trained, histories, k, message):
    with pytest.raises(ValueError, match=message):
        trained.recommend(histories, k=k)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item_ids": []}, "`item_ids` must be a list"),
        ({"item_ids": [1, 2, 2]}, "3 ids, 2 of them different"),
        ({"item_ids": ["a", ""]}, "none by ''"),
        ({"item_ids": [1, "a"]}, "all whole numbers, or all strings"),
        ({"item_ids": [0.5, 1.5]}, "whole numbers or of strings"),
        ({"item_counts": [1, 2]}, "for 6 items"),
        ({"item_counts": [1, 2, 3, 4, 5, -6]}, "0 or more"),
        ({"item_features": [["x"]]}, "1 for 6 items"),
        ({"item_features": [[]] * 6}, "with 0 names"),
        ({"item_features": ["xy"] * 6}, "list of names for each item"),
        ({"feature_dropout": 1.0}, "feature_dropout=1.0"),
        ({"input_dropout": 1.0}, "input_dropout=1.0"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0"),
        ({"weight_decay": float("inf")}, "weight_decay=inf"),
        ({"latent_dim": 0}, "latent_dim=0"),
        ({"activation": "tanhh"}, "activation of Keras"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_batch_of_another_kind_is_refused():
    model = make()
    model.compile()
    with pytest.raises(ValueError, match="`items` must be a RaggedTensor"):
        model.train_on_batch({"items": tf.zeros([2, 6])})
    with pytest.raises(ValueError, match=r"\[0, 5\].*values from 0 to 6"):
        model.train_on_batch({"items": ragged([0, 6])})
    assert int(model.step.numpy()) == 0


def test_it_is_saved_with_its_items(trained, tmp_path):
    trained.save(tmp_path / "m.keras")
    loaded = kgen.load(tmp_path / "m.keras")
    assert loaded.item_ids == ITEMS
    before, after = (m.recommend([["a"], []], k=4) for m in (trained, loaded))
    np.testing.assert_array_equal(before.item_ids, after.item_ids)
    np.testing.assert_array_equal(before.scores, after.scores)


def test_validation_measures_ndcg_of_the_targets(trained):
    shown, hidden = ragged([0, 1], [3, 4]), ragged([2], [5])
    logs = trained.evaluate(
        tf.data.Dataset.from_tensors({"items": shown, "targets": hidden}),
        return_dict=True,
        verbose=0,
    )
    assert logs["ndcg"] == pytest.approx(1.0)
    logs = trained.evaluate(
        tf.data.Dataset.from_tensors({"items": shown}), return_dict=True, verbose=0
    )
    assert "ndcg" not in logs
    assert trained.health({"kl": 0.01}) and not trained.health({"kl": 3.0})


# -- features of items ---------------------------------------------------------

FEATURES = [["x"], ["x", "new"], ["x"], ["y"], ["y", "new"], []]


def test_scores_with_features_by_hand():
    counts = [3, 2, 0, 5, 1, 4]  # no user has item 2
    model = make(item_features=FEATURES, item_counts=counts, variational=False)
    rows = np.array([[1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1.0]])
    features = np.array(  # new, x, y
        [[0, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0.0]]
    )
    scaled = rows / np.sqrt(rows.sum(1, keepdims=True))
    known = np.array([1, 1, 0, 1, 1, 1.0])
    inputs = np.concatenate([scaled * known, scaled @ features], axis=1)
    kernels = [np.asarray(w, np.float64) for w in model.encoder.get_weights()]
    code = inputs @ kernels[0] + kernels[1]
    code = np.tanh(np.tanh(code) @ kernels[2] + kernels[3])
    kernels = [np.asarray(w, np.float64) for w in model.decoder.get_weights()]
    outputs = np.tanh(code @ kernels[0] + kernels[1]) @ kernels[2] + kernels[3]
    expected = outputs[:, :6] * known + outputs[:, 6:] @ features.T
    np.testing.assert_allclose(model.score(rows), expected, rtol=1e-5, atol=1e-6)


def test_a_cold_start_item_takes_no_part_in_the_loss():
    options = {"item_features": FEATURES, "feature_dropout": 0.0, "input_dropout": 0.0}
    model = make(item_counts=[3, 2, 0, 5, 1, 4], **options)
    terms, logits = model._bound(ragged([0, 3]), 0.0, training=True)
    known = np.delete(logits.numpy()[0], 2)
    log_probs = known - np.log(np.exp(known).sum())
    loss = -(log_probs[0] + log_probs[2])
    np.testing.assert_allclose(terms["reconstruction"], [loss], rtol=1e-5)


def test_a_step_does_without_a_share_of_the_features():
    features = [[f"f{item}"] for item in range(1000)]
    model = make(item_ids=range(1000), item_features=features, feature_dropout=0.3)
    model.decoder.set_weights(
        [np.ones_like(w) for w in model.decoder.get_weights()]  # all scores alike
    )
    code = tf.ones([2, 2])
    whole = model._decode(code).numpy()
    first, again = (model._decode(code, training=True).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], first[1])  # equal for all users
    # An item has its own score and that of its feature: 0, 1 or 2 of them stay.
    shares, counts = np.unique(np.round(first[0] / whole[0] * 1.4), return_counts=True)
    assert shares.tolist() == [0, 1, 2]
    np.testing.assert_allclose(counts, [90, 420, 490], atol=65)  # four deviations
    model.step.assign_add(1)
    assert (model._decode(code, training=True).numpy() != first).any()


def test_a_cold_start_item_is_recommended_to_users_of_its_feature(tmp_path):
    # The first three are x and the others y; no user has c and f.
    features = [["x"]] * 3 + [["y"]] * 3
    model = make(item_counts=[9, 9, 0, 9, 9, 0], item_features=features)
    model.compile(keras.optimizers.Adam(0.02))
    batch = {"items": ragged(*[[0], [1], [0, 1], [3], [4], [3, 4]] * 4)}
    batches = tf.data.Dataset.from_tensors(batch).repeat(100)
    model.fit(batches, steps_per_epoch=100, verbose=0)
    best = model.recommend([["a", "b"], ["e", "d"]], k=1)
    assert best.item_ids.tolist() == [["c"], ["f"]]
    # The same for a user of such an item: the encoder sees its features.
    best = model.recommend([["c"], ["f"]], k=2)
    assert [set(items) for items in best.item_ids.tolist()] == [{"a", "b"}, {"d", "e"}]
    model.save(tmp_path / "m.keras")
    loaded = kgen.load(tmp_path / "m.keras")
    assert loaded.item_features == features
    np.testing.assert_array_equal(
        loaded.recommend([["c"]], k=5).scores, model.recommend([["c"]], k=5).scores
    )


def test_an_item_twice_is_refused():
    model = make()
    model.compile()
    with pytest.raises(ValueError, match="an item twice in a row"):
        model.train_on_batch({"items": ragged([0, 1], [2, 3, 2])})
    assert int(model.step.numpy()) == 0


def test_validation_ranks_the_candidates_alone(trained):
    shown, hidden = ragged([0], [3]), ragged([4], [1])
    batch = {"items": shown, "targets": hidden}
    # For users of the other group they come last.
    logs = trained.test_step(batch | {"candidates": ragged([1, 4], [1, 4])})
    assert float(logs["ndcg"]) == pytest.approx(1 / np.log2(3))
    trained.reset_metrics()
    logs = trained.test_step(batch | {"candidates": ragged([4], [1])})
    assert float(logs["ndcg"]) == pytest.approx(1.0)
    trained.reset_metrics()
    assert float(trained.test_step(batch)["ndcg"]) < 0.6
    trained.reset_metrics()


def test_an_item_may_have_any_id_and_no_item_has_the_one_that_fills_up():
    model = make(item_ids=[-1, 0, 7, -3, 4, 5])
    best = model.recommend([[-1, 0, 7, -3, 4]], k=2)
    assert best.item_ids.tolist() == [[5, -4]]
    assert best.scores[0, 1] == -np.inf
