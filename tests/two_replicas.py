"""Steps of optimizers on two replicas, for `test_gradients.py`.

To be run in a process with two logical CPU devices.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from kgen.models.shared.model import GenerativeModel
from kgen.nn import MeanGradient, PerExampleGradient, gradients, random

# The loss is the mean of (weight * row)^2 over [1, 2 | 3, 4]: see test_gradients.py.
ROWS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
EVEN = np.ones([2, 2], np.float32)


@functools.cache
def strategy():
    """Two devices; made when first used, since TensorFlow's runtime starts here."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def distribute(values):
    """Gives each replica its row of an array."""
    return strategy().experimental_distribute_values_from_function(
        lambda context: tf.constant(values[context.replica_id_in_sync_group])
    )


def step(optimizer, rows=ROWS, estimator=None, dtype="float32", weights=EVEN):
    """One step from weight 1: the weight on each replica, afterwards."""
    with strategy().scope():
        weight = keras.Variable(1.0)
        optimizer.build([weight])

    def replica_step(rows, weights):
        with gradients.Recording([weight], optimizer, estimator) as recording:
            outputs = tf.cast(weight.value, dtype) * tf.cast(rows, dtype)
            losses = tf.cast(outputs, tf.float32) ** 2
        recording.minimize(losses, weights)

    arguments = (distribute(rows), distribute(weights))
    tf.function(strategy().run)(replica_step, args=arguments)
    return copies(weight.value)


def copies(variable):
    """A variable's value on each replica."""
    return [float(copy) for copy in strategy().experimental_local_results(variable)]


def sgd(**options):
    with strategy().scope():
        return keras.optimizers.SGD(0.1, **options)


def adam():
    with strategy().scope():
        return gradients.Adam(0.1)


def loss_scaled_sgd(rate):
    with strategy().scope():
        return keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(rate), initial_scale=1024.0
        )


def seen_by(optimizer, **options):
    """The gradients that `transform` is shown, one of each replica."""
    with strategy().scope():
        seen = tf.Variable(
            0.0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    class Seeing(gradients.GradientEstimator):
        is_of_whole = True

        def transform(self, values, total_weight, step):
            seen.assign(values[0])
            return values

    step(optimizer, estimator=Seeing(), **options)
    return copies(seen)


def refusal(optimizer):
    try:
        step(optimizer)
    except ValueError as error:
        return str(error)
    return "taken"


def overflow():
    optimizer = loss_scaled_sgd(0.1)
    # On the second replica alone: 2 * 300 * 300 * 1024 / 4 is past float16's 65,504.
    weights = step(optimizer, ROWS * [[1e-3], [100]], dtype="float16")
    return {"weights": weights, "scales": copies(optimizer.dynamic_scale.value)}


def keys_of_one_device():
    model = GenerativeModel()
    return model.noise_keys(ROWS.ravel(), random.STREAM_TRAIN).numpy().tolist()


def noise_keys():
    """Keys of a model's noise for four rows: on one device, and dealt to two replicas.

    How many rows a replica has is known when the step is traced, or, as in a last,
    incomplete batch, only when it runs.
    """
    with strategy().scope():
        model = GenerativeModel()

    def keys_of(rows):
        return model.noise_keys(rows, random.STREAM_TRAIN)

    def keys_of_some(taken):
        return keys_of(tf.boolean_mask(taken, taken))

    def on_two(function, values):
        keys = tf.function(strategy().run)(function, args=(distribute(values),))
        parts = strategy().experimental_local_results(keys)
        return [part.numpy().tolist() for part in parts]

    def first(*shares):
        return np.arange(4) < np.array(shares)[:, None]

    return {
        "one": keys_of_one_device(),
        "traced": on_two(keys_of, ROWS),
        "2 and 2": on_two(keys_of_some, first(2, 2)),
        "3 and 1": on_two(keys_of_some, first(3, 1)),
        "4 and 0": on_two(keys_of_some, first(4, 0)),
    }


def take_steps():
    """Results by the name of the case."""
    clip = MeanGradient(3.0)
    small = ROWS / 8
    return {
        "plain": step(sgd()),
        "uneven": step(sgd(), weights=np.array([[1, 1], [0, 1]], np.float32)),
        "uneven clipped": step(
            sgd(),
            weights=np.array([[1, 1], [0, 1]], np.float32),
            estimator=clip,
        ),
        "adam": step(adam()),
        "clipped": step(sgd(), estimator=clip),
        "float16": step(loss_scaled_sgd(6.4), small, dtype="float16"),
        "float16 clipped": step(
            loss_scaled_sgd(6.4),
            small,
            dtype="float16",
            estimator=MeanGradient(3.0 / 64),
        ),
        "overflow": overflow(),
        "seen": seen_by(sgd()),
        "seen in float16": seen_by(loss_scaled_sgd(6.4), rows=small, dtype="float16"),
        "refused": {
            name: refusal(sgd(**{name: 1.0}))
            for name in ("clipnorm", "clipvalue", "global_clipnorm")
        },
        "noise keys": noise_keys(),
    }


def clipped_linear_steps(arrays):
    """Kernel and bias on each replica, by case: see test_per_example.py."""
    inputs, targets, kernel, bias = arrays

    def parts(values, uneven):
        rows = [values[:4], values[4:]] if uneven else [values[:3], values[3:]]
        return strategy().experimental_distribute_values_from_function(
            lambda context: tf.constant(rows[context.replica_id_in_sync_group])
        )

    def step(dtype="float32", uneven=False, **options):
        estimator = PerExampleGradient(3.0, **options)
        with strategy().scope():
            network = keras.Sequential([keras.layers.Dense(1, dtype=dtype)])
            network.build((None, len(kernel)))
            network.set_weights([kernel[:, None], bias[None]])
            optimizer = keras.optimizers.SGD(1.0)
            if dtype != "float32":
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**8)
            optimizer.build(network.trainable_variables)

        def replica_step(inputs, targets):
            with gradients.Recording(
                network.trainable_variables,
                optimizer,
                estimator,
                network._flatten_layers(),
            ) as recording:
                outputs = tf.cast(network(inputs)[:, 0], tf.float32)
                losses = 0.5 * (outputs - targets) ** 2
            recording.minimize(losses)

        rows = (parts(inputs, uneven), parts(targets, uneven))
        tf.function(strategy().run)(replica_step, args=rows)
        each = [
            strategy().experimental_local_results(variable.value)
            for variable in network.trainable_variables
        ]
        return [
            np.r_[kernel.numpy()[:, 0], bias.numpy()]
            for kernel, bias in zip(*each, strict=True)
        ]

    noise = {"noise_multiplier": 1.0, "noise_seed": (5, 6), "max_weight": 1.0}
    return {
        "float32": step(),
        "mixed_float16": step("mixed_float16"),
        "uneven": step(uneven=True),
        "noise": step(**noise),
    }
