"""The layers against NumPy and against the Keras layers they replace."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import processes
from kgen.nn import layers
from two_replicas_normalise import normalise

IMAGES = np.random.default_rng(0).normal(1.0, 2.0, (6, 5, 4, 3)).astype(np.float32)


def weights_from(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


# -- batch normalisation --------------------------------------------------------


def both(values, training):
    """Pairs of outputs, gradients and averages: of this layer and of Keras's."""
    found = []
    for kind in (layers.BatchNormalization, keras.layers.BatchNormalization):
        layer = kind(momentum=0.9, epsilon=1e-5)
        layer.build(values.shape)
        gamma, beta, mean = weights_from(1, 3, 3, 3)
        layer.set_weights([gamma, beta, mean, np.array([0.5, 1.0, 2.0])])
        inputs = tf.constant(values)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=training)
            loss = tf.reduce_sum(outputs**3)
        watched = [inputs, *(v.value for v in layer.trainable_variables)]
        gradients = tape.gradient(loss, watched)
        averages = [v.numpy() for v in layer.non_trainable_variables]
        found.append([outputs.numpy(), *averages, *(g.numpy() for g in gradients)])
    return zip(*found, strict=True)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_equals_keras(training):
    for ours, theirs in both(IMAGES, training):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_replicas_normalise_by_the_global_batch():
    """Two replicas, of two and of four rows, equal one with all six."""
    found = processes.run(normalise, devices=2)
    for name, (one, two) in found.items():
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5, err_msg=name)


def test_mixed_precision_keeps_its_statistics_in_float32():
    layer = layers.BatchNormalization(dtype="mixed_bfloat16")
    outputs = layer(IMAGES, training=True)
    assert outputs.dtype == tf.bfloat16
    mean = IMAGES.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.01 * mean, rtol=0.01)
    assert layer.moving_mean.dtype == "float32"
    assert layer(IMAGES).dtype == tf.bfloat16


# -- spectral norm --------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (layers.SpectralConv2D(7, 3, padding="same"), IMAGES),
        (layers.SpectralDense(7), IMAGES[:, 0, 0]),
    ],
    ids=["conv", "dense"],
)
def test_spectral_layers_divide_by_the_largest_singular_value(layer, values):
    layer.build(values.shape)
    kernel = layer.kernel.numpy()
    for _ in range(50):
        layer(values, training=True)
    matrix = kernel.reshape(-1, 7)
    largest = np.linalg.svd(matrix, compute_uv=False)[0]
    _, plain_class = type(layer).__bases__
    plain = plain_class.from_config(layer.get_config())
    plain.build(values.shape)
    plain.set_weights([kernel / largest, np.zeros(7)])
    np.testing.assert_allclose(layer(values), plain(values), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(layer.kernel.numpy(), kernel)  # not overwritten


def test_the_gradient_of_a_spectral_kernel_flows_through_the_division():
    """Scaling the kernel changes nothing, so its gradient is orthogonal to it."""
    values = IMAGES[:, 0, 0]
    layer = layers.SpectralDense(7)
    layer.build(values.shape)
    for _ in range(50):
        layer(values, training=True)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(values) ** 3)
    gradient = tape.gradient(loss, layer.kernel.value).numpy()
    kernel = layer.kernel.numpy()
    cosine = (gradient * kernel).sum()
    cosine /= np.linalg.norm(gradient) * np.linalg.norm(kernel)
    assert abs(cosine) < 1e-4


def test_only_training_updates_the_singular_vector():
    layer = layers.SpectralDense(7)
    layer(IMAGES[:, 0, 0])
    before = layer.left.numpy()
    layer(IMAGES[:, 0, 0])
    np.testing.assert_array_equal(layer.left.numpy(), before)
    layer(IMAGES[:, 0, 0], training=True)
    assert (layer.left.numpy() != before).any()


# -- grouped convolution --------------------------------------------------------


def test_a_grouped_convolution_equals_one_per_group():
    values = np.random.default_rng(0).normal(size=(2, 6, 5, 8)).astype(np.float32)
    layer = layers.GroupedConv2D(group_size=2)
    outputs = layer(values).numpy()
    kernel = layer.kernel.numpy()
    for group in range(4):
        channels = slice(2 * group, 2 * group + 2)
        alone = tf.nn.conv2d(
            values[..., channels], kernel[..., channels], strides=1, padding="SAME"
        )
        np.testing.assert_allclose(outputs[..., channels], alone, rtol=1e-4, atol=1e-5)
