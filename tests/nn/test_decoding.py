"""Beam search against a search of all texts, in languages of given probabilities.

The next token depends on the position and on the token before.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from kgen.nn.decoding import DecodingState, beam_search

END = 0


def language(vocab_size, seed, num_rows=1, scale=1.5):
    """Log-probabilities [rows, positions, last token, next token], and a step."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (num_rows, 8, vocab_size, vocab_size))
    log_probs = tf.nn.log_softmax(tf.constant(logits, tf.float32)).numpy()

    def step(cache, tokens, positions):
        rows = cache[:, 0]
        index = tf.stack([rows, positions, tf.maximum(tokens, 0)], axis=1)
        return cache, tf.gather_nd(log_probs, index)

    rows = tf.range(num_rows)[:, None]
    first = tf.constant(log_probs[:, 0, 0])
    positions = tf.ones([num_rows], tf.int32)
    return log_probs, step, DecodingState(rows, first, positions, None)


def every_text(log_probs, max_tokens, alpha, end_token):
    """All texts of one language and their scores, the best first."""
    vocab_size = log_probs.shape[-1]
    found = {}
    for text in itertools.product(range(vocab_size), repeat=max_tokens):
        if end_token in text:
            text = text[: text.index(end_token) + 1]
        pairs = zip(range(max_tokens), (0, *text), text, strict=False)
        total = sum(log_probs[index] for index in pairs)
        kept = tuple(token for token in text if token != end_token)
        found[kept] = total / ((5 + len(text)) / 6) ** alpha
    return sorted(found.items(), key=lambda item: -item[1])


def search(step, state, max_tokens, num_beams, alpha, end_token):
    def function(cache, logits, positions, *options):
        names = ("max_tokens", "num_beams", "length_penalty")
        options = dict(zip(names, options, strict=True))
        state = DecodingState(cache, logits, positions, None)
        return beam_search(step, state, end_token=end_token, **options)

    rows = np.zeros(len(state.positions), np.int32)
    numbers = [rows + max_tokens, rows + num_beams, rows + alpha]
    kinds = [tf.int32, tf.int32, tf.float32]
    tensors = [*state[:3], *map(tf.cast, numbers, kinds)]
    specs = [tf.TensorSpec([None, *one.shape[1:]], one.dtype) for one in tensors]
    compiled = tf.function(function, input_signature=specs, autograph=False)
    tokens, scores, margins = (one.numpy() for one in compiled(*tensors))
    texts = [[tuple(text[text >= 0].tolist()) for text in row] for row in tokens]
    return texts, scores, margins[:, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("end_token", [-1, END])
def test_enough_beams_find_the_best_texts_of_all_in_order(alpha, end_token):
    vocab_size, max_tokens, num_best = 3, 4, 9
    log_probs, step, state = language(vocab_size, 0, num_rows=10)
    num_beams = vocab_size ** (max_tokens - 1)
    texts, scores, margins = search(
        step, state, max_tokens, num_beams, alpha, end_token
    )
    for row in range(10):
        best = every_text(log_probs[row], max_tokens, alpha, end_token)[:num_best]
        assert texts[row][:num_best] == [text for text, _ in best]
        expected = np.array([score for _, score in best])
        np.testing.assert_allclose(scores[row, :num_best], expected, rtol=1e-5)
        closest = -np.diff(expected).max()
        assert 0 < margins[row] < closest + 1e-5


def test_beams_find_more_than_the_greedy_search():
    log_probs, step, state = language(4, 3, num_rows=60, scale=0.5)
    best = [every_text(one, 5, 0.6, END)[0][0] for one in log_probs]
    wrong = []
    for num_beams in (1, 2, 4):
        texts, *_ = search(step, state, 5, num_beams, 0.6, END)
        first = [row[0] for row in texts]
        wrong.append(sum(a != b for a, b in zip(first, best, strict=True)))
    assert wrong[0] >= 20 > wrong[1] >= wrong[2]


def test_rows_of_other_beams_limits_and_penalties_do_not_matter():
    _, step, state = language(6, 4, num_rows=4)
    beams, limits, alphas = [1, 5, 2, 4], [6, 2, 5, 3], [0.0, 1.0, 0.6, 3.0]
    texts, scores, margins = search(step, state, limits, beams, alphas, END)
    for row in range(4):
        alone = DecodingState(*(one[row : row + 1] for one in state[:3]), None)
        [found], [values], [margin] = search(
            step, alone, limits[row], beams[row], alphas[row], END
        )
        assert found == texts[row][: beams[row]]
        np.testing.assert_allclose(values, scores[row, : beams[row]], rtol=1e-6)
        np.testing.assert_allclose(margin, margins[row], atol=1e-6)
        assert (scores[row, beams[row] :] < -1e8).all()


def test_the_search_of_a_row_stops_when_no_beam_can_improve_its_results():
    """The end is certain after one token: a second step finds it, and no third runs."""
    steps = tf.Variable(0)
    certain = tf.constant([[30.0, 0.0, 0.0]])

    def step(cache, tokens, positions):
        steps.assign_add(1)
        return cache, tf.repeat(certain, tf.shape(tokens)[0], axis=0)

    first = tf.math.log([[1e-9, 0.6, 0.4]])
    state = DecodingState(tf.zeros([1, 1]), first, tf.ones([1], tf.int32), None)
    [texts], *_ = search(step, state, 100, 2, 0.0, END)
    assert texts == [(1,), (2,)]
    assert steps.numpy() == 2
    search(step, state, 100, 2, 0.0, -1)
    assert steps.numpy() == 102


def test_the_margin_is_that_of_the_closest_choice():
    """Two beams of a language without memory."""
    logits = tf.math.log([[0.5, 0.3, 0.2]])

    def step(cache, tokens, positions):
        return cache, tf.repeat(logits, tf.shape(tokens)[0], axis=0)

    state = DecodingState(tf.zeros([1, 1]), logits, tf.ones([1], tf.int32), None)
    [texts], [scores], [margin] = search(step, state, 1, 2, 0.0, -1)
    assert texts == [(0,), (1,)]
    np.testing.assert_allclose(scores, np.log([0.5, 0.3]), rtol=1e-6)
    # 0.3 is kept before 0.2, which is nearer than 0.5 and 0.3.
    np.testing.assert_allclose(margin, np.log(0.3 / 0.2), rtol=1e-5)
