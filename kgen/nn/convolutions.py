"""Layers that Keras has not, or has in a form that does not train or export right.

Its `SpectralNormalization` writes the divided kernel over the trained one in every
forward pass, and its gradient does not know of the division. Its `Conv2D(groups=)` is
traced into a function of its own, which does not convert to ONNX.
"""

import keras
import tensorflow as tf
from keras import ops


class _SpectralNormalized:
    """Divides a layer's kernel by its largest singular value.

    The value is followed by one power iteration a training call (Miyato et al., 2018,
    Spectral Normalization for Generative Adversarial Networks, algorithm 1); the
    gradient flows through the division, and not through the iteration.
    """

    def build(self, input_shape):
        """Makes the layer's weights and the left singular vector that is followed."""
        super().build(input_shape)
        self.left = self.add_weight(
            shape=(self._kernel.shape[-1], 1),
            initializer="random_normal",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="left",
        )

    # Keras's layers save their kernel and bias by name, and nothing else.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def call(self, inputs, training=False):
        """The layer's own map, with the normalised kernel."""
        matrix = tf.cast(tf.convert_to_tensor(self._kernel), tf.float32)
        matrix = tf.reshape(matrix, [-1, matrix.shape[-1]])  # [inputs, outputs]
        left = self.left.value
        fixed = tf.stop_gradient(matrix)
        right = tf.math.l2_normalize(fixed @ left)  # [inputs, 1]
        if training:
            left = tf.math.l2_normalize(tf.transpose(fixed) @ right)
            self.left.assign(left)
        largest = tf.squeeze(tf.transpose(right) @ matrix @ left)
        return self._apply(inputs, self._kernel / ops.cast(largest, self.compute_dtype))


@keras.saving.register_keras_serializable(package="kgen")
class SpectralConv2D(_SpectralNormalized, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a spectrally normalised kernel; no activation."""

    def _apply(self, inputs, kernel):
        outputs = self.convolution_op(inputs, kernel)
        return outputs + self.bias if self.use_bias else outputs


@keras.saving.register_keras_serializable(package="kgen")
class SpectralDense(_SpectralNormalized, keras.layers.Dense):
    """`keras.layers.Dense` with a spectrally normalised kernel; no activation."""

    def _apply(self, inputs, kernel):
        outputs = ops.matmul(inputs, kernel)
        return outputs + self.bias if self.use_bias else outputs


@keras.saving.register_keras_serializable(package="kgen")
class GroupedConv2D(keras.layers.Layer):
    """A 3x3 convolution in groups of channels that do not see each other; no bias.

    Args:
        group_size: Channels of a group; must divide those of the input.
        kernel_initializer: Of the kernel [3, 3, group_size, channels].

    Shapes:
        [batch, height, width, channels] -> the same
    """

    def __init__(self, group_size: int, kernel_initializer="he_normal", **kwargs):
        super().__init__(**kwargs)
        self.group_size = group_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        """Makes the kernel."""
        self.kernel = self.add_weight(
            shape=(3, 3, self.group_size, input_shape[-1]),
            initializer=self.kernel_initializer,
            name="kernel",
        )

    def call(self, inputs):
        """Convolves with stride 1 and zeros outside."""
        return tf.nn.conv2d(inputs, self.kernel, strides=1, padding="SAME")

    def compute_output_shape(self, input_shape):
        """The shape of the input."""
        return input_shape

    def get_config(self):
        """Returns the constructor's arguments."""
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return super().get_config() | {
            "group_size": self.group_size,
            "kernel_initializer": initializer,
        }
