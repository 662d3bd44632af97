"""Signatures that take and return image files."""

import io
import struct
import types
import zlib

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from kgen.data.image_folders import decode_image
from kgen.export import to_onnx, to_saved_model
from kgen.export.comparison import pixels_off_by_one
from kgen.export.image_decoding import decode_images
from kgen.export.image_files import with_image_files
from kgen.export.verification import signatures_for
from kgen.models import GAN, GPT, VAE, Signature
from kgen.models.shared.specs import ImageSpec


def file_of(image, file_format="PNG", **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, file_format, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def vae():
    return VAE(image_shape=(5, 4, 3), latent_dim=2, hidden_units=(3,), num_classes=3)


@pytest.fixture(scope="module")
def signatures(vae):
    return {one.name: one for one in signatures_for(vae, "saved_model")}


def test_each_signature_of_images_has_one_of_files(signatures):
    assert [*signatures] == [
        "generate",
        "generate_png",
        "generate_with_options",
        "generate_with_options_png",
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
    assert names == ["generate", "beam_search", "prefill", "decode", "score"]
    gan = GAN(image_shape=(8, 8, 2), latent_dim=2)  # PNG has no two colours.
    names = [one.name for one in with_image_files(gan.signatures())]
    assert names == ["generate", "decode"]


def test_a_class_that_there_is_not_is_refused(signatures):
    generate = signatures["generate_png"].compiled
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`labels`.*in \[0, 2\]"):
        generate(tf.constant([0], tf.int64), tf.constant([3]))


def test_files_hold_the_images(vae, signatures):
    seeds, labels = tf.constant([3, -7, 2**40], tf.int64), tf.constant([0, 2, 1])
    function = signatures["generate_png"].function
    files = function(seeds=seeds, labels=labels)["images_bytes"].numpy()
    expected = np.round(255 * vae.generate(seeds.numpy(), labels.numpy()))
    for file, image in zip(files, expected, strict=True):
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(file))), image)
    none = function(seeds=seeds[:0], labels=labels[:0])["images_bytes"]
    assert none.shape == (0,)


def test_images_are_read_from_files(vae, signatures):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    files, labels = tf.constant([file_of(one) for one in pixels]), tf.constant([0, 1])
    function = signatures["reconstruct_png"].function
    [received] = function(images_bytes=files, labels=labels).values()
    expected = np.round(255 * vae.reconstruct(pixels, labels.numpy()))
    for file, image in zip(received.numpy(), expected, strict=True):
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(file))), image)


# -- A file is the same picture as in training ---------------------------------


RGBA = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
RGB, GREY = Image.fromarray(RGBA[..., :3]), Image.fromarray(RGBA[..., 0])
GREY_16 = (np.arange(35).reshape(5, 7) * 1871 + 100).astype(np.uint16)
COLOUR = tuple(map(int, RGBA[0, 0, :3]))
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def turned(orientation, file_format="JPEG", **tags):
    exif = Image.Exif()
    exif[0x010F] = "Maker"  # A tag before the orientation, as cameras write it.
    exif[0x0112] = orientation
    return file_of(RGB, file_format, exif=exif, **tags)


def shades(count):
    return RGB.quantize(count)


def png(depth, colour, *rows, transparent=b""):
    """A PNG file of the kinds that Pillow cannot write, from the bytes of its rows."""

    def chunk(kind, content):
        sum_of = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + sum_of

    width = len(rows[0]) * 8 // (depth * {0: 1, 2: 3, 6: 4}[colour])
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    extra = chunk(b"tRNS", transparent) if transparent else b""
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", content)
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def with_exif(tiff):
    """A JPEG file with a hand-made Exif segment."""
    content = b"Exif\0\0" + tiff
    size = (len(content) + 2).to_bytes(2, "big")
    return b"\xff\xd8\xff\xe1" + size + content + file_of(RGB, "JPEG")[2:]


FILES = {
    "rgb": file_of(RGB),
    "grey": file_of(GREY),
    "rgb with alpha": file_of(RGBA),
    "grey with alpha": file_of(Image.fromarray(RGBA[..., :2], "LA")),
    "every colour with every alpha": file_of(
        np.stack(
            np.broadcast_arrays(*[np.arange(256)[:, None]] * 3, np.arange(256)), 2
        ).astype(np.uint8)
    ),
    "a transparent colour": file_of(RGB, transparency=COLOUR),
    "a transparent grey": file_of(GREY, transparency=COLOUR[0]),
    "1 bit": file_of(GREY.convert("1")),
    "1 bit, transparent": file_of(GREY.convert("1"), transparency=0),
    "4 bits": png(4, 0, b"\x01\x23", b"\xef\x80"),
    "16 bits of grey": file_of(Image.fromarray(GREY_16)),
    "16 bits of colours": png(16, 2, bytes(RGBA[0, :3].ravel()), bytes(range(12))),
    "16 bits with alpha": png(16, 6, bytes(RGBA[0, :4].ravel()), bytes(range(16))),
    **{f"palette of {n}": file_of(shades(n)) for n in (2, 4, 16, 200)},
    **{f"palette, {n} t": file_of(shades(n), transparency=0) for n in (2, 4, 16, 200)},
    "palette with alpha": file_of(shades(9), transparency=bytes(range(0, 252, 28))),
    "interlaced": file_of(RGB, interlace=1),
    **{f"jpeg {q}": file_of(RGB, "JPEG", quality=q) for q in (30, 75, 100)},
    "jpeg in full colour": file_of(RGB, "JPEG", subsampling=0),
    "grey jpeg": file_of(GREY, "JPEG"),
    "progressive jpeg": file_of(RGB, "JPEG", progressive=True),
    **{f"turned {n}": turned(n) for n in range(10)},
    **{f"turned png {n}": turned(n, "PNG") for n in range(1, 9)},
    "a whole number of 32 bits": with_exif(
        b"MM\0*\0\0\0\x08\0\x01" + b"\x01\x12\0\x04\0\0\0\x01\0\0\0\x06" + bytes(4)
    ),
    "a byte, which Pillow does not take": with_exif(
        b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x01\0\x01\0\0\0\x08\0\0\0" + bytes(4)
    ),
    "little-endian": with_exif(
        b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x08\0\0\0" + bytes(4)
    ),
    "an empty directory": with_exif(b"II*\0\x08\0\0\0\0\0" + bytes(4)),
    "turned by xmp": file_of(RGB, "JPEG", xmp=XMP),
    "turned by exif rather than xmp": turned(3, xmp=XMP),
}


@pytest.fixture(scope="module")
def decoders():
    """Compiled once for files of any size."""
    spec = [tf.TensorSpec([], tf.string)]
    return {
        channels: tf.function(
            lambda file, channels=channels: decode_images(
                file[None], tf.TensorShape([None, None, channels])
            )[0],
            input_signature=spec,
        )
        for channels in (1, 3, 4)
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_picture_that_training_sees(decoders, tmp_path, name, channels):
    (tmp_path / "image").write_bytes(FILES[name])
    trained = decode_image(tmp_path / "image").convert("L" if channels == 1 else "RGB")
    served = decoders[channels](FILES[name]).numpy()
    expected = np.asarray(trained).reshape(trained.height, trained.width, channels)
    np.testing.assert_allclose(255 * served, expected, rtol=0, atol=1e-4)


def test_inks_are_off_by_one_level_at_most(decoders, tmp_path):
    """TensorFlow's decoder rounds the product of two inks down, Pillow to nearest."""
    file = file_of(Image.fromarray(RGBA, "CMYK"), "JPEG", quality=100)
    (tmp_path / "image").write_bytes(file)
    trained = np.asarray(decode_image(tmp_path / "image")).astype(int)
    assert np.abs(255 * decoders[3](file).numpy() - trained).max() < 1.01


def test_four_channels_keep_their_alpha(decoders):
    served = decoders[4](FILES["rgb with alpha"]).numpy()
    np.testing.assert_array_equal(np.round(255 * served), RGBA)


def text_chunk(keyword):
    info = PngImagePlugin.PngInfo()
    if keyword == "XML:com.adobe.xmp":
        info.add_itxt(keyword, XMP.decode(), zip=True)
    else:
        info.add_text(keyword, "\nexif\n 8\n00", zip=True)
    return file_of(RGB, pnginfo=info)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (text_chunk("Raw profile type exif"), "Exif data in an eXIf chunk"),
        (text_chunk("XML:com.adobe.xmp"), "XMP uncompressed"),
        (png(4, 0, b"\x01\x23", transparent=b"\0\x01"), "PNG files of 8 bits only"),
        (png(16, 0, b"\x01\x23", transparent=b"\x01\x23"), "of 8 bits only"),
        (file_of(np.zeros((1, 1), np.uint8))[:16] + b"\0\0\x17\0" * 3, "33,554,432"),
    ],
)
def test_a_file_that_cannot_be_read_as_in_training_is_refused(decoders, file, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        decoders[3](file)


@pytest.fixture
def inverter():
    """A model of images of any size, with three outputs."""

    def function(images):
        darkness = 1 - tf.reduce_mean(images, [1, 2, 3])[:, None]
        return {"negatives": 1 - images, "copies": images, "darkness": darkness}

    def example(count):
        return {"images": np.linspace(0, 1, count * 6).reshape(count, 2, 1, 3)}

    spec = ImageSpec(None, None, 3)
    outputs = {"negatives": "image", "copies": "image", "darkness": "latent"}
    signature = Signature("invert", function, {"images": spec}, outputs, (), (example,))
    model = types.SimpleNamespace(signatures=lambda: [signature])
    model.float32_clone = lambda: model
    return model


def test_images_of_any_size_are_served_with_every_output(inverter, tmp_path):
    export = to_saved_model(inverter, tmp_path / "run")
    serve = tf.saved_model.load(export).signatures["invert_png"]
    pixels = RGBA[..., :3]
    answer = serve(images_bytes=tf.constant([file_of(pixels)] * 2))
    assert {*answer} == {"negatives_bytes", "copies_bytes", "darkness"}
    for file in answer["negatives_bytes"].numpy():
        np.testing.assert_array_equal(tf.io.decode_png(file), 255 - pixels)
    expected = 1 - pixels.mean() / 255
    np.testing.assert_allclose(answer["darkness"], [[expected]] * 2, rtol=1e-5)
    unequal = [file_of(pixels), file_of(pixels[1:])]
    for files, message in (
        (unequal, "any x any pixels, all of one size"),
        ([], "at least one"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            serve(images_bytes=tf.constant(files, tf.string))


def test_images_of_any_size_are_exported_to_onnx_with_every_output(inverter, tmp_path):
    export = to_onnx(inverter, tmp_path / "i.onnx", layout="nchw", dtype="uint8")
    session = onnxruntime.InferenceSession(export)
    pixels = RGBA[None, ..., :3].transpose(0, 3, 1, 2)
    outputs = [one.name for one in session.get_outputs()]
    answer = dict(zip(outputs, session.run(None, {"images": pixels}), strict=True))
    np.testing.assert_array_equal(answer["negatives"], 255 - pixels)
    np.testing.assert_array_equal(answer["copies"], pixels)
    np.testing.assert_allclose(answer["darkness"], [[1 - pixels.mean() / 255]], 1e-5)


# -- Files that are refused ----------------------------------------------------


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
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures["reconstruct_png"].compiled(tf.constant([file]), tf.constant([0]))


def test_a_small_file_that_unpacks_to_gigabytes_is_not_unpacked(signatures):
    head = file_of(np.zeros((5, 4, 3), np.uint8))
    size = (50_000).to_bytes(4, "big")
    huge = head[:16] + size + size + head[24:]
    with pytest.raises(tf.errors.InvalidArgumentError, match="5 x 4 pixels"):
        signatures["reconstruct_png"].compiled(tf.constant([huge]), tf.constant([0]))


def test_pixels_may_be_off_by_one_and_no_more():
    image = np.full((2, 2), 7, np.uint8)
    other = image.copy()
    other[0, 0] = 8
    assert pixels_off_by_one(image, image) == 0
    assert pixels_off_by_one(other, image) == 0.25
    assert pixels_off_by_one(other + np.uint8([[1, 0], [0, 0]]), image) == np.inf
    files = np.array([file_of(other), file_of(image)], object)
    assert pixels_off_by_one(files, np.array([file_of(image)] * 2, object)) == 0.125
    assert pixels_off_by_one(image[:1], image) == np.inf
    # Bytes do not wrap around.
    assert pixels_off_by_one(np.uint8([0]), np.uint8([255])) == np.inf
