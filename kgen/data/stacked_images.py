"""Grey images stacked as the channels of RGB images: data with many known modes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from kgen.data.image_rows import Source, Split
from kgen.nn import random


def stack_channels(
    name: str, splits: Mapping[str, Split], class_names: tuple[str, ...] | None
) -> Source:
    """Stacks three random grey images as the channels of an RGB image.

    A split of n images gives n stacks of images of that split alone. Channel c of stack
    i in split s (0, 1, 2 in the given order) is image h * n // 2**32, where h is number
    c of `bits(keys(0, STREAM_STACK, s, i), (3,))` in `kgen.nn.random`: with
    replacement, each image with probability 1/n (to 2**-32), and the same ones on every
    machine.

    Args:
        name: Name of the stacked data set.
        splits: Grey images, [n, height, width, 1].
        class_names: The names of their k classes, or None without labels.

    Returns:
        Images [n, height, width, 3] in memory, with k**3 classes: images of the classes
        a, b and c make label k * k * a + k * b + c, called by their names in a row.

    Reference: Metz et al., 2017, Unrolled Generative Adversarial Networks; Lin et al.,
    2018, PacGAN: MNIST with 1,000 modes. Papers differ in how many stacks they draw;
    here it is one for each digit of the split.
    """
    stacked = {}
    for index, (split, grey) in enumerate(splits.items()):
        num_rows = grey.images.shape[0]
        with tf.device("CPU:0"):
            rows = tf.range(num_rows, dtype=tf.int64)
            keys = random.keys(0, random.STREAM_STACK, index, rows)
            noise = random.bits(keys, (3,)).numpy()
        drawn = (noise * num_rows // 2**32).T  # [channels, rows]
        labels = None
        if grey.labels is not None and class_names is not None:
            digits = grey.labels[drawn]  # [channels, rows]
            k = len(class_names)
            labels = digits[0] * k * k + digits[1] * k + digits[2]  # stays int32
        images = np.concatenate([grey.images[numbers] for numbers in drawn], axis=-1)
        stacked[split] = Split(images=images, labels=labels)
    names = None
    if class_names is not None:
        names = tuple(map("".join, itertools.product(class_names, repeat=3)))
    return Source(name=name, splits=stacked, class_names=names)
