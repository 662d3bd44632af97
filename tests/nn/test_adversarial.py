"""Augmentations against their definitions."""

import numpy as np
import pytest
import tensorflow as tf

from kgen.nn import random
from kgen.nn.adversarial import AUGMENTATIONS, augment

IMAGES = np.random.default_rng(0).uniform(-1, 1, (300, 16, 24, 3)).astype(np.float32)
KEYS = random.keys(tf.range(300, dtype=tf.int64), random.STREAM_TRAIN)


def apply(name, images=IMAGES):
    return AUGMENTATIONS[name](tf.constant(images), KEYS).numpy()


def test_color_is_an_affine_map_of_the_pixels_of_an_image():
    """Grey images give the brightness b and the contrast c: mean + b + c (x - mean)."""
    grey = np.repeat(IMAGES[..., :1], 3, axis=3)
    changed = apply("color", grey)
    axes = (1, 2, 3)
    shift = changed.mean(axis=axes) - grey.mean(axis=axes)
    contrast = changed.std(axis=axes) / grey.std(axis=axes)
    assert -0.5 <= shift.min() < -0.45 and 0.45 < shift.max() <= 0.5
    assert 0.5 - 1e-4 <= contrast.min() < 0.55 and 1.45 < contrast.max() <= 1.5 + 1e-4
    # Colours give the saturation, times the contrast.
    changed = apply("color")
    chroma, before = (x - x.mean(axis=3, keepdims=True) for x in (changed, IMAGES))
    saturation = (chroma.std(axis=axes) / before.std(axis=axes)) / contrast
    assert saturation.min() < 0.1 and 1.9 < saturation.max() <= 2.0 + 1e-4


def test_translation_moves_by_up_to_an_eighth_and_fills_with_grey():
    changed = apply("translation")
    shifts = set()
    for before, after in zip(IMAGES, changed, strict=True):
        [(down, right)] = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-3, 4)
            if np.array_equal(after, shifted(before, down, right))
        ]
        shifts.add((down, right))
    assert {down for down, _ in shifts} == set(range(-2, 3))
    assert {right for _, right in shifts} == set(range(-3, 4))


def shifted(image, down, right):
    height, width, _ = image.shape
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    return padded[3 - down :, 3 - right :][:height, :width]


def test_cutout_blanks_a_square_of_half_the_side_that_may_cross_the_edge():
    holes = apply("cutout") == 0
    rows, columns = holes.all(axis=(2, 3)), holes.all(axis=(1, 3))
    inside = holes.all(axis=3).any(axis=2).sum(axis=1)  # rows that the hole touches
    assert inside.max() == 8 and inside.min() >= 4
    assert not rows.any() and not columns.any()
    across = holes.all(axis=3).any(axis=1).sum(axis=1)
    assert across.max() == 12 and across.min() >= 6
    untouched = ~holes
    np.testing.assert_array_equal(apply("cutout")[untouched], IMAGES[untouched])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_row_depends_on_its_key_alone_and_gradients_reach_the_image(name):
    alone = AUGMENTATIONS[name](tf.constant(IMAGES[7:8]), KEYS[7:8])
    np.testing.assert_allclose(alone[0], apply(name)[7], rtol=1e-5, atol=1e-6)
    images = tf.constant(IMAGES[:8])
    with tf.GradientTape() as outer:
        outer.watch(images)
        with tf.GradientTape() as inner:
            inner.watch(images)
            loss = tf.reduce_sum(augment(images, KEYS[:8], (name,)) ** 3)
        gradient = inner.gradient(loss, images)
        penalty = tf.reduce_sum(gradient**2)
    assert np.abs(gradient).sum(axis=(1, 2, 3)).min() > 0
    assert outer.gradient(penalty, images) is not None
