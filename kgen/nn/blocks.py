"""Pieces of functional networks for images, channels last."""

from keras import layers


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
