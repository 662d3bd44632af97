"""Estimates of the marginal likelihood of images, by importance sampling."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.nn import random


class MarginalLikelihoodMixin:
    """`log_likelihood` for a model with a posterior of latents.

    It defines `_posterior(images, labels)`, mean and log-variance [batch, latent_dim],
    and `_importance_terms(images, labels, mean, log_variance, noise)`: log p(x|z),
    log p(z) and log q(z|x) of each sample, [batch, samples].
    """

    latent_dim: int
    graph: Any
    signature: Any
    _one_hot: Any
    _posterior: Any
    _importance_terms: Any

    def elbo(self, images: Any, labels: Any = None, seed: int = 0) -> np.ndarray:
        """The evidence lower bound of each image, in nats, with one noise sample: [n].

        The KL weight and the importance samples of training do not enter.
        """
        return self.log_likelihood(images, 1, labels=labels, seed=seed)

    def log_likelihood(
        self,
        images: Any,
        num_samples: int = 5000,
        *,
        labels: Any = None,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 100,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Estimates log p(x) of each image by importance sampling, in nats: [n].

        Samples come from the posterior; the noise of an image depends on the seed, its
        index and the sample's index alone. For one sample this is the evidence lower
        bound. The estimate is a lower bound in expectation, tighter with more samples.

        Args:
            images: [n, height, width, channels].
            num_samples: Importance samples per image.
            labels: [n], if the model is conditional.
            seed: Keys the noise.
            first_index: Index of the first image, where these are a part of a set.
            batch_size: Images at a time; samples are cut up so that about 10,000
                latents are decoded at a time.
            progress: Called with the number of images done and their total.
        """
        if num_samples < 1:
            raise ValueError(
                f"`num_samples` must be at least 1. Received: num_samples={num_samples}"
            )
        encode = self.signature("encode")
        arrays = encode.check(images=images, labels=labels)
        images, labels = arrays["images"], arrays.get("labels")
        chunk = max(1, min(num_samples, 10_000 // batch_size))
        number = tf.TensorSpec([], tf.int64)
        graph = self.graph(
            f"log_weights/{chunk}",
            functools.partial(self._log_weight_sum, chunk),
            **encode.tensor_specs(),
            seed=number,
            first=number,
            num_samples=number,
        )
        results = [np.zeros([0], np.float32)]
        for first in range(0, len(images), batch_size):
            rows = {"images": tf.constant(images[first : first + batch_size])}
            if labels is not None:
                rows["labels"] = tf.constant(labels[first : first + batch_size])
            index = first_index + first
            numbers = {"seed": seed, "first": index, "num_samples": num_samples}
            log_sum = graph(
                **rows, **{k: tf.constant(v, tf.int64) for k, v in numbers.items()}
            )
            results.append(log_sum.numpy() - math.log(num_samples))
            if progress:
                progress(min(first + batch_size, len(images)), len(images))
        return np.concatenate(results)

    def _log_weight_sum(self, chunk, images, seed, first, num_samples, labels=None):
        """Log of the summed importance weights of each image: [b]."""
        labels = self._one_hot(labels)
        mean, log_variance = self._posterior(images, labels)
        num_rows = tf.shape(images)[0]
        rows = first + tf.range(tf.cast(num_rows, tf.int64))
        total = tf.fill([num_rows], -math.inf)
        for start in tf.range(0, num_samples, chunk):
            samples = start + tf.range(chunk, dtype=tf.int64)
            keys = random.keys(
                seed,
                random.STREAM_LIKELIHOOD,
                tf.repeat(rows, chunk),
                tf.tile(samples, [num_rows]),
            )
            noise = tf.reshape(
                random.normal(keys, (self.latent_dim,)), [-1, chunk, self.latent_dim]
            )
            terms = self._importance_terms(images, labels, mean, log_variance, noise)
            log_weights = terms[0] + terms[1] - terms[2]  # [b, chunk]
            # The last chunk may reach past the end.
            log_weights = tf.where(samples < num_samples, log_weights, -math.inf)
            total = tf.reduce_logsumexp(
                tf.concat([total[:, None], log_weights], axis=1), axis=1
            )
        return total
