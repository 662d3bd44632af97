"""Image data sets: opened from any source, split, and read in batches."""

from __future__ import annotations

import hashlib
import math
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from kgen.arguments import require
from kgen.data import image_arrays
from kgen.data.celeba import find_celeba_files
from kgen.data.dataset import SPLITS, DataSet, take_batch_options
from kgen.data.image_folders import find_image_files, open_image_files
from kgen.data.image_rows import (
    ImageFormat,
    Size,
    Source,
    Split,
    is_in_memory,
    size_text,
)
from kgen.data.named_builders import NAME, DataDir
from kgen.data.named_images import open_named_images
from kgen.data.pipeline import SPLIT_STREAM, Batch, Read, permutation
from kgen.data.source_files import open_root
from kgen.data.stacked_images import stack_channels
from kgen.nn import random

SPLIT_LIMIT = 5000  # 5,000 rows estimate a mean error rate of 2 % to 0.2 %

_CACHES = ("auto", "memory", "disk", "none")
_BINARIZE_STREAMS = {
    "dynamic": random.STREAM_BINARIZE,
    "static": random.STREAM_BINARIZE_ONCE,
}

_BYTES_PER_READ = 2**22  # of images in memory: few calls, the first of them short

Binarization = Literal["dynamic", "static"] | None


def images(
    source: Any, *, split: str = "train", binarize: Binarization = None, **options: Any
) -> tf.data.Dataset:
    """Returns batches of images from a name, a path or an array.

    Every iteration is one pass. The order of the k-th pass is a pure function of
    (seed, k); without shuffling all passes are alike.

    Args:
        source: See `open_images`.
        split: "train", "validation" or "test".
        binarize: None, "dynamic" or "static"; see `ImageSet`.
        **options: image_size, channels, data_dir, cache and download of `open_images`;
            batch_size (by default 128), seed, shuffle and drop_remainder of
            `ImageSet.batches`. The seed keys the order and the binarization.

    Returns:
        A dataset of dicts: "images", uint8 [batch, height, width, channels] in 0..255,
        and, where there are labels, "labels", int32 [batch].

    Raises:
        FileNotFoundError: See `open_images`.
        ValueError: See `open_images`; and a batch size above the number of training
            images.

    Example:
        >>> batches = kgen.data.images("digits", batch_size=64)
        >>> batches.element_spec["images"].shape
        TensorShape([64, 8, 8, 1])
    """
    batching = take_batch_options(options)
    return open_images(source, **options).batches(split, binarize=binarize, **batching)


def open_images(
    source: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    data_dir: str | os.PathLike | None = None,
    cache: str = "auto",
    download: bool = True,
) -> ImageSet:
    """Opens an image data set.

    Validation and test splits of the source are kept. A missing split is taken from
    the training images: a tenth of them, at least 1 and at most 5,000, the first rows
    (test before validation) of one fixed permutation, in their old order. So MNIST is
    55,000 / 5,000 / 10,000 images, and a set of 1,000 without splits 800 / 100 / 100,
    the same ones on every machine and for every seed.

    Args:
        source: One of
            - "digits": 1,797 handwritten digits of 8x8 pixels, from scikit-learn;
            - a path (which has precedence over an equal name) of a folder of PNG, JPEG,
              WebP or BMP files. Two or more subfolders are classes, labelled in the
              order of their names. Folders called train, validation (val) and test at
              the top are splits. Images are turned upright by their EXIF orientation,
              16-bit grey is scaled to 8 bits, and transparency is blended over white;
            - a path of a .zip of such a folder, or of its content. It is read in place
              and never unpacked to disk;
            - a path of a folder with CelebA's img_align_celeba.zip or, unpacked,
              img_align_celeba/, and no other images: split as published, by
              list_eval_partition.txt if it exists and by number if not; see
              `kgen.data.celeba.find_celeba_files`;
            - a path of a folder of IDX files, plain or .gz, under MNIST's names;
            - a path of an .npz with the key images (or x_train, train_images), and
              optionally labels (y_train, train_labels), x_validation, y_validation,
              x_test, y_test and the like;
            - the name of a data set of tensorflow-datasets with a feature "image", and
              optionally a class "label": mnist, fashion_mnist, celeb_a, ...;
            - "stacked_mnist": RGB images of three random digits of MNIST, one a
              channel, with the labels 100 a + 10 b + c of the digits a, b and c. Each
              split is made of the digits of that split, as many as there are of them;
              see `kgen.data.stacked_images.stack_channels` for the draws;
            - an array [n, height, width] or [n, height, width, 1 or 3], of uint8, of
              other integers in 0..255, of bool, or of floats in [0, 1] (rounded to
              n/255); a pair (images, labels); or a dict with the keys of an .npz.
        image_size: Height and width in pixels of all images, or one number for both.
            Each image is scaled, antialiased, until it just covers that size, and
            cropped at the centre. None: the images have one size and keep it.
        channels: 1 (grey) or 3 (RGB), to convert all images. None: all have the same
            and keep it.
        data_dir: The folder in which tensorflow-datasets keeps its data sets. None: its
            own default, ~/tensorflow_datasets. For names only; for stacked_mnist it may
            be a folder of MNIST's IDX files as well.
        cache: Where the decoded images of a folder, a zip or a name are kept. "memory";
            "disk": a file in ~/.cache/kgen (or $XDG_CACHE_HOME/kgen); "none": decoded
            in each pass, for folders and zips only; "auto": in memory up to 2 GiB, and
            from there on "none" for a folder or a zip and "disk" for a name. Arrays and
            stacked_mnist are in memory.
        download: Whether a missing data set of tensorflow-datasets may be downloaded
            and prepared.

    Raises:
        FileNotFoundError: A path that does not exist, a folder or zip without images,
            or a missing data set that cannot be downloaded.
        ValueError: An unknown name, a file that is damaged or of another kind, images
            that differ in size or channels or are smaller than `image_size`, numbers
            out of range, labels that do not fit, an encrypted zip, too few images to
            split. Each message names the file, and its zip.

    Example:
        >>> print(kgen.data.open_images("digits"))
        digits: 1,797 images 8x8x1, uint8 in 0..255, 10 classes; train 1,439, ...
    """
    channels_rule = "be 1 (grey) or 3 (RGB)"
    require(channels in (None, 1, 3), "channels", channels, channels_rule)
    require(cache in _CACHES, "cache", cache, f"be one of {', '.join(_CACHES)}")
    wanted = ImageFormat(_image_size(image_size), channels)
    return ImageSet(_open_source(source, wanted, data_dir, cache, download))


def _open_source(
    source: Any, wanted: ImageFormat, data_dir: DataDir, cache: str, download: bool
) -> Source:
    if not isinstance(source, (str, os.PathLike)):
        if isinstance(source, (bytes, type(None))):
            raise TypeError(
                "`source` must be a name, a path or an array. Received: "
                f"{type(source).__name__}"
            )
        return image_arrays.open_python_arrays(source, wanted)
    if source == "digits":
        return image_arrays.open_digits(wanted)
    path = Path(source).expanduser()
    if path.is_dir():
        if image_arrays.find_idx_files(path):
            return image_arrays.open_idx_folder(path, wanted)
        found = find_celeba_files(path) or find_image_files(path)
        return open_image_files(path, found, wanted, cache)
    if path.exists():
        suffix = path.suffix.lower()
        if suffix == ".npz":
            return image_arrays.open_npz(path, wanted)
        if suffix == ".zip":
            found = find_image_files(open_root(path))
            return open_image_files(path, found, wanted, cache)
        raise ValueError(
            "A file with images must be an .npz or a .zip. Received: "
            f"{path}. Other sources are a folder of image files, a folder of IDX "
            "files, digits, stacked_mnist, and the names of tensorflow-datasets."
        )
    if not isinstance(source, str) or not NAME.fullmatch(source):
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if source == "stacked_mnist":
        return _open_stacked_mnist(wanted, data_dir, download)
    return open_named_images(source, data_dir, wanted, cache, download)


def _open_stacked_mnist(
    wanted: ImageFormat, data_dir: DataDir, download: bool
) -> Source:
    if wanted.channels == 1:
        raise ValueError(
            "Each channel of stacked_mnist is a digit, so `channels` must be 3 or left "
            "out. Received: channels=1. Single digits are in mnist."
        )
    grey = wanted._replace(channels=1)
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if folder is not None and folder.is_dir() and image_arrays.find_idx_files(folder):
        digits = image_arrays.open_idx_folder(folder, grey)
    else:
        digits = open_named_images("mnist", data_dir, grey, "memory", download)
    # Split first: no digit is in two splits.
    splits = _with_all_splits(digits)
    return stack_channels("stacked_mnist", splits, digits.class_names)


def _image_size(image_size: int | tuple[int, int] | None) -> Size | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    is_pair = isinstance(size, (tuple, list)) and len(size) == 2
    kept = is_pair and all(isinstance(length, int) and length > 0 for length in size)
    rule = "be a positive number of pixels, or a pair of them, height and width"
    require(kept, "image_size", image_size, rule)
    return size[0], size[1]


class ImageSet(DataSet):
    """Images of one size with their splits; see `open_images`.

    A batch is a dict: "images", uint8 [batch, height, width, channels], and, where
    there are labels, "labels", int32 [batch].

    `pipeline` and `batches` take the option `binarize`. None leaves the images as they
    are. Otherwise each pixel becomes 255 with probability pixel / 255 (to 32 bits; 0
    and 255 stay as they are) and 0 else: "dynamic", drawn again for each pass, batch
    and position in the batch (without shuffling, the same in each pass); "static",
    drawn once for each image of the split and seed.

    Args:
        source: The images and labels of a source.

    Attributes:
        name: Name of the data set.
        image_shape: (height, width, channels).
        class_names: One name per label, or None without labels.
        num_classes: Number of labels, or None.
        splits: Number of images in "train", "validation" and "test".
        notes: Content of the source that is not used, in words.

    Raises:
        ValueError: There are too few images to split off the missing splits.
    """

    def __init__(self, source: Source):
        self.name = source.name
        self.notes = source.notes
        self.class_names = source.class_names
        self.num_classes = None if not source.class_names else len(source.class_names)
        self._identity = source.identity
        self._splits = _with_all_splits(source)
        height, width, channels = self._splits["train"].images.shape[1:]
        self.image_shape = (height, width, channels)
        self.splits = {name: one.images.shape[0] for name, one in self._splits.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all pixels and labels.

        If the images are not in memory, of the names, sizes and times of the files.
        """
        digest = hashlib.sha256(repr((self.image_shape, self.splits)).encode())
        for rows in self._splits.values():
            if is_in_memory(rows.images):
                digest.update(np.ascontiguousarray(rows.images).data)
            if rows.labels is not None:
                digest.update(np.ascontiguousarray(rows.labels).data)
        if not is_in_memory(self._splits["train"].images):
            digest.update(self._identity.encode())
        return digest.hexdigest()

    @cached_property
    def value_range(self) -> tuple[int, int] | None:
        """The smallest and the largest value; None if the images are not in memory."""
        splits = self._splits.values()
        arrays = [rows.images for rows in splits if is_in_memory(rows.images)]
        if len(arrays) < len(splits):
            return None
        lows = [int(array.min()) for array in arrays]
        highs = [int(array.max()) for array in arrays]
        return min(lows), max(highs)

    def _content(self) -> str:
        low, high = self.value_range or (0, 255)
        kind = f"{self.num_classes} classes" if self.num_classes else "no labels"
        return (
            f"{sum(self.splits.values()):,} images {size_text(self.image_shape)}, "
            f"uint8 in {low}..{high}, {kind}; "
        )

    def _reader(
        self, split: str, seed: int, shuffle: bool, binarize: Binarization = None
    ) -> tuple[Read, int]:
        known = binarize in (None, *_BINARIZE_STREAMS)
        rule = "be None, 'dynamic' or 'static'"
        require(known, "binarize", binarize, rule)
        rows = self._splits[split]
        in_memory = is_in_memory(rows.images)
        with tf.device("CPU:0"):  # tf.data reads there; captured, never copied
            labels = None if rows.labels is None else tf.constant(rows.labels)
            if in_memory:
                pixels = tf.constant(rows.images)
            if binarize:
                # Here, not in the graph: a hash makes an iterator 2 ms slower to open.
                key = random.keys(seed, _BINARIZE_STREAMS[binarize])

        def read(numbers: tf.Tensor, epoch: tf.Tensor, positions: tf.Tensor) -> Batch:
            if in_memory:
                batch = tf.gather(pixels, numbers)
            else:
                batch = tf.numpy_function(
                    lambda wanted: rows.images[wanted], [numbers], tf.uint8
                )
                batch = tf.ensure_shape(batch, [numbers.shape[0], *self.image_shape])
            if binarize == "dynamic":
                batch = _binarize(batch, key, epoch, positions)
            elif binarize == "static":
                batch = _binarize(batch, key, numbers)
            if labels is None:
                return {"images": batch}
            return {"images": batch, "labels": tf.gather(labels, numbers)}

        row_bytes = math.prod(self.image_shape)
        return read, _BYTES_PER_READ // row_bytes if in_memory else 1


def _with_all_splits(source: Source) -> dict[str, Split]:
    """Returns the three splits; the missing ones are split off the training images."""
    splits = dict(source.splits)
    missing = [split for split in ("test", "validation") if split not in splits]
    train = splits["train"]
    num_rows = train.images.shape[0]
    size = min(max(num_rows // 10, 1), SPLIT_LIMIT)
    if num_rows <= size * len(missing):
        raise ValueError(
            f"There must be at least {len(missing) + 1} training images to split off "
            f"{' and '.join(missing)} images. Received: {num_rows} in {source.name}. "
            "Add images, or give the source splits of its own."
        )
    if missing:
        order = permutation(num_rows, 0, SPLIT_STREAM)
        for index, split in enumerate(missing):
            rows = order[index * size : (index + 1) * size]
            splits[split] = train.take(np.sort(rows))
        splits["train"] = train.take(np.sort(order[len(missing) * size :]))
    return {split: splits[split] for split in SPLITS}


@tf.function(jit_compile=True)
def _binarize(pixels: tf.Tensor, key: tf.Tensor, *position: tf.Tensor) -> tf.Tensor:
    """Draws black or white for each pixel, by noise keyed by `key` and `position`.

    XLA fuses it into one pass over the memory: it is the largest cost of an epoch of a
    small model outside the training step.
    """
    noise = random.bits(random.fold_in(key, *position), pixels.shape[1:])
    return _white_or_black(pixels, noise)


def _white_or_black(pixels: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Returns 255 where noise / 2**32 falls below pixel / 255, and 0 elsewhere."""
    below = noise * 255 < tf.cast(pixels, tf.int64) * 2**32
    return tf.cast(below, tf.uint8) * 255
