"""The evaluation of autoencoders: baselines by hand, and every record in its place."""

import math

import keras
import numpy as np
import pytest
from scipy import stats

import kgen.data
from kgen.evaluation import autoencoders, evaluate_autoencoder
from kgen.evaluation.autoencoders import Moments, pixel_baseline
from kgen.models import VAE


def two_pixel_images(*rows):
    return np.array(rows, np.uint8).reshape(-1, 1, 2, 1)


# -- baselines ----------------------------------------------------------------


def test_independent_bernoulli_pixels_by_hand():
    # Two training images with mean (1/2, 0). One more of each colour makes the
    # probabilities (1 + 1) / 4 = 1/2 and (0 + 1) / 4 = 1/4.
    moments = Moments(np.array([[[0.5], [0.0]]]), variance=1.0, count=2)
    images = two_pixel_images((255, 0), (0, 255))
    _, value = pixel_baseline("bernoulli", images, moments)
    first = math.log(1 / 2) + math.log(3 / 4)
    second = math.log(1 / 2) + math.log(1 / 4)
    assert value == pytest.approx((first + second) / 2)


def test_independent_gaussian_pixels_equal_scipy():
    moments = Moments(np.array([[[0.25], [0.5]]]), variance=0.04, count=2)
    images = two_pixel_images((255, 0), (51, 102), (0, 0))
    _, value = pixel_baseline("gaussian", images, moments)
    pixels = stats.norm(np.array([0.25, 0.5]), 0.2).logpdf(images[:, 0, :, 0] / 255)
    assert value == pytest.approx(pixels.sum(axis=1).mean())


def test_uniform_levels_cost_eight_bits_a_pixel():
    moments = Moments(np.zeros([1, 2, 1]), variance=1.0, count=2)
    images = two_pixel_images((3, 4))
    _, value = pixel_baseline("discretized_logistic", images, moments)
    assert value == pytest.approx(-2 * 8 * math.log(2))


def test_training_moments_are_of_the_training_split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (700, 2, 3, 1), np.uint8)
    image_set = kgen.data.open_images({"x_train": images, "x_test": images[:9]})
    train = np.concatenate(
        [
            batch["images"].numpy() / 255.0
            for batch in image_set.pipeline("train", batch_size=100).dataset()
        ]
    )
    moments = autoencoders._training_moments(image_set, seed=0)
    assert moments.count == len(train) == 630
    np.testing.assert_allclose(moments.mean, train.mean(axis=0))
    assert moments.variance == pytest.approx(train.var(axis=0).mean())


# -- the records --------------------------------------------------------------


class KnownModel:
    """Stands for a model: its bound is the sum of the image, in steps of 255."""

    image_shape = (1, 2, 1)
    likelihood = "bernoulli"
    num_classes = 3

    def __init__(self):
        self.calls = []
        self.indices = []
        self.weights = [np.zeros(3, np.float32)]

    def elbo(self, images, labels=None, seed=0):
        return self.log_likelihood(images, 1, labels=labels, seed=seed) - 1.0

    def get_weights(self):
        return self.weights

    def log_likelihood(self, images, num_samples, *, labels, seed, first_index=0):
        self.calls.append((len(images), num_samples, list(labels), seed))
        self.indices += range(first_index, first_index + len(images))
        return -images.astype(np.float32).sum(axis=(1, 2, 3)) / 255

    def reconstruct(self, images, labels=None):
        return np.full(images.shape, 0.5, np.float32)


@pytest.fixture
def known_set():
    train = two_pixel_images((0, 0), (255, 0), (0, 0), (255, 0), (0, 0), (255, 0))
    test = two_pixel_images((255, 255), (0, 255), (0, 0))
    return kgen.data.open_images(
        {
            "x_train": train,
            "y_train": np.array([0, 1, 2, 0, 1, 2]),
            "x_validation": train,
            "y_validation": np.array([0, 1, 2, 0, 1, 2]),
            "x_test": test,
            "y_test": np.array([2, 1, 0]),
        }
    )


def test_records_by_hand(known_set):
    model, seen = KnownModel(), []
    records = evaluate_autoencoder(
        model,
        known_set,
        num_samples=7,
        seed=5,
        limit=2,
        progress=lambda *n: seen.append(n),
    )
    found = {record.metric: record for record in records}
    assert list(found) == [
        "elbo",
        "nll[is-7]",
        "reconstruction_mse",
        "reconstruction_psnr",
        "reconstruction_ssim",
    ]
    # The images of the first two rows sum to 2 and 1.
    assert found["nll[is-7]"].value == 1.5
    assert found["elbo"].value == -2.5
    assert found["reconstruction_mse"].value == 0.25
    assert found["reconstruction_psnr"].value == pytest.approx(20 * math.log10(2))
    # Mean training image (1/2, 0): squared errors (1/4 + 1) / 2 for both rows.
    assert found["reconstruction_mse"].baseline[1] == pytest.approx(0.625)
    # Probabilities (3 + 1) / 8 and (0 + 1) / 8.
    nll = -(2 * math.log(1 / 2) + 2 * math.log(1 / 8)) / 2
    assert found["nll[is-7]"].baseline[1] == pytest.approx(nll)
    assert found["elbo"].baseline[1] == pytest.approx(-nll)
    assert model.calls == [(2, 1, [2, 1], 5), (2, 7, [2, 1], 5)]
    assert seen == [(2, 2)]
    assert all(record.n == 2 for record in records)
    assert all(record.seed == 5 for record in records)


def test_protocol_names_data_and_procedure(known_set):
    records = evaluate_autoencoder(KnownModel(), known_set, binarize="static")
    nll = records[1]
    assert nll.metric == "nll[is-5000]"
    for part in ("test", "6 of train", "static", "5,000", "bernoulli", "the label"):
        assert part in nll.protocol
    assert "1x1 Gaussian window" in records[4].protocol


def test_grey_pixels_under_bernoulli_are_named(known_set):
    grey = two_pixel_images((255, 7), (0, 255), (0, 0))
    rows = {"x_train": grey, "x_validation": grey, "x_test": grey}
    model = KnownModel()
    model.num_classes = 2
    grey_set = kgen.data.open_images(
        rows | {name.replace("x", "y"): np.array([0, 1, 1]) for name in rows}
    )
    records = evaluate_autoencoder(model, grey_set)
    assert "not a normalised likelihood" in records[0].protocol
    assert "not a normalised likelihood" not in (
        evaluate_autoencoder(KnownModel(), known_set)[0].protocol
    )


def test_wrong_arguments_are_refused(known_set):
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        evaluate_autoencoder(KnownModel(), known_set, num_samples=0)
    with pytest.raises(ValueError, match="`limit` must be at least 1"):
        evaluate_autoencoder(KnownModel(), known_set, limit=0)
    with pytest.raises(ValueError, match="one shape.*8, 8, 1"):
        evaluate_autoencoder(KnownModel(), kgen.data.open_images("digits"))


def test_a_real_model_gives_the_same_records_every_time():
    keras.utils.set_random_seed(0)
    model = VAE(image_shape=(8, 8, 1), latent_dim=2, hidden_units=(4,))
    digits = kgen.data.open_images("digits")

    def measure():
        return evaluate_autoencoder(
            model, digits, binarize="dynamic", num_samples=10, limit=20
        )

    records = measure()
    assert records == measure()
    for record in records:
        low, high = record.interval
        assert low < record.value < high
        assert math.isfinite(record.baseline[1])
    nll = records[1]
    # Untrained, with all pixels near 1/2: between knowing nothing and knowing the mean.
    assert 64 * math.log(2) * 0.8 < nll.value < 64 * math.log(2) * 1.2
    assert nll.baseline[1] < nll.value


# -- interrupted --------------------------------------------------------------


def interrupted_evaluation(file):
    """Measures 250 images and is interrupted after the first hundred."""

    def interrupt(done, total):
        raise KeyboardInterrupt

    images = np.random.default_rng(0).integers(0, 255, (250, 1, 2, 1), np.uint8)
    labels = np.arange(250) % 3
    image_set = kgen.data.open_images({"x_train": images, "y_train": labels})
    with pytest.raises(KeyboardInterrupt):
        evaluate(image_set, KnownModel(), file, progress=interrupt)
    return image_set


def evaluate(image_set, model, file, **options):
    return evaluate_autoencoder(
        model, image_set, split="train", num_samples=7, unfinished=file, **options
    )


def test_an_interrupted_evaluation_resumes_with_the_remaining_images(tmp_path):
    file = tmp_path / "unfinished.npz"
    image_set = interrupted_evaluation(file)
    model, whole = KnownModel(), KnownModel()
    records = evaluate(image_set, model, file)
    expected = evaluate(image_set, whole, None)
    count = records[0].n
    assert count == 200  # a tenth each is the validation and the test set
    # The first pass over the indices is the bound's.
    assert whole.indices == [*range(count), *range(count)]
    assert model.indices == [*range(count), *range(100, count)]
    assert records[1] == expected[1]


@pytest.mark.parametrize("changed", ["weights", "seed"])
def test_another_evaluation_does_not_resume_from_the_file(changed, tmp_path):
    file = tmp_path / "unfinished.npz"
    image_set = interrupted_evaluation(file)
    model, options = KnownModel(), {}
    if changed == "weights":
        model.weights = [np.ones(3, np.float32)]
    else:
        options["seed"] = 1
    evaluate(image_set, model, file, **options)
    assert model.indices == [*range(200), *range(200)]
