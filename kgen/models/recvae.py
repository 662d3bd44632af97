"""RecVAE: Mult-VAE with a composite prior and alternating updates."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import keras
import tensorflow as tf
from keras import layers

from kgen.arguments import NonNegativeFloat, PositiveInt, Rule, Share
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.recommender import ItemCatalogue, RecommenderMixin
from kgen.nn import gradients, random
from kgen.nn.gradients import Adam
from kgen.nn.interactions import multinomial_loss, normalized_multi_hot
from kgen.nn.layers import dense_network, layers_of_policy
from kgen.nn.likelihoods import gaussian_kl, gaussian_log_density, sum_rows

WIDE_LOG_VARIANCE = 10.0  # of the prior's widest part; it and the next: the authors'
NORM_EPSILON = 0.1  # code
PriorWeights = Annotated[
    Sequence[float],
    Rule(
        "be three shares above 0 that sum to 1",
        lambda shares: (
            len(shares) == 3 and min(shares) > 0 and math.isclose(sum(shares), 1)
        ),
    ),
]


@keras.saving.register_keras_serializable(package="kgen")
class RecVAE(RecommenderMixin, GenerativeModel):
    """Variational autoencoder of interactions with a composite prior.

    As in Mult-VAE, a user is a multi-hot row over the items, and the loss is the
    negative log-likelihood of these items plus the weighted KL, in nats per user. The
    prior of a user's latents is a mixture that contains the posterior of the encoder of
    the cycle before. Updates alternate: some steps of the encoder, with input dropout,
    and then some of the linear decoder, without.

    Args:
        item_ids: Original ids of the items, whole numbers or strings, in the order of
            their positions.
        item_counts: Number of training users of each item: the scores for users
            without a history. None: all alike.
        hidden_dim: Width of each hidden layer of the encoder.
        num_layers: Number of hidden layers, densely connected.
        latent_dim: Length of a latent vector, at least 1.
        input_dropout: Share of a user's items dropped from the encoder's input in its
            updates, in [0, 1).
        kl_weight_per_item: Factor of a user's KL term for each of the user's items:
            gamma.
        kl_weight: One factor for all users instead, or None.
        prior_weights: Weights of the prior's components: the standard normal, the
            posterior of the encoder of the cycle before, and a wide normal. Their sum
            is 1.
        encoder_steps: Steps of the encoder in a cycle. In the paper, three epochs.
        decoder_steps: Steps of the decoder after them. In the paper, one epoch.

    Shapes:
        items, targets: ragged whole numbers [batch, None], positions in `item_ids`

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> model = RecVAE(item_ids=[10, 20, 30, 40], latent_dim=2, hidden_dim=8)
        >>> model.compile()
        >>> model.fit(tf.data.Dataset.from_tensors(tf.ragged.constant([[0, 1], [2]])))
        >>> best = model.recommend([[10, 30]], k=2)  # item_ids, scores: [1, 2]

    Reference:
        Shenbin et al., 2020, RecVAE: a New Variational Autoencoder for Top-N
        Recommendations with Implicit Feedback. As in the authors' code, the prior mixes
        in each latent dimension, not whole vectors.
    """

    def __init__(
        self,
        *,
        item_ids: Sequence[Any],
        item_counts: Sequence[int] | None = None,
        hidden_dim: PositiveInt = 600,
        num_layers: PositiveInt = 5,
        latent_dim: PositiveInt = 200,
        input_dropout: Share = 0.5,
        kl_weight_per_item: NonNegativeFloat = 0.005,
        kl_weight: NonNegativeFloat | None = None,
        prior_weights: PriorWeights = (0.15, 0.75, 0.1),
        encoder_steps: PositiveInt = 3,
        decoder_steps: PositiveInt = 1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.catalogue = ItemCatalogue(item_ids, item_counts)
        self.declare_batches(has_row_losses=True)

        with layers_of_policy(self.dtype_policy):
            self.encoder = self._make_encoder("encoder")
            self.old_encoder = self._make_encoder("old_encoder")
            widths = (latent_dim, self.catalogue.num_items)
            self.decoder = dense_network("decoder", widths)
        self.old_encoder.trainable = False
        self.old_encoder.set_weights(self.encoder.get_weights())
        make_adam = functools.partial(Adam, 5e-4)
        self.optimizer_slots = {
            "encoder_optimizer": ("encoder", make_adam),
            "decoder_optimizer": ("decoder", make_adam),
        }
        self.add_log_metrics("kl", "standard_kl", "reconstruction", "loss", "ndcg")

    def _make_encoder(self, name):
        """Densely connected layers from multi-hot rows to means and log-variances."""
        rows = keras.Input((self.catalogue.num_items,))
        hidden, total = DeterministicSplit()(self._add_layer(rows))
        for _ in range(self.num_layers - 1):
            # The sum of all outputs so far.
            skipped, total = DeterministicSplit()(total)
            hidden, output = DeterministicSplit()(self._add_layer(hidden, skipped))
            total = DeterministicAdd()([total, output])
        return keras.Model(rows, layers.Dense(2 * self.latent_dim)(hidden), name=name)

    def _add_layer(self, inputs, skipped=None):
        """Hidden layer; the skip connection is added before the activation."""
        hidden = layers.Dense(self.hidden_dim)(inputs)
        if skipped is not None:
            hidden = DeterministicAdd()([hidden, skipped])
        hidden = layers.Activation("swish")(hidden)
        return layers.LayerNormalization(epsilon=NORM_EPSILON)(hidden)

    # -- the bound ----------------------------------------------------------

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the encoder or the decoder, depending on the step."""
        batch = self.read(data)
        items = batch["items"]
        weights = batch.get("sample_weight", tf.ones([items.nrows()]))
        keys = self.noise_keys(items.row_lengths(), random.STREAM_TRAIN)
        cycle = self.encoder_steps + self.decoder_steps
        terms = gradients.alternate(
            self.step.value % cycle < self.encoder_steps,
            self._update_encoder,
            self._update_decoder,
            items,
            keys,
            weights,
        )
        self.finish_step(keys)
        return self.log(terms, training=True, weights=weights)

    def _update_encoder(self, items, keys, weights):
        with self.recording("encoder_optimizer") as recording:
            terms, _ = self._bound(items, keys, self.input_dropout, training=True)
        recording.minimize(terms["loss"], weights)
        return terms

    def _update_decoder(self, items, keys, weights):
        # The encoder is fixed now: the first of these steps makes the copy that its
        # next cycle needs, and the others change nothing.
        gradients.update_average(
            self.old_encoder.variables, self.encoder.variables, tf.zeros([])
        )
        with self.recording("decoder_optimizer") as recording:
            terms, _ = self._bound(items, keys, dropout=0.0, training=True)
        recording.minimize(terms["loss"], weights)
        return terms

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates the bound from fixed noise, and NDCG@100 of held-out items."""
        batch = self.read(data)
        items = batch["items"]
        keys = self.noise_keys(items.row_lengths(), random.STREAM_TEST)
        terms, mean = self._bound(items, keys, dropout=0.0, training=False)
        terms |= self.catalogue.ndcg(batch, self._decode(mean))
        return self.log(terms, training=False, weights=batch.get("sample_weight"))

    def _bound(self, items, keys, dropout, training):
        """Loss and its terms per user, and the posterior's mean."""
        num_items = self.catalogue.num_items
        rows = normalized_multi_hot(items, num_items, random.fold_in(keys, 1), dropout)
        mean, log_variance = self._encode(self.encoder, rows, training)
        noise = random.normal(keys, (self.latent_dim,))
        latents = mean + tf.exp(0.5 * log_variance) * noise
        log_posterior = gaussian_log_density(noise, 0.0, 0.0) - 0.5 * log_variance
        old_mean, old_log_variance = self._encode(
            self.old_encoder, normalized_multi_hot(items, num_items)
        )
        log_prior = composite_log_density(
            latents, old_mean, old_log_variance, self.prior_weights
        )
        kl = tf.reduce_sum(log_posterior - log_prior, axis=1)  # by the one sample
        reconstruction = multinomial_loss(items, self._decode(latents, training))
        terms = {
            "kl": kl,
            "standard_kl": sum_rows(gaussian_kl(mean, log_variance)),
            "reconstruction": reconstruction,
            "loss": reconstruction + self._kl_weights(items) * kl,
        }
        return terms, mean

    def _kl_weights(self, items):
        """Factor of each user's KL: [batch], or a number for all."""
        if self.kl_weight is not None:
            return self.kl_weight
        return self.kl_weight_per_item * tf.cast(items.row_lengths(), tf.float32)

    def _score_rows(self, rows):
        """Logits of all items from multi-hot rows: [batch, num_items]."""
        mean, _ = self._encode(self.encoder, tf.math.l2_normalize(rows, axis=1))
        return self._decode(mean)

    def _encode(self, encoder, rows, training=False):
        """Mean and log-variance of the posterior: [batch, latent_dim] each."""
        code = tf.cast(encoder(rows, training=training), tf.float32)
        return tf.split(code, 2, axis=1)

    def _decode(self, latents, training=False):
        return tf.cast(self.decoder(latents, training=training), tf.float32)

    # -- use ----------------------------------------------------------------

    def health(self, logs: dict[str, float]) -> list[str]:
        """Warns of posterior collapse: all users get the same recommendations.

        Uses the KL to the standard normal: the KL to the prior, which contains a
        posterior, is not near 0 then.
        """
        if logs.get("standard_kl", 1.0) > 0.1:
            return []
        return [
            f"posterior collapse: the KL to the standard normal is "
            f"{logs['standard_kl']:.3f} nats, so all users are recommended the same. "
            "Try a smaller kl_weight_per_item (or kl_weight)."
        ]


def composite_log_density(
    latents: tf.Tensor,
    old_mean: tf.Tensor,
    old_log_variance: tf.Tensor,
    weights: Sequence[float],
) -> tf.Tensor:
    """Log-density of each latent dimension under the composite prior.

    Args:
        latents: Points to evaluate at.
        old_mean: Mean of the posterior of the encoder of the cycle before.
        old_log_variance: Its log-variance.
        weights: Shares of the standard normal, this posterior, and the wide normal.

    Shapes:
        [batch, latent_dim] each -> [batch, latent_dim]
    """
    zeros = tf.zeros_like(old_mean)
    means = tf.stack([zeros, old_mean, zeros])  # [parts, batch, latent_dim]
    log_variances = tf.stack([zeros, old_log_variance, zeros + WIDE_LOG_VARIANCE])
    parts = gaussian_log_density(latents, means, log_variances)
    parts += tf.math.log(tf.constant(weights))[:, None, None]
    return tf.reduce_logsumexp(parts, axis=0)


@keras.saving.register_keras_serializable(package="kgen")
class DeterministicAdd(keras.layers.Layer):
    """Sum of two inputs: a `keras.layers.Add` that repeats bit for bit in a chain.

    TensorFlow merges chains of additions, also of gradients, into one sum whose order
    depends on timing.

    Shapes:
        two of [batch, ...] -> the same
    """

    def call(self, inputs):
        """Adds the two inputs."""
        return _sum(*inputs)


@keras.saving.register_keras_serializable(package="kgen")
class DeterministicSplit(keras.layers.Layer):
    """Two copies of the input; their gradients are added as in `DeterministicAdd`.

    Shapes:
        [batch, ...] -> two of the same
    """

    def call(self, inputs):
        """Copies the input."""

        @tf.custom_gradient
        def split(values):
            return (tf.identity(values), tf.identity(values)), _sum

        return split(inputs)


def _sum(first, second):
    return tf.reduce_sum(tf.stack([first, second]), axis=0)  # no addition to merge
