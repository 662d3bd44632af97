"""Observation models of a decoder's output: log-probability and mean of images."""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from kgen.nn import losses


class Likelihood(NamedTuple):
    """Distribution of images given an output [rows, h, w, c] and a log-variance [].

    Attributes:
        log_probability: (images, output, log_variance) -> [rows], in nats.
        mean: output -> images in [0, 1].
    """

    log_probability: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    mean: Callable[[tf.Tensor], tf.Tensor]


def _bernoulli(images, logits, log_variance):
    return losses.bernoulli_log_likelihood(images, logits)


def _gaussian(images, output, log_variance):
    return losses.gaussian_log_likelihood(images, output + 0.5, log_variance)


def _discretized_logistic(images, output, log_variance):
    # The variance of a logistic is (pi * scale)^2 / 3.
    log_scale = 0.5 * (log_variance + math.log(3.0)) - math.log(math.pi)
    return losses.discretized_logistic_log_likelihood(images, output + 0.5, log_scale)


def _centred(output):
    # An output of 0 is the middle of the range [0, 1] of images.
    return tf.clip_by_value(output + 0.5, 0.0, 1.0)


LIKELIHOODS = {
    "bernoulli": Likelihood(_bernoulli, tf.sigmoid),
    "gaussian": Likelihood(_gaussian, _centred),
    "discretized_logistic": Likelihood(_discretized_logistic, _centred),
}
