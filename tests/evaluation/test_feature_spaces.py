"""The feature spaces: pinned, and sensitive to changes of images."""

import hashlib

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import kgen.data
from kgen.evaluation import DigitClassifier, RandomNetwork, frechet_distance
from kgen.evaluation.feature_spaces import DIGIT_WEIGHTS, random_weights
from kgen.evaluation.split_rows import read_split


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def classifier():
    return DigitClassifier()


# -- pinned -------------------------------------------------------------------


def test_other_weights_are_refused(tmp_path):
    content = bytearray(DIGIT_WEIGHTS.read_bytes())
    content[1000] ^= 1
    changed = tmp_path / "changed.npz"
    changed.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256 408befb1.*Received: .*changed.npz"):
        DigitClassifier(changed)


def test_the_random_weights_never_change():
    weights = [random_weights(layer, (3, 3, 3, 32)) for layer in (0, 1, 2)]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()
    assert digest.startswith("dd3c418d4879bb9d")
    # Of 2,592 uniform numbers; the standard deviations of both are 1/50 and below.
    assert abs(np.mean(weights)) < 0.06
    assert abs(np.var(weights) - 1) < 0.06


def test_features_of_a_known_image():
    """Any change of the network would be another space under the same name."""
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    features, _ = RandomNetwork().predict(ramp)
    pinned = [0.1393159, 0.1571255, -0.1910188, -0.0686063]
    np.testing.assert_allclose(features[0, ::12], pinned, rtol=1e-4)


# -- shapes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dim"), [((8, 8, 1), 48), ((28, 28, 1), 80), ((64, 64, 3), 96)]
)
def test_random_features_have_the_length_that_is_stated(shape, dim):
    features, probabilities = RandomNetwork().predict(noise(2, *shape))
    assert (features.shape, features.dtype) == ((2, dim), np.float32)
    assert probabilities is None


def test_grey_images_equal_their_rgb_copies():
    network, grey = RandomNetwork(), noise(3, 12, 10, 1)
    colour = np.repeat(grey, 3, axis=-1)
    np.testing.assert_allclose(
        network.predict(grey)[0], network.predict(colour)[0], rtol=1e-5, atol=1e-6
    )


def test_rows_do_not_depend_on_the_others(classifier):
    images = noise(260, 28, 28, 1)  # more than a block
    for space in (classifier, RandomNetwork()):
        whole, _ = space.predict(images)
        some, _ = space.predict(images[240:])
        np.testing.assert_allclose(some, whole[240:], rtol=1e-4, atol=1e-4)
        as_floats, _ = space.predict(images[240:] / np.float32(255))
        np.testing.assert_allclose(as_floats, some, rtol=1e-4, atol=1e-4)


def test_each_channel_is_a_digit_of_its_own(classifier):
    images = noise(4, 28, 28, 3)
    features, probabilities = classifier.predict(images)
    assert (features.shape, probabilities.shape) == ((4, 192), (4, 3, 10))
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    for channel in range(3):
        alone = classifier.predict(images[..., channel : channel + 1])
        place = slice(64 * channel, 64 * (channel + 1))
        np.testing.assert_allclose(features[:, place], alone[0], atol=1e-4)
        np.testing.assert_allclose(probabilities[:, channel], alone[1][:, 0], atol=1e-5)


def test_images_must_fit(classifier):
    with pytest.raises(ValueError, match=r"28, 28, 1\].*Received: .*\(2, 8, 8, 1\)"):
        classifier.predict(noise(2, 8, 8, 1))
    with pytest.raises(ValueError, match="1 or 3"):
        RandomNetwork().predict(noise(2, 8, 8, 2))
    for space in (classifier, RandomNetwork()):
        with pytest.raises(ValueError, match="values from 0 to 255"):
            space.predict(np.array([0.0, 255.0]).repeat(392).reshape(1, 28, 28, 1))


# -- sensitivity -------------------------------------------------------------


def blurred(images, sigma):
    return gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0)) / 256


def noisy(images, deviation):
    added = np.random.default_rng(0).normal(0, deviation, images.shape)
    return np.clip(images / 255 + added, 0, 1).astype(np.float32)


LADDERS = {
    "blur": (0.5, 0.8, 1.2, 2.0),
    "noise": (0.1, 0.2, 0.3, 0.5),
    "missing": (2, 4, 6, 8),
}


def changed(images, labels, name, level):
    """Images with more blur, more noise or fewer classes."""
    if name == "missing":
        return np.resize(images[labels >= level], images.shape)
    return (blurred if name == "blur" else noisy)(images, level)


def check_that_distances_grow(space, images, labels, others):
    """Each step of a ladder is farther away than the last, by a tenth or more.

    `others` are of the same kind: their distance is the floor. The largest is more than
    5 floors away.
    """
    features, _ = space.predict(others)
    floor = frechet_distance(features, space.predict(images)[0])
    for name, levels in LADDERS.items():
        rows = [changed(images, labels, name, level) for level in levels]
        ladder = [frechet_distance(features, space.predict(row)[0]) for row in rows]
        steps = np.array(ladder) / np.array([floor, *ladder[:-1]])
        assert (steps > 1.1).all(), f"{name}: floor {floor}, then {ladder}"
        assert ladder[-1] > 5 * floor, f"{name}: floor {floor}, then {ladder}"


def test_random_features_of_small_digits_see_blur_noise_and_missing_classes():
    images, labels = read_split(kgen.data.open_images("digits"), "train", shuffle=True)
    check_that_distances_grow(RandomNetwork(), images[:700], labels[:700], images[700:])


def test_blur_noise_and_missing_classes_are_seen_in_real_images(
    mnist, clothes, classifier
):
    for data, space in ((mnist, classifier), (clothes, RandomNetwork())):
        images, labels = read_split(data, "train", limit=500, shuffle=True)
        others, _ = read_split(data, "test", limit=500, shuffle=True)
        features, _ = space.predict(others)
        floor = frechet_distance(features, space.predict(images)[0])
        for name, (*_, level) in LADDERS.items():
            found, _ = space.predict(changed(images, labels, name, level))
            assert frechet_distance(features, found) > 3 * floor, (space.name, name)


@pytest.mark.slow
def test_distances_grow_with_blur_noise_and_missing_classes_of_real_images(
    mnist, clothes, classifier
):
    for data, space in (
        (mnist, classifier),
        (mnist, RandomNetwork()),
        (clothes, RandomNetwork()),
    ):
        images, labels = read_split(data, "train", limit=2000, shuffle=True)
        others, _ = read_split(data, "test", limit=2000, shuffle=True)
        check_that_distances_grow(space, images, labels, others)


def test_the_classifier_is_accurate_on_mnist(mnist, classifier):
    images, labels = read_split(mnist, "test")
    features, probabilities = classifier.predict(images)
    accuracy = np.mean(probabilities[:, 0].argmax(axis=1) == labels)
    assert accuracy == pytest.approx(0.9942, abs=2e-4)
    # Spread over all directions: the covariance is far from singular.
    variances = np.linalg.eigvalsh(np.cov(features, rowvar=False))
    assert variances[0] > 1e-4 * variances[-1]
