"""Generators and discriminators of images, sized by the shape of the images.

A generator maps latents (and one-hot labels) to images in [-1, 1]. A discriminator maps
images in [-1, 1] to one logit each; labels enter by projection (Miyato and Koyama,
2018): the inner product of the features with an embedding of the class is added.

`normalization` is "batch" or "group" (layers after the convolutions), "spectral" (of
their kernels) or "none". Batch norm is synchronised over replicas; no layer before it
has a bias, whose gradient would be rounding noise.
"""

import math

import keras
from keras import layers

from kgen.nn.image_networks import make_inputs, with_labels
from kgen.nn.layers import (
    BatchNormalization,
    GroupedConv2D,
    SpectralConv2D,
    SpectralDense,
)

NORMALIZATIONS = ("batch", "group", "spectral", "none")
SMALLEST, LARGEST = 8, 128  # pixels per side
R3GAN_BLOCKS = 2  # per level


def dcgan_generator(latent_dim, image_shape, num_classes, base_channels, normalization):
    """Transposed convolutions that double the sides: latents [b, d] -> [b, h, w, c].

    Reference:
        Radford et al., 2016, Unsupervised Representation Learning with Deep
        Convolutional Generative Adversarial Networks.
    """
    grid, widths = _levels(image_shape, base_channels)
    first = _dense(math.prod(grid) * widths[-1], normalization)
    inputs, hidden = _coarsest(latent_dim, num_classes, grid, first)
    hidden = layers.ReLU()(_norm(hidden, normalization))
    for level_width in reversed(widths[:-1]):
        hidden = layers.Conv2DTranspose(
            level_width, 4, 2, "same", **_options(normalization)
        )(hidden)
        hidden = layers.ReLU()(_norm(hidden, normalization))
    images = layers.Conv2DTranspose(image_shape[-1], 4, 2, "same")(hidden)
    return _bounded(inputs, images)


def dcgan_discriminator(image_shape, num_classes, base_channels, normalization):
    """Convolutions that halve the sides: images [b, h, w, c] -> [b, 1]."""
    _, widths = _levels(image_shape, base_channels)
    inputs, hidden, labels = make_inputs(image_shape, num_classes)
    for level, level_width in enumerate(widths):
        # The first layer sees the images: a norm would hide their statistics.
        norm = "none" if level == 0 and normalization != "spectral" else normalization
        if level > 0:
            hidden = layers.LeakyReLU(0.2)(hidden)
        hidden = _norm(_conv(level_width, 4, norm, strides=2)(hidden), norm)
    # Flattened before the last activation: TensorFlow's graph optimizer fails, with a
    # line on stderr, on a convolution with bias, LeakyReLU and Flatten in this order.
    features = layers.LeakyReLU(0.2)(layers.Flatten()(hidden))
    return _score(inputs, features, labels, normalization)


def residual_generator(
    latent_dim, image_shape, num_classes, base_channels, normalization
):
    """Residual blocks with nearest upsampling: latents [b, d] -> [b, h, w, c].

    Reference:
        Miyato et al., 2018, Spectral Normalization for Generative Adversarial
        Networks, table 4; here the widths double from level to level.
    """
    grid, widths = _levels(image_shape, base_channels)
    first = _dense(math.prod(grid) * widths[-1], normalization)
    inputs, hidden = _coarsest(latent_dim, num_classes, grid, first)
    for level_width in reversed([widths[0], *widths[:-1]]):
        shortcut = _conv(level_width, 1, normalization)(hidden)
        shortcut = layers.UpSampling2D()(shortcut)
        hidden = layers.ReLU()(_norm(hidden, normalization))
        hidden = layers.UpSampling2D()(hidden)
        hidden = _conv(level_width, 3, normalization)(hidden)
        hidden = layers.ReLU()(_norm(hidden, normalization))
        hidden = _conv(level_width, 3, normalization)(hidden)
        hidden = layers.Add()([hidden, shortcut])
    hidden = layers.ReLU()(_norm(hidden, normalization))
    images = layers.Conv2D(image_shape[-1], 3, padding="same")(hidden)
    return _bounded(inputs, images)


def residual_discriminator(image_shape, num_classes, base_channels, normalization):
    """Residual blocks with average pooling: images [b, h, w, c] -> [b, 1]."""
    _, widths = _levels(image_shape, base_channels)
    inputs, hidden, labels = make_inputs(image_shape, num_classes)
    spectral = "spectral" if normalization == "spectral" else "none"
    hidden = _conv(widths[0], 3, normalization)(hidden)
    for level_width in widths:
        shortcut = _conv(level_width, 1, spectral)(layers.AveragePooling2D(2)(hidden))
        hidden = layers.ReLU()(_norm(hidden, normalization))
        hidden = _conv(level_width, 3, normalization)(hidden)
        hidden = layers.ReLU()(_norm(hidden, normalization))
        hidden = _conv(level_width, 3, spectral)(hidden)
        hidden = layers.Add()([layers.AveragePooling2D(2)(hidden), shortcut])
    features = layers.GlobalAveragePooling2D()(layers.ReLU()(hidden))
    return _score(inputs, features, labels, normalization)


def r3gan_generator(latent_dim, image_shape, num_classes, base_channels, normalization):
    """Bottleneck blocks of grouped convolutions: latents [b, d] -> [b, h, w, c].

    Reference:
        Huang et al., 2024, The GAN is dead; long live the GAN: A Modern GAN Baseline,
        configuration E. Here a dense layer makes the coarsest grid, upsampling is
        bilinear, and tanh bounds the images.
    """
    del normalization  # R3GAN has none.
    grid, widths = _levels(image_shape, base_channels)
    widths = [widths[0], *widths]  # one more level at full resolution
    first = layers.Dense(math.prod(grid) * widths[-1])
    inputs, hidden = _coarsest(latent_dim, num_classes, grid, first)
    for level in reversed(range(len(widths))):
        if hidden.shape[-1] != widths[level]:
            hidden = layers.Conv2D(widths[level], 1, use_bias=False)(hidden)
        for _ in range(R3GAN_BLOCKS):
            hidden = _bottleneck(hidden, R3GAN_BLOCKS * len(widths))
        if level > 0:
            hidden = layers.UpSampling2D(interpolation="bilinear")(hidden)
    images = layers.Conv2D(image_shape[-1], 1)(hidden)
    return _bounded(inputs, images)


def r3gan_discriminator(image_shape, num_classes, base_channels, normalization):
    """Mirror image of the generator, with average pooling: [b, h, w, c] -> [b, 1]."""
    del normalization
    grid, widths = _levels(image_shape, base_channels)
    widths = [widths[0], *widths]
    inputs, images, labels = make_inputs(image_shape, num_classes)
    hidden = layers.Conv2D(widths[0], 1)(images)
    for level, level_width in enumerate(widths):
        if level > 0:
            hidden = layers.AveragePooling2D(2)(hidden)
        if hidden.shape[-1] != level_width:
            hidden = layers.Conv2D(level_width, 1, use_bias=False)(hidden)
        for _ in range(R3GAN_BLOCKS):
            hidden = _bottleneck(hidden, R3GAN_BLOCKS * len(widths))
    features = layers.Flatten()(layers.DepthwiseConv2D(grid)(hidden))
    return _score(inputs, features, labels, "none")


NETWORKS = {
    "dcgan": (dcgan_generator, dcgan_discriminator),
    "residual": (residual_generator, residual_discriminator),
    "r3gan": (r3gan_generator, r3gan_discriminator),
}


def sizes_that_work(image_shape) -> bool:
    """Whether both sides are 8 to 128 pixels and halve to a grid of at most 7."""
    sides = image_shape[:2]
    grid, _ = _levels(image_shape, 1)
    return SMALLEST <= min(sides) and max(sides) <= LARGEST and min(grid) <= 7


def _levels(image_shape, base_channels):
    """Returns the coarsest grid and the widths of the levels, from fine to coarse.

    The sides are halved until one is 4 or odd; the width doubles, up to eightfold.
    """
    height, image_width, _ = image_shape
    widths: list[int] = []
    while min(height, image_width) > 4 and height % 2 == 0 and image_width % 2 == 0:
        height, image_width = height // 2, image_width // 2
        widths.append(base_channels * min(2 ** len(widths), 8))
    return (height, image_width), widths


def _coarsest(latent_dim, num_classes, grid, dense):
    """Returns a generator's inputs and the first dense layer's output on the grid."""
    inputs, latents, labels = make_inputs((latent_dim,), num_classes)
    hidden = dense(with_labels(latents, labels))
    return inputs, layers.Reshape((*grid, dense.units // math.prod(grid)))(hidden)


def _bounded(inputs, images):
    """Returns a generator of images bounded by tanh, in float32."""
    images = layers.Activation("tanh", dtype="float32")(images)
    return keras.Model(inputs, images, name="generator")


def _score(inputs, features, labels, normalization):
    """Returns a discriminator: a logit of the features plus the label projection."""
    spectral = normalization == "spectral"
    logits = _dense(1, "spectral" if spectral else "none")(features)
    if labels is not None:
        embedding = SpectralDense if spectral else layers.Dense
        classes = embedding(features.shape[-1], use_bias=False)(labels)
        projection = layers.Dot(axes=1)([features, classes])
        logits = layers.Add()([logits, projection])
    return keras.Model(inputs, logits, name="discriminator")


def _bottleneck(values, num_blocks):
    """Adds an inverted bottleneck of grouped convolutions: [b, h, w, c] -> same.

    Fixup initialisation (Zhang et al., 2019) replaces normalisation: the last
    convolution starts at zero, the others small for `num_blocks` blocks in a row.
    """
    width = values.shape[-1]
    scaled = keras.initializers.VarianceScaling(
        2.0 / (1.0 + 0.2**2) / math.sqrt(num_blocks), "fan_in", "normal"
    )
    hidden = layers.Conv2D(2 * width, 1, kernel_initializer=scaled)(values)
    hidden = layers.LeakyReLU(0.2)(hidden)
    hidden = GroupedConv2D(math.gcd(2 * width, 16), scaled)(hidden)
    hidden = layers.LeakyReLU(0.2)(hidden)
    hidden = layers.Conv2D(width, 1, use_bias=False, kernel_initializer="zeros")(hidden)
    return layers.Add()([values, hidden])


def _options(normalization):
    if normalization == "batch":
        return {
            "use_bias": False,
            "kernel_initializer": keras.initializers.RandomNormal(stddev=0.02),
        }
    return {"kernel_initializer": "he_normal"}


def _conv(width, size, normalization, strides=1):
    kind = SpectralConv2D if normalization == "spectral" else layers.Conv2D
    return kind(width, size, strides, padding="same", **_options(normalization))


def _dense(units, normalization):
    kind = SpectralDense if normalization == "spectral" else layers.Dense
    return kind(units, **_options(normalization))


def _norm(values, normalization):
    match normalization:
        case "batch":
            return BatchNormalization(momentum=0.9, epsilon=1e-5)(values)
        case "group":
            groups = math.gcd(values.shape[-1], 16)
            return layers.GroupNormalization(groups)(values)
    return values
