"""Gradients clipped by example, against a loop over the rows.

The linear model is y = x w + b with the loss (y - t)^2 / 2: the gradient of a row is
(y - t) (x, 1), and its norm |y - t| sqrt(|x|^2 + 1).
"""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kgen
import processes
from kgen.models import GPT, VAE, MultVAE
from kgen.nn import MeanGradient, PerExampleGradient, gradients
from two_replicas import clipped_linear_steps

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(6, 3)).astype(np.float32)
TARGETS = 3 * RNG.normal(size=6).astype(np.float32)
KERNEL, BIAS = np.float32([0.5, -1.0, 0.25]), np.float32(0.125)


def clipped_step(clip_norm, weights=None, total=None):
    """Kernel and bias after a step of SGD at rate 1 on the linear model, by hand."""
    weights = np.ones(6, np.float32) if weights is None else weights
    errors = INPUTS @ KERNEL + BIAS - TARGETS
    by_row = errors[:, None] * np.c_[INPUTS, np.ones(6)]
    norms = np.linalg.norm(by_row, axis=1, keepdims=True)
    assert norms.min() < 3 < norms.max()
    clipped = by_row * np.minimum(1, clip_norm / norms)
    step = (weights[:, None] * clipped).sum(axis=0) / (total or weights.sum())
    return np.r_[KERNEL, BIAS] - step


def gradients_of(network, loss_of, estimator, *, weights=None, dtype=None):
    """Gradients of a network's variables that an estimator gives to the optimizer."""
    variables = network.trainable_variables
    optimizer = keras.optimizers.SGD(1.0)
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**8)
    optimizer.build(variables)
    before = [variable.numpy() for variable in variables]
    recording = gradients.Recording(
        variables, optimizer, estimator, network._flatten_layers()
    )

    def step():
        with recording:
            losses = loss_of(network)
        recording.minimize(losses, weights)

    step()
    after = [variable.numpy() for variable in variables]
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return [old - new for old, new in zip(before, after, strict=True)]


# -- the linear model ----------------------------------------------------------------


def linear(dtype="float32"):
    network = keras.Sequential([layers.Dense(1, dtype=dtype)])
    network.build((None, 3))
    network.set_weights([KERNEL[:, None], BIAS[None]])
    return network


def squared_errors(network, rows=slice(None)):
    outputs = tf.cast(network(INPUTS[rows])[:, 0], tf.float32)
    return 0.5 * (outputs - TARGETS[rows]) ** 2


@pytest.mark.parametrize("clip_norm", [3.0, 1e6])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-6), ("mixed_float16", 4e-3)]
)
def test_the_clipped_gradient_of_a_linear_model_by_hand(dtype, tolerance, clip_norm):
    estimator = PerExampleGradient(clip_norm)
    network = linear(dtype)
    step = gradients_of(network, squared_errors, estimator, dtype=dtype)
    expected = np.r_[KERNEL, BIAS] - clipped_step(clip_norm)
    np.testing.assert_allclose(
        np.concatenate([step[0][:, 0], step[1]]), expected, atol=tolerance
    )


def test_rows_count_with_their_weights():
    weights = np.float32([1, 0, 2, 1, 0.5, 3])
    step = gradients_of(
        linear(), squared_errors, PerExampleGradient(3.0), weights=tf.constant(weights)
    )
    expected = np.r_[KERNEL, BIAS] - clipped_step(3.0, weights)
    np.testing.assert_allclose(
        np.concatenate([step[0][:, 0], step[1]]), expected, atol=1e-6
    )


def test_weights_are_cut_off_at_the_largest():
    weights = np.float32([1, 0, 2, 1, 0.5, 3])
    estimator = PerExampleGradient(1e-3, max_weight=1.5)
    step = gradients_of(
        linear(), squared_errors, estimator, weights=tf.constant(weights)
    )
    cut = np.minimum(weights, 1.5)
    expected = np.r_[KERNEL, BIAS] - clipped_step(1e-3, cut, total=weights.sum())
    np.testing.assert_allclose(
        np.concatenate([step[0][:, 0], step[1]]), expected, atol=1e-7
    )


@pytest.fixture(scope="module")
def on_two_replicas():
    arrays = (INPUTS, TARGETS, KERNEL, BIAS)
    return processes.run(clipped_linear_steps, arrays, devices=2)


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [("float32", 1e-6), ("mixed_float16", 4e-3), ("uneven", 1e-6)],
)
def test_two_replicas_clip_as_one_device(on_two_replicas, case, tolerance):
    for copy in on_two_replicas[case]:
        np.testing.assert_allclose(copy, clipped_step(3.0), atol=tolerance)


def test_two_replicas_add_the_noise_of_one_device(on_two_replicas):
    estimator = PerExampleGradient(3.0, 1.0, (5, 6), max_weight=1.0)
    step = gradients_of(linear(), squared_errors, estimator)
    expected = np.r_[KERNEL, BIAS] - np.concatenate([step[0][:, 0], step[1]])
    first, second = on_two_replicas["noise"]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, expected, atol=1e-6)


# -- other layers --------------------------------------------------------------------


class Scaled(layers.Layer):
    """A layer whose weight multiplies what a dense layer of its own returns."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4, activation="tanh")

    def build(self, shape):
        self.dense.build(shape)
        self.scale = self.add_weight(shape=(4,), initializer="ones")

    def call(self, inputs):
        return self.scale * self.dense(inputs)


def dense_network():
    shared = layers.Dense(5, activation="gelu")
    inputs = keras.Input((5,))
    hidden = shared(shared(inputs))
    return keras.Model(inputs, layers.Dense(2, use_bias=False)(hidden)), (5,)


def conv_network():
    stack = [
        layers.Conv2D(4, 3, strides=2, padding="same", activation="gelu"),
        layers.Conv2D(4, 3, dilation_rate=2, padding="same", use_bias=False),
        layers.Conv2D(4, 2, groups=2, activation="relu"),
        layers.Conv2DTranspose(3, 3, strides=2),
        layers.GroupNormalization(3),
        layers.Flatten(),
        layers.Dense(2),
    ]
    return keras.Sequential([keras.Input((6, 6, 2)), *stack]), (6, 6, 2)


def sequence_network():
    inputs = keras.Input((7, 4))
    hidden = layers.LayerNormalization()(layers.Dense(6)(inputs))
    hidden = layers.MultiHeadAttention(2, 3)(hidden, hidden)
    return keras.Model(inputs, layers.Dense(2)(hidden)), (7, 4)


def custom_network():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(Scaled()(inputs))), (4,)


def recurrent_network():
    inputs = keras.Input((5, 3))
    return keras.Model(inputs, layers.Dense(2)(layers.GRU(4)(inputs))), (5, 3)


NETWORKS = (dense_network, conv_network, sequence_network, custom_network)


def compare_with_a_loop(network, loss_of_rows, num_rows, micro_batch=2, tolerance=1e-5):
    """Asserts that an estimator agrees with clipping the rows one after the other."""
    norms, by_row = [], []
    for row in range(num_rows):
        one = functools.partial(loss_of_rows, rows=slice(row, row + 1))
        gradient = gradients_of(network, one, MeanGradient())
        by_row.append(gradient)
        norms.append(np.sqrt(sum((part**2).sum() for part in gradient)))
    clip_norm = float(np.median(norms))
    factors = [min(1.0, clip_norm / norm) for norm in norms]
    expected = [
        sum(f * part for f, part in zip(factors, parts, strict=True)) / num_rows
        for parts in zip(*by_row, strict=True)
    ]
    estimator = PerExampleGradient(clip_norm, micro_batch=micro_batch)
    found = gradients_of(network, loss_of_rows, estimator)
    largest = max(abs(part).max() for part in expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * largest)


@pytest.mark.parametrize(
    ("make", "micro_batch"),
    [*itertools.product(NETWORKS, (2, 32)), (recurrent_network, 32)],
)
def test_the_sum_is_that_of_a_loop_over_rows(make, micro_batch):
    keras.utils.set_random_seed(0)
    network, shape = make()
    images = RNG.normal(size=(5, *shape)).astype(np.float32)

    def losses(network, rows=slice(None)):
        squares = network(images[rows]) ** 2
        return tf.reduce_sum(tf.reshape(squares, [len(squares), -1]), axis=1)

    compare_with_a_loop(network, losses, 5, micro_batch)


def test_embeddings_of_tokens():
    keras.utils.set_random_seed(0)
    tokens = RNG.integers(0, 6, (5, 7))
    inputs = keras.Input((7,), dtype="int32")
    network = keras.Model(inputs, layers.Dense(6)(layers.Embedding(6, 4)(inputs)))

    def losses(network, rows=slice(None)):
        targets = tf.constant(tokens[rows])
        return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, network(targets))

    compare_with_a_loop(network, losses, 5)


@pytest.mark.parametrize(
    ("make", "rows", "jit_compile"),
    [
        (conv_network, 5, False),
        (conv_network, None, False),
        (conv_network, 5, True),
        pytest.param(recurrent_network, None, False, marks=pytest.mark.slow),
    ],
)
def test_a_graph_computes_as_python_does(make, rows, jit_compile):
    keras.utils.set_random_seed(0)
    network, shape = make()
    images = RNG.normal(size=(5, *shape)).astype(np.float32)
    estimator = PerExampleGradient(0.01, micro_batch=2)

    def losses(network, images=images):
        return tf.reduce_sum(network(images) ** 2, axis=1)

    expected = gradients_of(network, losses, estimator)
    before = network.get_weights()
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(network.trainable_variables)

    @tf.function(
        jit_compile=jit_compile, input_signature=[tf.TensorSpec([rows, *shape])]
    )
    def step(images):
        with gradients.Recording(
            network.trainable_variables, optimizer, estimator, network._flatten_layers()
        ) as recording:
            values = losses(network, images)
        recording.minimize(values)

    step(images)
    for old, new, one in zip(before, network.get_weights(), expected, strict=True):
        np.testing.assert_allclose(old - new, one, atol=1e-7)


# -- models --------------------------------------------------------------------------

IMAGES = RNG.random((5, 8, 8, 1)).astype(np.float32)
LENGTHS = np.array([[9], [4], [2], [9], [6]])
TOKENS = np.where(np.arange(9) < LENGTHS, RNG.integers(0, 7, (5, 9)), -1).astype(
    np.int32
)
SMALL = {"image_shape": (8, 8, 1), "latent_dim": 3}
TRANSFORMER = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "context": 8}
MODELS = {
    "vae": (lambda: VAE(**SMALL, network="mlp", hidden_units=(9,)), IMAGES),
    "conv vae": (lambda: VAE(**SMALL, network="conv", base_channels=4), IMAGES),
    "iwae": (lambda: VAE(**SMALL, network="mlp", num_importance_samples=3), IMAGES),
    "learned variance": (lambda: VAE(**SMALL, likelihood="gaussian"), IMAGES),
    "flow": (lambda: VAE(**SMALL, network="mlp", prior="flow"), IMAGES),
    "gpt": (lambda: GPT(vocab_size=7, **TRANSFORMER), TOKENS),
    "learned positions": (
        lambda: GPT(vocab_size=7, positions="learned", **TRANSFORMER),
        TOKENS,
    ),
    "multvae": (
        lambda: MultVAE(item_ids=range(9), hidden_units=(6,), latent_dim=3),
        tf.ragged.constant([[0, 3], [1], [2, 4, 8], [5], [0, 1, 2]], tf.int32),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_clip_the_gradient_of_each_row(name):
    keras.utils.set_random_seed(0)
    make, data = MODELS[name]
    model = make()

    def step(estimator, weights):
        """Decrease of the variables by a step at rate 1, with these weights of rows."""
        before = [v.numpy() for v in model.trainable_variables]
        model.compile(keras.optimizers.SGD(1.0), estimator=estimator)
        name = next(iter(model.batch_specs))
        model.train_step(
            {name: tf.identity(data), "sample_weight": tf.identity(weights)}
        )
        taken = [
            old - v.numpy()
            for old, v in zip(before, model.trainable_variables, strict=True)
        ]
        for old, variable in zip(before, model.trainable_variables, strict=True):
            variable.assign(old)
        model.step.assign(0)
        return taken

    by_row = [
        step(MeanGradient(), np.eye(5, dtype=np.float32)[row]) for row in range(5)
    ]
    norms = [np.sqrt(sum((part**2).sum() for part in parts)) for parts in by_row]
    shares = np.ones(5)
    if data is TOKENS:
        shares = (TOKENS[:, 1:] >= 0).sum(axis=1)
    shares = shares / shares.sum()
    clip_norm = float(np.median(norms))
    factors = shares * np.minimum(1, clip_norm / np.array(norms))
    expected = [np.tensordot(factors, parts, 1) for parts in zip(*by_row, strict=True)]
    found = step(PerExampleGradient(clip_norm, micro_batch=2), np.ones(5, np.float32))
    largest = max(abs(part).max() for part in expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * largest)


# -- noise, types and errors ---------------------------------------------------------


def test_noise_has_the_stated_deviation_and_follows_from_seed_and_step():
    estimator = PerExampleGradient(2.0, 1.5, (1, 2), max_weight=3.0)
    zeros = [tf.zeros([20_000]), tf.zeros([20_000])]

    def noise(step, estimator=estimator):
        return np.stack(estimator.transform(zeros, tf.constant(6.0), tf.constant(step)))

    found = noise(0)
    # The deviation of a sample deviation is 1 / sqrt(2 n), here 0.0035.
    np.testing.assert_allclose(found.std(), 2.0 * 1.5 * 3.0 / 6.0, rtol=0.015)
    assert abs(np.corrcoef(found)[0, 1]) < 0.03
    np.testing.assert_array_equal(found, noise(0))
    assert abs(np.corrcoef(found[0], noise(1)[0])[0, 1]) < 0.03
    other = PerExampleGradient(2.0, 1.5, (1, 3), max_weight=3.0)
    assert abs(np.corrcoef(found[0], noise(0, other)[0])[0, 1]) < 0.03


def test_an_overflow_takes_no_step():
    network = linear("mixed_float16")
    variables = network.trainable_variables
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), 2.0**15)
    optimizer.build(variables)
    with gradients.Recording(
        variables, optimizer, PerExampleGradient(1.0), network._flatten_layers()
    ) as recording:
        losses = 1e3 * squared_errors(network)
    recording.minimize(losses)
    np.testing.assert_array_equal(network.get_weights()[0][:, 0], KERNEL)
    assert float(optimizer.dynamic_scale.value) == 2.0**14


def test_statistics_of_a_batch_are_refused():
    network = keras.Sequential([keras.Input((3,)), layers.BatchNormalization()])
    with pytest.raises(ValueError, match="updates a statistic of the batch.*Take"):
        gradients_of(
            network,
            lambda network: tf.reduce_sum(network(INPUTS, training=True), axis=1),
            PerExampleGradient(1.0),
        )


def test_variables_that_cannot_be_clipped_are_refused():
    whole = keras.Variable([1, 2], dtype="int32")
    optimizer = keras.optimizers.SGD(1.0)
    with pytest.raises(ValueError, match="float variables. Received: .* of int32"):
        with gradients.Recording([whole], optimizer, PerExampleGradient(1.0)):
            pass


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"clip_norm": 0.0}, "`clip_norm` must be above 0"),
        ({"clip_norm": float("nan")}, "`clip_norm` must be above 0"),
        ({"clip_norm": 1.0, "noise_multiplier": -1.0}, "`noise_multiplier` must be 0"),
        ({"clip_norm": 1.0, "noise_multiplier": 1.0}, "`max_weight` must be given"),
        ({"clip_norm": 1.0, "micro_batch": 0}, "`micro_batch` must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, rule):
    with pytest.raises(ValueError, match=rule):
        PerExampleGradient(**options)


def test_an_estimator_is_saved_with_a_model(tmp_path):
    model = VAE(**SMALL, network="mlp")
    estimator = PerExampleGradient(2.0, 1.0, (1, 2**60), max_weight=1.0)
    model.compile(estimator=estimator)
    model.save(tmp_path / "model.keras")
    assert kgen.load(tmp_path / "model.keras").estimator == estimator
