"""Keras optimizers with a fused update kernel."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="kgen")
class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` with TensorFlow's fused update kernel.

    Arguments, variables and arithmetic are those of Keras, whose update makes a dozen
    passes over the memory of a weight; the fused kernel makes one. On a CPU, Adam takes
    a tenth of a small network's step with it, and a third without.

    Reference:
        Kingma and Ba, 2015, Adam: A Method for Stochastic Optimization.
    """

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable (tf.Variable) and its moments."""
        if self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        step = tf.cast(self.iterations + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, dtype), step),
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        )
