"""Likelihoods and divergences against SciPy, closed forms and sums over all levels."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from kgen.nn import likelihoods

RNG = np.random.default_rng(0)
SHAPE = (3, 4, 5, 2)  # Sums run over the last three.


def test_bernoulli_equals_scipy():
    images = RNG.integers(0, 2, SHAPE)
    logits = RNG.normal(0, 3, SHAPE)
    # 1 / (1 + exp(-logits)) is the probability of a one.
    expected = scipy.stats.bernoulli.logpmf(images, scipy.special.expit(logits))
    np.testing.assert_allclose(
        likelihoods.bernoulli_log_likelihood(images, logits),
        expected.sum(axis=(1, 2, 3)),
        rtol=1e-6,
    )


def test_bernoulli_of_grey_pixels_is_the_cross_entropy():
    """x log p + (1 - x) log(1 - p), for x = 1/4 and p = 1/2: log(1/2)."""
    result = likelihoods.bernoulli_log_likelihood(
        tf.fill([1, 2], 0.25), tf.zeros([1, 2])
    )
    np.testing.assert_allclose(result, [2 * math.log(0.5)], rtol=1e-6)


def test_bernoulli_is_finite_for_a_confident_decoder():
    """Right: 0 nats. Wrong: -1000 nats, the logit itself."""
    logits = tf.constant([[1000.0], [-1000.0], [1000.0]])
    images = tf.constant([[1.0], [0.0], [0.0]])
    result = likelihoods.bernoulli_log_likelihood(images, logits)
    np.testing.assert_allclose(result, [0, 0, -1000], atol=1e-6)


def test_likelihoods_of_16_bit_tensors_compute_in_float32():
    """At 16 bits a sum of 5000 equal terms would stop growing at 2048 or sooner."""
    images, logits = tf.zeros([1, 5000], tf.float16), tf.zeros([1, 5000], tf.float16)
    bernoulli = likelihoods.bernoulli_log_likelihood(images, logits)
    gaussian = likelihoods.gaussian_log_likelihood(images, logits, 0.0)
    assert bernoulli.dtype == gaussian.dtype == tf.float32
    np.testing.assert_allclose(bernoulli, [-5000 * math.log(2)], rtol=1e-5)
    np.testing.assert_allclose(gaussian, [-2500 * math.log(2 * math.pi)], rtol=1e-5)


@pytest.mark.parametrize("variance", [0.01, RNG.uniform(0.1, 2, SHAPE)])
def test_gaussian_equals_scipy(variance):
    values, mean = RNG.normal(0, 1, SHAPE), RNG.normal(0, 1, SHAPE)
    expected = scipy.stats.norm.logpdf(values, mean, np.sqrt(variance))
    np.testing.assert_allclose(
        likelihoods.gaussian_log_likelihood(values, mean, np.log(variance)),
        expected.sum(axis=(1, 2, 3)),
        rtol=1e-5,
    )


def test_gaussian_of_variance_one_half_is_the_squared_error_plus_a_constant():
    """log N(x; m, 1/2) = -(x - m)^2 - log(pi) / 2 for each pixel."""
    values, mean = tf.constant([[1.0, 2.0]]), tf.constant([[0.0, 4.0]])
    result = likelihoods.gaussian_log_likelihood(values, mean, math.log(0.5))
    np.testing.assert_allclose(result, [-5 - math.log(math.pi)], rtol=1e-6)


LEVELS = np.arange(256) / 255
LOGISTICS = [(0.5, 0.1), (0.0, 0.02), (1.3, 0.3), (0.5, 0.001), (-4.0, 0.5)]


def level_log_probabilities(mean, scale):
    """Log-probability of each of the 256 levels, from the library."""
    images = tf.constant(LEVELS[:, None], tf.float32)
    return likelihoods.discretized_logistic_log_likelihood(
        images, tf.fill([256, 1], mean), math.log(scale)
    ).numpy()


@pytest.mark.parametrize(("mean", "scale"), LOGISTICS)
def test_the_levels_of_a_discretized_logistic_sum_to_one(mean, scale):
    total = np.exp(level_log_probabilities(mean, scale).astype(np.float64)).sum()
    np.testing.assert_allclose(total, 1, atol=1e-4)


@pytest.mark.parametrize(("mean", "scale"), LOGISTICS[:3])
def test_a_discretized_logistic_is_the_difference_of_two_sigmoids(mean, scale):
    """In float64: F((x + 1/510 - m) / s) - F((x - 1/510 - m) / s), tails to infinity.

    The difference loses digits where the density is small: only levels of more than
    1e-9 are compared.
    """
    edges = (np.arange(257) - 0.5) / 255
    edges[0], edges[-1] = -np.inf, np.inf
    expected = np.diff(scipy.special.expit((edges - mean) / scale))
    kept = expected > 1e-9
    assert kept.sum() > 50
    np.testing.assert_allclose(
        level_log_probabilities(mean, scale)[kept], np.log(expected[kept]), atol=2e-4
    )


def test_a_discretized_logistic_is_finite_far_from_its_mean():
    """Here both sigmoids round to the same float32: the difference would be log 0.

    Left of the mean the level's probability is about exp((x - m) / s) (1 - exp(-w)),
    with w = 1 / (255 s) the width of a level: -(0.9 - 128/255) / 0.001 = -398.04, and
    upper and lower edges at +-1/510.
    """
    result = level_log_probabilities(0.9, 0.001)[128]
    upper = (128 / 255 + 0.5 / 255 - 0.9) / 0.001
    expected = upper + math.log(-math.expm1(-1 / 0.255))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_kl_is_zero_for_the_prior():
    np.testing.assert_array_equal(
        likelihoods.gaussian_kl(tf.zeros([2, 3]), tf.zeros([2, 3])), np.zeros([2, 3])
    )


def test_kl_of_a_gaussian_by_hand():
    """KL(N(2, 4) || N(0, 1)) = (4 + 4 - 1 - log 4) / 2; KL(N(1, 1)) = 1/2."""
    kl = likelihoods.gaussian_kl([[2.0, 1.0]], [[math.log(4.0), 0.0]])
    np.testing.assert_allclose(kl, [[(7 - math.log(4)) / 2, 0.5]], rtol=1e-6)


def test_kl_of_a_gaussian_is_the_mean_log_ratio():
    """Monte Carlo in NumPy, to four standard errors."""
    mean, deviation = 0.7, 1.6
    samples = mean + deviation * RNG.standard_normal(200_000)
    ratios = scipy.stats.norm.logpdf(samples, mean, deviation)
    ratios -= scipy.stats.norm.logpdf(samples)
    kl = likelihoods.gaussian_kl([[mean]], [[2 * math.log(deviation)]]).numpy().item()
    assert abs(ratios.mean() - kl) < 4 * ratios.std() / math.sqrt(200_000)


@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
def test_log_mean_exp_does_not_overflow(offset):
    """log((1 + 3) / 2) = log 2, shifted by any offset: exp(1000) is infinite."""
    values = tf.constant([[0.0, math.log(3.0)]] * 3) + offset
    np.testing.assert_allclose(
        likelihoods.log_mean_exp(values, axis=1), [offset + math.log(2)] * 3, rtol=1e-5
    )


def test_log_mean_exp_reduces_the_given_axis():
    """Along the first axis all values are equal: their mean is each of them."""
    values = tf.constant([[1.0, 2.0, 5.0]] * 4)
    np.testing.assert_allclose(likelihoods.log_mean_exp(values, axis=0), [1, 2, 5])


@pytest.mark.parametrize(
    ("step", "value"), [(0, 0.0), (1, 0.1), (5, 0.5), (10, 1.0), (1000, 1.0)]
)
def test_kl_warmup_rises_in_equal_steps_and_stays(step, value):
    result = likelihoods.kl_warmup(tf.constant(step, tf.int64), 10)
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, value, rtol=1e-6)


def test_kl_warmup_of_no_steps_is_1_from_the_start():
    assert likelihoods.kl_warmup(tf.constant(0, tf.int64), 0).numpy() == 1
