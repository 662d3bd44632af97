"""Feature spaces: fixed networks that map images to vectors."""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from kgen.evaluation.blocks import row_blocks
from kgen.models.shared.signatures import trace
from kgen.models.shared.specs import ImageSpec
from kgen.nn import random
from kgen.nn.layers import layers_of_policy

DIGIT_WEIGHTS = Path(__file__).with_name("kgen_mnist_v1.npz")
DIGIT_WEIGHTS_SHA256 = (
    "408befb1791827c85200b4cad95d1bf8b4606a51912c5376665fff473329a65f"
)
DIGIT_SIZE = (28, 28)
NUM_DIGITS = 10
NUM_FEATURES = 64

RANDOM_SEED = 2020
# Chosen so that the distance grows with blur, noise and missing classes on digits,
# clothes and faces, as the tests check. A grid keeps positions; 16 features of a level
# are as many as its cells, so that they are linearly independent for grey images.
_GRID = 4
_LEVEL_DIM = 16
_CHANNELS = 32
_GAIN = 2.0  # keeps the variance of handwritten digits similar on all levels

_BLOCK_ROWS = 250  # bounds the memory: 250 faces of 64x64 take 130 MB a level


class DigitClassifier:
    """`kgen-mnist-v1`: features and classes of handwritten digits.

    A small convolutional network, trained on MNIST's 55,000 training images by
    `benchmarks/train_digit_classifier.py`; its accuracy on the 10,000 test images is
    99.42 %. The features are its penultimate layer before the activation, which has no
    dead units, each of variance 1 over the (augmented) training images.

    Args:
        weights: The file with its weights.

    Raises:
        ValueError: The file does not belong to this version of kgen: features of other
            weights would be another space under the same name.

    Example:
        >>> features, probabilities = DigitClassifier().predict(images)
    """

    name = "kgen-mnist-v1"

    def __init__(self, weights: Path = DIGIT_WEIGHTS):
        content = weights.read_bytes()
        received = hashlib.sha256(content).hexdigest()
        if received != DIGIT_WEIGHTS_SHA256:
            raise ValueError(
                f"The weights of {self.name} must have the SHA-256 "
                f"{DIGIT_WEIGHTS_SHA256}. Received: {weights} with {received}. Install "
                "kgen again."
            )
        network = digit_network()
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            network.set_weights([arrays[name] for name in arrays.files])

        def classify(images):
            # [n, h, w, channels] -> [n * channels, h, w, 1]
            single = tf.reshape(
                tf.transpose(images, [0, 3, 1, 2]), [-1, *DIGIT_SIZE, 1]
            )
            features, logits = network(single, training=False)
            num_rows, channels = tf.shape(images)[0], tf.shape(images)[3]
            features = tf.reshape(features, [num_rows, channels * NUM_FEATURES])
            logits = tf.reshape(logits, [num_rows, channels, NUM_DIGITS])
            return {"features": features, "probabilities": tf.nn.softmax(logits)}

        specification = tf.TensorSpec([None, *DIGIT_SIZE, None], tf.float32)
        self._graph = trace(classify, images=specification)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features, and the probabilities of the ten digits.

        Each channel is classified on its own; the features are concatenated.

        Shapes:
            images: [n, 28, 28, channels], uint8 or float in [0, 1] -> float32 features
            [n, 64 * channels] and probabilities [n, channels, 10]

        Raises:
            ValueError: On images of another shape, or values outside [0, 1].
        """
        shape = (*DIGIT_SIZE, images.shape[-1])
        found = _outputs(self._graph, images, ImageSpec(*shape))
        return found["features"], found["probabilities"]


class RandomNetwork:
    """`kgen-random-v1`: features of images of any kind by random filters.

    On several levels, the first of the size of the image and each next one half as
    large, until a side is 4 or less: 32 random filters of zero mean, and the absolute
    values of their outputs. The features are 16 random mixtures of the cells of a 4x4
    grid, of each level and of the image. The weights come from kgen's counter-based
    generator, the same bits everywhere, and depend on no data.

    Example:
        >>> features, _ = RandomNetwork().predict(images)

    Reference:
        Naeem et al., 2020, Reliable Fidelity and Diversity Metrics for Generative
        Models, section 5, on random embeddings (theirs is a VGG16); Bruna and Mallat,
        2013, on the modulus of filters over scales.
    """

    name = "kgen-random-v1"

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, None]:
        """Return features, and None for the probabilities of classes.

        Shapes:
            images: [n, height, width, 1 or 3], uint8 or float in [0, 1] -> float32
            [n, 16 * (1 + levels)]: 48 numbers of 8x8 pixels, 80 of 28x28, 96 of 64x64

        Raises:
            ValueError: On images of another shape, or values outside [0, 1].
        """
        shape = images.shape[1:]
        if len(shape) != 3 or shape[2] not in (1, 3):
            raise ValueError(
                "`images` must have the shape [n, height, width, 1 or 3]. Received: "
                f"{images.shape}."
            )
        found = _outputs(_random_graph(shape), images, ImageSpec(*shape))
        return found["features"], None


def digit_network() -> keras.Model:
    """Return the network of `kgen-mnist-v1`, untrained and in float32.

    Shapes:
        images: [n, 28, 28, 1], float32 in [0, 1] -> features [n, 64], logits [n, 10]
    """
    with layers_of_policy(keras.DTypePolicy("float32")):
        images = keras.Input((*DIGIT_SIZE, 1))
        hidden = images
        for filters, strides in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 2)):
            conv = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)
            hidden = layers.BatchNormalization()(conv(hidden))
            hidden = layers.Activation("swish")(hidden)
        hidden = layers.Dropout(0.3)(layers.Flatten()(hidden))
        features = layers.Dense(NUM_FEATURES, use_bias=False)(hidden)
        features = layers.BatchNormalization(center=False, scale=False)(features)
        logits = layers.Dense(NUM_DIGITS)(layers.Activation("swish")(features))
        return keras.Model(images, [features, logits], name="kgen_mnist_v1")


@functools.cache
def _random_graph(shape: tuple[int, ...]) -> Callable[..., dict[str, tf.Tensor]]:
    """The graph of `_random_features` for images of a shape."""
    return trace(_random_features, images=tf.TensorSpec([None, *shape], tf.float32))


def _random_features(images: tf.Tensor) -> dict[str, tf.Tensor]:
    """The features of `kgen-random-v1`: [n, h, w, 1 or 3] -> [n, 16 * (1 + levels)]."""
    if images.shape[-1] == 1:
        images = tf.repeat(images, 3, axis=-1)  # as the same image in RGB
    features = [_grid_mixtures(images, level=0)]
    halvings = max(math.ceil(math.log2(min(images.shape[1:3]) / _GRID)), 0)
    hidden = images
    for level in range(1, halvings + 2):
        if level > 1:
            hidden = tf.nn.avg_pool2d(hidden, 2, 2, "SAME")
        filters = random_weights(2 * level, (3, 3, hidden.shape[-1], _CHANNELS))
        filters -= filters.mean(axis=(0, 1))
        filters *= _GAIN / math.sqrt(9 * hidden.shape[-1])
        padded = tf.pad(hidden, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        hidden = tf.abs(tf.nn.conv2d(padded, filters, 1, "VALID"))
        features.append(_grid_mixtures(hidden, level))
    return {"features": tf.concat(features, axis=1)}


def _grid_mixtures(hidden: tf.Tensor, level: int) -> tf.Tensor:
    """Random mixtures of the means of grid cells: [n, h, w, c] -> [n, 16]."""
    cells = tf.image.resize(hidden, (_GRID, _GRID), tf.image.ResizeMethod.AREA)
    size = _GRID * _GRID * hidden.shape[-1]
    mixing = random_weights(2 * level + 1, (size, _LEVEL_DIM)) / math.sqrt(size)
    return tf.reshape(cells, [-1, size]) @ mixing  # [n, 4, 4, c] -> [n, 16 * c]


def random_weights(layer: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return weights of mean 0 and variance 1, the same bits everywhere: float32."""
    with tf.init_scope():  # numbers now, not operations of the graph
        uniform = random.uniform(random.keys(RANDOM_SEED, layer)[None], shape)[0]
        return (uniform.numpy() - np.float32(0.5)) * np.float32(math.sqrt(12.0))


def _outputs(
    graph: Callable[..., dict[str, tf.Tensor]], images: np.ndarray, spec: ImageSpec
) -> dict[str, np.ndarray]:
    """Check images, and compute their outputs in blocks, to bound the memory."""
    blocks = []
    for rows in row_blocks(max(len(images), 1), _BLOCK_ROWS):
        block = spec.cast(spec.check("images", images[rows]))
        blocks.append(graph(images=tf.constant(block)))
    return {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
