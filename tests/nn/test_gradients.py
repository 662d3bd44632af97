"""Recording: the same step on one device and two, in float32 and float16.

All checks take one step of SGD, from weight 1, on the mean of (weight * row)^2 over
the rows 1, 2, 3, 4. By hand: the loss is 7.5 weight^2, since (1 + 4 + 9 + 16) / 4 =
7.5, its gradient at 1 is 15, and at rate 0.1 the weight becomes 1 - 1.5 = -0.5. Clipped
to a norm of 3 it becomes 1 - 0.3 = 0.7.

On two replicas with two rows each the local losses are 2.5 and 12.5 weight^2, with
gradients of 5 and 25: summed 30, one too small and one too large by themselves.
Float16 runs with rows / 8 and rate 6.4: the gradient is 15 / 64 and the step the same.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import processes
from kgen.nn import MeanGradient, gradients
from two_replicas import take_steps

ROWS = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


def step(optimizer, rows=ROWS, estimator=None, dtype="float32", weights=None):
    """One step from weight 1; returns the weight."""
    weight = keras.Variable(1.0)
    optimizer.build([weight])

    with gradients.Recording([weight], optimizer, estimator) as recording:
        outputs = tf.cast(weight.value, dtype) * tf.cast(rows, dtype)
        losses = tf.cast(outputs, tf.float32) ** 2
    recording.minimize(losses, weights)
    return float(weight.value)


def loss_scaled_sgd(rate, initial_scale=1024.0):
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(rate), initial_scale=initial_scale
    )


class Recorder(gradients.GradientEstimator):
    """An estimator that keeps what `transform` is shown, and multiplies it."""

    is_of_whole = True

    def __init__(self, factor=1):
        self.factor = factor

    def transform(self, values, total_weight, step):
        self.seen = [float(value) for value in values]
        return [value * self.factor for value in values]


# -- one device ---------------------------------------------------------------


def test_one_step_by_hand():
    np.testing.assert_allclose(step(keras.optimizers.SGD(0.1)), -0.5, rtol=1e-6)


def test_a_weighted_step_by_hand():
    """Weights 1, 0, 0, 2: the loss is (1 + 2 * 16) / 3 = 11 weight^2, the step -2.2."""
    weights = tf.constant([1.0, 0.0, 0.0, 2.0])
    weight = step(keras.optimizers.SGD(0.1), weights=weights)
    np.testing.assert_allclose(weight, 1 - 2.2, rtol=1e-6)


def test_without_weight_or_variables_nothing_moves():
    assert step(keras.optimizers.SGD(0.1), weights=tf.zeros(4)) == 1
    with gradients.Recording([], keras.optimizers.SGD(0.1)) as recording:
        losses = tf.constant(ROWS)
    recording.minimize(losses)


def test_an_update_inside_a_recording_is_not_part_of_it():
    """First y moves by -0.1 * 2 y to 0.8; then the gradient of y x by x is 0.8."""
    x, y = keras.Variable(1.0), keras.Variable(1.0)
    optimizers = [keras.optimizers.SGD(0.1) for _ in range(2)]
    for optimizer, variable in zip(optimizers, (x, y), strict=True):
        optimizer.build([variable])
    with gradients.Recording([x], optimizers[0]) as outer:
        with gradients.Recording([y], optimizers[1]) as inner:
            inner_loss = y.value**2
        inner.minimize(inner_loss)
        loss = x.value * y.value
    outer.minimize(loss)
    np.testing.assert_allclose([float(x.value), float(y.value)], [0.92, 0.8], rtol=1e-6)


def test_a_transform_sees_and_replaces_the_gradient():
    recorder = Recorder()
    step(keras.optimizers.SGD(0.1), estimator=recorder)
    np.testing.assert_allclose(recorder.seen, [15], rtol=1e-6)
    weight = step(keras.optimizers.SGD(0.1), estimator=Recorder(factor=2))
    np.testing.assert_allclose(weight, 1 - 3, rtol=1e-6)


def test_a_step_in_float16_equals_one_in_float32():
    """Without a loss scale in the tape the step would be 1024 times too small."""
    optimizer = loss_scaled_sgd(6.4)
    weight = step(optimizer, ROWS / 8, dtype="float16")
    np.testing.assert_allclose(weight, -0.5, rtol=1e-3)


def test_small_gradients_survive_float16():
    """The rows are 2^-12 times 1 ... 4, and outputs' gradients 2^-13 times them.

    The products, 2^-25 times 1, 4, 9 and 16, are below float16's smallest number of
    2^-24 or round to few digits; with a scale of 2^15 they are exact.
    """
    rows = ROWS / 2**12
    weight = step(loss_scaled_sgd(0.1 * 2**24, 2.0**15), rows, dtype="float16")
    np.testing.assert_allclose(weight, -0.5, rtol=1e-3)


def test_a_transform_sees_the_unscaled_gradient():
    recorder = Recorder()
    weight = step(loss_scaled_sgd(6.4), ROWS / 8, recorder, "float16")
    np.testing.assert_allclose(recorder.seen, [15 / 64], rtol=1e-3)
    np.testing.assert_allclose(weight, -0.5, rtol=1e-3)


def test_an_overflow_takes_no_step_and_halves_the_scale():
    """2 * 400 * 400 * 1024 / 4 = 8e7 is past float16's largest number of 65,504."""
    for estimator in (None, MeanGradient(1.0)):
        optimizer = loss_scaled_sgd(0.1)
        weight = step(optimizer, ROWS * 100, estimator, "float16")
        assert weight == 1
        assert float(optimizer.dynamic_scale.value) == 512


def test_an_optimizer_may_clip_on_one_device():
    weight = step(keras.optimizers.SGD(0.1, global_clipnorm=3.0))
    np.testing.assert_allclose(weight, 0.7, rtol=1e-6)


def test_clipping_by_the_global_norm_by_hand():
    """The norm of (3, 0; 4) is 5: to reach 2.5 all are halved; 10 is not exceeded."""
    values = [tf.constant([3.0, 0.0]), tf.constant(4.0)]
    clipped = MeanGradient(2.5).transform(values, None, None)
    np.testing.assert_allclose(clipped[0], [1.5, 0])
    np.testing.assert_allclose(clipped[1], 2)
    untouched = MeanGradient(10.0).transform(values, None, None)
    np.testing.assert_allclose(untouched[0], [3, 0])
    np.testing.assert_allclose(untouched[1], 4)


def test_a_step_compiles_under_xla():
    weight = keras.Variable(1.0)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([weight])

    @tf.function(jit_compile=True)
    def compiled():
        clip = MeanGradient(3.0)
        with gradients.Recording([weight], optimizer, clip) as recording:
            losses = (weight.value * ROWS) ** 2
        recording.minimize(losses)

    compiled()
    np.testing.assert_allclose(float(weight.value), 0.7, rtol=1e-6)


# -- two replicas -------------------------------------------------------------


@pytest.fixture(scope="module")
def two_replicas():
    return processes.run(take_steps, devices=2)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("plain", -0.5),
        # Rows 1, 2 | 4: the mean is over three rows, 7 weight^2, and the gradient 14.
        ("uneven", -0.4),
        ("uneven clipped", 0.7),
        ("adam", 0.9),
        ("clipped", 0.7),
        ("float16", -0.5),
        ("float16 clipped", 0.7),
    ],
)
def test_two_replicas_take_the_step_of_one(two_replicas, case, expected):
    """Clipping each part to 3 would leave 2.5 + 3; a summed loss would take 30."""
    np.testing.assert_allclose(two_replicas[case], [expected] * 2, rtol=1e-3)


def test_a_transform_sees_the_gradient_of_the_whole_batch(two_replicas):
    np.testing.assert_allclose(two_replicas["seen"], [15, 15], rtol=1e-6)
    np.testing.assert_allclose(
        two_replicas["seen in float16"], [15 / 64] * 2, rtol=1e-3
    )


def test_an_overflow_on_one_replica_takes_no_step_on_any(two_replicas):
    assert two_replicas["overflow"] == {"weights": [1, 1], "scales": [512, 512]}


@pytest.mark.parametrize("name", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_an_optimizer_that_clips_is_refused_on_two_replicas(two_replicas, name):
    message = two_replicas["refused"][name]
    assert f"Received: {name}=1.0 with 2 replicas" in message
    assert "MeanGradient(clip_norm=...)" in message


def test_noise_is_keyed_by_the_place_in_the_global_batch(two_replicas):
    keys = two_replicas["noise keys"]
    one = keys.pop("one")
    assert len(set(one)) == 4
    for shares, parts in keys.items():
        assert sum(parts, []) == one, shares
    assert [len(part) for part in keys["3 and 1"]] == [3, 1]
