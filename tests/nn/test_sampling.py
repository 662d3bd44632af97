"""Sampling of the next token, by hand and against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from kgen.nn import random
from kgen.nn.decoding_parameters import SamplingParameters, defaults
from kgen.nn.sampling import next_tokens


def choose(logits, seen=(), num_draws=4000, **settings):
    """The frequency of each token over as many keys."""
    logits = np.tile(np.float32(logits), (num_draws, 1))
    held = np.zeros(logits.shape, bool)
    held[:, list(seen)] = True
    values = {
        name: tf.fill(
            [num_draws], tf.cast(value, "int32" if name == "top_k" else "float32")
        )
        for name, value in (defaults(SamplingParameters) | settings).items()
    }
    keys = random.keys(0, tf.range(num_draws))
    values = SamplingParameters(**values)
    tokens, _ = next_tokens(tf.constant(logits), tf.constant(held), keys, values)
    tokens = tokens.numpy()
    return np.bincount(tokens, minlength=logits.shape[1]) / num_draws


def shares(logits):
    weights = np.exp(np.asarray(logits, float))
    return weights / weights.sum()


def assert_drawn(received, expected, num_draws=4000):
    expected = np.asarray(expected, float)
    deviations = np.sqrt(expected * (1 - expected) / num_draws)
    assert (abs(received - expected) <= 4 * deviations + 1e-12).all(), received


LOGITS = np.log([0.4, 0.3, 0.15, 0.1, 0.05])


def test_tokens_follow_their_probabilities():
    assert_drawn(choose(LOGITS), [0.4, 0.3, 0.15, 0.1, 0.05])
    assert_drawn(choose(LOGITS, temperature=0.5), shares(2 * LOGITS))


def test_a_temperature_of_0_takes_the_first_most_likely_token():
    assert choose([0.0, 2.0, 2.0], temperature=0, num_draws=20).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_k": 9}, 5),
        ({"top_p": 0.69}, 2),  # 0.4 < 0.69 <= 0.4 + 0.3
        ({"top_p": 0.71}, 3),
        ({"top_p": 1e-6}, 1),
        ({"min_p": 0.3}, 3),  # 0.12 and above
        ({"min_p": 1.0}, 1),
        ({"top_k": 3, "top_p": 0.8}, 2),  # 0.7 / 0.85 after top-k: 0.82
        ({"top_p": 0.71, "min_p": 0.5}, 2),
    ],
)
def test_a_filter_keeps_the_most_likely_tokens(settings, kept):
    expected = np.exp(LOGITS) * (np.arange(5) < kept)
    assert_drawn(choose(LOGITS, **settings), expected / expected.sum())


def test_filters_apply_after_the_temperature():
    # 2 * LOGITS: 0.565, 0.318, 0.079, ...
    expected = shares(2 * LOGITS) * (np.arange(5) < 2)
    received = choose(LOGITS, temperature=0.5, top_p=0.6)
    assert_drawn(received, expected / expected.sum())


def test_the_penalty_makes_seen_tokens_less_likely():
    logits = np.array([1.0, -1.0, 0.5])
    received = choose(logits, seen=(0, 1), repetition_penalty=2.0)
    assert_drawn(received, shares([0.5, -2.0, 0.5]))


def reference(logits, seen, uniforms, temperature, top_k, top_p, min_p, penalty):
    """One row by loops in float64."""
    logits = [
        (x / penalty if x > 0 else x * penalty) if held else x
        for x, held in zip(logits.tolist(), seen, strict=True)
    ]
    if temperature == 0:
        return int(np.argmax(logits))
    logits = np.array(logits) / temperature
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    order = order[:top_k] if top_k else order
    probabilities = dict(zip(order, shares(logits[order]), strict=True))
    nucleus, total = [], 0.0
    for token in order:
        if nucleus and total >= top_p:
            break
        nucleus.append(token)
        total += probabilities[token]
    best = probabilities[order[0]]
    left = [t for t in nucleus if probabilities[t] >= min_p * best]
    return max(left, key=lambda t: logits[t] - np.log(-np.log(uniforms[t])))


def test_random_parameters_per_row_equal_the_reference():
    rng = np.random.default_rng(0)
    n, width = 2000, 30
    logits = rng.normal(size=(n, width)).astype(np.float32) * 3
    seen = rng.random((n, width)) < 0.3
    settings = {
        "temperature": rng.choice([0, 0.5, 1, 2], n).astype(np.float32),
        "top_k": rng.choice([0, 1, 5, 20], n).astype(np.int32),
        "top_p": rng.choice([0.2, 0.9, 1.0], n).astype(np.float32),
        "min_p": rng.choice([0, 0.05, 0.5], n).astype(np.float32),
        "repetition_penalty": rng.choice([0.8, 1, 1.5], n).astype(np.float32),
    }
    keys = random.keys(0, tf.range(n))
    uniforms = random.uniform(keys, (width,)).numpy().astype(np.float64)
    received, margins = next_tokens(
        tf.constant(logits),
        tf.constant(seen),
        keys,
        SamplingParameters(**{k: tf.constant(value) for k, value in settings.items()}),
    )
    received = received.numpy()
    assert (margins.numpy() >= 0).all()
    expected = [
        reference(logits[i], seen[i], uniforms[i], *(v[i] for v in settings.values()))
        for i in range(n)
    ]
    # Sums and ties at the edge of a filter may be rounded the other way.
    assert (received != expected).mean() <= 0.001
