"""A VAE's constructor: what it refuses, what it builds, and how large that is."""

import re

import keras
import numpy as np
import pytest

from kgen.models import VAE

SHAPE = (4, 4, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (28, 28)}, "three positive numbers: height, width, channels"),
        ({"image_shape": (28, 0, 1)}, "Received: image_shape=(28, 0, 1)"),
        ({"latent_dim": 0}, "be at least 1. Received: latent_dim=0"),
        ({"network": "cnn"}, "'conv'). Received: network='cnn'"),
        ({"likelihood": "mse"}, "'discretized_logistic'). Received: likelihood='mse'"),
        ({"variance": 0.0}, "be above 0, and finite. Received: variance=0.0"),
        ({"variance": 0.1}, "be None for the bernoulli likelihood, which has none"),
        ({"hidden_units": (8, 0)}, "be at least 1. Received: hidden_units=(8, 0)"),
        ({"base_channels": 0}, "be at least 1. Received: base_channels=0"),
        ({"num_blocks": -1}, "be 0 or more, and finite. Received: num_blocks=-1"),
        ({"activation": "swich"}, "such as swish. Received: activation='swich'"),
        ({"kl_weight": -1}, "be 0 or more, and finite. Received: kl_weight=-1"),
        (
            {"kl_warmup_steps": -1},
            "be 0 or more, and finite. Received: kl_warmup_steps=-1",
        ),
        ({"free_bits": -0.1}, "be 0 or more, and finite. Received: free_bits=-0.1"),
        ({"num_importance_samples": 0}, "Received: num_importance_samples=0"),
        ({"num_gradient_samples": 1}, "several importance samples. Received: num_gra"),
        (
            {"num_gradient_samples": 0, "num_importance_samples": 2},
            "be at least 1, or None; it needs several importance samples. Received: ",
        ),
        ({"num_classes": 1}, "be at least 2. Received: num_classes=1"),
        ({"prior": "vamp"}, "'flow'). Received: prior='vamp'"),
        (
            {"free_bits": 0.1, "num_importance_samples": 2},
            "it needs the KL of each dimension in closed form. Received: free_bits=0.1",
        ),
        ({"free_bits": 0.1, "prior": "flow"}, "closed form. Received: free_bits=0.1"),
        (
            {"latent_dim": 1, "prior": "flow"},
            "at least 2. Received: dim=1",
        ),
    ],
)
def test_an_argument_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VAE(**{"image_shape": SHAPE} | options)


def dense(input_shape, units, shape=None):
    layers = [
        keras.Input(input_shape),
        keras.layers.Flatten(),
        keras.layers.Dense(units),
    ]
    return keras.Sequential(layers + ([keras.layers.Reshape(shape)] if shape else []))


def test_own_networks_of_another_shape_are_refused():
    """For 2 latents an encoder returns 4 numbers, and a decoder 4 x 4 x 1 pixels."""
    with pytest.raises(ValueError, match=r"`encoder`.*\(4,\)\. Rec.*shape \(2,\)\."):
        VAE(image_shape=SHAPE, latent_dim=2, encoder=dense(SHAPE, 2))
    with pytest.raises(ValueError, match=r"`decoder`.*\(4, 4, 1\)\. Rec.*\(16,\)\."):
        VAE(image_shape=SHAPE, latent_dim=2, decoder=dense((2,), 16))


def test_one_own_network_goes_with_a_default_one():
    encoder = dense(SHAPE, 4)
    vae = VAE(image_shape=SHAPE, latent_dim=2, encoder=encoder, hidden_units=(3,))
    assert vae.encoder is encoder
    assert vae.reconstruct(np.zeros([1, *SHAPE])).shape == (1, *SHAPE)


@pytest.mark.parametrize("seed", [-1, 0.5, "1"])
def test_compile_refuses_a_seed_that_is_no_whole_number(seed, make_linear_vae):
    with pytest.raises(ValueError, match=f"non-negative integer. Rec.*seed={seed}"):
        make_linear_vae().compile("sgd", seed=seed)


# -- networks -----------------------------------------------------------------------


def is_convolutional(vae):
    return any(isinstance(layer, keras.layers.Conv2D) for layer in vae.encoder.layers)


@pytest.mark.parametrize(
    ("image_shape", "convolutional"),
    [
        ((8, 8, 1), False),
        ((14, 28, 1), False),
        ((16, 16, 3), True),
        ((28, 20, 1), True),
        ((17, 17, 1), False),
        ((28, 17, 1), False),
    ],
)
def test_auto_chooses_convolutions_for_even_sides_of_16_and_more(
    image_shape, convolutional
):
    sizes = {"latent_dim": 2, "base_channels": 2, "hidden_units": (2,)}
    vae = VAE(image_shape=image_shape, **sizes)
    assert is_convolutional(vae) == convolutional


def test_the_network_can_be_chosen():
    sizes = {"latent_dim": 2, "base_channels": 2, "hidden_units": (2,)}
    assert is_convolutional(VAE(image_shape=SHAPE, network="conv", **sizes))
    assert not is_convolutional(VAE(image_shape=(16, 16, 1), network="mlp", **sizes))


def sizes_of(vae):
    return vae.encoder.count_params(), vae.decoder.count_params()


def test_mlp_parameters_by_hand():
    """8 x 8 pixels, hidden layers of 6 and 5, 4 latents; inputs x outputs + biases."""
    vae = VAE(image_shape=(8, 8, 1), latent_dim=4, hidden_units=(6, 5))
    encoder = (64 * 6 + 6) + (6 * 5 + 5) + (5 * 8 + 8)
    decoder = (4 * 5 + 5) + (5 * 6 + 6) + (6 * 64 + 64)
    assert sizes_of(vae) == (encoder, decoder)


def test_mlp_parameters_with_labels_by_hand():
    """Three classes more at the input of each network."""
    vae = VAE(image_shape=(8, 8, 1), latent_dim=4, hidden_units=(6,), num_classes=3)
    assert sizes_of(vae) == (67 * 6 + 6 + 6 * 8 + 8, 7 * 6 + 6 + 6 * 64 + 64)


def conv(size, inputs, outputs):
    return size * size * inputs * outputs + outputs


def test_conv_parameters_by_hand():
    """40 x 40 pixels in patches of 4 x 4: a grid of 10 x 10 and, halved, of 5 x 5.

    Levels of 4 and 8 channels, a residual block of two 3 x 3 convolutions on each, the
    4 x 4 transposed convolution between them, and dense layers around 2 latents.
    """
    vae = VAE(image_shape=(40, 40, 1), latent_dim=2, base_channels=4, num_blocks=1)
    blocks = 2 * conv(3, 4, 4) + 2 * conv(3, 8, 8)
    grid = 5 * 5 * 8
    encoder = conv(3, 16, 4) + conv(3, 4, 8) + blocks + (grid * 4 + 4)
    decoder = (2 * grid + grid) + blocks + conv(4, 8, 4) + conv(3, 4, 16)
    assert sizes_of(vae) == (encoder, decoder)


def test_all_parameters_are_trained_but_a_fixed_variance_and_the_counters():
    vae = VAE(image_shape=SHAPE, latent_dim=2, hidden_units=(3,), prior="flow")
    networks = [vae.encoder, vae.decoder, vae.flow]
    expected = {id(w) for network in networks for w in network.weights}
    assert {id(w) for w in vae.trainable_weights} == expected
    assert {id(w) for w in vae.non_trainable_weights} == {
        id(vae.step),
        id(vae.examples_seen),
        id(vae.log_variance),
    }


@pytest.mark.parametrize("network", ["auto", "conv"])
@pytest.mark.parametrize(
    "image_shape", [(7, 5, 1), (28, 20, 1), (17, 17, 2), (64, 64, 3)]
)
def test_sizes_of_any_kind_are_reconstructed_in_their_shape(image_shape, network):
    vae = VAE(
        image_shape=image_shape,
        latent_dim=2,
        network=network,
        base_channels=2,
        hidden_units=(2,),
    )
    images = np.random.default_rng(0).random((2, *image_shape), np.float32)
    output = vae({"images": images})
    assert output.shape == (2, *image_shape)
    # Every pixel of the image reaches the latents.
    changed = images.copy()
    changed[0, -1, -1] = 1 - changed[0, -1, -1]
    assert np.abs(vae.encoder(changed)[0] - vae.encoder(images)[0]).max() > 1e-6
