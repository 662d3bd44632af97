"""Batch normalization on two replicas, for `test_layers.py`."""

import numpy as np
import tensorflow as tf

from kgen.nn.layers import BatchNormalization
from two_replicas import distribute, strategy

IMAGES = np.random.default_rng(0).normal(1.0, 2.0, (6, 5, 4, 3)).astype(np.float32)


def measure(strategy, share):
    """Outputs, moving averages and gradients of the inputs, on a share of the rows."""
    with strategy.scope():
        layer = BatchNormalization(momentum=0.9)
        layer.build(IMAGES.shape)

    def step(share):
        values = tf.constant(IMAGES)[share[0] : share[1]]
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = layer(values, training=True)
            loss = tf.reduce_sum(outputs**3)
        return outputs, tape.gradient(loss, values)

    results = tf.function(strategy.run)(step, args=(share,))
    outputs, gradients = (
        np.concatenate(strategy.experimental_local_results(result)).tolist()
        for result in results
    )
    averages = [v.numpy().tolist() for v in layer.non_trainable_variables]
    return {"outputs": outputs, "gradients": gradients, "averages": averages}


def normalise():
    """By name: the value on one device with six rows, and on two with two and four.

    To be run in a process with two logical CPU devices.
    """
    one = measure(tf.distribute.get_strategy(), tf.constant([0, 6]))
    two = measure(strategy(), distribute(np.array([[0, 2], [2, 6]])))
    return {name: (one[name], two[name]) for name in one}
