"""CFGAN: recommendation by an adversarial generator of interactions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import keras
import tensorflow as tf

from kgen.arguments import (
    Fraction,
    NonNegativeFloat,
    PositiveInt,
    activation_name,
)
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.recommender import ItemCatalogue, RecommenderMixin
from kgen.nn import random
from kgen.nn.adversarial import joined, non_saturating
from kgen.nn.gradients import Adam, squared_weights
from kgen.nn.interactions import multi_hot
from kgen.nn.layers import dense_network, layers_of_policy

_CHANCE = 2.0 * math.log(2.0)  # loss of a discriminator at chance


@keras.saving.register_keras_serializable(package="kgen")
class CFGAN(RecommenderMixin, GenerativeModel):
    """Conditional GAN over the interactions of users, without noise.

    A user is a multi-hot row over the items. The generator maps the row to a score of
    each item; the discriminator, conditioned on the row, tells these scores from the
    row itself. It sees the scores of the user's own items only, so scores of 1
    everywhere would be optimal. Therefore it also sees the scores of a random share of
    the other items (partial masking), and scores of another random share are pulled to
    0 (zero reconstruction). Both shares are drawn anew in each update.

    The identity minimizes the adversarial loss, too, and recommends nothing: stop
    before, at the best NDCG of a validation set.

    Args:
        item_ids: Original ids of the items, whole numbers or strings, in the order of
            their positions.
        item_counts: Number of training users of each item: the scores for users
            without a history. None: all alike.
        generator_units: Widths of the generator's hidden layers.
        discriminator_units: Widths of the discriminator's hidden layers.
        zero_reconstruction: Share of a user's other items whose squared scores, summed,
            are added to the generator's loss, in [0, 1].
        zero_reconstruction_weight: Factor of that sum.
        partial_masking: Share of a user's other items whose scores the discriminator
            sees, in [0, 1].
        generator_steps: Updates of the generator by one batch.
        discriminator_steps: Updates of the discriminator before them. Each update is by
            the whole batch, as the authors' program makes so many passes over the data:
            cut into parts, a small last batch would leave one of them without a row.
        generator_weight_decay: Factor of the squared weights of the generator, summed,
            that are added to its mean loss; biases are left out. The default is the
            authors' 1e-3 of half the squares, as is the next one, for MovieLens 100K.
        discriminator_weight_decay: Factor of the squared weights of the discriminator,
            summed, that are added to its mean loss.
        activation: Name of the Keras activation of the hidden layers.
        output_activation: Name of the Keras activation of the generator's output.
            "linear", as in the authors' program, ranks better than "sigmoid", which
            keeps scores in (0, 1).

    Shapes:
        items, targets: ragged whole numbers [batch, None], positions in `item_ids`

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> model = CFGAN(item_ids=[10, 20, 30, 40], generator_units=(8,))
        >>> model.compile()
        >>> model.fit(tf.data.Dataset.from_tensors(tf.ragged.constant([[0, 1], [2]])))
        >>> best = model.recommend([[10, 30]], k=2)  # item_ids, scores: [1, 2]

    Reference:
        Chae et al., 2018, CFGAN: A Generic Collaborative Filtering Framework based on
        Generative Adversarial Networks. Each item is drawn independently, so a share
        holds in expectation. The generator's loss is the non-saturating one, as in the
        authors' program. Their item-based mode is this model with users and items
        exchanged: a row is an item, and its scores are of users. `score(rows).T` then
        scores the training users alone; `recommend` does not serve this mode. Pérez
        Maurera et al., 2022, An Evaluation Study of Generative Adversarial Networks for
        Collaborative Filtering, find the results not to be competitive throughout.
    """

    def __init__(
        self,
        *,
        item_ids: Sequence[Any],
        item_counts: Sequence[int] | None = None,
        generator_units: Sequence[PositiveInt] = (400,),
        discriminator_units: Sequence[PositiveInt] = (125,),
        zero_reconstruction: Fraction = 0.7,
        zero_reconstruction_weight: NonNegativeFloat = 0.03,
        partial_masking: Fraction = 0.7,
        generator_steps: PositiveInt = 4,
        discriminator_steps: PositiveInt = 2,
        generator_weight_decay: NonNegativeFloat = 5e-4,
        discriminator_weight_decay: NonNegativeFloat = 0.0,
        activation: Annotated[str, activation_name("sigmoid")] = "sigmoid",
        output_activation: Annotated[str, activation_name("sigmoid")] = "linear",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.catalogue = ItemCatalogue(item_ids, item_counts)
        self.declare_batches(has_row_losses=False)

        num_items = self.catalogue.num_items
        with layers_of_policy(self.dtype_policy):
            self.generator = dense_network(
                "generator",
                (num_items, *self.generator_units, num_items),
                activation,
                # Not in half precision, which makes ties of nearby scores.
                keras.layers.Activation(output_activation, dtype="float32"),
            )
            widths = (2 * num_items, *self.discriminator_units, 1)
            self.discriminator = dense_network("discriminator", widths, activation)
        make_adam = functools.partial(Adam, 1e-4)
        self.optimizer_slots = {
            "generator_optimizer": ("generator", make_adam),
            "discriminator_optimizer": ("discriminator", make_adam),
        }
        self.add_log_metrics(
            "zero_reconstruction",
            "discriminator_loss",
            "generator_loss",
            "distance",
            "ndcg",
        )

    # -- the adversarial step -------------------------------------------------

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the discriminator and then the generator, each by the whole batch."""
        rows, keys = self._rows_and_keys(self.read(data), random.STREAM_TRAIN)
        discriminator_terms, generator_terms = [], []
        for update in range(self.discriminator_steps):
            mask_keys = random.fold_in(keys, 1, update)
            with self.recording("discriminator_optimizer") as recording:
                loss, terms = self._discriminator_loss(rows, mask_keys)
            recording.minimize(loss)
            discriminator_terms.append(terms)
        for update in range(self.generator_steps):
            mask_keys = random.fold_in(keys, 2, update)
            with self.recording("generator_optimizer") as recording:
                loss, terms = self._generator_loss(rows, mask_keys)
            recording.minimize(loss)
            generator_terms.append(terms)
        self.finish_step(rows)
        terms = joined(discriminator_terms) | joined(generator_terms)
        return self.log(terms, training=True)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates the losses with fixed masks, and NDCG@100 of held-out items."""
        batch = self.read(data)
        rows, keys = self._rows_and_keys(batch, random.STREAM_TEST)
        _, terms = self._discriminator_loss(rows, keys, training=False)
        _, generator_terms = self._generator_loss(rows, keys, training=False)
        terms |= generator_terms | self.catalogue.ndcg(batch, self._score_rows(rows))
        return self.log(terms, training=False)

    def _rows_and_keys(self, batch, stream):
        items = batch["items"]
        rows = multi_hot(items, self.catalogue.num_items)
        return rows, self.noise_keys(items.row_lengths(), stream)

    def _discriminator_loss(self, rows, keys, training=True):
        """Loss of each user, and its terms: [batch]."""
        scores = self._score_rows(rows, training)
        real_logits = self._real_logits(rows, rows, training)
        fake_logits = self._real_logits(rows, self._shown(scores, rows, keys), training)
        loss, _ = non_saturating(real_logits, fake_logits)
        decay = _decay(self.discriminator, self.discriminator_weight_decay)
        return loss + decay, {"discriminator_loss": loss}

    def _generator_loss(self, rows, keys, training=True):
        """Loss of each user, and its terms: [batch]."""
        scores = self._score_rows(rows, training)
        fake_logits = self._real_logits(rows, self._shown(scores, rows, keys), training)
        _, loss = non_saturating(fake_logits, fake_logits)
        zeros = _draw_others(rows, random.fold_in(keys, 2), self.zero_reconstruction)
        squares = tf.reduce_sum(zeros * tf.square(scores), axis=1)
        terms = {
            "zero_reconstruction": squares,
            "generator_loss": loss,
            "distance": _relative_distance(scores, rows),
        }
        decay = _decay(self.generator, self.generator_weight_decay)
        return loss + self.zero_reconstruction_weight * squares + decay, terms

    def _shown(self, scores, rows, keys):
        """Masks all scores but those of the user's items and a share of the others."""
        others = _draw_others(rows, random.fold_in(keys, 1), self.partial_masking)
        return scores * (rows + others)

    def _score_rows(self, rows, training=False):
        """Scores of all items from multi-hot rows: [batch, num_items]."""
        return self.generator(rows, training=training)

    def _real_logits(self, condition, rows, training):
        """Logits that score rows are real, given the users' own rows: [batch, 1]."""
        inputs = tf.concat([condition, rows], axis=1)  # [batch, 2 * num_items]
        return tf.cast(self.discriminator(inputs, training=training), tf.float32)

    # -- use ----------------------------------------------------------------

    def scoring_layers(self) -> tuple[keras.layers.Layer, ...]:
        """Returns the layers that score items."""
        return (self.generator,)

    def health(self, logs: dict[str, float]) -> list[str]:
        """Warns of a lost balance, and of a generator that learned the identity."""
        warnings = []
        loss = logs.get("discriminator_loss", _CHANCE)
        distance = logs.get("distance", 1.0)
        if loss < 0.1:
            warnings.append(
                f"the discriminator wins: its loss is {loss:.3f}, and {_CHANCE:.2f} by "
                "chance, so the generator may learn no more. Try a lower rate for it, "
                "fewer discriminator_steps, or discriminator_weight_decay."
            )
        if loss > 2.5:
            warnings.append(
                f"the discriminator fails: its loss is {loss:.2f}, and {_CHANCE:.2f} "
                "by chance. Try a higher rate for it, or more discriminator_steps."
            )
        if distance < 0.05:
            warnings.append(
                f"the identity: all but {100 * distance:.1f} % of a row is in its "
                "scores, so unseen items have nearly equal scores. Stop "
                "earlier, or try partial_masking or generator_weight_decay."
            )
        return warnings


def _draw_others(rows, keys, share):
    """Random mask over a share of each user's other items: [batch, num_items]."""
    drawn = random.uniform(keys, (rows.shape[1],)) < share
    return (1.0 - rows) * tf.cast(drawn, tf.float32)


def _relative_distance(scores, rows):
    """Squared distance of scores from the row, per item of the row: [batch].

    0 for the identity, 1 for scores of 0 throughout.
    """
    counts = tf.reduce_sum(rows, axis=1)
    squares = tf.reduce_sum(tf.square(scores - rows), axis=1)
    return tf.math.divide_no_nan(squares, counts)


def _decay(network, factor):
    """Weight decay term of a network's loss."""
    if not factor:
        return 0.0
    return factor * squared_weights(network.trainable_variables)
