"""Normalizing flows: learned densities by invertible maps."""

import keras
import tensorflow as tf

from kgen.nn.likelihoods import gaussian_log_likelihood


@keras.saving.register_keras_serializable(package="kgen")
class CouplingFlow(keras.layers.Layer):
    """Learned density of vectors: affine coupling layers over a standard normal.

    Each coupling keeps one half of the vector, and scales and shifts the other half by
    a small network of the first; the halves swap between couplings. The last layer of
    each network starts at zero, so the untrained flow is the standard normal.

    Args:
        dim: Length of the vectors, at least 2.
        num_couplings: Number of couplings, at least 2 so that each element is changed.
        hidden_dim: Width of the two hidden layers of each coupling's network.

    Reference:
        Dinh et al., 2017, Density Estimation Using Real NVP. Without batch norm here;
        2 tanh bounds the log-scale, so that no optimizer step can make it explode.
    """

    def __init__(
        self, *, dim: int, num_couplings: int = 6, hidden_dim: int = 128, **kwargs
    ):
        # Densities need float32, whatever the dtype policy of the model.
        super().__init__(**kwargs | {"dtype": "float32"})
        if dim < 2 or num_couplings < 2:
            raise ValueError(
                "A coupling flow needs `dim` and `num_couplings` of at least 2. "
                f"Received: dim={dim}, num_couplings={num_couplings}"
            )
        self.dim = dim
        self.num_couplings = num_couplings
        self.hidden_dim = hidden_dim
        self.networks = []
        for index in range(num_couplings):
            kept, changed = self._halves(index)
            network = keras.Sequential(
                [
                    keras.Input((kept,)),
                    keras.layers.Dense(hidden_dim, activation="swish", dtype="float32"),
                    keras.layers.Dense(hidden_dim, activation="swish", dtype="float32"),
                    keras.layers.Dense(
                        2 * changed, kernel_initializer="zeros", dtype="float32"
                    ),
                ],
                name=f"coupling_{index}",
            )
            self.networks.append(network)
        self.built = True

    def call(self, vectors: tf.Tensor) -> tf.Tensor:
        """Returns the log-density of each vector in nats: [rows, dim] -> [rows]."""
        noise, log_determinant = self.to_noise(vectors)
        return gaussian_log_likelihood(noise, 0.0, 0.0) + log_determinant

    def to_noise(self, vectors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps vectors to standard normal noise.

        Shapes:
            vectors: [rows, dim] -> noise [rows, dim], log |d noise / d vector| [rows]
        """
        log_determinant = tf.zeros_like(vectors[:, 0])
        for index, network in enumerate(self.networks):
            kept, changed = tf.split(vectors, self._halves(index), axis=1)
            log_scale, shift = self._affine(network, kept)
            changed = changed * tf.exp(log_scale) + shift
            log_determinant += tf.reduce_sum(log_scale, axis=1)
            vectors = tf.concat([changed, kept], axis=1)  # swap
        return vectors, log_determinant

    def from_noise(self, noise: tf.Tensor) -> tf.Tensor:
        """Inverts `to_noise`: [rows, dim] -> [rows, dim]."""
        for index in reversed(range(self.num_couplings)):
            num_kept, num_changed = self._halves(index)
            changed, kept = tf.split(noise, [num_changed, num_kept], axis=1)
            log_scale, shift = self._affine(self.networks[index], kept)
            changed = (changed - shift) * tf.exp(-log_scale)
            noise = tf.concat([kept, changed], axis=1)
        return noise

    def _halves(self, index: int) -> tuple[int, int]:
        # `to_noise` swaps the halves: with an odd `dim` their sizes alternate.
        small = self.dim // 2
        large = self.dim - small
        return (small, large) if index % 2 == 0 else (large, small)

    @staticmethod
    def _affine(network, kept):
        log_scale, shift = tf.split(network(kept), 2, axis=1)
        return 2.0 * tf.tanh(log_scale / 2.0), shift
