"""Attention, rotary positions and the block, against independent NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kgen.nn import random
from kgen.nn.transformer import (
    TransformerBlock,
    apply_dropout,
    apply_rotary_embedding,
    attention,
)

LAYERS = (
    "first_norm",
    "qkv",
    "attention_output",
    "second_norm",
    "mlp_up",
    "mlp_down",
)


def softmax(scores):
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


def attention_one_by_one(queries, keys, values, mask):
    """Loops in float64."""
    outputs = np.zeros(queries.shape)
    for row, head, place in np.ndindex(queries.shape[:3]):
        query = queries[row, head, place]
        seen = np.flatnonzero(mask[row, place])
        scores = [
            query @ keys[row, head, other] / np.sqrt(len(query)) for other in seen
        ]
        for share, other in zip(softmax(np.array(scores)), seen, strict=True):
            outputs[row, head, place] += share * values[row, head, other]
    return outputs


def test_attention_equals_a_loop():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(2, 2, 3, 4))
    keys, values = rng.normal(size=(2, 2, 2, 5, 4))
    mask = rng.random((2, 3, 5)) < 0.5
    mask[..., 0] = True
    received = attention(
        *(tf.constant(x, tf.float32) for x in (queries, keys, values)),
        tf.constant(mask),
    )
    expected = attention_one_by_one(queries, keys, values, mask)
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


def test_rotary_embedding_rotates_pairs_by_angles_of_the_position():
    vector = tf.constant([[[[1.0, 2.0, 3.0, 4.0]]]])  # pairs (1, 3) and (2, 4)
    turned = apply_rotary_embedding(vector, tf.constant([[5]])).numpy().ravel()
    one = (1 + 3j) * np.exp(5j)
    two = (2 + 4j) * np.exp(5j * 10_000**-0.5)
    np.testing.assert_allclose(
        turned, [one.real, two.real, one.imag, two.imag], rtol=1e-5
    )


def test_products_of_rotated_vectors_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    one, two = (tf.constant(rng.normal(size=(1, 1, 1, 8)), tf.float32) for _ in "12")
    products = [
        float(
            tf.reduce_sum(
                apply_rotary_embedding(one, [[place]])
                * apply_rotary_embedding(two, [[place + 3]])
            )
        )
        for place in (0, 7, 1000)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    other = float(
        tf.reduce_sum(
            apply_rotary_embedding(one, [[0]]) * apply_rotary_embedding(two, [[4]])
        )
    )
    assert abs(other - products[0]) > 1e-2


def block_by_hand(block, inputs, mask):
    """The block for one row without positions, in float64."""

    def norm(x, gamma, beta):
        centred = x - x.mean(axis=-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma
            + beta
        )

    by_layer = {
        name: [np.float64(w) for w in getattr(block, name).get_weights()]
        for name in LAYERS
    }
    assert sum(len(w) for w in by_layer.values()) == len(block.weights)
    time, hidden_dim = inputs.shape
    heads = norm(inputs, *by_layer["first_norm"]) @ by_layer["qkv"][0]
    heads = (heads + by_layer["qkv"][1]).reshape(1, time, 3, block.num_heads, -1)
    queries, keys, values = heads.transpose(2, 0, 3, 1, 4)
    mixed = attention_one_by_one(queries, keys, values, mask[None])
    mixed = (
        mixed.transpose(0, 2, 1, 3).reshape(time, hidden_dim)
        @ by_layer["attention_output"][0]
        + by_layer["attention_output"][1]
    )
    hidden = inputs + mixed
    up = (
        norm(hidden, *by_layer["second_norm"]) @ by_layer["mlp_up"][0]
        + by_layer["mlp_up"][1]
    )
    gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return hidden + gelu @ by_layer["mlp_down"][0] + by_layer["mlp_down"][1]


def test_a_block_equals_numpy():
    keras.utils.set_random_seed(0)
    block = TransformerBlock(2)
    block.build((None, None, 8))
    rng = np.random.default_rng(0)
    for weight in block.weights:  # Norms and biases are 1 and 0 at first.
        weight.assign(rng.normal(size=weight.shape))
    inputs = rng.normal(size=(5, 8))
    mask = np.tril(np.ones((5, 5), bool))
    outputs, (keys, values) = block(
        tf.constant(inputs[None], tf.float32),
        tf.range(5)[None],
        tf.constant(mask[None]),
    )
    expected = block_by_hand(block, inputs, mask)
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-4)
    assert keys.shape == values.shape == (1, 2, 5, 4)


def test_dropout_has_its_rate_and_is_keyed_by_row():
    inputs = tf.ones([3, 50, 40])
    keys = random.keys(1, tf.constant([5, 6, 5]))
    dropped = apply_dropout(inputs, keys, 0.25).numpy()
    kept = dropped > 0
    np.testing.assert_allclose(dropped[kept], 1 / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_array_equal(dropped[0], dropped[2])
    assert (dropped[0] != dropped[1]).any()
    assert apply_dropout(inputs, None, 0.25) is inputs


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_block_computes_in_its_precision(policy):
    block = TransformerBlock(2, rotary=True, dtype=policy)
    block.build((None, None, 8))
    outputs, (keys, _) = block(
        tf.ones([1, 3, 8]), tf.range(3)[None], tf.ones([1, 3, 3], tf.bool)
    )
    assert outputs.dtype == keys.dtype == policy.removeprefix("mixed_")
    assert {weight.dtype for weight in block.weights} == {"float32"}
