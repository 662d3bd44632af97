"""The default discriminator under TensorFlow's graph optimizer."""

import tensorflow as tf

from kgen.nn.adversarial_networks import dcgan_discriminator


def test_the_graph_optimizer_reports_no_failure(capfd):
    """It fails on a convolution with bias, then LeakyReLU, then Flatten."""
    discriminator = dcgan_discriminator((8, 8, 1), None, 4, "spectral")
    weights = [variable.value for variable in discriminator.trainable_variables]

    @tf.function
    def gradients(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = tf.reduce_sum(discriminator(images, training=True))
        return tape.gradient(loss, [images, *weights])

    gradients(tf.ones([2, 8, 8, 1]))
    assert "meta_optimizer" not in capfd.readouterr().err
