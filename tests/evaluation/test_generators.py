"""Generators of images: what is compared with what, and what a bad one looks like."""

import numpy as np
import pytest

import kgen.data
from kgen.evaluation import evaluate_generator, frechet_distance
from kgen.evaluation.feature_spaces import RandomNetwork
from kgen.evaluation.generators import _modes_and_divergence, independent_pixels


class Replay:
    """Returns images of a set as if it had generated them."""

    num_classes = None

    def __init__(self, images):
        self.images = images
        self.image_shape = images.shape[1:]
        self.calls = []

    def generate(self, seeds, labels=None):
        self.calls.append((list(seeds), labels))
        rows = np.asarray(seeds) % len(self.images)
        return self.images[rows].astype(np.float32) / 255.0


@pytest.fixture(scope="module")
def digits():
    return kgen.data.open_images("digits")


def images_of(image_set, split):
    batches = image_set.pipeline(split, batch_size=1000).dataset()
    return np.concatenate([b["images"] for b in batches.as_numpy_iterator()])


def measure(model, image_set, **options):
    records = evaluate_generator(model, image_set, num_sets=1, **options)
    return {record.metric.split("[")[0]: record for record in records}


def test_real_images_are_at_the_floor_and_worse_ones_above_it(digits):
    rng = np.random.default_rng(0)
    train = rng.permutation(images_of(digits, "train"))
    noisy = np.clip(train + rng.normal(0, 60, train.shape), 0, 255).astype(np.uint8)
    results = [
        measure(Replay(images), digits)
        for images in (train, noisy, independent_pixels(train))
    ]
    distances = [result["frechet_distance"].value for result in results]
    floor = results[0]["frechet_distance_floor"].value
    assert distances[0] < 1.5 * floor < distances[1] < distances[2]
    coverage = [result["coverage"].value for result in results]
    assert coverage[0] > 0.9 > coverage[1] > coverage[2]


def test_one_image_for_all_covers_next_to_nothing(digits):
    # Not of the split that is measured on: it would be found again, at distance 0.
    one = images_of(digits, "train")[:1]
    found = measure(Replay(one), digits)
    assert found["coverage"].value < 0.1
    assert found["recall"].value == 0.0  # Its balls have no radius.


def test_the_distance_is_that_of_the_features_of_these_seeds(digits):
    model = Replay(images_of(digits, "train"))
    found = measure(model, digits, split="test")
    assert [seeds for seeds, _ in model.calls][0] == list(range(179))
    space = RandomNetwork()
    expected = frechet_distance(
        space.predict(images_of(digits, "test"))[0],
        space.predict(model.images[:179])[0],
    )
    record = found["frechet_distance"]
    assert record.value == pytest.approx(expected, rel=1e-5)
    assert record.n == 179
    assert "seeds 0 to 178" in record.protocol


def test_a_conditional_model_gets_the_labels_of_the_real_images(digits):
    model = Replay(images_of(digits, "train"))
    model.num_classes = 10
    measure(model, digits, num_images=50)
    seeds, labels = model.calls[0]
    assert len(seeds) == len(labels) == 50


def test_few_images_leave_out_what_needs_many_and_say_so(digits):
    found = measure(Replay(images_of(digits, "train")), digits, num_images=20)
    assert set(found) == {
        "frechet_distance",
        "frechet_distance_floor",
        "sampling_speed",
    }
    assert "100 images are needed" in found["sampling_speed"].protocol


def test_modes_and_divergence_by_hand():
    # Two of three modes, 3 to 1, against shares of 1/2, 1/4, 1/4.
    modes, divergence = _modes_and_divergence(np.array([3, 1, 0]), np.array([2, 1, 1]))
    assert modes == 2
    assert divergence == pytest.approx(0.75 * np.log(1.5))


def test_independent_pixels_keep_every_pixels_values(digits):
    images = images_of(digits, "test")
    mixed = independent_pixels(images)
    np.testing.assert_array_equal(np.sort(mixed, axis=0), np.sort(images, axis=0))
    assert not np.array_equal(mixed, images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images"),
        ({"feature_space": "inception"}, "kgen-random-v1"),
        ({"split": "all"}, "split"),
    ],
)
def test_wrong_arguments_are_refused(digits, options, message):
    model = Replay(images_of(digits, "test"))
    with pytest.raises(ValueError, match=message):
        evaluate_generator(model, digits, **options)


def test_a_model_of_another_shape_is_refused(digits):
    with pytest.raises(ValueError, match="one shape"):
        evaluate_generator(Replay(np.zeros([2, 4, 4, 1], np.uint8)), digits)
