"""The evaluation of generators: models that make known images, and every record."""

import math

import keras
import numpy as np
import pytest

import kgen.data
from kgen.evaluation import evaluate_generator, frechet_distance, generators, table
from kgen.evaluation.generators import shuffled_pixels
from kgen.evaluation.split_rows import read_split
from kgen.models import VAE

NEIGHBOUR_NAMES = ("precision", "recall", "density", "coverage")


class KnownModel:
    """Stands for a model: the seed s makes the image s, and again from the first."""

    def __init__(self, images, num_classes=None):
        self.images = images
        self.image_shape = images.shape[1:]
        self.num_classes = num_classes
        self.calls = []

    def generate(self, seeds, labels=None):
        self.calls.append((list(seeds), None if labels is None else list(labels)))
        return self.images[np.array(seeds) % len(self.images)] / np.float32(255)


class MadeUpReader:
    """Stands for the digit classifier: a channel's first pixel over 25 is its digit."""

    name = "made-up"

    def predict(self, images):
        digits = images[:, 0, 0].astype(int) // 25  # [n, channels]
        return images[:, 0, :3, 0].astype(np.float32), np.eye(10)[digits]


@pytest.fixture(autouse=True)
def quick_speed(monkeypatch):
    """Measure the speed by single calls: it has a test of its own."""
    monkeypatch.setattr(kgen.evaluation.timing, "RUN_SECONDS", 1e-9)


@pytest.fixture(scope="module")
def digits():
    return kgen.data.open_images("digits")


def by_name(records):
    return {record.metric.partition("[")[0]: record for record in records}


# -- distances ----------------------------------------------------------------


def test_real_images_reach_the_floor(digits):
    train, _ = read_split(digits, "train", limit=179, seed=4, shuffle=True)
    records = evaluate_generator(KnownModel(train), digits, seed=4)
    assert [record.metric for record in records] == [
        "frechet_distance[kgen-random-v1]",
        "frechet_distance_floor[kgen-random-v1]",
        *(f"{name}[kgen-random-v1]" for name in NEIGHBOUR_NAMES),
        "sampling_speed",
    ]
    found = by_name(records)
    distance, floor = found["frechet_distance"], found["frechet_distance_floor"]
    assert distance.value == pytest.approx(floor.value, rel=1e-4)
    assert max(map(len, table(records).splitlines())) <= 80
    others = f"179 of train instead of generated ones: {floor.value:.4g}"
    assert others in distance.protocol
    assert distance.baseline == floor.baseline
    assert floor.interval is None
    for name in NEIGHBOUR_NAMES:
        others = f"instead of generated ones: {found[name].value:.4g};"
        assert others in found[name].protocol
        assert found[name].baseline[1] < found[name].value
    assert all(record.n == 179 for record in records[:-1])
    assert all(record.seed == 4 for record in records[:-1])


def test_the_same_images_have_distance_zero(digits):
    test, _ = read_split(digits, "test")
    found = by_name(evaluate_generator(KnownModel(test), digits))
    # Rounding of float32 features; the floor is 0.17.
    assert found["frechet_distance"].value < 1e-6
    assert found["precision"].value == found["recall"].value == 1
    assert found["coverage"].value == 1


def test_worse_images_are_farther_away_and_cover_less(digits):
    train, _ = read_split(digits, "train", limit=1000, shuffle=True)
    noise = np.random.default_rng(0).normal(0, 60, train.shape)
    noisy = np.clip(train + noise, 0, 255).astype(np.uint8)
    kinds = [
        by_name(evaluate_generator(KnownModel(images), digits, num_sets=1))
        for images in (train, noisy, shuffled_pixels(train))
    ]
    distances = [found["frechet_distance"].value for found in kinds]
    floor = kinds[0]["frechet_distance_floor"].value
    assert distances[0] < 1.5 * floor < distances[1] < distances[2]
    coverage = [found["coverage"].value for found in kinds]
    assert coverage[0] > 0.9 > coverage[1] > coverage[2]


def test_a_single_image_has_almost_no_coverage(digits):
    # Not of the split that is measured on: it would be found again, at distance 0.
    one, _ = read_split(digits, "train", limit=1)
    found = by_name(evaluate_generator(KnownModel(one), digits))
    assert found["coverage"].value < 0.1
    assert found["recall"].value == 0.0  # Its balls have no radius.


def test_shuffled_pixels_keep_only_the_values_of_each_pixel(digits):
    train, _ = read_split(digits, "train")
    drawn = shuffled_pixels(train, seed=1)
    np.testing.assert_array_equal(np.sort(drawn, axis=0), np.sort(train, axis=0))
    one, other = drawn[:, 1, 5, 0], drawn[:, 2, 5, 0]
    before = np.corrcoef(train[:, 1, 5, 0], train[:, 2, 5, 0])[0, 1]
    # Of 1,439 independent pairs: 0 with a standard deviation of 0.026.
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1 < 0.5 < before
    assert (drawn == shuffled_pixels(train, seed=1)).all()


def test_the_interval_is_the_range_of_disjoint_sets(digits):
    """Three sets of 100: real images, then brighter ones, then black ones."""
    train, _ = read_split(digits, "train", limit=100)
    sets = [train, np.maximum(train, 30), np.zeros_like(train)]
    model, seen = KnownModel(np.concatenate(sets)), []
    [distance, *_] = evaluate_generator(
        model, digits, num_images=100, progress=lambda *numbers: seen.append(numbers)
    )
    test, _ = read_split(digits, "test", limit=100, shuffle=True)
    space = kgen.evaluation.RandomNetwork()
    expected = [
        frechet_distance(space.predict(test)[0], space.predict(images)[0])
        for images in sets
    ]
    assert distance.value == pytest.approx(expected[0], rel=1e-4)
    assert distance.interval == pytest.approx((expected[0], expected[2]), rel=1e-4)
    assert "seeds 0 to 99" in distance.protocol
    assert "3 sets of generated images (seeds 0 to 299)" in distance.protocol
    assert model.calls[0] == (list(range(300)), None)
    assert seen == [(300, 300)]
    [distance, *_] = evaluate_generator(model, digits, num_images=100, num_sets=1)
    assert distance.interval is None and "interval" not in distance.protocol


def test_a_conditional_model_gets_the_labels_of_the_real_images(digits):
    train, _ = read_split(digits, "train", limit=50)
    model = KnownModel(train, num_classes=10)
    records = evaluate_generator(model, digits, num_images=20, num_sets=2, seed=3)
    _, labels = read_split(digits, "test", limit=20, seed=3, shuffle=True)
    assert model.calls[0] == (list(range(40)), [*labels, *labels])
    assert "with the labels of the real ones" in records[0].protocol


def test_a_real_model_gives_the_same_records_every_time(digits):
    keras.utils.set_random_seed(0)
    model = VAE(image_shape=(8, 8, 1), latent_dim=2, hidden_units=(4,))
    first, again = (evaluate_generator(model, digits)[:-1] for _ in range(2))
    assert first == again
    # Untrained, it makes grey noise: worse than knowing each pixel alone.
    assert first[0].value > first[0].baseline[1] > 2 * first[1].value


# -- small sets ---------------------------------------------------------------


def names_of(train, test, **options):
    image_set = kgen.data.open_images({"x_train": train, "x_test": test})
    records = evaluate_generator(KnownModel(train), image_set, **options)
    return list(by_name(records)), records[-1].protocol


def test_few_images_get_no_neighbour_metrics(digits):
    train, _ = read_split(digits, "train")
    distances = ["frechet_distance", "frechet_distance_floor"]
    names, protocol = names_of(train, train[:99])
    assert names == [*distances, "sampling_speed"]
    assert "not measured: precision, recall, density and coverage" in protocol
    names, protocol = names_of(train, train[:100])
    assert names == [*distances, *NEIGHBOUR_NAMES, "sampling_speed"]
    assert "not measured" not in protocol
    names, protocol = names_of(train, train[:1])
    assert names == ["sampling_speed"]
    assert "Frechet distance, for which 2 images are needed" in protocol


def test_the_number_of_images_is_limited_by_both_splits(digits):
    train, _ = read_split(digits, "train")
    image_set = kgen.data.open_images({"x_train": train[:60], "x_test": train[60:200]})
    for split, other in (("test", "train"), ("train", "test")):
        [distance, *_] = evaluate_generator(
            KnownModel(train), image_set, split=split, num_sets=1
        )
        assert distance.n == 54  # a tenth of the 60 is the validation set
        compared = f"54 of {split}; 54 of {other} instead of generated ones"
        assert compared in distance.protocol


# -- modes --------------------------------------------------------------------


def test_modes_and_divergence_by_hand():
    # Shares 1/2, 1/2, 0 of generated and 1/4, 1/2, 1/4 of real: 1/2 log 2.
    found = generators._modes_and_divergence(np.array([3, 3, 0]), np.array([1, 2, 1]))
    assert found == pytest.approx((2, 0.5 * math.log(2)))
    same = generators._modes_and_divergence(np.array([2, 4, 2]), np.array([1, 2, 1]))
    assert same == pytest.approx((3, 0))
    never_real = generators._modes_and_divergence(np.array([1, 1]), np.array([5, 0]))
    assert never_real == (2, math.inf)


def stacked(numbers):
    """Images whose channels say the digits of these numbers, to `MadeUpReader`."""
    images = np.random.default_rng(0).integers(0, 256, (len(numbers), 28, 28, 3))
    images[:, 0, 0] = 25 * np.stack(
        [numbers // 100, numbers // 10 % 10, numbers % 10], 1
    )
    return images.astype(np.uint8)


def stacked_set(labels):
    """1,600 training images of the numbers 0 to 199, eight of each."""
    arrays = {}
    for split, count in (("train", 1600), ("validation", 200), ("test", 200)):
        numbers = np.arange(count) % 200
        arrays[f"x_{split}"] = stacked(numbers)
        arrays[f"y_{split}"] = labels(numbers)
    return kgen.data.open_images(arrays)


def test_modes_of_stacked_digits(monkeypatch):
    monkeypatch.setattr(generators, "DigitClassifier", MadeUpReader)
    image_set = stacked_set(labels=lambda numbers: numbers)
    # 60 of 80 generated images are of the number 7, and 20 of as many others.
    made = stacked(np.array([7] * 60 + list(range(100, 120))))
    records = evaluate_generator(KnownModel(made), image_set, num_images=80)
    found = by_name(records)
    modes, divergence = found["num_modes"], found["mode_divergence"]
    assert modes.metric == "num_modes[made-up]"
    assert modes.value == 21
    # Each number is 1/200 of the real ones.
    expected = 0.75 * math.log(0.75 * 200) + 0.25 * math.log(0.25 / 20 * 200)
    assert divergence.value == pytest.approx(expected)
    assert modes.n == divergence.n == 240  # three sets
    assert "whose accuracy on real ones is 100.0%" in modes.protocol
    # 240 draws from 200 classes: 200 (1 - (1 - 1/200)^240) = 139.9 appear.
    perfect = float(modes.protocol.rpartition(": ")[2])
    assert perfect == pytest.approx(139.9, abs=2)
    assert modes.baseline[0] == "independent pixels"


def test_modes_are_counted_in_the_first_images(monkeypatch):
    monkeypatch.setattr(generators, "DigitClassifier", MadeUpReader)
    monkeypatch.setattr(generators, "NUM_MODE_IMAGES", 26)
    image_set = stacked_set(labels=lambda numbers: numbers)
    records = evaluate_generator(
        KnownModel(stacked(np.arange(200))), image_set, num_images=10
    )
    modes = by_name(records)["num_modes"]
    assert (modes.n, modes.value) == (26, 26)
    assert "seeds 0 to 25" in modes.protocol


def test_labels_other_than_the_digits_get_no_modes(monkeypatch):
    """28x28 is not enough: clothes have ten classes, too."""
    monkeypatch.setattr(generators, "DigitClassifier", MadeUpReader)
    image_set = stacked_set(labels=lambda numbers: numbers[::-1])
    model = KnownModel(stacked(np.arange(200)))
    records = evaluate_generator(model, image_set, num_images=10)
    assert records[0].metric == "frechet_distance[kgen-random-v1]"
    assert "num_modes" not in by_name(records)
    records = evaluate_generator(
        model, image_set, num_images=10, feature_space="kgen-mnist-v1"
    )
    assert records[0].metric == "frechet_distance[kgen-mnist-v1]"
    assert "num_modes" not in by_name(records)


@pytest.mark.parametrize("count", [150, pytest.param(500, marks=pytest.mark.slow)])
def test_digits_and_clothes_get_their_feature_space(mnist, clothes, count):
    images, _ = read_split(mnist, "train", limit=count, shuffle=True)
    model = KnownModel(images)
    found = by_name(evaluate_generator(model, mnist, num_images=count))
    assert found["frechet_distance"].metric == "frechet_distance[kgen-mnist-v1]"
    assert found["num_modes"].value == 10
    # Each image three times: (10 - 1) / (2 * count) on average, 0.03 and 0.009.
    assert found["mode_divergence"].value < 15 / count
    assert found["precision"].value > 0.8 > 0.6 > found["precision"].baseline[1]
    found = by_name(evaluate_generator(model, clothes, num_images=count))
    assert found["frechet_distance"].metric == "frechet_distance[kgen-random-v1]"
    assert "num_modes" not in found
    # Digits are not clothes.
    floor = found["frechet_distance_floor"].value
    assert found["frechet_distance"].value > count / 25 * floor


@pytest.mark.slow
def test_stacked_mnist_has_its_modes(mnist):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 3000), ("validation", 100), ("test", 600)):
        images, labels = read_split(mnist, split)
        rows = rng.integers(0, len(images), (count, 3))
        arrays[f"x_{split}"] = np.moveaxis(images[rows, :, :, 0], 1, -1)
        arrays[f"y_{split}"] = labels[rows] @ (100, 10, 1)
    model = KnownModel(arrays["x_train"])
    found = by_name(evaluate_generator(model, kgen.data.open_images(arrays)))
    modes = found["num_modes"]
    assert modes.metric == "num_modes[kgen-mnist-v1]"
    appear = len(np.unique(arrays["y_train"][: modes.n]))
    assert modes.n == 1800
    assert modes.value == pytest.approx(appear, abs=15)  # 1 % of digits is misread


# -- wrong arguments ----------------------------------------------------------


def test_wrong_arguments_are_refused(digits):
    model = KnownModel(np.zeros([3, 8, 8, 1], np.uint8))
    for name in ("num_images", "num_sets"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
            evaluate_generator(model, digits, **{name: 0})
    with pytest.raises(ValueError, match="kgen-mnist-v1, kgen-random-v1.*'fid'"):
        evaluate_generator(model, digits, feature_space="fid")
    with pytest.raises(ValueError, match="`split` must be one of"):
        evaluate_generator(model, digits, split="held out")
    with pytest.raises(ValueError, match=r"28, 28, 1\]"):
        evaluate_generator(model, digits, feature_space="kgen-mnist-v1")
    with pytest.raises(ValueError, match=r"one shape.*\(8, 9, 1\)"):
        evaluate_generator(KnownModel(np.zeros([3, 8, 9, 1], np.uint8)), digits)


def test_images_out_of_range_are_refused(digits):
    for value in (np.nan, 256):
        model = KnownModel(np.full([3, 8, 8, 1], value, np.float32))
        with pytest.raises(ValueError, match="floats in"):
            evaluate_generator(model, digits)
