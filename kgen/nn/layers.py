"""Replacements for Keras layers with wrong gradients, slow messages or no ONNX export.

- `SpectralNormalization` overwrites the trained kernel in every forward pass, and its
  gradient ignores the division.
- `Conv2D(groups=)` is traced into a function of its own, which ONNX cannot convert.
- `BatchNormalization(synchronized=True)` sends three messages per call, not one.
"""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras import ops


class SpectralLayer(keras.layers.Layer):
    """Spectral normalisation of the kernel, for `Conv2D` and `Dense`.

    The kernel is divided by its largest singular value, which one power iteration per
    training call estimates. The gradient flows through the division but not through
    the iteration.

    Reference:
        Miyato et al., 2018, Spectral Normalization for Generative Adversarial Networks,
        algorithm 1.
    """

    def build(self, input_shape):
        """Creates the layer's weights and the estimate of the left singular vector."""
        super().build(input_shape)
        self.left = self.add_weight(
            shape=(self._kernel.shape[-1], 1),
            initializer="random_normal",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="left",
        )

    def call(self, inputs, training=False):
        """Multiplies by the normalised kernel, or convolves with it."""
        outputs = self.multiply(inputs, _normalized_kernel(self, training))
        return outputs + self.bias if self.use_bias else outputs

    # Those of Conv2D and Dense would leave out the singular vector.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables


@keras.saving.register_keras_serializable(package="kgen")
class SpectralConv2D(SpectralLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with spectral normalisation; no activation."""

    multiply = keras.layers.Conv2D.convolution_op


@keras.saving.register_keras_serializable(package="kgen")
class SpectralDense(SpectralLayer, keras.layers.Dense):
    """`keras.layers.Dense` with spectral normalisation; no activation."""

    multiply = staticmethod(ops.matmul)


def _normalized_kernel(layer, training):
    matrix = tf.cast(tf.convert_to_tensor(layer._kernel), tf.float32)
    matrix = tf.reshape(matrix, [-1, matrix.shape[-1]])  # [inputs, outputs]
    fixed, left = tf.stop_gradient(matrix), layer.left.value
    right = tf.math.l2_normalize(fixed @ left)  # [inputs, 1]
    left = tf.math.l2_normalize(tf.transpose(fixed) @ right)  # [outputs, 1]
    if training:
        layer.left.assign(left)
    largest = tf.squeeze(tf.transpose(right) @ matrix @ left)
    return layer._kernel / tf.cast(largest, layer.compute_dtype)


@keras.saving.register_keras_serializable(package="kgen")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization(synchronized=True)` with one all-reduce.

    The replicas exchange sums and normalise by the mean and variance of all rows.

    Shapes:
        [batch, height, width, channels] -> the same

    Reference:
        Ioffe and Szegedy, 2015, Batch Normalization: Accelerating Deep Network Training
        by Reducing Internal Covariate Shift.
    """

    def call(self, inputs, training=False):
        """Normalises by the global batch; outside training by the moving averages."""
        values = tf.cast(inputs, tf.float32)
        mean, variance = self.moving_mean.value, self.moving_variance.value
        if training and self.trainable:
            mean, variance = _moments_of_all_replicas(values)
            self._update_averages(mean, variance)
        scale = self.gamma.value * tf.math.rsqrt(variance + self.epsilon)
        outputs = values * scale + (self.beta.value - mean * scale)
        return tf.cast(outputs, self.compute_dtype)

    def _update_averages(self, *moments):
        averages = (self.moving_mean, self.moving_variance)
        for average, new in zip(averages, moments, strict=True):
            old = average.value
            average.assign(self.momentum * old + (1.0 - self.momentum) * new)


def _moments_of_all_replicas(values):
    """Mean and variance of each channel over the rows of all replicas: two of [c]."""
    count = tf.cast(tf.size(values) / values.shape[-1], tf.float32)
    sums = [tf.reduce_sum(v, axis=[0, 1, 2]) for v in (values, tf.square(values))]
    sums = tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, tf.concat([[count], *sums], axis=0)
    )
    mean, mean_square = tf.split(sums[1:] / sums[0], 2)
    return mean, tf.maximum(mean_square - tf.square(mean), 0.0)


@keras.saving.register_keras_serializable(package="kgen")
class GroupedConv2D(keras.layers.Layer):
    """3x3 convolution in groups of channels, without bias.

    Args:
        group_size: Channels per group; must divide the channels of the input.
        kernel_initializer: Initializer of the kernel [3, 3, group_size, channels].

    Shapes:
        [batch, height, width, channels] -> the same
    """

    def __init__(self, group_size: int, kernel_initializer="he_normal", **kwargs):
        super().__init__(**kwargs)
        self.group_size = group_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        """Creates the kernel."""
        self.kernel = self.add_weight(
            shape=(3, 3, self.group_size, input_shape[-1]),
            initializer=self.kernel_initializer,
            name="kernel",
        )

    def call(self, inputs):
        """Convolves with stride 1 and zero padding."""
        return tf.nn.conv2d(inputs, self.kernel, strides=1, padding="SAME")

    def get_config(self):
        """Returns the constructor's arguments."""
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return super().get_config() | {
            "group_size": self.group_size,
            "kernel_initializer": initializer,
        }


def dense_network(name, widths, activation=None, *last):
    """Dense layers from vectors of the first width to those of the last, then `last`.

    Args:
        name: Name of the network.
        widths: Lengths of the vectors: the input, the hidden layers, the output.
        activation: Activation of the hidden layers.
        *last: Layers after the output's.
    """
    width, *hidden, output = widths
    return keras.Sequential(
        [
            keras.Input((width,)),
            *(keras.layers.Dense(units, activation) for units in hidden),
            keras.layers.Dense(output),
            *last,
        ],
        name=name,
    )


@contextlib.contextmanager
def layers_of_policy(policy: keras.DTypePolicy) -> Iterator[None]:
    """Sets the dtype policy of layers that are created in the context."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
