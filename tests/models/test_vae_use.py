"""The VAE's methods: encode, decode, reconstruct, interpolate, generate."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from kgen.models import VAE
from kgen.nn import random

RNG = np.random.default_rng(1)
IMAGES = RNG.random((5, 3, 4, 1), np.float32)
LABELS = np.array([0, 1, 2, 0, 1])
SHAPE = (3, 4, 1)


def randomise(vae):
    """Draws all weights anew, biases too, so that images differ by much."""
    rng = np.random.default_rng(7)
    # The flow is deep: at a larger scale its tails would saturate every pixel.
    for network, scale in ((vae.encoder, 0.5), (vae.decoder, 0.5), (vae.flow, 0.1)):
        if network is not None:
            weights = network.get_weights()
            network.set_weights([rng.normal(0, scale, w.shape) for w in weights])
    return vae


@pytest.fixture(scope="module")
def vae():
    return randomise(VAE(image_shape=SHAPE, latent_dim=3, hidden_units=(5,)))


@pytest.fixture(scope="module")
def conditional():
    return randomise(
        VAE(image_shape=SHAPE, latent_dim=3, hidden_units=(5,), num_classes=3)
    )


@pytest.fixture(scope="module")
def flow_vae():
    return randomise(
        VAE(image_shape=SHAPE, latent_dim=3, hidden_units=(5,), prior="flow")
    )


@pytest.fixture(scope="module")
def linear(make_linear_vae):
    """A Gaussian VAE whose first two pixels are its two latents, divided by ten."""
    decoder = np.zeros([2, 4])
    decoder[0, 0] = decoder[1, 1] = 0.1
    encoder = np.zeros([4, 4])
    encoder[:, 0] = 1, 2, 3, 4
    return make_linear_vae(
        encoder,
        [0, -1, 5, 5],
        decoder,
        [0, 0, 0.9, -0.9],
        likelihood="gaussian",
        variance=0.1,
    )


# -- encode, decode, reconstruct --------------------------------------------------


def test_encode_returns_the_posterior_means(linear):
    """Pixels (x0 ... x3) to x0 + 2 x1 + 3 x2 + 4 x3 and -1; variances play no part."""
    images = np.array([[1, 0, 0, 0], [0.5, 0, 0, 1]], np.float32).reshape(2, 2, 2, 1)
    np.testing.assert_allclose(linear.encode(images), [[1, -1], [4.5, -1]], rtol=1e-6)


def test_decode_returns_means_clipped_to_the_range_of_images(linear):
    """0.5 + 0.1 z for two pixels; 1.4 and -0.4 are out of range."""
    images = linear.decode([[0, 0], [1, -2]])
    assert images.dtype == np.float32
    np.testing.assert_allclose(
        images.reshape(2, 4), [[0.5, 0.5, 1, 0], [0.6, 0.3, 1, 0]], rtol=1e-6
    )


def test_bernoulli_means_are_sigmoids_of_the_decoder(make_linear_vae):
    bias = np.array([0.0, 2.0, -2.0, 30.0])
    images = make_linear_vae(decoder_bias=bias).decode(np.zeros([1, 2]))
    np.testing.assert_allclose(images.ravel(), scipy.special.expit(bias), rtol=1e-6)


def test_reconstruct_decodes_the_code(vae):
    images = vae.reconstruct(IMAGES)
    np.testing.assert_allclose(images, vae.decode(vae.encode(IMAGES)), atol=1e-6)
    assert images.shape == IMAGES.shape
    assert images.dtype == np.float32
    assert images.std(axis=0).max() > 0.01  # Not the same for every image.


def test_bytes_are_the_same_images_as_floats(vae):
    """uint8 0 ... 255 stands for 0 ... 1."""
    levels = RNG.integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    floats = levels.astype(np.float32) / 255
    np.testing.assert_allclose(vae.encode(levels), vae.encode(floats), atol=1e-6)
    np.testing.assert_allclose(vae.elbo(levels), vae.elbo(floats), atol=1e-4)


def test_no_images_give_no_results(vae):
    assert vae.encode(IMAGES[:0]).shape == (0, 3)
    assert vae.reconstruct(IMAGES[:0]).shape == (0, *SHAPE)
    assert vae.generate([]).shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros([2, 4, 3, 1]), r"3, 4, 1\]. Received: .*\(2, 4, 3, 1\)"),
        (np.zeros([3, 4, 1]), r"Received: .*\(3, 4, 1\)"),
        (np.full([2, *SHAPE], 1.5), r"floats in \[0, 1\].*Received: values from 1.5"),
        (np.full([2, *SHAPE], -0.1), "from -0.1"),
        (np.full([2, *SHAPE], np.nan), "from nan"),
    ],
)
def test_images_of_another_shape_or_range_are_refused(vae, images, message):
    for method in (vae.encode, vae.reconstruct, vae.elbo):
        with pytest.raises(ValueError, match=message):
            method(images)


# -- interpolate ------------------------------------------------------------------


def test_interpolations_end_at_the_reconstructions(vae):
    walks = vae.interpolate(IMAGES[:2], IMAGES[2:4], num_steps=5)
    assert walks.shape == (2, 5, *SHAPE)
    np.testing.assert_allclose(walks[:, 0], vae.reconstruct(IMAGES[:2]), atol=1e-6)
    np.testing.assert_allclose(walks[:, -1], vae.reconstruct(IMAGES[2:4]), atol=1e-6)


def test_interpolations_walk_in_equal_steps_through_the_latents(vae):
    """Step i of 4 decodes (1 - i/3) start + i/3 end, row by row."""
    start, end = vae.encode(IMAGES[:2]), vae.encode(IMAGES[2:4])
    walks = vae.interpolate(IMAGES[:2], IMAGES[2:4], num_steps=4)
    for index in range(4):
        latents = (1 - index / 3) * start + index / 3 * end
        np.testing.assert_allclose(walks[:, index], vae.decode(latents), atol=1e-6)


def test_interpolations_keep_the_label_of_each_row(conditional):
    start, end, labels = IMAGES[:2], IMAGES[2:4], [2, 1]
    walks = conditional.interpolate(start, end, num_steps=4, labels=labels)
    for index, images in ((0, start), (-1, end)):
        expected = conditional.reconstruct(images, labels)
        np.testing.assert_allclose(walks[:, index], expected, atol=1e-6)


def test_an_interpolation_has_two_ends(vae):
    with pytest.raises(ValueError, match="at least 2. Received: num_steps=1"):
        vae.interpolate(IMAGES[:1], IMAGES[1:2], num_steps=1)


# -- generate ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "conditional", "flow_vae"])
def test_an_image_depends_on_its_own_seed_alone(name, request):
    """The same seed alone, and anywhere among 300 others."""
    model = request.getfixturevalue(name)
    seeds = np.arange(300)
    labels = seeds % 3 if name == "conditional" else None
    images = model.generate(seeds, labels)
    assert images.shape == (300, *SHAPE)
    assert images.dtype == np.float32
    assert (0 <= images.min()) and (images.max() <= 1)
    for row in (0, 1, 255, 256, 299):
        label = None if labels is None else labels[row : row + 1]
        alone = model.generate([row], label)
        np.testing.assert_allclose(alone[0], images[row], atol=1e-6)
    shuffled = np.random.default_rng(0).permutation(300)
    others = None if labels is None else labels[shuffled]
    np.testing.assert_allclose(
        model.generate(shuffled, others), images[shuffled], atol=1e-6
    )
    assert len(np.unique(images.reshape(300, -1), axis=0)) == 300


def test_images_are_decoded_from_noise_of_their_seed(vae, flow_vae):
    seeds = np.array([3, -8, 2**40])
    noise = random.normal(random.keys(seeds, random.STREAM_GENERATE), (3,))
    np.testing.assert_allclose(vae.generate(seeds), vae.decode(noise), atol=1e-6)
    latents = flow_vae.flow.from_noise(0.5 * noise)
    np.testing.assert_allclose(
        flow_vae.generate(seeds, temperature=0.5), flow_vae.decode(latents), atol=1e-5
    )


def test_latents_of_generated_images_are_normal(linear):
    """Pixels are 0.5 + 0.1 z: 3000 rows of two, at temperatures 1 and 0.5.

    Five deviations are 0.5 of the range: hardly any value is clipped.
    """
    for temperature in (1.0, 0.5):
        images = linear.generate(range(3000), temperature=temperature)
        latents = (images.reshape(-1, 4)[:, :2].ravel() - 0.5) / 0.1
        norm = scipy.stats.norm(0, temperature)
        assert scipy.stats.kstest(latents, norm.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["vae", "flow_vae"])
def test_at_temperature_zero_every_seed_gives_one_image(name, request):
    images = request.getfixturevalue(name).generate(range(10), temperature=0)
    np.testing.assert_allclose(images, np.repeat(images[:1], 10, axis=0), atol=1e-6)


def test_labels_change_the_image_of_a_seed(conditional):
    images = conditional.generate([4, 4, 4], [0, 1, 2])
    assert np.abs(images[0] - images[1]).max() > 1e-3
    assert np.abs(images[1] - images[2]).max() > 1e-3


def test_seeds_of_any_whole_kind_are_taken(vae):
    expected = vae.generate([0, 1, 2])
    for seeds in (range(3), (0, 1, 2), np.arange(3, dtype=np.uint8)):
        np.testing.assert_array_equal(vae.generate(seeds), expected)
    np.testing.assert_allclose(vae.generate(2), expected[2:], atol=1e-6)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([0.5, 1.0], r"integers of the shape \[rows\]. Received: float64"),
        ([[1, 2]], r"integers.* Received: int64 of the shape \(1, 2\)"),
        ("abc", "integers.* Received: string"),
    ],
)
def test_seeds_that_are_not_whole_numbers_are_refused(vae, seeds, message):
    with pytest.raises(ValueError, match=message):
        vae.generate(seeds)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_a_temperature_out_of_range_is_refused(vae, temperature):
    with pytest.raises(
        ValueError, match=f"finite.*from 0.* values from {temperature:g}"
    ):
        vae.generate([1], temperature=temperature)


# -- labels -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "takes .*labels.* Give labels, one for each row"),
        ([0, 3, 0, 0, 0], r"in \[0, 2\].* Received: values from 0 to 3"),
        ([0, -1, 0, 0, 0], r"in \[0, 2\].* Received: values from -1 to 0"),
        ([0, 1], "Received: 2 rows, where 5 are needed"),
        ([0.5] * 5, "integers.* Received: float64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(conditional, labels, message):
    calls = [
        lambda: conditional.encode(IMAGES, labels),
        lambda: conditional.reconstruct(IMAGES, labels),
        lambda: conditional.decode(np.zeros([5, 3]), labels),
        lambda: conditional.generate(range(5), labels),
        lambda: conditional.elbo(IMAGES, labels),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_model_without_classes_takes_no_labels(vae):
    with pytest.raises(ValueError, match="Received: .*labels.* Leave out labels"):
        vae.generate(range(5), LABELS)


def test_labels_enter_every_result(conditional):
    other = (LABELS + 1) % 3
    for method in (conditional.encode, conditional.reconstruct, conditional.elbo):
        first, second = method(IMAGES, LABELS), method(IMAGES, other)
        assert np.abs(first - second).max() > 1e-3
    bound = conditional.log_likelihood(IMAGES, 200, labels=LABELS)
    assert bound.shape == (5,)
    # One sample is a noisy bound: many draws of it, so that this is no matter of luck.
    draws = [conditional.elbo(IMAGES, LABELS, seed=seed) for seed in range(200)]
    assert bound.mean() > np.mean(draws)


# -- signatures -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "conditional", "flow_vae"])
def test_signatures_compute_what_the_methods_compute(name, request):
    model = request.getfixturevalue(name)
    signatures = {one.name: one for one in model.signatures() if one.runtimes}
    assert list(signatures) == ["generate", "encode", "decode", "reconstruct"]
    for method, signature in signatures.items():
        example = signature.example(3)
        assert example.keys() == signature.inputs.keys()
        for key, spec in signature.inputs.items():
            assert example[key].shape == (3, *spec.shape)
        if "images" in example:
            # On noise a trained network is too steep for the exporter's comparison.
            labels = [0, 1, 2] if "labels" in example else None
            made = model.generate(range(3), labels)
            np.testing.assert_array_equal(example["images"], made)
        arrays = signature.check(**example)
        outputs = signature.compiled(*map(tf.constant, arrays.values()))
        assert outputs.keys() == signature.outputs.keys()
        (output,) = outputs.values()
        expected = getattr(model, method)(**example)
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_the_likelihood_of_a_row_depends_on_its_own_inputs(conditional):
    rows = {
        "images": IMAGES[:4],
        "labels": LABELS[:4],
        "seeds": [0, 0, 7, 7],
        "indices": [0, 1, 5, 0],
        "num_samples": [3, 3, 3, 40],
    }
    found = conditional.run("log_likelihood", **rows)["log_likelihoods"]
    expected = [
        conditional.log_likelihood(image[None], number, labels=[label], **noise)
        for image, label, number, noise in zip(
            IMAGES[:4],
            LABELS[:4],
            rows["num_samples"],
            [{}, {"first_index": 1}, {"seed": 7, "first_index": 5}, {"seed": 7}],
            strict=True,
        )
    ]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-4)


def test_a_signature_names_the_networks_it_uses_and_no_other(vae, flow_vae):
    layers = {signature.name: signature.layers for signature in vae.signatures()}
    assert layers["generate"] == layers["decode"] == (vae.decoder,)
    assert layers["encode"] == (vae.encoder,)
    assert set(layers["reconstruct"]) == {vae.encoder, vae.decoder}
    generate = flow_vae.signatures()[0]
    assert set(generate.layers) == {flow_vae.decoder, flow_vae.flow}
