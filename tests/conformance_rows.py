"""The models of the conformance suite, one row each: what it is, and what it can do.

A new model adds its row here and nothing else to the suite.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kgen import data, evaluation
from kgen.models import BERT, CFGAN, GAN, GPT, VAE, GenerativeModel, MultVAE, RecVAE
from kgen.nn import MeanGradient, PerExampleGradient

BATCH_SIZE = 16
SEEDS = np.array([0, 1, 2, 2**40 + 3, -5, 63, 7, 8], np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One model.

    Attributes:
        name: Its column in the table.
        make: Makes a tiny one; takes `dtype`.
        make_rows: Makes the training data: a dict of arrays of n rows.
        evaluate: Measures a model on arrays like these: a list of records.
        conditions: Which of these arrays `generate` takes besides the seeds.
        loss: The log that falls while it trains.
        optimizers: The arguments of `compile` that take an optimizer each.
        options: Further arguments of `compile`.
        learning_rate: For plain SGD.
        sample_weights: Whether its batches can have them; they are uneven.
        features: What else the checks may treat differently, such as "ragged rows".
        slow: Whether it is tested with `-m slow` only: another row of its class runs
            always, and this one whenever the table is written.
    """

    name: str
    make: Callable[..., GenerativeModel]
    make_rows: Callable[[int], dict[str, np.ndarray]]
    evaluate: Callable[
        [GenerativeModel, dict[str, np.ndarray]], list[evaluation.Record]
    ]
    conditions: tuple[str, ...] = ()
    loss: str = "loss"
    optimizers: tuple[str, ...] = ("optimizer",)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    learning_rate: float = 1e-3
    sample_weights: bool = True
    features: tuple[str, ...] = ()
    slow: bool = False

    @property
    def capabilities(self) -> set[str]:
        """Capabilities that the costly checks must cover in at least one row."""
        return {
            f"{len(self.optimizers)} optimizers",
            *self.conditions,
            *self.features,
            "sample weights" if self.sample_weights else "no weights",
        }

    def model(
        self,
        optimizer: Callable[[], keras.optimizers.Optimizer] | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> GenerativeModel:
        """A compiled model, with the same weights every time; by default for SGD."""
        keras.utils.set_random_seed(1)
        model = self.make(dtype=dtype)
        make_optimizer = optimizer or self._sgd
        optimizers = {name: make_optimizer() for name in self.optimizers}
        model.compile(**optimizers, **self.options, **options, seed=3)
        return model

    def pipeline(
        self, num_rows: int, batch_size: int = BATCH_SIZE, **options: Any
    ) -> data.Pipeline:
        """Batches of the training data, with weights that no two replicas share."""
        arrays = self.make_rows(num_rows)
        if self.sample_weights:
            weights = np.where(np.arange(num_rows) % 2, 0.25, 1.0)
            arrays = {**arrays, "sample_weight": weights.astype(np.float32)}

        def read(rows, epoch, places):
            return {name: tf.gather(array, rows) for name, array in arrays.items()}

        return data.Pipeline(num_rows, read, batch_size=batch_size, seed=5, **options)

    def generate(self, model: GenerativeModel, rows: Sequence[int]) -> np.ndarray:
        """Generates from some of the eight rows."""
        arrays, rows = self.make_rows(len(SEEDS)), list(rows)
        conditions = {name: arrays[name][rows] for name in self.conditions}
        return model.generate(SEEDS[rows], **conditions)

    def wrong_calls(self, model: GenerativeModel) -> dict[str, Callable[[], Any]]:
        """Calls that must be refused, by what is wrong with them."""
        arrays = self.make_rows(4)
        conditions = {name: arrays[name] for name in self.conditions}
        calls: dict[str, Callable[[], Any]] = {
            "fractional seeds": lambda: model.generate([0.5] * 4, **conditions),
            "seeds in a square": lambda: model.generate([[1, 2], [3, 4]], **conditions),
        }
        for name, array in conditions.items():
            short = conditions | {name: array[:2]}
            calls[f"no {name}"] = lambda: model.generate(range(4))
            calls[f"two {name}"] = lambda short=short: model.generate(range(4), **short)
        return calls

    def _sgd(self) -> keras.optimizers.Optimizer:
        return keras.optimizers.SGD(self.learning_rate)


class RecommenderRow(Row):
    """A model that recommends items to users instead of generating from seeds."""

    def generate(self, model: GenerativeModel, rows: Sequence[int]) -> np.ndarray:
        """Scores and ids of the best items for these of the eight rows."""
        histories = self.make_rows(len(SEEDS))["items"].to_list()
        best = model.recommend([histories[row] for row in rows], k=5)
        return np.stack([best.scores, best.item_ids.astype(np.float32)], axis=1)

    def wrong_calls(self, model: GenerativeModel) -> dict[str, Callable[[], Any]]:
        """Calls that must be refused, by what is wrong with them."""
        return {
            "an unknown item": lambda: model.recommend([[0, NUM_ITEMS]], k=1),
            "one history for a list of them": lambda: model.recommend([0, 1], k=1),
            "nothing asked for": lambda: model.recommend([[0]], k=0),
            "more than there is": lambda: model.recommend([[0]], k=NUM_ITEMS + 1),
            "items that are no rows": lambda: model.train_on_batch(
                {"items": tf.range(3)}
            ),
        }


class TextRow(Row):
    """A model that writes text."""

    def generate(self, model: GenerativeModel, rows: Sequence[int]) -> np.ndarray:
        """Continues the first three tokens of some of the eight rows."""
        prompts = self.make_rows(len(SEEDS))["tokens"][:, :3]
        written = model.generate(
            [prompts[row] for row in rows], seeds=SEEDS[list(rows)], max_new_tokens=9
        )
        return np.stack(written).astype(np.float32)

    def wrong_calls(self, model: GenerativeModel) -> dict[str, Callable[[], Any]]:
        """Calls that must be refused, by what is wrong with them."""
        return {
            "no prompt": lambda: model.generate(""),
            "an unknown character": lambda: model.generate("a?"),
            "fractional seeds": lambda: model.generate("a", seeds=0.5),
            "two seeds": lambda: model.generate("a", seeds=[1, 2]),
            "nothing to draw from": lambda: model.generate("a", top_p=0),
            "tokens that are no rows": lambda: model.train_on_batch(tf.range(3)),
        }


class ReaderRow(Row):
    """A model that reads text and writes none: vectors of texts."""

    def generate(self, model: GenerativeModel, rows: Sequence[int]) -> np.ndarray:
        """The vectors of these of the eight rows."""
        tokens = self.make_rows(len(SEEDS))["tokens"]
        return model.embed([tokens[row][tokens[row] >= 0] for row in rows])

    def wrong_calls(self, model: GenerativeModel) -> dict[str, Callable[[], Any]]:
        """Calls that must be refused, by what is wrong with them."""
        return {
            "an empty text": lambda: model.embed([""]),
            "an unknown character": lambda: model.embed(["a?"]),
            "no mask": lambda: model.fill_mask("abc"),
            "longer than the context": lambda: model.embed(["a" * 10]),
            "tokens that are no rows": lambda: model.train_on_batch(tf.range(3)),
        }


LETTERS = "abcdefgh"


def windows(num_rows: int) -> dict[str, np.ndarray]:
    """Letters that count up or down by one or two, nine in a row, or three in others.

    Replicas with a row less of the long ones have far fewer tokens than their partners.
    """
    rows = np.arange(num_rows)[:, None]
    steps = np.array([1, 2, -1])[rows % 3] * np.arange(9)
    tokens = ((rows + steps) % len(LETTERS)).astype(np.int32)
    return {"tokens": np.where((rows % 2 == 0) | (np.arange(9) < 3), tokens, -1)}


def evaluate_language_model(model, arrays):
    """On the last tenth of the rows, as one text."""
    tokenizer = data.CharTokenizer(LETTERS)
    text = tokenizer.decode(arrays["tokens"][arrays["tokens"] >= 0])
    text_set = data.open_text([text], tokenizer=tokenizer, context=8)
    return evaluation.evaluate_language_model(model, text_set, limit=3)


def evaluate_masked_language_model(model, arrays):
    """On the last tenth of the rows, as one text."""
    tokenizer = data.CharTokenizer(LETTERS)
    text = tokenizer.decode(arrays["tokens"][arrays["tokens"] >= 0])
    text_set = data.open_text([text], tokenizer=tokenizer, context=8)
    return evaluation.evaluate_masked_language_model(model, text_set)


NUM_ITEMS = 24


def item_rows(num_rows: int) -> dict[str, tf.RaggedTensor]:
    """People who like one third of the items, and have two to eight of them."""
    rng = np.random.default_rng(0)
    rows = []
    for row in range(num_rows):
        liked = rng.permutation(NUM_ITEMS // 3) + row % 3 * (NUM_ITEMS // 3)
        rows.append(np.sort(liked[: rng.integers(2, 9)]))
    return {"items": tf.ragged.constant(rows, dtype=tf.int32)}


def labelled_images(image_shape, num_classes=None):
    """Returns a function that makes noisy stripes, placed by their class."""

    def make_rows(num_rows):
        rng = np.random.default_rng(0)
        labels = np.arange(num_rows) % (num_classes or 3)
        columns = np.arange(image_shape[1])[None, None, :, None]
        stripes = (columns + labels[:, None, None, None]) % 3 == 0
        images = 20.0 + 150.0 * stripes + 60.0 * rng.random((num_rows, *image_shape))
        values = {"images": images.astype(np.uint8)}
        if num_classes is not None:
            values["labels"] = labels.astype(np.int32)
        return values

    return make_rows


def evaluate_autoencoder(model, arrays):
    """As an autoencoder, by few samples, and as a generator: a tenth of the arrays."""
    image_set = data.open_images(arrays)
    return [
        *evaluation.evaluate_autoencoder(model, image_set, num_samples=10),
        *evaluation.evaluate_generator(model, image_set),
    ]


def evaluate_generator(model, arrays):
    """Distances in the feature space of any image, on a tenth of the arrays."""
    return evaluation.evaluate_generator(model, data.open_images(arrays))


def evaluate_recommender(model, arrays):
    """Evaluates beside the baselines, on the six of 64 users held out for the test."""
    items = arrays["items"]
    pairs = (items.value_rowids().numpy(), items.values.numpy())
    return evaluation.evaluate_recommender(model, data.open_ratings(pairs, min_items=2))


def gan_row(
    name: str,
    image_shape: tuple[int, int, int],
    learning_rate: float = 3e-3,
    slow: bool = True,
    features: tuple[str, ...] = (),
    **arguments: Any,
) -> Row:
    """A row of a GAN that makes such images."""
    num_classes = arguments.get("num_classes")
    return Row(
        name=f"GAN: {name}",
        make=functools.partial(GAN, image_shape=image_shape, latent_dim=4, **arguments),
        make_rows=labelled_images(image_shape, num_classes),
        evaluate=evaluate_generator,
        conditions=("labels",) if num_classes else (),
        loss="discriminator_loss",
        optimizers=("generator_optimizer", "discriminator_optimizer"),
        learning_rate=learning_rate,
        sample_weights=False,
        features=("averaged weights", *features),
        slow=slow,
    )


ROWS = [
    Row(
        name="VAE: mlp",
        make=functools.partial(
            VAE, image_shape=(8, 8, 1), latent_dim=4, hidden_units=(16,)
        ),
        make_rows=labelled_images((8, 8, 1)),
        evaluate=evaluate_autoencoder,
        slow=True,
    ),
    Row(
        name="VAE: conv, classes, IWAE, flow prior",
        make=functools.partial(
            VAE,
            image_shape=(16, 16, 1),
            network="conv",
            base_channels=4,
            latent_dim=4,
            num_classes=3,
            num_importance_samples=3,
            num_gradient_samples=2,
            prior="flow",
        ),
        make_rows=labelled_images((16, 16, 1), 3),
        evaluate=evaluate_autoencoder,
        conditions=("labels",),
        features=("several importance samples",),
    ),
    Row(
        name="VAE: mlp, RGB, free bits, warm-up, clipping",
        make=functools.partial(
            VAE,
            image_shape=(8, 8, 3),
            latent_dim=3,
            hidden_units=(8,),
            likelihood="discretized_logistic",
            free_bits=0.1,
            kl_warmup_steps=10,
        ),
        make_rows=labelled_images((8, 8, 3)),
        evaluate=evaluate_autoencoder,
        options={"estimator": MeanGradient(clip_norm=10.0)},
        slow=True,
    ),
    Row(
        name="VAE: mlp, gradients clipped by example, with noise",
        make=functools.partial(
            VAE, image_shape=(8, 8, 1), latent_dim=3, hidden_units=(8,)
        ),
        make_rows=labelled_images((8, 8, 1)),
        evaluate=evaluate_autoencoder,
        options={"estimator": PerExampleGradient(10.0, 0.1, (1, 2), max_weight=1.0)},
        slow=True,
    ),
    gan_row(
        "dcgan, batch norm",
        (16, 16, 1),
        slow=False,
        features=("batch statistics",),
        base_channels=4,
        discriminator_normalization="batch",
    ),
    gan_row(
        "residual, spectral norm, classes, hinge, GP, augmentation, two updates",
        (8, 8, 3),
        network="residual",
        base_channels=4,
        adversarial_loss="hinge",
        gradient_penalty_weight=1.0,
        discriminator_steps=2,
        augmentation=("color", "translation", "cutout"),
        num_classes=3,
    ),
    gan_row(
        "r3gan: relativistic, R1, R2",
        (8, 8, 1),
        learning_rate=1e-2,
        network="r3gan",
        base_channels=4,
        adversarial_loss="relativistic",
        r1_weight=1.0,
        r2_weight=1.0,
        final_penalty=0.1,
        penalty_decay_images=200,
    ),
    RecommenderRow(
        name="MultVAE: annealed, weight decay, features",
        make=functools.partial(
            MultVAE,
            item_ids=range(NUM_ITEMS),
            item_features=[
                [f"third:{3 * item // NUM_ITEMS}"] for item in range(NUM_ITEMS)
            ],
            hidden_units=(16,),
            latent_dim=4,
            kl_warmup_steps=10,
            weight_decay=1e-4,
        ),
        make_rows=item_rows,
        evaluate=evaluate_recommender,
        features=(
            "ragged rows",
            "weight decay",
        ),
        learning_rate=0.05,
    ),
    RecommenderRow(
        name="RecVAE: three steps of the encoder, one of the decoder",
        make=functools.partial(
            RecVAE,
            item_ids=range(NUM_ITEMS),
            hidden_dim=16,
            num_layers=3,
            latent_dim=4,
            encoder_steps=3,
            decoder_steps=1,
        ),
        make_rows=item_rows,
        evaluate=evaluate_recommender,
        optimizers=("encoder_optimizer", "decoder_optimizer"),
        features=(
            "ragged rows",
            "several steps",
        ),
        learning_rate=0.05,
    ),
    RecommenderRow(
        name="CFGAN: both masks, three and two updates",
        make=functools.partial(
            CFGAN,
            item_ids=range(NUM_ITEMS),
            generator_units=(16,),
            discriminator_units=(8,),
            zero_reconstruction_weight=0.1,
            generator_steps=3,
            generator_weight_decay=1e-4,
            discriminator_weight_decay=1e-4,
        ),
        make_rows=item_rows,
        evaluate=evaluate_recommender,
        loss="distance",
        optimizers=("generator_optimizer", "discriminator_optimizer"),
        sample_weights=False,
        features=(
            "ragged rows",
            "several steps",
            "weight decay",
        ),
        learning_rate=0.05,
    ),
    TextRow(
        name="GPT: rotary, dropout",
        make=functools.partial(
            GPT,
            tokenizer=data.CharTokenizer(LETTERS),
            context=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            dropout=0.1,
        ),
        make_rows=windows,
        evaluate=evaluate_language_model,
        features=(
            "dropout",
            "loop",
        ),
        learning_rate=0.05,
    ),
    ReaderRow(
        name="BERT: dropout",
        make=functools.partial(
            BERT,
            tokenizer=data.CharTokenizer(LETTERS),
            context=9,
            num_layers=1,
            num_heads=2,
            hidden_dim=16,
            mask_rate=0.3,
            dropout=0.1,
        ),
        make_rows=windows,
        evaluate=evaluate_masked_language_model,
        features=("dropout",),
        learning_rate=0.05,
    ),
]


def covering(rows: Sequence[Row]) -> list[Row]:
    """A few of the rows, which together have every capability of all."""
    chosen = []
    missing = set().union(*(row.capabilities for row in rows))
    while missing:
        row = max(rows, key=lambda row: len(row.capabilities & missing))
        chosen.append(row)
        missing -= row.capabilities
    return chosen


COVERING_ROWS = covering([row for row in ROWS if not row.slow])
