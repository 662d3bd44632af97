"""Models small enough to be worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kgen.models import VAE


@pytest.fixture
def eagerly():
    """Runs TensorFlow without graphs: a check that is made once traces nothing."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def linear_vae(
    encoder_kernel=None,
    encoder_bias=None,
    decoder_kernel=None,
    decoder_bias=None,
    *,
    image_shape=(2, 2, 1),
    latent_dim=2,
    dtype="float32",
    **options,
):
    """A VAE whose two networks are one matrix each, zero where nothing is given.

    The encoder computes [mean, log-variance] = pixels @ kernel + bias, the decoder
    pixels = latents @ kernel + bias.
    """
    num_pixels = int(np.prod(image_shape))
    encoder = keras.Sequential(
        [
            keras.Input(image_shape),
            layers.Flatten(dtype=dtype),
            layers.Dense(2 * latent_dim, dtype=dtype),
        ]
    )
    decoder = keras.Sequential(
        [
            keras.Input((latent_dim,)),
            layers.Dense(num_pixels, dtype=dtype),
            layers.Reshape(image_shape, dtype=dtype),
        ]
    )
    given = [encoder_kernel, encoder_bias, decoder_kernel, decoder_bias]
    zeros = [np.zeros(w.shape) for w in encoder.weights + decoder.weights]
    values = [
        zero if value is None else np.broadcast_to(value, zero.shape)
        for value, zero in zip(given, zeros, strict=True)
    ]
    encoder.set_weights(values[:2])
    decoder.set_weights(values[2:])
    return VAE(
        image_shape=image_shape,
        latent_dim=latent_dim,
        encoder=encoder,
        decoder=decoder,
        dtype=dtype,
        **options,
    )


@pytest.fixture(scope="session")
def make_linear_vae():
    return linear_vae


@pytest.fixture(scope="session")
def binary_images():
    """Eight images of 2 by 2 black and white pixels."""
    return np.random.default_rng(0).integers(0, 2, (8, 2, 2, 1)).astype(np.float32)
