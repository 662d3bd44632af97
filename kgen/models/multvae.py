"""Mult-VAE and Mult-DAE: recommendation by an autoencoder of interactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import keras
import tensorflow as tf

from kgen.arguments import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Share,
    activation_name,
)
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.recommender import ItemCatalogue, RecommenderMixin
from kgen.nn import gradients, random
from kgen.nn.interactions import multinomial_loss, normalized_multi_hot
from kgen.nn.layers import dense_network, layers_of_policy
from kgen.nn.likelihoods import gaussian_kl, kl_warmup


@keras.saving.register_keras_serializable(package="kgen")
class MultVAE(RecommenderMixin, GenerativeModel):
    """Variational autoencoder of interactions, with a multinomial likelihood.

    A user is a multi-hot row over the items. The encoder sees it after dropout, and the
    decoder returns a softmax over all items; the loss is the negative log-likelihood of
    the user's items plus the weighted KL, in nats per user.

    Args:
        item_ids: Original ids of the items, whole numbers or strings, in the order of
            their positions.
        item_counts: Number of training users of each item: the scores for users
            without a history. None: all alike.
        item_features: Names of each item's features, a list for each, such as
            ["genre:Comedy", "year:1995"]. The encoder sees the features of a user's
            items, and an item's score is the sum of its own and its features' scores.
            A cold-start item, with a count of 0, is scored by its features alone and
            left out of the loss. In memory they are a matrix, float32 [num_items,
            num_features]. None: no features.
        feature_dropout: Share of the features, and of the items' own scores, dropped in
            a training step, in [0, 1).
        hidden_units: Widths of the encoder's hidden layers; the decoder mirrors them.
        latent_dim: Length of a latent vector, at least 1.
        variational: False: Mult-DAE, a denoising autoencoder whose code is one more
            hidden layer, without noise and KL.
        input_dropout: Share of a user's items dropped from the encoder's input, in [0,
            1).
        kl_weight: Factor of the KL term: beta.
        kl_warmup_steps: Optimizer steps over which the factor rises from 0.
        weight_decay: Factor of the squared weights, summed, that are added to the mean
            loss; biases are left out.
        activation: Name of a Keras activation.

    Shapes:
        items, targets: ragged whole numbers [batch, None], positions in `item_ids`

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> model = MultVAE(item_ids=[10, 20, 30, 40], latent_dim=2, hidden_units=(8,))
        >>> model.compile()
        >>> model.fit(tf.data.Dataset.from_tensors(tf.ragged.constant([[0, 1], [2]])))
        >>> best = model.recommend([[10, 30]], k=2)  # item_ids, scores: [1, 2]

    Reference:
        Liang et al., 2018, Variational Autoencoders for Collaborative Filtering.
        Dropout of an item's own weights, so that its features replace them: Volkovs et
        al., 2017, DropoutNet: Addressing Cold Start in Recommender Systems.
    """

    def __init__(
        self,
        *,
        item_ids: Sequence[Any],
        item_counts: Sequence[int] | None = None,
        item_features: Sequence[Sequence[str]] | None = None,
        feature_dropout: Share = 0.3,
        hidden_units: Sequence[PositiveInt] = (600,),
        latent_dim: PositiveInt = 200,
        variational: bool = True,
        input_dropout: Share = 0.5,
        kl_weight: NonNegativeFloat = 0.2,
        kl_warmup_steps: NonNegativeInt = 0,
        weight_decay: NonNegativeFloat = 0.0,
        activation: Annotated[str, activation_name("tanh")] = "tanh",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.catalogue = ItemCatalogue(item_ids, item_counts, item_features)
        self.declare_batches(has_row_losses=True)

        # A column for each item, and one for each feature.
        features = self.catalogue.features
        width = self.catalogue.num_items + (0 if features is None else len(features.T))
        with layers_of_policy(self.dtype_policy):
            # The code of Mult-DAE is one more hidden layer.
            last = () if variational else (keras.layers.Activation(activation),)
            code = 2 * latent_dim if variational else latent_dim
            widths = (width, *self.hidden_units, code)
            self.encoder = dense_network("encoder", widths, activation, *last)
            widths = (latent_dim, *reversed(self.hidden_units), width)
            self.decoder = dense_network("decoder", widths, activation)
        self.add_log_metrics("kl", "reconstruction", "loss", "ndcg")

    # -- the bound ----------------------------------------------------------

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one step on the weighted bound."""
        batch = self.read(data)
        weights = batch.get("sample_weight")
        kl_weight = self.kl_weight * kl_warmup(self.step.value, self.kl_warmup_steps)
        with self.recording() as recording:
            terms, _ = self._bound(batch["items"], kl_weight, training=True)
            loss = terms["loss"]
            if self.weight_decay:
                penalty = gradients.squared_weights(self.trainable_variables)
                loss += self.weight_decay * penalty
        recording.minimize(loss, weights)
        self.finish_step(batch["items"])
        return self.log(terms, training=True, weights=weights)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates the bound without dropout, and NDCG@100 of held-out items."""
        batch = self.read(data)
        terms, logits = self._bound(batch["items"], self.kl_weight, training=False)
        terms |= self.catalogue.ndcg(batch, logits)
        return self.log(terms, training=False, weights=batch.get("sample_weight"))

    def _bound(self, items, kl_weight, training):
        """Loss and its terms per user, and the logits."""
        num_items = self.catalogue.num_items
        if training:
            keys = self.noise_keys(items.row_lengths(), random.STREAM_TRAIN)
            noise = random.normal(keys, (self.latent_dim,))
            dropout_keys = random.fold_in(keys, 1)
            rows = normalized_multi_hot(
                items, num_items, dropout_keys, self.input_dropout
            )
        else:
            noise = 0.0
            rows = normalized_multi_hot(items, num_items)
        code = self._encode(rows, training)
        kl = tf.zeros_like(code[:, 0])
        if self.variational:
            mean, log_variance = tf.split(code, 2, axis=1)
            kl = tf.reduce_sum(gaussian_kl(mean, log_variance), axis=1)
            code = mean + tf.exp(0.5 * log_variance) * noise
        logits = self._decode(code, training)
        if training and self._features is not None:
            logits = tf.where(self._is_known > 0, logits, -1e9)
        reconstruction = multinomial_loss(items, logits)
        loss = reconstruction + kl_weight * kl
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl}, logits

    def _score_rows(self, rows):
        """Logits of all items from multi-hot rows: [batch, num_items]."""
        code = self._encode(tf.math.l2_normalize(rows, axis=1))
        if self.variational:
            code = tf.split(code, 2, axis=1)[0]
        return self._decode(code)

    def _encode(self, rows, training=False):
        if self._features is not None:
            rows = tf.concat([rows * self._is_known, rows @ self._features], axis=1)
        return tf.cast(self.encoder(rows, training=training), tf.float32)

    def _decode(self, code, training=False):
        scores = tf.cast(self.decoder(code, training=training), tf.float32)
        if self._features is None:
            return scores
        if training and self.feature_dropout:  # the same ones for all users of a step
            key = random.keys(self.seed, random.STREAM_FEATURES, self.step.value)
            noise = random.uniform(key[None], (scores.shape[1],))
            kept = tf.cast(noise >= self.feature_dropout, tf.float32)
            scores *= kept / (1.0 - self.feature_dropout)
        own, of_features = tf.split(scores, [self.catalogue.num_items, -1], axis=1)
        return own * self._is_known + of_features @ tf.transpose(self._features)

    @property
    def _features(self):
        """Multi-hot features of the items: [num_items, num_features]; or None."""
        features = self.catalogue.features
        return None if features is None else tf.cast(tf.constant(features), tf.float32)

    @property
    def _is_known(self):
        """1 for each item with a count above 0, 0 for the others: [num_items]."""
        counts = self.catalogue.item_counts
        return ((counts > 0) | (counts.max() == 0)).astype("float32")

    # -- use ----------------------------------------------------------------

    @property
    def item_features(self) -> list[list[str]] | None:
        """The names of each item's features, in order."""
        return self.catalogue.item_features

    def health(self, logs: dict[str, float]) -> list[str]:
        """Warns of posterior collapse: all users get the same recommendations."""
        if not self.variational or logs.get("kl", 1.0) > 0.1:
            return []
        return [
            f"posterior collapse: the KL is {logs['kl']:.3f} nats, so all users are "
            "recommended the same. Try a KL warm-up (kl_warmup_steps) or a smaller "
            "kl_weight."
        ]
