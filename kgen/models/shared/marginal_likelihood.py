"""Estimates of the marginal likelihood of images, by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import InputSpec
from kgen.nn import random

LATENTS_AT_A_TIME = 10_000  # bounds the memory


class MarginalLikelihoodMixin:
    """`log_likelihood` for a model with a posterior of latents.

    It defines `_posterior(images, labels)`, mean and log-variance [batch, latent_dim],
    and `_importance_terms(images, labels, mean, log_variance, noise)`: log p(x|z),
    log p(z) and log q(z|x) of each sample, [batch, samples].
    """

    latent_dim: int
    layers: Any
    run: Any
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

        Raises:
            ValueError: An argument is missing, invalid or out of its range.
        """
        given = {"images": images, "labels": labels, "seeds": seed}
        rows = self.signature("log_likelihood").check(**given, num_samples=num_samples)
        rows["indices"] = first_index + np.arange(len(rows["images"]))
        results = [np.zeros([0], np.float32)]
        for first in range(0, len(rows["images"]), batch_size):
            part = {k: values[first : first + batch_size] for k, values in rows.items()}
            results += self.run("log_likelihood", **part).values()
            if progress:
                progress(first + len(part["images"]), len(rows["images"]))
        return np.concatenate(results)

    def likelihood_signature(self, inputs: dict[str, InputSpec]) -> Signature:
        """Returns `log_likelihood`, which exists in Python alone.

        Args:
            inputs: Specs of images and labels.
        """
        return Signature(
            "log_likelihood",
            self._log_likelihoods,
            {
                **inputs,
                "seeds": InputSpec(dtype="int64"),
                "indices": InputSpec(dtype="int64", low=0, default=0),
                "num_samples": InputSpec(dtype="int32", low=1, default=5000),
            },
            {"log_likelihoods": "scores"},
            layers=tuple(self.layers),
            runtimes=(),
        )

    def _log_likelihoods(self, images, seeds, indices, num_samples, labels=None):
        """Log of the mean importance weight of each image: [b]."""
        labels = self._one_hot(labels)
        mean, log_variance = self._posterior(images, labels)
        num_rows, most = tf.shape(images)[0], tf.reduce_max(num_samples)
        chunk = tf.clip_by_value(LATENTS_AT_A_TIME // num_rows, 1, most)

        def add_chunk(start, total):
            samples = start + tf.range(chunk)
            keys = random.keys(
                tf.repeat(seeds, chunk),
                random.STREAM_LIKELIHOOD,
                tf.repeat(indices, chunk),
                tf.tile(samples, [num_rows]),
            )
            noise = random.normal(keys, (self.latent_dim,))
            noise = tf.reshape(noise, [num_rows, chunk, self.latent_dim])
            terms = self._importance_terms(images, labels, mean, log_variance, noise)
            log_weights = terms[0] + terms[1] - terms[2]  # [b, chunk]
            # The last chunk may reach past the end.
            log_weights = tf.where(
                samples < num_samples[:, None], log_weights, -math.inf
            )
            terms = tf.concat([total[:, None], log_weights], axis=1)
            return start + chunk, tf.reduce_logsumexp(terms, axis=1)

        start = (0, tf.fill([num_rows], -math.inf))
        _, total = tf.while_loop(lambda first, _: first < most, add_chunk, start)
        return {
            "log_likelihoods": total - tf.math.log(tf.cast(num_samples, tf.float32))
        }
