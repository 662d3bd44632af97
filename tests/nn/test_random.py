"""Counter-based noise: known answers, equal bits in every runtime, and statistics."""

import logging

import numpy as np
import onnxruntime
import pytest
import scipy.stats
import tensorflow as tf
import tf2onnx

from kgen.nn import random

MASK = 2**32 - 1
SEEDS = np.array([0, 1, 2, 7, 2**32, 2**40 + 3, -1, -5, 2**63 - 1, -(2**63)], np.int64)
NUM_DRAWS = 100_000
PINNED_KEYS = (3385628684, 544392221)
PINNED_BITS = [1816424089, 4089007486, 2346611968]
# A fair draw fails a two-sided bound of 4 standard errors once in 16,000 times; the
# seeds are fixed, so a failure means that the numbers have changed.
SIGMAS = 4.0


def mix(state):
    """The published hash in Python's integers, which do not overflow."""
    state = (state + 0x9E3779B9) & MASK
    state ^= state >> 16
    state = state * 0x21F0AAAD & MASK
    state ^= state >> 15
    state = state * 0x735A2D97 & MASK
    return state ^ state >> 15


def unmix(state):
    """The inverse of `mix`: each step inverted, the last one first."""
    state ^= state >> 15 ^ state >> 30
    state = state * pow(0x735A2D97, -1, 2**32) & MASK
    state ^= state >> 15 ^ state >> 30
    state = state * pow(0x21F0AAAD, -1, 2**32) & MASK
    state ^= state >> 16
    return (state - 0x9E3779B9) & MASK


def reference_key(seed, *parts):
    seed = int(seed) % 2**64
    state = mix(seed >> 32)
    for part in (seed & MASK, *parts):
        state = mix(state ^ part)
    return state


def reference_bits(key, count):
    return [mix(key ^ mix(element)) for element in range(count)]


def reference_uniform(key, count):
    """In float64, where every step is exact: 23 bits, centred."""
    return (np.array(reference_bits(key, count)) // 2**9 + 0.5) / 2**23


def reference_normal(key, count):
    radius = np.sqrt(-2 * np.log(reference_uniform(mix(key ^ 1), count)))
    return radius * np.cos(2 * np.pi * reference_uniform(mix(key ^ 2), count))


def draws(seeds):
    """All random numbers of a model for some seeds, as one graph."""
    keys = random.keys(seeds, random.STREAM_GENERATE, 3)
    return {
        "keys": keys,
        "bits": random.bits(keys, (2, 3)),
        "uniform": random.uniform(keys, (2, 3)),
        "normal": random.normal(keys, (2, 3)),
    }


@pytest.fixture(scope="module")
def eager_draws():
    return {name: value.numpy() for name, value in draws(tf.constant(SEEDS)).items()}


def graph(**options):
    spec = tf.TensorSpec([None], tf.int64, name="seeds")
    return tf.function(draws, input_signature=[spec], **options)


# -- known answers ------------------------------------------------------------


def test_the_hash_is_pinned():
    """Literal values: every image ever made from a seed depends on them."""
    assert random.keys(0).numpy() == reference_key(0) == PINNED_KEYS[0]
    assert random.keys(-5, 1, 3).numpy() == reference_key(-5, 1, 3) == PINNED_KEYS[1]
    assert random.bits(tf.constant([12345], tf.int64), (3,)).numpy().tolist() == [
        PINNED_BITS
    ]


def test_draws_equal_an_integer_implementation_in_python(eager_draws):
    for row, seed in enumerate(SEEDS):
        key = reference_key(seed, 1, 3)
        assert eager_draws["keys"][row] == key
        assert eager_draws["bits"][row].ravel().tolist() == reference_bits(key, 6)
        # Uniforms of 24 bits are exact in float32.
        np.testing.assert_array_equal(
            eager_draws["uniform"][row].ravel(), reference_uniform(key, 6)
        )
        np.testing.assert_allclose(
            eager_draws["normal"][row].ravel(), reference_normal(key, 6), atol=2e-6
        )


def test_parts_may_be_numbers_or_one_per_row():
    keys = random.keys(9, 2, tf.constant([4, 5]), tf.constant([0, 2**32 - 1]))
    assert keys.numpy().tolist() == [
        reference_key(9, 2, 4, 0),
        reference_key(9, 2, 5, 2**32 - 1),
    ]


# -- the same in every runtime ------------------------------------------------


def check_equal(results, expected):
    for name in ("keys", "bits", "uniform"):
        np.testing.assert_array_equal(results[name], expected[name], err_msg=name)
    np.testing.assert_allclose(results["normal"], expected["normal"], atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_compiled_graph_draws_the_same_bits(eager_draws, jit_compile):
    results = graph(jit_compile=jit_compile)(tf.constant(SEEDS))
    check_equal({name: value.numpy() for name, value in results.items()}, eager_draws)


def test_onnx_runtime_draws_the_same_bits(eager_draws, monkeypatch):
    # tf2onnx sets the variable for good; monkeypatch puts it back.
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    monkeypatch.setattr(logging.getLogger("tf2onnx"), "propagate", False)
    traced = graph()
    proto, _ = tf2onnx.convert.from_function(
        traced, input_signature=traced.input_signature, opset=18
    )
    assert [value.name for value in proto.graph.input] == ["seeds"]
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    results = dict(zip(names, session.run(None, {"seeds": SEEDS}), strict=True))
    check_equal(results, eager_draws)


# -- dependence on the key ----------------------------------------------------


def test_a_row_does_not_depend_on_its_batch(eager_draws):
    for row in range(len(SEEDS)):
        alone = draws(tf.constant(SEEDS[row : row + 1]))
        for name in ("keys", "bits", "uniform"):
            np.testing.assert_array_equal(alone[name][0], eager_draws[name][row])
        np.testing.assert_allclose(
            alone["normal"][0], eager_draws["normal"][row], atol=1e-6
        )


def test_no_rows_draw_nothing():
    keys = random.keys(tf.zeros([0], tf.int64), 1)
    assert random.normal(keys, (2, 3)).shape == (0, 2, 3)


def test_every_bit_of_a_seed_reaches_every_bit_of_the_key():
    """Flipping one of 64 input bits flips each output bit half of the time."""
    seeds = np.arange(1000, dtype=np.int64) * 0x5DEECE66D
    keys = random.keys(seeds, 1).numpy()
    for bit in range(64):
        flipped = (seeds.view(np.uint64) ^ np.uint64(1 << bit)).view(np.int64)
        changes = keys ^ random.keys(flipped, 1).numpy()
        rates = [(changes >> output & 1).mean() for output in range(32)]
        # A rate over 1000 seeds has a standard error of 0.5 / sqrt(1000) = 0.016; the
        # bound is 5 of them, for the largest of 2048.
        assert np.abs(np.array(rates) - 0.5).max() < 0.08, bit


def test_the_hash_is_one_to_one():
    states = list(range(2000)) + [MASK - i for i in range(2000)] + [2**31, MASK]
    assert [unmix(mix(state)) for state in states] == states


@pytest.mark.parametrize("first", [-50_000, 2**32, 123 << 32])
def test_neighbouring_seeds_never_share_a_key(first):
    """The map from one 32-bit word to the key is one to one; -50,000 crosses a word."""
    seeds = np.arange(first, first + NUM_DRAWS, dtype=np.int64)
    keys = random.keys(seeds, random.STREAM_GENERATE).numpy()
    # Across words two seeds may collide by chance: 50,000**2 / 2**32 = 0.6 expected.
    allowed = 4 if first < 0 else 0
    assert len(np.unique(keys)) >= NUM_DRAWS - allowed
    assert keys.min() >= 0
    assert keys.max() <= MASK


def test_seeds_that_differ_in_the_high_word_only_differ():
    seeds = np.arange(1000, dtype=np.int64) * 2**32 + 7
    assert len(np.unique(random.keys(seeds, 1).numpy())) == 1000


def test_the_order_of_the_parts_counts():
    assert random.keys(1, 2, 3).numpy() != random.keys(1, 3, 2).numpy()
    assert random.keys(1, 2).numpy() != random.keys(2, 1).numpy()


# -- distribution -------------------------------------------------------------


def test_uniforms_stay_inside_the_open_interval_at_the_extremes_of_the_hash():
    """Keys made so that the hash is all zeros, or all ones."""
    keys = tf.constant([unmix(0) ^ mix(0), unmix(MASK) ^ mix(0)], tf.int64)
    assert random.bits(keys, (1,)).numpy().ravel().tolist() == [0, MASK]
    low, high = random.uniform(keys, (1,)).numpy().ravel()
    assert low == 2**-24  # half of a step of 2**-23
    assert high == np.float32(1 - 2**-24)
    assert 0 < low < high < 1
    # The Gumbel noise of text sampling takes the logarithm twice.
    assert np.isfinite(-np.log(-np.log(np.float32([low, high])))).all()


def test_normals_are_finite_at_the_extremes_of_the_hash():
    """The largest radius is sqrt(-2 log 2**-24) = 5.768."""
    wanted = [unmix(word) ^ mix(0) for word in (0, MASK)]
    keys = tf.constant([unmix(key) ^ 1 for key in wanted], tf.int64)
    radius_keys = [mix(int(key) ^ 1) for key in keys.numpy()]
    assert [mix(key ^ mix(0)) for key in radius_keys] == [0, MASK]
    values = np.abs(random.normal(keys, (1,)).numpy().ravel())
    assert np.isfinite(values).all()
    assert values[0] <= 5.769
    assert values[1] < 1e-3


LAYOUTS = {
    "many rows": (NUM_DRAWS, 1),
    "many elements": (1, NUM_DRAWS),
    "rows of elements": (1000, 100),
}


def rows_of(draw, num_rows, num_elements, *, first=0, stream=1):
    seeds = np.arange(first, first + num_rows, dtype=np.int64)
    return draw(random.keys(seeds, stream), (num_elements,)).numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_uniforms_are_uniform(layout):
    values = rows_of(random.uniform, *LAYOUTS[layout]).ravel().astype(np.float64)
    bound = SIGMAS / np.sqrt(NUM_DRAWS)
    # U(0, 1) has mean 1/2 and variance 1/12; (u - 1/2)^2 has variance 1/180.
    assert abs(values.mean() - 1 / 2) < bound / np.sqrt(12)
    assert abs(((values - 0.5) ** 2).mean() - 1 / 12) < bound / np.sqrt(180)
    assert scipy.stats.kstest(values, "uniform").pvalue > 1e-3
    counts = np.bincount((values * 256).astype(int), minlength=256)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_normals_are_normal(layout):
    values = rows_of(random.normal, *LAYOUTS[layout]).ravel().astype(np.float64)
    # Standard errors of the first four moments of n normals: 1, 2, 6, 24 over n.
    moments = [
        values.mean(),
        values.var() - 1,
        scipy.stats.skew(values),
        scipy.stats.kurtosis(values),
    ]
    bounds = SIGMAS * np.sqrt(np.array([1, 2, 6, 24]) / NUM_DRAWS)
    assert (np.abs(moments) < bounds).all(), moments
    assert scipy.stats.kstest(values, "norm").pvalue > 1e-3


def correlation(first, second):
    return np.corrcoef(first.ravel(), second.ravel())[0, 1]


def test_neighbours_are_not_correlated():
    bound = SIGMAS / np.sqrt(NUM_DRAWS)
    values = rows_of(random.normal, 1000, 100)
    shifts = {
        "next seed": rows_of(random.normal, 1000, 100, first=1),
        "next stream": rows_of(random.normal, 1000, 100, stream=2),
        "next high word": rows_of(random.normal, 1000, 100, first=2**32),
        "negative seed": rows_of(random.normal, 1000, 100, first=-1000),
        "next element": np.roll(values, 1, axis=1),
    }
    for name, others in shifts.items():
        assert abs(correlation(values, others)) < bound, name
        assert abs(correlation(np.abs(values), np.abs(others))) < bound, name


def test_radius_and_angle_use_different_numbers():
    """Uniforms drawn with a normal's own key are independent of it."""
    keys = random.keys(np.arange(1000), 1)
    uniforms = random.uniform(keys, (100,)).numpy()
    normals = random.normal(keys, (100,)).numpy()
    bound = SIGMAS / np.sqrt(NUM_DRAWS)
    assert abs(correlation(uniforms, normals)) < bound
    assert abs(correlation(uniforms, np.abs(normals))) < bound


def test_categorical_draws_follow_the_probabilities():
    """Two rows of 20,000 draws: each frequency within four standard errors."""
    probabilities = np.array([[0.5, 0.3, 0.2, 0.0], [0.01, 0.01, 0.01, 0.97]])
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities).astype(np.float32)
    draws = random.categorical(random.keys(3, tf.range(2)), tf.constant(logits), 20_000)
    counts = np.stack([np.bincount(row, minlength=4) for row in draws.numpy()])
    errors = np.sqrt(20_000 * probabilities * (1 - probabilities))
    assert np.all(np.abs(counts - 20_000 * probabilities) <= 4 * errors)


@pytest.mark.parametrize("bound", [0.1, 0.7, 2.0, 4.0])
def test_truncation_keeps_quantiles(bound):
    """By SciPy: from the tail of a normal to the same share of what is left of it."""
    normals = np.linspace(-5, 5, 2001).astype(np.float32)
    received = random.truncate(tf.constant(normals), tf.constant(bound)).numpy()
    tail, cut_off = (scipy.stats.norm.sf(np.float64(x)) for x in (abs(normals), bound))
    quantiles = scipy.stats.norm.isf(cut_off + (1 - 2 * cut_off) * tail)
    np.testing.assert_allclose(received, np.sign(normals) * quantiles, atol=3e-6)
    assert np.abs(received).max() <= bound
