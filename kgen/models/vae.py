"""VAE, and IWAE with several importance samples."""

from __future__ import annotations

import functools
import math
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
    PositiveFloat,
    PositiveInt,
    activation_name,
    one_of,
)
from kgen.models.shared.marginal_likelihood import MarginalLikelihoodMixin
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import ClassSpec, ImageSpec, InputSpec
from kgen.nn import image_networks, likelihoods, random
from kgen.nn.flows import CouplingFlow
from kgen.nn.image_networks import check_network, suits_conv
from kgen.nn.layers import layers_of_policy
from kgen.nn.likelihoods import LIKELIHOODS, ActiveUnits, kl_warmup

NETWORKS = ("auto", "mlp", "conv")
PRIORS = ("normal", "flow")
TEMPERATURE = InputSpec(low=0, default=1.0)


@keras.saving.register_keras_serializable(package="kgen")
class VAE(MarginalLikelihoodMixin, GenerativeModel):
    """Variational autoencoder of images.

    The loss is the negative evidence lower bound: reconstruction plus weighted KL, in
    nats per image, sums over pixels.

    Args:
        image_shape: (height, width, channels).
        latent_dim: Length of a latent vector, at least 1.
        network: "mlp", "conv", or "auto": conv for images of 16 pixels and more whose
            sides are even, mlp for the others.
        hidden_units: Widths of the mlp encoder's hidden layers; the decoder mirrors
            them.
        base_channels: Channels of the conv network's first level; they double with each
            further level.
        num_blocks: Residual blocks on each level of the conv network.
        activation: Name of a Keras activation, for the default networks.
        encoder: Instead of the default: a Keras layer or model that maps images in
            [0, 1] to [batch, 2 * latent_dim], mean and log-variance side by side. With
            labels it is called with a list of images and one-hot labels.
        decoder: Instead of the default: a Keras layer or model that maps latents (and
            one-hot labels) to [batch, height, width, channels]: logits for "bernoulli",
            otherwise the mean minus 0.5.
        likelihood: "bernoulli", "gaussian" or "discretized_logistic".
        variance: Of a pixel, for the last two: a positive number (pixels in [0, 1]),
            or None: learned, one number for all pixels. 0.5 with "gaussian" makes the
            reconstruction term the summed squared error of the textbook, plus a
            constant.
        kl_weight: Factor of the KL term: the beta or lambda of the literature.
        kl_warmup_steps: Optimizer steps over which the factor rises from 0.
        free_bits: Nats of KL per latent dimension, batch mean, that cost nothing.
        num_importance_samples: 1 trains the VAE; k > 1 the IWAE's tighter bound.
        num_gradient_samples: How many of those get a gradient, drawn anew in proportion
            to their importance weights, or None: all. Few save up to two thirds of the
            multiplications, for a gradient that is still unbiased but of a higher
            variance (Burda et al., 2016, section 3).
        num_classes: Classes of the labels the model is conditioned on, or None.
        prior: "normal", or "flow": a `CouplingFlow` learned with the rest.

    Shapes:
        images: [batch, height, width, channels], uint8 or float32 in [0, 1]
        labels: [batch], integers in [0, num_classes)
        latents: [batch, latent_dim], float32

    Raises:
        ValueError: An argument is out of its range, or two do not go together.

    Example:
        >>> vae = VAE(image_shape=(8, 8, 1), latent_dim=8)
        >>> vae.compile(optimizer=keras.optimizers.Adam(1e-3))
        >>> images = vae.generate(seeds=range(16))  # float32 [16, 8, 8, 1]

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes. Weight: Higgins et
        al., 2017. Free bits: Kingma et al., 2016. Importance samples: Burda et al.,
        2016. Learned prior: Huang et al., 2017, Learnable Explicit Density.
    """

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        latent_dim: PositiveInt = 20,
        network: Annotated[str, one_of(NETWORKS)] = "auto",
        hidden_units: Sequence[PositiveInt] = (400,),
        base_channels: PositiveInt = 64,
        num_blocks: NonNegativeInt = 1,
        activation: Annotated[str, activation_name("swish")] = "swish",
        encoder: keras.layers.Layer | None = None,
        decoder: keras.layers.Layer | None = None,
        likelihood: Annotated[str, one_of(LIKELIHOODS)] = "bernoulli",
        variance: PositiveFloat | None = None,
        kl_weight: NonNegativeFloat = 1.0,
        kl_warmup_steps: NonNegativeInt = 0,
        free_bits: NonNegativeFloat = 0.0,
        num_importance_samples: PositiveInt = 1,
        num_gradient_samples: int | None = None,
        num_classes: NumClasses | None = None,
        prior: Annotated[str, one_of(PRIORS)] = "normal",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self._check_arguments()

        self.batch_specs = {
            "images": ImageSpec(*self.image_shape),
            "labels": ClassSpec(num_classes),
            "sample_weight": InputSpec(low=0, optional=True),
        }
        self.own_networks = {"encoder": encoder, "decoder": decoder}
        conv = network == "conv" or network == "auto" and suits_conv(self.image_shape)
        make_encoder, make_decoder = image_networks.NETWORKS["conv" if conv else "mlp"]
        sizes = (base_channels, num_blocks) if conv else (self.hidden_units,)
        options = (num_classes, *sizes, activation)
        with layers_of_policy(self.dtype_policy):
            if encoder is None:
                encoder = make_encoder(self.image_shape, 2 * latent_dim, *options)
            if decoder is None:
                decoder = make_decoder(self.image_shape, latent_dim, *options)
        pixels, latents, code = self.image_shape, (latent_dim,), (2 * latent_dim,)
        self.encoder = check_network("encoder", encoder, pixels, code, num_classes)
        self.decoder = check_network("decoder", decoder, latents, pixels, num_classes)
        self.flow = CouplingFlow(dim=latent_dim) if prior == "flow" else None
        learned = variance is None and likelihood != "bernoulli"
        self.log_variance = self.add_weight(
            shape=(),
            dtype="float32",
            initializer=keras.initializers.Constant(
                # A learned variance starts at a tenth of the range, squared.
                math.log(0.01 if variance is None else variance)
            ),
            trainable=learned,
            name="log_variance",
        )
        self.add_log_metrics(ActiveUnits(latent_dim), "kl", "reconstruction", "loss")

    # -- the bound ----------------------------------------------------------

    def call(self, data: Any, training: bool = False) -> tf.Tensor:
        """Reconstructs a batch from its posterior means, without noise."""
        batch = self.read(data)
        mean, _ = self._posterior(batch["images"], batch.get("labels"), training)
        return self._decode(mean, batch.get("labels"), training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one step on the weighted, importance-weighted bound."""
        batch = self.read(data)
        weights = batch.get("sample_weight")
        kl_weight = self.kl_weight * kl_warmup(self.step.value, self.kl_warmup_steps)
        with self.recording() as recording:
            terms = self._bound(batch, random.STREAM_TRAIN, kl_weight, self.free_bits)
        recording.minimize(terms["loss"], weights)
        self.finish_step(batch["images"])
        return self.log(terms, training=True, weights=weights)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates the bound at its full KL weight, without warm-up or free bits."""
        batch = self.read(data)
        terms = self._bound(batch, random.STREAM_TEST, self.kl_weight, 0.0)
        return self.log(terms, training=False, weights=batch.get("sample_weight"))

    def _bound(self, batch, stream, kl_weight, free_bits):
        """Loss and its parts, one number per image, and the posterior means."""
        images, labels = batch["images"], batch.get("labels")
        num_samples = self.num_importance_samples
        training = stream == random.STREAM_TRAIN
        mean, log_variance = self._posterior(images, labels, training)
        noise = random.normal(
            self.noise_keys(images, stream),
            (num_samples, self.latent_dim),
        )  # [b, k, d]
        importance_terms = functools.partial(
            self._importance_terms,
            images,
            labels,
            mean,
            log_variance,
            training=training,
        )
        log_likelihood, log_prior, log_posterior = importance_terms(noise)  # [b, k]
        if self.flow is None:
            kl = likelihoods.gaussian_kl(mean, log_variance)  # [b, d]
        else:
            # No closed form: the samples' average, as one number.
            kl = tf.reduce_mean(log_posterior - log_prior, axis=1, keepdims=True)
        if num_samples == 1:
            weighted_kl = kl_weight * tf.reduce_sum(
                likelihoods.free_bits(kl, free_bits), axis=1
            )
            loss = weighted_kl - log_likelihood[:, 0]
        else:
            log_weights = log_likelihood + kl_weight * (log_prior - log_posterior)
            loss = -likelihoods.log_mean_exp(log_weights, axis=1)
            if training and self.num_gradient_samples:
                keys = self.noise_keys(images, random.STREAM_RESAMPLE)
                drawn = random.categorical(keys, log_weights, self.num_gradient_samples)
                terms = importance_terms(tf.gather(noise, drawn, batch_dims=1))
                drawn_weights = terms[0] + kl_weight * (terms[1] - terms[2])
                # The value of all the samples, the gradient of those drawn.
                drawn_loss = -tf.reduce_mean(drawn_weights, axis=1)
                loss = drawn_loss + tf.stop_gradient(loss - drawn_loss)
        return {
            "loss": loss,
            "reconstruction": -tf.reduce_mean(log_likelihood, axis=1),
            "kl": tf.reduce_sum(kl, axis=1),
            "active_units": mean,
        }

    def _importance_terms(
        self, images, labels, mean, log_variance, noise, training=False
    ):
        """Log p(x|z), log p(z), log q(z|x) at z = mean + noise * sd, each [b, k]."""
        num_samples = noise.shape[1] or tf.shape(noise)[1]
        deviation = tf.exp(0.5 * log_variance)
        latents = mean[:, None] + deviation[:, None] * noise  # [b, k, d]
        latents = tf.reshape(latents, [-1, self.latent_dim])  # [b * k, d]
        if noise.shape[1] != 1:
            images = tf.repeat(images, num_samples, axis=0)
            labels = None if labels is None else tf.repeat(labels, num_samples, axis=0)
        output = self._decode(latents, labels, training)
        log_likelihood = LIKELIHOODS[self.likelihood].log_probability(
            images, output, self.log_variance.value
        )
        log_prior = (
            likelihoods.gaussian_log_likelihood(latents, 0.0, 0.0)
            if self.flow is None
            else self.flow(latents)
        )
        # Two sums, not one over a chain of additions: TensorFlow orders a chain by what
        # it knows of the shapes, and that is not the same in a worker and a replica.
        log_volume = tf.reduce_sum(likelihoods.LOG_2_PI + log_variance, axis=1)  # [b]
        log_posterior = -0.5 * (
            log_volume[:, None] + tf.reduce_sum(tf.square(noise), axis=2)
        )
        shape = [-1, num_samples]
        return (
            tf.reshape(log_likelihood, shape),
            tf.reshape(log_prior, shape),
            log_posterior,
        )

    def _posterior(self, images, labels, training=False):
        inputs = images if labels is None else [images, labels]
        output = tf.cast(self.encoder(inputs, training=training), tf.float32)
        mean, log_variance = tf.split(output, 2, axis=-1)
        return mean, log_variance

    def _decode(self, latents, labels, training=False):
        inputs = latents if labels is None else [latents, labels]
        return tf.cast(self.decoder(inputs, training=training), tf.float32)

    # -- use ----------------------------------------------------------------

    def encode(self, images: Any, labels: Any = None) -> np.ndarray:
        """Returns the posterior means of images: [n, latent_dim]."""
        return self.run("encode", images=images, labels=labels)["latents"]

    def decode(self, latents: Any, labels: Any = None) -> np.ndarray:
        """Returns the mean images of latents: [n, height, width, channels]."""
        return self.run("decode", latents=latents, labels=labels)["images"]

    def reconstruct(self, images: Any, labels: Any = None) -> np.ndarray:
        """Encodes images and decodes their posterior means."""
        outputs = self.run("reconstruct", images=images, labels=labels)
        return outputs["reconstructions"]

    def interpolate(
        self,
        start_images: Any,
        end_images: Any,
        num_steps: int = 8,
        labels: Any = None,
    ) -> np.ndarray:
        """Interpolates linearly between the posterior means of two images.

        Returns:
            float32 [n, num_steps, height, width, channels]; both ends included.
        """
        if num_steps < 2:
            raise ValueError(
                "`num_steps` counts both ends and must be at least 2. "
                f"Received: num_steps={num_steps}"
            )
        start = self.encode(start_images, labels)[:, None]
        end = self.encode(end_images, labels)[:, None]
        fraction = np.linspace(0, 1, num_steps, dtype=np.float32)[:, None]
        latents = (1 - fraction) * start + fraction * end  # [n, steps, d]
        if labels is not None:
            labels = np.repeat(np.asarray(labels), num_steps)
        images = self.decode(latents.reshape(-1, self.latent_dim), labels)
        return images.reshape(-1, num_steps, *self.image_shape)

    def generate(
        self, seeds: Any, labels: Any = None, temperature: Any = 1.0
    ) -> np.ndarray:
        """Makes one image for each seed; the same seed always makes the same image.

        Args:
            seeds: Integers [n], 64 bits each.
            labels: [n], required if the model has `num_classes`.
            temperature: Standard deviation of the latent noise, 0 or more, for all
                images or one for each; below 1 images are more typical and less
                diverse.

        Returns:
            float32 [n, height, width, channels] in [0, 1]: means, not samples.
        """
        outputs = self.run(
            "generate", seeds=seeds, labels=labels, temperature=temperature
        )
        return outputs["images"]

    # -- signatures ---------------------------------------------------------

    def signatures(self) -> list[Signature]:
        """Returns `generate`, `encode`, `decode`, `reconstruct`, `log_likelihood`."""
        specs = self.batch_specs
        labels = {"labels": specs["labels"]} if self.num_classes else {}
        images = {"images": specs["images"], **labels}
        latents = {"latents": InputSpec((self.latent_dim,)), **labels}
        noise = {
            "seeds": InputSpec(dtype="int64"),
            **labels,
            "temperature": TEMPERATURE,
        }
        prior = () if self.flow is None else (self.flow,)

        def decode(latents, labels=None):
            output = self._decode(latents, self._one_hot(labels))
            return {"images": LIKELIHOODS[self.likelihood].mean(output)}

        def generate(seeds, temperature, labels=None):
            return decode(self._prior_latents(seeds, temperature), labels)

        def encode(images, labels=None):
            return {"latents": self._posterior(images, self._one_hot(labels))[0]}

        def reconstruct(images, labels=None):
            # Not `images`: an ONNX graph has one namespace for inputs and outputs.
            output = decode(encode(images, labels)["latents"], labels)
            return {"reconstructions": output["images"]}

        image, latent = {"images": "image"}, {"latents": "latent"}
        reconstruction = {"reconstructions": "image"}
        encoder, decoder = (self.encoder,), (self.decoder,)
        both, examples = encoder + decoder, (self._example,)
        return [
            Signature("generate", generate, noise, image, decoder + prior),
            Signature("encode", encode, images, latent, encoder, examples),
            Signature("decode", decode, latents, image, decoder),
            Signature(
                "reconstruct", reconstruct, images, reconstruction, both, examples
            ),
            self.likelihood_signature(images),
        ]

    def _example(self, num_rows):
        """Images that the model makes, with their labels.

        Noise is out of distribution for a trained network, which is so steep there that
        float32 is too coarse to compare two runtimes.
        """
        rows = np.arange(num_rows)
        labels = {"labels": rows % self.num_classes} if self.num_classes else {}
        return {"images": self.generate(rows, **labels), **labels}

    def _prior_latents(self, seeds, temperature):
        keys = random.keys(seeds, random.STREAM_GENERATE)
        latents = temperature[:, None] * random.normal(keys, (self.latent_dim,))
        return latents if self.flow is None else self.flow.from_noise(latents)

    def _one_hot(self, labels):
        return None if labels is None else self.batch_specs["labels"].to_network(labels)

    # -- construction -------------------------------------------------------

    def _check_arguments(self) -> None:
        check, variance = self.check_argument, self.variance
        check(
            "variance",
            variance is None or self.likelihood != "bernoulli",
            "be None for the bernoulli likelihood, which has none",
        )
        num_samples, num_drawn = self.num_importance_samples, self.num_gradient_samples
        check(
            "num_gradient_samples",
            num_drawn is None or 1 <= num_drawn and num_samples > 1,
            "be at least 1, or None; it needs several importance samples",
        )
        closed_form = num_samples == 1 and self.prior == "normal"
        check(
            "free_bits",
            closed_form or not self.free_bits,
            "be 0 with several importance samples or a learned prior: it needs the KL "
            "of each dimension in closed form",
        )

    def health(self, logs: dict[str, float]) -> list[str]:
        """Warns of posterior collapse: latents that carry no information."""
        active = logs.get("active_units", self.latent_dim)
        if active > 0.05 * self.latent_dim:
            return []
        return [
            f"posterior collapse: {active:.0f} of {self.latent_dim} latent dimensions "
            "are active, the KL is {:.2f} nats. Try a KL warm-up (kl_warmup_steps), "
            "free_bits, or a smaller kl_weight.".format(logs.get("kl", math.nan))
        ]
