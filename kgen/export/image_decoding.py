"""PNG and JPEG files to pixels in a graph: the same pixels that Pillow gives training.

`tf.io.decode_image` ignores the Exif orientation, drops transparency, and decodes JPEG
by a faster method that is off by up to 16 levels.
"""

from __future__ import annotations

import tensorflow as tf

from kgen.models.shared.specs import assertion

# Of a file whose size the model does not fix: a small file can unpack to gigabytes.
MAX_PIXELS = 2**25

# The TIFF structure in a JPEG's Exif segment or in a PNG's eXIf chunk, and the
# orientation in an XMP packet, used where the Exif data have none. \C is a byte.
_EXIF = r"(?s)^\C*?(?:Exif\x00\x00|eXIf)((?:II\*\x00|MM\x00\*)\C*)$"
_XMP = r'(?s)^\C*?tiff:Orientation(?:="|>)([0-9])\C*$'
# Forms of the two that cannot be read in a graph.
_COMPRESSED = r"(?s)\C*(?:Raw profile type exif|XML:com\.adobe\.xmp\x00\x01)\C*"
_EXIF_BYTES = 2**16
_ORIENTATION_TAG, _SHORT, _LONG = 0x0112, 3, 4
_LUMA = (19595, 38470, 7471)  # ITU-R 601 in 16 bits, as Pillow has it


def decode_images(files: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Decodes image files as `kgen.data` does, or fails with a sentence.

    Images are turned upright, transparent ones laid over white, and converted between
    grey and RGB; 16 bits become 8.

    Args:
        files: PNG or JPEG files, string [batch].
        shape: Height, width and channels of the model: 1, 3, or 4 for RGBA. A height
            or width of None may be any, the same in all files of a batch.

    Returns:
        float32 in [0, 1], [batch, height, width, channels].
    """
    height, width, channels = shape
    headers = (tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.int32))
    sizes, orientations = tf.map_fn(_header, files, fn_output_signature=headers)
    largest = tf.reduce_max(sizes, 0)
    wanted = tf.stack([height or largest[0], width or largest[1]])
    rule = f"images of {height or 'any'} x {width or 'any'} pixels, all of one size"
    # Before anything is unpacked.
    files = _checked(files, tf.reduce_all(sizes == wanted), f"be {rule}")
    num_pixels = tf.reduce_prod(tf.cast(sizes, tf.int64), 1)
    is_small = tf.reduce_all(num_pixels <= MAX_PIXELS)
    files = _checked(files, is_small, f"be images of at most {MAX_PIXELS:,} pixels")
    if None in (height, width):
        files = _checked(files, tf.size(sizes) > 0, "be at least one image")

    @tf.autograph.experimental.do_not_convert  # It takes seconds.
    def decode(file_and_orientation):
        file, orientation = file_and_orientation
        pixels = _upright(
            tf.cond(_is_png(file), lambda: _png(file), lambda: _jpeg(file)), orientation
        )
        if channels != 4:
            pixels = _over_white(pixels)
        if channels == 1:
            pixels = (tf.reduce_sum(pixels * _LUMA, -1, keepdims=True) + 2**15) // 2**16
        return tf.ensure_shape(pixels, shape)

    spec = tf.TensorSpec(shape, tf.int32)
    pixels = tf.map_fn(decode, (files, orientations), fn_output_signature=spec)
    pixels = tf.ensure_shape(pixels, [None, *shape])
    return tf.cast(pixels, tf.float32) / 255.0


def _checked(tensor: tf.Tensor, holds: tf.Tensor, rule: str) -> tf.Tensor:
    """The tensor behind an assertion about the files."""
    with tf.control_dependencies([assertion(holds, f"`images_bytes` must {rule}.")]):
        return tf.identity(tensor)


def _is_png(file: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(file, 0, 4) == b"\x89PNG"


@tf.autograph.experimental.do_not_convert
def _header(file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Height and width of the upright image, int32 [2], and its orientation."""
    is_png = _is_png(file)
    is_jpeg = tf.strings.substr(file, 0, 2) == b"\xff\xd8"
    is_known = (is_png | is_jpeg) & (tf.strings.length(file) > 25)
    file = _checked(file, is_known, "be PNG or JPEG files")
    png_size = tf.strings.substr(file, 16, 8)
    size = tf.cond(
        is_png,
        lambda: tf.io.decode_raw(png_size, tf.int32, little_endian=False)[::-1],
        lambda: tf.image.extract_jpeg_shape(file)[:2],
    )
    orientation = _orientation(file)
    return tf.where(_is_one_of(orientation, 5, 6, 7, 8), size[::-1], size), orientation


def _orientation(file: tf.Tensor) -> tf.Tensor:
    """The Exif orientation, int32; 1 where the file has none."""
    length = tf.strings.length(file)
    tiff = tf.strings.regex_replace(file, _EXIF, r"\1")
    tiff = tf.where(tf.strings.length(tiff) < length, tiff, "")
    data = tf.io.decode_raw(tiff, tf.uint8, fixed_length=_EXIF_BYTES)
    data = tf.cast(data, tf.int64)
    is_little_endian = data[0] == ord("I")

    def number(digits):
        digits = tf.where(is_little_endian, digits, digits[..., ::-1])
        places = [256**place for place in range(digits.shape[-1])]
        return tf.reduce_sum(digits * tf.constant(places, tf.int64), -1)

    # The first directory: the number of entries, then 12 bytes for each.
    start = tf.clip_by_value(number(data[4:8]), 0, _EXIF_BYTES - 2)
    num_bytes = 12 * number(tf.ensure_shape(data[start : start + 2], [2]))
    entries = data[start + 2 : start + 2 + num_bytes]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])
    kinds = number(entries[:, 2:4])
    values = tf.where(kinds == _LONG, number(entries[:, 8:]), number(entries[:, 8:10]))
    is_known = (kinds == _SHORT) | (kinds == _LONG)  # Pillow knows no other.
    is_it = is_known & (number(entries[:, :2]) == _ORIENTATION_TAG)
    values = tf.boolean_mask(values, is_it)

    is_compressed = tf.strings.regex_full_match(file, _COMPRESSED)
    is_readable = (tf.size(values) > 0) | ~is_compressed
    rule = "have Exif data in an eXIf chunk, and XMP uncompressed"
    xmp = tf.strings.regex_replace(_checked(file, is_readable, rule), _XMP, r"\1")
    digit = tf.cast(tf.io.decode_raw(xmp, tf.uint8)[:1], tf.int64) - ord("0")
    digit = tf.where(tf.strings.length(xmp) == 1, digit, 1)
    return tf.cast(tf.concat([digit, values], 0)[-1], tf.int32)


def _is_one_of(orientation: tf.Tensor, *values: int) -> tf.Tensor:
    return tf.reduce_any(orientation == tf.constant(values))


def _upright(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """The image [height, width, channels] as it is meant to be seen."""
    for change, *orientations in (
        (lambda image: tf.transpose(image, [1, 0, 2]), 5, 6, 7, 8),
        (lambda image: image[::-1], 3, 4, 7, 8),
        (lambda image: image[:, ::-1], 2, 3, 6, 7),
    ):
        pixels = tf.cond(
            _is_one_of(orientation, *orientations),
            lambda change=change, pixels=pixels: change(pixels),
            lambda pixels=pixels: pixels,
        )
    return pixels


def _png(file: tf.Tensor) -> tf.Tensor:
    """RGBA of 8 bits, int32 [height, width, 4]."""
    pixels = tf.cast(tf.io.decode_png(file, channels=4, dtype=tf.uint16), tf.int32)
    header = tf.io.decode_raw(tf.strings.substr(file, 24, 2), tf.uint8)
    depth, colour = tf.unstack(tf.cast(header, tf.int32), num=2)
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    # Where a file of fewer than 8 bits has no transparency, the decoder's opaque is the
    # largest number of its bits.
    filler = tf.bitwise.left_shift(1, depth) * 257 - 257
    alpha = tf.where((depth < 8) & tf.reduce_all(alpha == filler), 2**16 - 1, alpha)
    # Pillow compares a transparent colour with scaled pixels: training misses it.
    is_keyed = _is_one_of(colour, 0, 2) & tf.reduce_any(alpha < 2**16 - 1)
    is_seen = ~(is_keyed & _is_one_of(depth, 2, 4, 16))
    rule = "have a transparent colour in PNG files of 8 bits only"
    pixels = _checked(tf.concat([rgb, alpha], -1), is_seen, rule)
    # 8 bits come as 257 times their value. Of 16 bits of a colour Pillow keeps the
    # upper 8, and `kgen.data` rounds those of a grey image.
    return tf.where(colour == 0, (pixels + 128) // 257, pixels // 256)


def _jpeg(file: tf.Tensor) -> tf.Tensor:
    """RGBA of 8 bits, int32 [height, width, 4]."""
    rgb = tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE")
    pixels = tf.cast(rgb, tf.int32)
    return tf.pad(pixels, [[0, 0], [0, 0], [0, 1]], constant_values=255)


def _over_white(pixels: tf.Tensor) -> tf.Tensor:
    """RGB of RGBA over white, rounded as Pillow's `alpha_composite` does it."""
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    total = 128 * (colour * alpha + 255 * (255 - alpha) + 128)
    return (total // 256 + total) // 256 // 128
