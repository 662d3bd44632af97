"""Encoders and decoders of images: functional models, sized by the image shape.

An encoder maps images in [0, 1] (and one-hot labels) to a vector; a decoder maps a
vector (and labels) to one number per pixel and channel. With labels, both take a list
of two inputs.
"""

import math
from collections.abc import Callable

import keras
from keras import layers


def mlp_encoder(image_shape, dim, num_classes, hidden_units, activation):
    """Dense layers: images [b, h, w, c] -> [b, dim]."""
    inputs, images, labels = make_inputs(image_shape, num_classes)
    hidden = layers.Flatten()(images)
    hidden = with_labels(hidden, labels)
    for units in hidden_units:
        hidden = layers.Dense(units, activation=activation)(hidden)
    return keras.Model(inputs, layers.Dense(dim)(hidden), name="encoder")


def mlp_decoder(image_shape, dim, num_classes, hidden_units, activation):
    """Mirror image of the encoder: vectors [b, dim] -> [b, h, w, c]."""
    inputs, vectors, labels = make_inputs((dim,), num_classes)
    hidden = with_labels(vectors, labels)
    for units in reversed(hidden_units):
        hidden = layers.Dense(units, activation=activation)(hidden)
    outputs = layers.Dense(math.prod(image_shape))(hidden)
    return keras.Model(inputs, layers.Reshape(image_shape)(outputs), name="decoder")


def conv_encoder(image_shape, dim, num_classes, base_channels, num_blocks, activation):
    """Residual blocks on a coarse grid: images [b, h, w, c] -> [b, dim].

    The first layer cuts patches: convolutions at full resolution with few channels
    would take most of the time.
    """
    patch, widths = _levels(image_shape, base_channels)
    inputs, images, labels = make_inputs(image_shape, num_classes)
    hidden = space_to_depth(images, patch)
    for level, level_width in enumerate(widths):
        hidden = layers.Conv2D(
            level_width, 3, strides=1 if level == 0 else 2, padding="same"
        )(hidden)
        for _ in range(num_blocks):
            hidden = residual_block(hidden, activation)
    hidden = layers.Flatten()(layers.Activation(activation)(hidden))
    hidden = with_labels(hidden, labels)
    return keras.Model(inputs, layers.Dense(dim)(hidden), name="encoder")


def conv_decoder(image_shape, dim, num_classes, base_channels, num_blocks, activation):
    """Mirror image of the encoder: vectors [b, dim] -> [b, h, w, c]."""
    patch, widths = _levels(image_shape, base_channels)
    height, image_width, channels = image_shape
    scale = patch * 2 ** (len(widths) - 1)
    grid = (height // scale, image_width // scale, widths[-1])
    inputs, vectors, labels = make_inputs((dim,), num_classes)
    hidden = layers.Dense(math.prod(grid))(with_labels(vectors, labels))
    hidden = layers.Reshape(grid)(hidden)
    for level, _level_width in reversed(list(enumerate(widths))):
        for _ in range(num_blocks):
            hidden = residual_block(hidden, activation)
        hidden = layers.Activation(activation)(hidden)
        if level > 0:
            hidden = layers.Conv2DTranspose(
                widths[level - 1], 4, strides=2, padding="same"
            )(hidden)
    hidden = layers.Conv2D(channels * patch**2, 3, padding="same")(hidden)
    return keras.Model(inputs, depth_to_space(hidden, patch), name="decoder")


def residual_block(values, activation):
    """Adds two 3x3 convolutions of the values: [b, h, w, c] -> [b, h, w, c].

    The second convolution starts at zero: a new block is the identity.
    """
    width = values.shape[-1]
    hidden = layers.Activation(activation)(values)
    hidden = layers.Conv2D(width, 3, padding="same")(hidden)
    hidden = layers.Activation(activation)(hidden)
    hidden = layers.Conv2D(width, 3, padding="same", kernel_initializer="zeros")(hidden)
    return layers.Add()([values, hidden])


def space_to_depth(images, patch):
    """Cuts into patches: [b, h, w, c] -> [b, h / patch, w / patch, patch**2 * c]."""
    _, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    # [b, h, w, c] -> [b, rows, patch, columns, patch * c] -> [b, rows, columns, ...]
    values = layers.Reshape((rows, patch, columns, patch * channels))(images)
    values = layers.Permute((1, 3, 2, 4))(values)
    return layers.Reshape((rows, columns, patch * patch * channels))(values)


def depth_to_space(values, patch):
    """Joins patches: [b, h, w, patch**2 * c] -> [b, h * patch, w * patch, c]."""
    _, rows, columns, depth = values.shape
    channels = depth // patch**2
    # [b, rows, columns, patch * patch * c] -> [b, rows, patch, columns, patch * c]
    values = layers.Reshape((rows, columns, patch, patch * channels))(values)
    values = layers.Permute((1, 3, 2, 4))(values)
    return layers.Reshape((rows * patch, columns * patch, channels))(values)


NETWORKS: dict[str, tuple[Callable[..., keras.Model], ...]] = {
    "mlp": (mlp_encoder, mlp_decoder),
    "conv": (conv_encoder, conv_decoder),
}


def suits_conv(image_shape) -> bool:
    """Whether convolutions suit the shape: sides of at least 16 pixels, and even."""
    height, width, _ = image_shape
    return min(height, width) >= 16 and height % 2 == 0 and width % 2 == 0


def make_inputs(shape, num_classes):
    """Returns a network's inputs, and of these the values and the one-hot labels."""
    values = keras.Input(shape)
    if num_classes is None:
        return values, values, None
    labels = keras.Input((num_classes,))
    return [values, labels], values, labels


def check_network(name, network, takes, returns, num_classes):
    """Builds a network by a symbolic call and checks the shape of its output.

    Args:
        name: Argument of the model with the network, for the message.
        network: Network of rows, and of one-hot labels if there are classes.
        takes: Shape of an input row.
        returns: Required shape of an output row.
        num_classes: Number of classes, or None.

    Raises:
        ValueError: The output rows have another shape.
    """
    inputs, _, _ = make_inputs(takes, num_classes)
    shape = tuple(network(inputs).shape[1:])
    if shape != returns:
        raise ValueError(
            f"`{name}` must map rows of shape {takes} to rows of shape {returns}. "
            f"Received: one that returns rows of shape {shape}."
        )
    return network


def with_labels(values, labels):
    """Concatenates vectors with one-hot labels, if there are labels."""
    return values if labels is None else layers.Concatenate()([values, labels])


def _levels(image_shape, base_channels):
    """Returns the patch size and each level's channels; sides are halved to <= 8."""
    height, image_width, _ = image_shape
    patch = next(p for p in (4, 2, 1) if height % p == 0 and image_width % p == 0)
    grid, widths = math.gcd(height // patch, image_width // patch), [base_channels]
    size = max(height, image_width) // patch
    while size > 8 and grid % 2 == 0:
        size, grid = size // 2, grid // 2
        widths.append(2 * widths[-1])
    return patch, widths
