"""Keras metrics of the models' logs."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="kgen")
class ActiveUnits(keras.metrics.Metric):
    """Number of latent dimensions that the encoder uses.

    A dimension is active if the variance of its posterior mean over the data exceeds
    0.01 (Burda et al., 2016, section 5.1).
    """

    def __init__(self, latent_dim: int, name: str = "active_units", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.latent_dim = latent_dim
        self.count = self.add_variable((), "zeros", name="count")
        self.total = self.add_variable((latent_dim,), "zeros", name="total")
        self.squares = self.add_variable((latent_dim,), "zeros", name="squares")

    def update_state(self, means: tf.Tensor, sample_weight: Any = None) -> None:
        """Adds the posterior means of a batch: [batch, latent_dim]."""
        self.count.assign_add(tf.cast(tf.shape(means)[0], tf.float32))
        self.total.assign_add(tf.reduce_sum(means, axis=0))
        self.squares.assign_add(tf.reduce_sum(tf.square(means), axis=0))

    def result(self) -> tf.Tensor:
        """Returns the number of active dimensions, float32."""
        mean = tf.math.divide_no_nan(self.total.value, self.count.value)
        mean_square = tf.math.divide_no_nan(self.squares.value, self.count.value)
        return tf.reduce_sum(tf.cast(mean_square - tf.square(mean) > 0.01, tf.float32))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | {"latent_dim": self.latent_dim}


@keras.saving.register_keras_serializable(package="kgen")
class Diversity(keras.metrics.Metric):
    """Ratio of the total pixel variance of generated images to that of real images.

    1 if two generated images differ as much as two real ones in mean square; 0 if all
    generated images are equal (mode collapse).
    """

    def __init__(self, image_shape: Any, name: str = "diversity", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.image_shape = tuple(image_shape)
        self.count = self.add_variable((), "zeros", name="count")
        self.total = self.add_variable((2, *self.image_shape), "zeros", name="total")
        self.squares = self.add_variable((2,), "zeros", name="squares")

    def update_state(self, images: tf.Tensor, sample_weight: Any = None) -> None:
        """Adds images in [-1, 1], generated and real: [2, batch, h, w, c]."""
        images = 0.5 * (
            images + 1.0
        )  # Black, a common value, becomes 0: less rounding.
        self.count.assign_add(tf.cast(tf.shape(images)[1], tf.float32))
        self.total.assign_add(tf.reduce_sum(images, axis=1))
        self.squares.assign_add(tf.reduce_sum(tf.square(images), axis=(1, 2, 3, 4)))

    def result(self) -> tf.Tensor:
        """Returns the ratio so far, float32; 0 before the first images."""
        mean = tf.math.divide_no_nan(self.total.value, self.count.value)
        mean_square = tf.math.divide_no_nan(self.squares.value, self.count.value)
        variances = mean_square - tf.reduce_sum(tf.square(mean), axis=(1, 2, 3))
        return tf.math.divide_no_nan(variances[0], variances[1])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | {"image_shape": self.image_shape}


@keras.saving.register_keras_serializable(package="kgen")
class Perplexity(keras.metrics.Mean):
    """Exponential of the mean loss per token in nats."""

    def result(self) -> tf.Tensor:
        """Returns the perplexity so far, float32; 1 before the first token."""
        return tf.exp(super().result())
