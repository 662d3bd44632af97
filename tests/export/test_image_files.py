"""Signatures that take and return image files."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kgen.export.image_files import share_of_pixels_off, with_image_files
from kgen.models import GAN, GPT, VAE


def file_of(pixels, file_format="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


@pytest.fixture(scope="module")
def vae():
    return VAE(image_shape=(5, 4, 3), latent_dim=2, hidden_units=(3,), num_classes=3)


@pytest.fixture(scope="module")
def signatures(vae):
    return {one.name: one for one in with_image_files(vae.signatures())}


def test_each_signature_of_images_has_one_of_files(signatures):
    assert [*signatures] == [
        "generate",
        "generate_png",
        "encode",
        "decode",
        "decode_png",
        "reconstruct",
        "reconstruct_png",
    ]
    png = signatures["reconstruct_png"]
    assert [*png.inputs] == ["images_bytes", "labels"]
    assert png.outputs == {"reconstructions_bytes": "png"}
    assert signatures["generate_png"].outputs == {"images_bytes": "png"}


def test_models_of_other_things_have_none():
    gpt = GPT(vocab_size=5, context=4, num_layers=1, num_heads=1, hidden_dim=4)
    names = [one.name for one in with_image_files(gpt.signatures())]
    assert names == ["generate", "read", "write", "generate"]
    gan = GAN(image_shape=(8, 8, 2), latent_dim=2)  # PNG has no two colours.
    names = [one.name for one in with_image_files(gan.signatures())]
    assert names == ["generate", "decode"]


def test_a_class_that_there_is_not_is_refused(signatures):
    function = tf.function(signatures["generate_png"].function)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be from 0 to 2"):
        function(seeds=tf.constant([0], tf.int64), labels=tf.constant([3]))


def test_files_hold_the_images(vae, signatures):
    seeds, labels = tf.constant([3, -7, 2**40], tf.int64), tf.constant([0, 2, 1])
    function = signatures["generate_png"].function
    files = function(seeds=seeds, labels=labels)["images_bytes"].numpy()
    expected = np.round(255 * vae.generate(seeds.numpy(), labels.numpy()))
    for file, image in zip(files, expected, strict=True):
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(file))), image)
    none = function(seeds=seeds[:0], labels=labels[:0])["images_bytes"]
    assert none.shape == (0,)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_are_read_from_files(vae, signatures, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    images = [Image.fromarray(one).convert(mode) for one in pixels]
    shown = np.array([np.array(one.convert("RGB")) for one in images])
    files = tf.constant([file_of(np.array(one)) for one in images])
    labels = tf.constant([0, 1])
    function = signatures["reconstruct_png"].function
    [received] = function(images_bytes=files, labels=labels).values()
    expected = np.round(255 * vae.reconstruct(shown, labels.numpy()))
    for file, image in zip(received.numpy(), expected, strict=True):
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(file))), image)


def test_a_jpeg_is_read(signatures):
    file = file_of(np.zeros((5, 4, 3), np.uint8), "JPEG")
    call = {"images_bytes": tf.constant([file]), "labels": tf.constant([0])}
    assert signatures["reconstruct_png"].function(**call)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (file_of(np.zeros((4, 5, 3), np.uint8)), "must be images of 5 x 4 pixels"),
        (file_of(np.zeros((40, 5, 3), np.uint8), "JPEG"), "images of 5 x 4 pixels"),
        (b"", "must be PNG or JPEG files"),
        (b"\x89PNG\r\n\x1a\n", "must be PNG or JPEG files"),
        (file_of(np.zeros((5, 4, 3), np.uint8))[:-20], "Invalid PNG"),
        (b"\xff\xd8" + bytes(100), "Invalid JPEG data"),
        (b"GIF89a" + bytes(100), "must be PNG or JPEG files"),
    ],
)
def test_other_files_are_refused(signatures, file, message):
    call = {"images_bytes": tf.constant([file]), "labels": tf.constant([0])}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures["reconstruct_png"].function(**call)


def test_a_small_file_that_unpacks_to_gigabytes_is_not_unpacked(signatures):
    head = file_of(np.zeros((5, 4, 3), np.uint8))
    size = (50_000).to_bytes(4, "big")
    huge = head[:16] + size + size + head[24:]
    call = {"images_bytes": tf.constant([huge]), "labels": tf.constant([0])}
    with pytest.raises(tf.errors.InvalidArgumentError, match="5 x 4 pixels"):
        signatures["reconstruct_png"].function(**call)


def test_pixels_may_be_off_by_one_and_no_more():
    image = np.full((2, 2), 7, np.uint8)
    other = image.copy()
    other[0, 0] = 8
    assert share_of_pixels_off(image, image) == 0
    assert share_of_pixels_off(other, image) == 0.25
    assert share_of_pixels_off(other + np.uint8([[1, 0], [0, 0]]), image) == np.inf
    files = np.array([file_of(other), file_of(image)], object)
    assert share_of_pixels_off(files, np.array([file_of(image)] * 2, object)) == 0.125
    assert share_of_pixels_off(image[:1], image) == np.inf
    # Bytes do not wrap around.
    assert share_of_pixels_off(np.uint8([0]), np.uint8([255])) == np.inf
