"""The fused Adam against Keras's, and against the formula."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kgen.nn.gradients import Adam

RATES = {"learning_rate": 0.1, "beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3}


def trajectory(optimizer, gradients, start=(1.0, -2.0, 3.0)):
    weight = keras.Variable(np.array(start, np.float32))
    optimizer.build([weight])
    values = []
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), weight)])
        values.append(weight.numpy())
    return np.array(values)


GRADIENTS = np.random.default_rng(0).normal(size=(20, 3))


def test_steps_follow_the_formula():
    moment = velocity = np.zeros(3)
    weight, expected = np.array([1.0, -2.0, 3.0]), []
    for step, gradient in enumerate(GRADIENTS, start=1):
        moment = 0.8 * moment + 0.2 * gradient
        velocity = 0.9 * velocity + 0.1 * gradient**2
        rate = 0.1 * np.sqrt(1 - 0.9**step) / (1 - 0.8**step)
        weight = weight - rate * moment / (np.sqrt(velocity) + 1e-3)
        expected.append(weight)
    found = trajectory(Adam(**RATES), GRADIENTS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amsgrad": True},
        {"weight_decay": 0.1},
        {"clipnorm": 0.5},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
        {"learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 10)},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_every_option_works_as_in_keras(options):
    ours = trajectory(Adam(**RATES | options), GRADIENTS)
    theirs = trajectory(keras.optimizers.Adam(**RATES | options), GRADIENTS)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert np.abs(np.diff(ours, axis=0)).max() > 0.01


def test_the_state_equals_keras_s_and_survives_saving():
    ours, theirs = Adam(**RATES), keras.optimizers.Adam(**RATES)
    trajectory(ours, GRADIENTS), trajectory(theirs, GRADIENTS)
    for mine, other in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(ours)
    )
    assert type(again) is Adam
    assert again.get_config() == ours.get_config()


def test_a_gradient_of_few_rows_updates_all_moments():
    table = keras.Variable(np.ones((3, 2), np.float32))
    optimizer = Adam(0.1)
    optimizer.build([table])
    rows = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([1]), tf.constant([3, 2]))
    optimizer.apply_gradients([(rows, table)])
    np.testing.assert_allclose(table.numpy(), [[1, 1], [0.9, 0.9], [1, 1]], rtol=1e-5)
