"""Patches and residual blocks of image networks, against NumPy."""

import keras
import numpy as np
import pytest

from kgen.nn import image_networks


def call(build, values):
    inputs = keras.Input(values.shape[1:])
    return keras.Model(inputs, build(inputs))(values).numpy()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_space_to_depth_puts_each_patch_into_one_pixel(patch):
    images = np.random.default_rng(0).random((2, 8, 4, 3), np.float32)
    result = call(lambda values: image_networks.space_to_depth(values, patch), images)
    assert result.shape == (2, 8 // patch, 4 // patch, patch * patch * 3)
    for row in range(8 // patch):
        for column in range(4 // patch):
            corner = images[:, row * patch :, column * patch :]
            expected = corner[:, :patch, :patch].reshape(2, -1)
            np.testing.assert_array_equal(result[:, row, column], expected)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_depth_to_space_is_the_inverse(patch):
    images = np.random.default_rng(0).random((2, 8, 4, 3), np.float32)
    result = call(
        lambda values: image_networks.depth_to_space(
            image_networks.space_to_depth(values, patch), patch
        ),
        images,
    )
    np.testing.assert_array_equal(result, images)


def test_a_new_residual_block_is_the_identity():
    values = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    result = call(lambda inputs: image_networks.residual_block(inputs, "swish"), values)
    np.testing.assert_array_equal(result, values)


def test_a_residual_block_has_two_convolutions():
    """Each has 3 * 3 * 6 * 6 weights and 6 biases."""
    inputs = keras.Input((4, 4, 6))
    model = keras.Model(inputs, image_networks.residual_block(inputs, "relu"))
    assert model.count_params() == 2 * (9 * 36 + 6)
