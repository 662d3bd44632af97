"""What `test_layers.py` runs in a process of its own: two logical CPU devices.

Devices must be made before TensorFlow starts. Prints one JSON object: by name, what one
device computes from six rows, and what two compute from two and four of them.
"""

import json

import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

from kgen.nn.layers import BatchNormalization  # noqa: E402

IMAGES = np.random.default_rng(0).normal(1.0, 2.0, (6, 5, 4, 3)).astype(np.float32)


def measure(strategy, shares):
    """Outputs, moving averages and the gradient of the inputs, on these shares."""
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

    dealt = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(shares[context.replica_id_in_sync_group])
    )
    results = tf.function(strategy.run)(step, args=(dealt,))
    outputs, gradients = (
        np.concatenate(strategy.experimental_local_results(result)).tolist()
        for result in results
    )
    averages = [v.numpy().tolist() for v in layer.non_trainable_variables]
    return {"outputs": outputs, "gradients": gradients, "averages": averages}


one = measure(tf.distribute.get_strategy(), [(0, 6)])
two = measure(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), [(0, 2), (2, 6)])
print(json.dumps({name: (one[name], two[name]) for name in one}))
