"""Evaluation of language models: numbers by hand, and a planted copy."""

import math

import keras
import numpy as np
import pytest
import sacrebleu

from kgen.data import ByteTokenizer, CharTokenizer, open_text
from kgen.evaluation import (
    evaluate_language_model,
    evaluate_masked_language_model,
    language_models,
    table,
    text_statistics,
)
from kgen.models import BERT, GPT

TRAIN = "the cat sat on the mat. the dog sat on the log. " * 20


@pytest.fixture(scope="module")
def text_set():
    return open_text([TRAIN], context=16)


@pytest.fixture(scope="module")
def model(text_set):
    keras.utils.set_random_seed(0)
    model = GPT(
        tokenizer=text_set.tokenizer,
        context=16,
        num_layers=1,
        num_heads=2,
        hidden_dim=32,
    )
    model.compile(keras.optimizers.Adam(1e-2))
    batches = text_set.pipeline("train", batch_size=8, shuffle=True).dataset()
    model.fit(batches, epochs=8, verbose=0)
    return model


@pytest.fixture(scope="module")
def records(model, text_set):
    found = evaluate_language_model(model, text_set, seed=3)
    return {record.metric: record for record in found}


def text_records(model, text_set, limit, seed, progress=None):
    return language_models._text_records(
        model, text_set, "validation", limit, seed, progress, "made up"
    )


def test_the_loss_is_the_mean_over_every_token_but_the_first(records, model, text_set):
    tokens = text_set.tokens("validation")
    nats = 0.0
    for start in range(0, len(tokens) - 1, 16):
        nats -= model.score([tokens[start : start + 17]])[0]
    count = len(tokens) - 1
    loss = records["loss"]
    assert loss.value == pytest.approx(nats / count, rel=1e-5)
    assert loss.n == count
    assert records["perplexity"].value == pytest.approx(math.exp(loss.value))
    # A token is a character here.
    bits = loss.value / math.log(2)
    assert records["bits_per_character"].value == pytest.approx(bits)
    low, high = loss.interval
    assert low < loss.value < high
    # By the frequency of each character, with one more of each.
    train = np.bincount(
        text_set.tokens("train"), minlength=text_set.tokenizer.vocab_size
    )
    shares = (train + 1) / (train + 1).sum()
    name, baseline = loss.baseline
    assert name == "token frequencies"
    assert baseline == pytest.approx(-np.log(shares[tokens[1:]]).mean())
    assert loss.value < baseline


def test_random_batches_are_windows_at_random_positions(records, model, text_set):
    tokens = text_set.tokens("validation")
    starts = np.random.default_rng(3).integers(0, len(tokens) - 16, 240)
    nats = model.score([tokens[start : start + 17] for start in starts])
    found = records["loss[random-batches]"]
    assert found.value == pytest.approx(-nats.mean() / 16, rel=1e-5)
    assert found.n == 240 * 16 and found.interval[0] < found.value < found.interval[1]


def test_a_limit_measures_the_first_windows(model, text_set):
    with pytest.raises(
        ValueError, match="`limit` must be at least 1. Received: limit=0"
    ):
        evaluate_language_model(model, text_set, limit=0)
    records = evaluate_language_model(model, text_set, limit=2)
    tokens = text_set.tokens("validation")[:33]
    nats = -model.score([tokens[:17], tokens[16:]]).sum()
    assert records[0].n == 32
    assert records[0].value == pytest.approx(nats / 32, rel=1e-5)


def test_bits_are_per_character_for_any_tokenizer():
    text = "é" * 400 + "e" * 400
    text_set = open_text([text], tokenizer="byte", context=8, validation_fraction=0.5)
    model = GPT(
        tokenizer=ByteTokenizer(), context=8, num_layers=1, num_heads=1, hidden_dim=2
    )
    found = evaluate_language_model(model, text_set, split="train", limit=4)
    records = {record.metric: record for record in found}
    # 32 bytes, of "é" from its second byte on: 16 characters and a half.
    bits = records["loss"].value * 32 / math.log(2) / 17
    assert records["bits_per_character"].value == pytest.approx(bits, rel=1e-6)


def test_different_words_are_counted():
    texts = ["A cat, a cat", "a dog"]
    # a cat , a cat a dog: four different ones of seven; pairs: a cat, cat ",", ", a".
    assert text_statistics.distinct(texts, 1) == pytest.approx(4 / 7)
    assert text_statistics.distinct(texts, 2) == pytest.approx(4 / 5)


def test_self_bleu_compares_each_text_with_the_others():
    texts = [
        "the cat sat on the mat",
        "the cat sat on the log",
        "a bird sang today now",
    ]
    scores = [
        sacrebleu.sentence_bleu(texts[i], texts[:i] + texts[i + 1 :]).score
        for i in range(3)
    ]
    assert text_statistics.self_bleu(texts) == pytest.approx(np.mean(scores) / 100)
    assert text_statistics.self_bleu(texts[:2] + texts[:1]) > 0.9
    assert text_statistics.self_bleu(texts[:1]) == 0.0


def test_copied_ngrams_are_not_novel():
    known = text_statistics.ngrams("to be or not to be that".split(), 5)
    copied, other = "be or not to be", "be or not to go"
    assert text_statistics.novelty([copied], known, 5) == 0.0
    assert text_statistics.novelty([copied, other], known, 5) == 0.5
    assert text_statistics.novelty(["too short"], known, 5) == 1.0


def test_a_planted_copy_lowers_the_novelty(text_set, model, monkeypatch):
    def novelty(generate):
        monkeypatch.setattr(model, "generate", generate)
        found = text_records(model, text_set, 5, 0)
        return next(r for r in found if r.metric == "novelty@5")

    train, draws = text_set.tokens("train"), np.random.default_rng(0)
    copied = novelty(
        lambda rows, max_new_tokens, **_: [train[:max_new_tokens]] * len(rows)
    )
    # But for the word that it ends in the middle of.
    assert copied.value < 0.1
    name, baseline = copied.baseline
    assert name == "text of the split" and baseline < 0.1
    drawn = novelty(
        lambda rows, max_new_tokens, **_: list(
            draws.integers(
                0, text_set.tokenizer.vocab_size, (len(rows), max_new_tokens)
            )
        )
    )
    assert drawn.value > 0.9


def test_texts_follow_from_their_seeds(model, text_set):
    done = []
    one = text_records(model, text_set, 12, 3)
    other = text_records(model, text_set, 12, 3, lambda *n: done.append(n))
    assert one == other
    assert done == [(10, 12), (12, 12)]


def test_speed_is_measured_with_and_without_the_cache(records):
    for name in ("cached", "uncached"):
        record = records[f"tokens_per_second[{name}]"]
        low, high = record.interval
        assert 0 < low <= record.value <= high
    assert max(map(len, table(records.values()).splitlines())) <= 80


def test_another_tokenizer_is_refused(model):
    other = open_text(["abc" * 100], context=16)
    with pytest.raises(ValueError, match="must have the same tokenizer. Received: one"):
        evaluate_language_model(model, other)
    assert CharTokenizer("abc") != model.tokenizer


# -- masked ------------------------------------------------------------------------


def test_every_seventh_token_is_predicted(text_set):
    keras.utils.set_random_seed(0)
    model = BERT(
        tokenizer=text_set.tokenizer,
        context=17,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
    )
    found = evaluate_masked_language_model(model, text_set, seed=1)
    records = {record.metric: record for record in found}
    tokens = text_set.tokens("validation")  # 96: five windows of 17, and one of 11
    nats, right = [], []
    for row in range(6):
        window = tokens[17 * row : 17 * (row + 1)]
        places = np.arange(row % 7, len(window), 7)
        hidden = window.copy()
        hidden[places] = model.vocab_size
        [guesses] = model.fill_mask([hidden], k=model.vocab_size)
        for place, best in zip(places, guesses, strict=True):
            shares = {one.text: one.probability for one in best}
            target = text_set.tokenizer.decode([window[place]])
            nats.append(-math.log(shares[target]))
            right.append(best[0].text == target)
    loss, accuracy = records["masked_loss"], records["masked_accuracy"]
    assert loss.n == accuracy.n == len(nats)
    assert loss.value == pytest.approx(np.mean(nats), rel=1e-4)
    assert accuracy.value == pytest.approx(np.mean(right))
    name, baseline = accuracy.baseline
    assert name == "most frequent token" and 0 < baseline < 0.5
    assert loss.baseline[0] == "token frequencies" and not loss.higher_is_better
    low, high = records["texts_per_second"].interval
    assert 0 < low <= records["texts_per_second"].value <= high
    limited = evaluate_masked_language_model(model, text_set, limit=2)
    assert limited[0].n == 3 + 3 and limited[0].value == pytest.approx(
        np.mean(nats[:6]), rel=1e-4
    )
