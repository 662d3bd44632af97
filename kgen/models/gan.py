"""Generative adversarial networks: a generator against a discriminator."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf

from kgen.arguments import (
    ImageShape,
    NonNegativeFloat,
    NonNegativeInt,
    NumClasses,
    PositiveInt,
    Rule,
    one_of,
)
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import ClassSpec, ImageSpec, InputSpec
from kgen.nn import adversarial, random
from kgen.nn.adversarial import ADVERSARIAL_LOSSES, AUGMENTATIONS, Diversity, augment
from kgen.nn.adversarial_networks import NETWORKS, NORMALIZATIONS, sizes_that_work
from kgen.nn.gradients import Adam
from kgen.nn.image_networks import check_network
from kgen.nn.layers import layers_of_policy

GENERATOR_NORMALIZATIONS = [name for name in NORMALIZATIONS if name != "spectral"]
Augmentations = Annotated[
    Sequence[str],
    Rule(
        f"name some of {tuple(AUGMENTATIONS)}",
        lambda names: set(names) <= AUGMENTATIONS.keys(),
    ),
]
NO_TRUNCATION = 1e4  # Far beyond any normal number.
TRUNCATION = InputSpec(low=0, above=True, default=NO_TRUNCATION)


@keras.saving.register_keras_serializable(package="kgen")
class GAN(GenerativeModel):
    """Generative adversarial network of images.

    The generator maps noise to images; the discriminator learns to tell them from real
    ones, and the generator to stop it. Any loss goes with any penalty.

    Args:
        image_shape: Height, width and channels. The default networks make sides of 8
            to 128 pixels that halve to a grid of at most 7, such as 28, 32, 48, 64.
        latent_dim: Length of the noise vector.
        network: "dcgan"; "residual", the networks of SNGAN; or "r3gan", residual too,
            with grouped convolutions and without normalisation.
        base_channels: Channels of the finest level; each coarser one has twice as
            many, up to eightfold.
        generator_normalization: "batch" (synchronised), "group" or "none".
        discriminator_normalization: One of these, or "spectral". Not "batch" with a
            penalty, which is of the gradient of each image for itself.
        generator: Your own network in place of the default one: [latents] (or [latents,
            one-hot labels]) to images in [-1, 1], the range of tanh.
        discriminator: Your own network in place of the default one: images in [-1, 1]
            (or [images, one-hot labels]) to logits [batch, 1].
        adversarial_loss: "minimax", "non_saturating", "least_squares", "hinge",
            "wasserstein" or "relativistic".
        r1_weight: Gamma of gamma / 2 * |gradient|^2 at real images.
        r2_weight: Gamma of the same penalty at generated images.
        gradient_penalty_weight: Lambda of lambda * (|gradient| - 1)^2 between real and
            generated images. All gradients are by what the discriminator sees, images
            in [-1, 1], after augmentation.
        final_penalty: Final multiplier of all penalties.
        penalty_decay_images: Images over which the multiplier decays from 1, along
            half a cosine; 0 disables the decay.
        discriminator_steps: Updates of the discriminator for one of the generator. A
            batch is cut into so many parts, one for each.
        augmentation: Changes made to real and generated images alike before the
            discriminator sees them: of "color", "translation", "cutout". For small data
            (up to some 10,000 images).
        ema_half_life: In images seen, of the moving average of the generator's weights
            that `generate` and exports use; 0: none, the weights themselves.
        num_classes: Classes of the labels the model is conditioned on, or None.

    Shapes:
        images: [batch, height, width, channels], uint8 or float32 in [0, 1]
        labels: [batch], integers in [0, num_classes)
        latents: [batch, latent_dim], float32

    Raises:
        ValueError: An argument is out of its range, two do not go together, or the
            default networks cannot make images of this shape.

    Example:
        >>> gan = GAN(image_shape=(8, 8, 1), latent_dim=16)
        >>> gan.compile()
        >>> images = gan.generate(seeds=range(16))  # float32 [16, 8, 8, 1]

    Reference:
        Goodfellow et al., 2014, Generative Adversarial Nets. Networks: Radford et al.,
        2016; Miyato et al., 2018; Huang et al., 2024. Labels: Miyato and Koyama, 2018.
        Augmentation: Zhao et al., 2020. Average: Yazici et al., 2019. The losses and
        penalties name theirs.
    """

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        latent_dim: PositiveInt = 128,
        network: Annotated[str, one_of(NETWORKS)] = "dcgan",
        base_channels: PositiveInt = 64,
        generator_normalization: Annotated[
            str, one_of(GENERATOR_NORMALIZATIONS)
        ] = "batch",
        discriminator_normalization: Annotated[str, one_of(NORMALIZATIONS)] = (
            "spectral"
        ),
        generator: keras.layers.Layer | None = None,
        discriminator: keras.layers.Layer | None = None,
        adversarial_loss: Annotated[str, one_of(ADVERSARIAL_LOSSES)] = "non_saturating",
        r1_weight: NonNegativeFloat = 0.0,
        r2_weight: NonNegativeFloat = 0.0,
        gradient_penalty_weight: NonNegativeFloat = 0.0,
        final_penalty: NonNegativeFloat = 1.0,
        penalty_decay_images: NonNegativeInt = 0,
        discriminator_steps: PositiveInt = 1,
        augmentation: Augmentations = (),
        ema_half_life: NonNegativeInt = 10_000,
        num_classes: NumClasses | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.own_networks = {"generator": generator, "discriminator": discriminator}
        self._penalized = bool(r1_weight or r2_weight or gradient_penalty_weight)
        self._check_arguments()

        self.batch_specs = {
            "images": ImageSpec(*self.image_shape),
            "labels": ClassSpec(num_classes),
        }
        make_generator, make_discriminator = NETWORKS[network]
        sizes = (self.image_shape, num_classes, base_channels)
        with layers_of_policy(self.dtype_policy):
            if generator is None:
                generator = make_generator(latent_dim, *sizes, generator_normalization)
            if discriminator is None:
                discriminator = make_discriminator(*sizes, discriminator_normalization)
        check = functools.partial(check_network, num_classes=num_classes)
        latents, pixels = (latent_dim,), self.image_shape
        self.generator = check("generator", generator, latents, pixels)
        self.discriminator = check("discriminator", discriminator, pixels, (1,))
        self.average_generator = None
        if ema_half_life:
            self.add_average("average_generator", "generator", ema_half_life)
        make_adam = functools.partial(Adam, 2e-4, beta_1=0.5)
        self.optimizer_slots = {
            "generator_optimizer": ("generator", make_adam),
            "discriminator_optimizer": ("discriminator", make_adam),
        }
        self.add_log_metrics(
            *(("penalty",) if self._penalized else ()),
            "discriminator_loss",
            "generator_loss",
            "discriminator_accuracy",
            Diversity(self.image_shape),
        )

    def compile(self, *optimizers: Any, **options: Any) -> None:
        """Prepares the model for `fit`: see `GenerativeModel.compile`.

        Raises:
            TypeError, ValueError: As there; a penalty with an estimator by example.
        """
        super().compile(*optimizers, **options)
        if self._penalized and self.estimator.is_by_example:
            raise ValueError(
                "Gradients are clipped by example without penalties, which "
                "differentiate the discriminator a second time. Received: "
                f"{self.estimator}. Set all penalty weights to 0."
            )

    # -- the adversarial step -------------------------------------------------

    def call(self, data: Any, training: bool = False) -> tf.Tensor:
        """Scores a batch of images: the discriminator's logits, [batch, 1]."""
        images, labels = self._images_and_labels(data)
        return self._score(images, labels, training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the discriminator, once or more, and then the generator."""
        images, labels = self._images_and_labels(data)
        discriminator_terms = []
        # One forward pass of the generator serves both updates of a step.
        with self.recording("generator_optimizer") as recording:
            for update in range(self.discriminator_steps):
                # Every n-th row: the part of one device is that of two together.
                rows = slice(update, None, self.discriminator_steps)
                real, classes = images[rows], None if labels is None else labels[rows]
                keys = self.noise_keys(real, random.STREAM_TRAIN)
                keys = random.fold_in(keys, update)
                fake = self._make_images(self.generator, keys, classes, training=True)
                real_shown = augment(real, random.fold_in(keys, 1), self.augmentation)
                fake_shown = augment(fake, random.fold_in(keys, 2), self.augmentation)
                terms = self._update_discriminator(
                    real_shown, tf.stop_gradient(fake_shown), classes, keys
                )
                discriminator_terms.append(terms)
            generator_loss = self._generator_loss(real_shown, fake_shown, classes)
        recording.minimize(generator_loss)
        self.finish_step(images)
        terms = adversarial.joined(discriminator_terms)
        terms |= {"generator_loss": generator_loss, "diversity": tf.stack([fake, real])}
        return self.log(terms, training=True)

    def _update_discriminator(self, real, fake, labels, keys):
        """Takes a step of the discriminator; returns its logs per image."""
        with self.recording("discriminator_optimizer") as recording:
            loss, terms = self._discriminator_loss(real, fake, labels, keys)
        recording.minimize(loss)
        return terms

    def _generator_loss(self, real, fake, labels):
        """Loss of each generated image: [batch]."""
        fake_logits = self._score(fake, labels, training=True)
        real_logits = tf.stop_gradient(fake_logits)
        if self.adversarial_loss in adversarial.PAIRED_LOSSES:
            real_logits = self._score(real, labels, training=True)
        return ADVERSARIAL_LOSSES[self.adversarial_loss](real_logits, fake_logits)[1]

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates the losses on held-out images and on images from fixed noise."""
        real, labels = self._images_and_labels(data)
        keys = self.noise_keys(real, random.STREAM_TEST)
        fake = self._make_images(self._generator_in_use, keys, labels)
        _, terms = self._discriminator_loss(real, fake, labels, keys, training=False)
        terms["diversity"] = tf.stack([fake, real])
        return self.log(terms, training=False)

    def _discriminator_loss(self, real, fake, labels, keys, training=True):
        """Loss of each pair of images, and its terms: [batch]; scores an image once."""
        score = functools.partial(self._score, labels=labels, training=training)

        def penalized(images, weight):
            if not weight:
                return score(images), 0.0
            logits, by_image = adversarial.with_gradients(score, images)
            return logits, weight * adversarial.zero_centred_penalty(by_image)

        real_logits, r1 = penalized(real, self.r1_weight)
        fake_logits, r2 = penalized(fake, self.r2_weight)
        loss, generator_loss = ADVERSARIAL_LOSSES[self.adversarial_loss](
            real_logits, fake_logits
        )
        terms = {
            "discriminator_loss": loss,
            "discriminator_accuracy": _accuracy(real_logits, fake_logits),
            "generator_loss": generator_loss,
        }
        if not self._penalized:
            return loss, terms
        penalty = r1 + r2
        if self.gradient_penalty_weight:
            fraction = random.uniform(random.fold_in(keys, 3), (1, 1, 1))
            between = fake + fraction * (real - fake)
            _, by_image = adversarial.with_gradients(score, between)
            one_centred = adversarial.one_centred_penalty(by_image)
            penalty += self.gradient_penalty_weight * one_centred
        penalty *= adversarial.cosine_ramp(
            self.examples_seen.value, 1.0, self.final_penalty, self.penalty_decay_images
        )
        return loss + penalty, {"penalty": penalty} | terms

    def _score(self, images, labels, training):
        inputs = images if labels is None else [images, labels]
        return tf.cast(self.discriminator(inputs, training=training), tf.float32)

    def _make_images(self, generator, keys, labels, training=False):
        """Images in [-1, 1] from the noise of these keys."""
        latents = random.normal(keys, (self.latent_dim,))
        return self._images_from(generator, latents, labels, training)

    def _images_from(self, generator, latents, labels, training=False):
        inputs = latents if labels is None else [latents, labels]
        return tf.cast(generator(inputs, training=training), tf.float32)

    def _images_and_labels(self, data):
        """Images in [-1, 1] and one-hot labels, or None."""
        batch = self.read(data)
        return 2.0 * batch["images"] - 1.0, batch.get("labels")

    # -- use ----------------------------------------------------------------

    def generate(
        self, seeds: Any, labels: Any = None, truncation: Any = None
    ) -> np.ndarray:
        """Makes one image for each seed; the same seed always makes the same image.

        Args:
            seeds: Integers [n], 64 bits each.
            labels: [n], required if the model has `num_classes`.
            truncation: Bound of the latents, which are then a normal cut off on both
                sides, above 0, for all images or one for each: small bounds make images
                more typical and less diverse (Brock et al., 2019). None: no bound.

        Returns:
            float32 [n, height, width, channels] in [0, 1].
        """
        inputs = {"seeds": seeds, "labels": labels, "truncation": truncation}
        return self.run("generate", **inputs)["images"]

    def decode(self, latents: Any, labels: Any = None) -> np.ndarray:
        """Maps latents to images: [n, height, width, channels]."""
        return self.run("decode", latents=latents, labels=labels)["images"]

    def signatures(self) -> list[Signature]:
        """Returns `generate` and `decode`, by the averaged generator if it exists."""
        generator = self._generator_in_use
        label_spec = self.batch_specs["labels"]
        labels = {"labels": label_spec} if self.num_classes else {}
        latents = {"latents": InputSpec((self.latent_dim,)), **labels}
        noise = {"seeds": InputSpec(dtype="int64"), **labels, "truncation": TRUNCATION}

        def decode(latents, labels=None):
            one_hot = None if labels is None else label_spec.to_network(labels)
            images = self._images_from(generator, latents, one_hot)
            return {"images": tf.clip_by_value(0.5 * (images + 1.0), 0.0, 1.0)}

        def generate(seeds, truncation, labels=None):
            keys = random.keys(seeds, random.STREAM_GENERATE)
            latents = random.normal(keys, (self.latent_dim,))
            bound = truncation[:, None]
            truncated = random.truncate(latents, bound)
            return decode(tf.where(bound < NO_TRUNCATION, truncated, latents), labels)

        image = {"images": "image"}
        return [
            Signature("generate", generate, noise, image, (generator,)),
            Signature("decode", decode, latents, image, (generator,)),
        ]

    def health(self, logs: dict[str, float]) -> list[str]:
        """Warns of a lost balance, mode collapse, and divergence."""
        warnings = []
        accuracy = logs.get("discriminator_accuracy", 0.75)
        diversity = logs.get("val_diversity", logs.get("diversity", 1.0))
        if accuracy > 0.99:
            warnings.append(
                f"the discriminator wins: it tells {100 * accuracy:.1f} % of pairs "
                "apart, so the generator may learn no more. Try r1_weight, "
                "augmentation, or a lower rate for the discriminator."
            )
        if accuracy < 0.45:
            warnings.append(
                f"the discriminator fails: it tells {100 * accuracy:.1f} % of pairs "
                "apart, fewer than by chance. Try a higher rate for it, more "
                "discriminator_steps, or a smaller r1_weight."
            )
        if diversity < 0.1:
            warnings.append(
                "mode collapse: two generated images differ by "
                f"{100 * diversity:.0f} % of what two real ones do. Try r1_weight, the "
                "relativistic loss, or a lower learning rate."
            )
        largest = max(
            abs(logs.get(f"{name}_loss", 0.0))
            for name in ("generator", "discriminator")
        )
        if largest > 100:
            warnings.append(
                f"divergence: a loss has reached {largest:.0f}. Try a lower learning "
                "rate, r1_weight or spectral normalization."
            )
        return warnings

    @property
    def _generator_in_use(self):
        return self.average_generator or self.generator

    # -- construction -------------------------------------------------------

    def _check_arguments(self) -> None:
        own_networks, shape = self.own_networks, self.image_shape
        self.check_argument(
            "image_shape",
            None not in own_networks.values() or sizes_that_work(shape),
            "have sides of 8 to 128 pixels that can be halved until one is at most "
            "7, such as 28, 32, 48, 64 or 128 (image_size=28 makes them), or come "
            "with networks of your own, in Python",
        )
        self.check_argument(
            "discriminator_normalization",
            not self._penalized
            or own_networks["discriminator"] is not None
            or self.discriminator_normalization != "batch",
            "not be batch with a penalty, which is of each image's own gradient; "
            "take spectral, group or none",
        )


def _accuracy(real_logits, fake_logits):
    """1 where the real image of a pair has the higher score: [batch]."""
    correct = tf.cast(real_logits > fake_logits, tf.float32)
    ties = tf.cast(real_logits == fake_logits, tf.float32)
    return tf.reshape(correct + 0.5 * ties, [-1])
