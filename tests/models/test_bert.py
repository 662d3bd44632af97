"""BERT: masking, mask filling, embeddings, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kgen
from kgen.data import CharTokenizer
from kgen.models import BERT
from kgen.nn import random

TEXT = "to be or not to be, that is the question."


def make(**options):
    keras.utils.set_random_seed(0)
    options = {
        "vocab_size": 17,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 16,
    } | options
    if "tokenizer" in options:
        del options["vocab_size"]
    model = BERT(**{"context": 12} | options)
    model.compile(keras.optimizers.SGD(0.1))
    return model


def windows(num_rows, time=12, seed=0):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.integers(0, 17, (num_rows, time)), tf.int32)


def test_shares_of_the_tokens_are_masked_and_replaced():
    model = make(mask_rate=0.2)
    tokens = windows(400, time=100)
    keys = model.noise_keys(tokens, random.STREAM_TRAIN)
    shown, chosen = (x.numpy() for x in model._hide(tokens, keys))
    tokens = tokens.numpy()
    assert (chosen.sum(axis=1) == 20).all()
    np.testing.assert_array_equal(shown[~chosen], tokens[~chosen])
    hidden = (shown == 17)[chosen]
    assert abs(hidden.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / chosen.sum())
    # A tenth is drawn anew, of which a 17th is drawn as it was.
    changed = ((shown != tokens) & (shown != 17))[chosen]
    share = 0.1 * 16 / 17
    assert abs(changed.mean() - share) < 4 * np.sqrt(share / chosen.sum())
    drawn = np.bincount(shown[(shown != tokens) & (shown != 17)], minlength=17)
    assert drawn.min() > 0.5 * drawn.mean()


def test_the_chosen_tokens_differ_between_steps_and_between_rows():
    model = make()
    tokens = tf.zeros([4, 500], tf.int32)
    first = model._hide(tokens, model.noise_keys(tokens, random.STREAM_TRAIN))[1]
    alone = model._hide(tokens[2:], model.noise_keys(tokens, random.STREAM_TRAIN)[2:])[
        1
    ]
    np.testing.assert_array_equal(first[2:], alone)
    assert (first[0].numpy() != first[1].numpy()).any()
    model.step.assign_add(1)
    after = model._hide(tokens, model.noise_keys(tokens, random.STREAM_TRAIN))[1]
    assert (first.numpy() != after.numpy()).any()
    test = [model.noise_keys(tokens, random.STREAM_TEST)]
    model.step.assign_add(1)
    test.append(model.noise_keys(tokens, random.STREAM_TEST))
    np.testing.assert_array_equal(*test)


def test_the_loss_is_the_mean_over_the_chosen_tokens():
    model = make(mask_rate=0.5)
    tokens = tf.concat([windows(6), tf.fill([6, 3], -1)], axis=1)
    logs = model.test_step({"tokens": tokens})
    keys = model.noise_keys(tokens, random.STREAM_TEST)
    shown, chosen = model._hide(tokens, keys)
    assert not chosen[:, 12:].numpy().any()
    logits = np.float64(model({"tokens": shown}))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    positions = np.argwhere(chosen.numpy())
    assert len(positions) == 6 * 6  # Half of twelve; the padding does not count.
    losses = [-log_probs[r, p, int(tokens[r, p])] for r, p in positions]
    right = [logits[r, p].argmax() == int(tokens[r, p]) for r, p in positions]
    np.testing.assert_allclose(logs["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(logs["accuracy"], np.mean(right), rtol=1e-5)


def test_every_token_attends_to_all_others_and_to_no_padding():
    model = make()
    tokens = windows(1).numpy()
    before = model({"tokens": tokens}).numpy()
    for position in (0, 5, 11):
        changed = tokens.copy()
        changed[0, position] = (changed[0, position] + 1) % 17
        differs = np.abs(model({"tokens": changed}).numpy() - before).max(axis=2)
        assert (differs > 1e-7).all()
    longer = np.concatenate([tokens, [[-1, -1]]], axis=1)
    after = model({"tokens": longer}).numpy()[:, :12]
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.fixture(scope="module")
def trained():
    """A BERT overfitted to one text."""
    model = make(tokenizer=CharTokenizer.of_text(TEXT), context=50, hidden_dim=32)
    model.compile(keras.optimizers.Adam(5e-3))
    tokens = tf.constant([model.encode(TEXT)] * 8)
    model.fit(tf.data.Dataset.from_tensors({"tokens": tokens}).repeat(600), verbose=0)
    return model


def test_the_likeliest_predictions_are_the_masked_tokens(trained):
    masked = TEXT.replace("question", "qu[MASK]sti[MASK]n")
    first, second = trained.fill_mask(masked, k=3)
    assert first[0].text == "e" and second[0].text == "o"
    assert first[0].probability > 0.5
    assert first[0].probability > first[1].probability > first[2].probability
    both = trained.fill_mask([masked, "to b[MASK]"], k=3)
    assert [one.text for one in both[0][0]] == [one.text for one in first]
    assert len(both[1]) == 1
    [every] = trained.fill_mask("to b[MASK]", k=trained.vocab_size)
    assert sum(one.probability for one in every) == pytest.approx(1, abs=1e-5)
    assert [trained.tokenizer.decode([one.token]) for one in first] == [
        one.text for one in first
    ]


def test_predictions_without_a_tokenizer_have_no_text():
    model = BERT(vocab_size=7, context=5, num_layers=1, num_heads=1, hidden_dim=4)
    [[best]] = model.fill_mask([[2, 7, 3]], k=7)
    assert sorted(one.token for one in best) == [*range(7)]
    assert all(one.text is None for one in best)


def test_an_embedding_is_the_mean_over_the_tokens(trained):
    texts = ["to be", "that is the question."]
    vectors = trained.embed(texts)
    assert vectors.shape == (2, 32) and vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        hidden = trained._hidden(tf.constant([trained.encode(text)]))[0].numpy()
        np.testing.assert_allclose(vector, hidden.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(trained.embed(texts[:1]), vectors[:1], atol=1e-5)
    assert trained.embed([]).shape == (0, 32)
    np.testing.assert_allclose(trained.embed(texts[0]), vectors[0], atol=1e-5)
    served = next(s for s in trained.signatures() if "texts" in s.inputs).function
    np.testing.assert_allclose(
        served(texts=tf.constant(texts))["embeddings"], vectors, atol=1e-5
    )
    for wrong in ("", "t" * 51):
        with pytest.raises(ValueError, match="1 to 50 tokens"):
            served(texts=tf.constant([wrong]))


def test_a_loaded_model_returns_the_same_embeddings(trained, tmp_path):
    trained.save(tmp_path / "m.keras")
    loaded = kgen.load(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.embed(["to be"]), trained.embed(["to be"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.fill_mask("to be"), r"must have \[MASK\] in it"),
        (lambda m: m.fill_mask("[MASK]Z"), "'Z'"),
        (lambda m: m.fill_mask("[MASK]", k=0), "`k` must be in"),
        (lambda m: m.fill_mask("[MASK]", k=1.5), "k=1.5"),
        (lambda m: m.fill_mask([[1, 2]]), "must have the mask in it"),
        (lambda m: m.fill_mask([1, 2]), "One row alone is a list in a list"),
        (lambda m: m.fill_mask("[MASK]" + "t" * 50), "at most 50 tokens"),
        (lambda m: m.embed([""]), "a token at least"),
        (lambda m: m.embed([[99]]), "must lie in"),
        (lambda m: make().embed(["a"]), "without a tokenizer takes tokens"),
        (lambda m: make(mask_rate=0.0), "mask_rate=0.0"),
        (lambda m: make(hidden_dim=10), "a multiple of"),
        (lambda m: make(vocab_size=None), "be 2 or more, or follow"),
    ],
)
def test_wrong_texts_tokens_and_arguments_are_refused(trained, call, message):
    with pytest.raises(ValueError, match=message):
        call(trained)


def test_a_batch_of_wrong_tokens_is_refused():
    model = make()
    model.compile()
    with pytest.raises(ValueError, match="`tokens` must be integers.*float32"):
        model.train_on_batch({"tokens": tf.zeros([2, 6])})
    with pytest.raises(ValueError, match=r"\[0, 17\].*values from 0 to 18"):
        model.train_on_batch({"tokens": tf.constant([[0, 18]])})
