"""Images from arrays: of Python, an .npz, IDX files or scikit-learn."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from kgen.data.dataset import SPLITS
from kgen.data.image_rows import ImageFormat, Source, Split, not_read
from kgen.data.source_files import read_unpacked

# Keys of an .npz or a dict: our own names, the names of the Keras data sets, and the
# names of MedMNIST.
ARRAY_KEYS = {
    ("train", "images"): "images x_train train_images".split(),
    ("train", "labels"): "labels y_train train_labels".split(),
    ("validation", "images"): "validation_images x_validation x_val val_images".split(),
    ("validation", "labels"): "validation_labels y_validation y_val val_labels".split(),
    ("test", "images"): "test_images x_test".split(),
    ("test", "labels"): "test_labels y_test".split(),
}
_KNOWN_KEYS = set(itertools.chain(*ARRAY_KEYS.values()))
_IDX_NAME = re.compile(
    r"(?:.+-)?(?P<split>train|validation|t10k|test)-(?P<kind>images|labels)"
    r"[-.]idx\d-ubyte(?P<gz>\.gz)?"
)


class Named(NamedTuple):
    """An array, and its name in an error."""

    array: Any
    origin: str


Arrays = Mapping[tuple[str, str], Named]  # by split and by "images" or "labels"


def source_from_arrays(
    name: str, found: Arrays, wanted: ImageFormat, notes: tuple[str, ...] = ()
) -> Source:
    """Makes a source of the images and labels of each split.

    Args:
        name: Name of the data set.
        found: The images of each split, and the labels, if it has labels.
        wanted: The format of the result.
        notes: Remarks on unused content.
    """
    splits: dict[str, Split] = {}
    num_classes = 0
    first: Named | None = None
    for split in SPLITS:
        if (split, "images") not in found:
            continue
        images, labels = found[split, "images"], found.get((split, "labels"))
        pixels = _fitted(as_uint8_images(*images), wanted, images.origin)
        first = first or Named(pixels, images.origin)
        if pixels.shape[1:] != first.array.shape[1:]:
            raise ValueError(
                "The images of all splits must have the same shape. Received: "
                f"{first.origin} with {first.array.shape} and {images.origin} with "
                f"{pixels.shape}. Pass `image_size` or `channels` to make them equal."
            )
        if (labels is None) != (("train", "labels") not in found):
            raise ValueError(
                "Either all splits have labels or none. Received: "
                f"{images.origin} {'without' if labels is None else 'with'} labels, "
                f"unlike {first.origin}."
            )
        numbers = None
        if labels is not None:
            numbers = as_labels(*labels, len(pixels))
            num_classes = max(num_classes, int(numbers.max()) + 1)
        splits[split] = Split(images=pixels, labels=numbers)
    class_names = tuple(map(str, range(num_classes))) or None
    return Source(name=name, splits=splits, class_names=class_names, notes=notes)


def as_uint8_images(array: Any, origin: str) -> np.ndarray:
    """Returns images as uint8 [n, height, width, channels].

    Args:
        array: [n, height, width] or [n, height, width, 1 or 3]: integers in 0..255,
            booleans, or floats in [0, 1], which are rounded to the nearest of 0/255,
            1/255, ..., 255/255.
        origin: Name of the array in an error.

    Raises:
        ValueError: Another shape or type, values out of range, NaN, or no rows.
    """
    array = np.asarray(array)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise ValueError(
            "Images must have the shape [n, height, width] or [n, height, width, "
            "channels] with 1 or 3 channels, none of them empty. Received: "
            f"{origin} with shape {array.shape}. Reshape it, or move the channels last."
        )
    if array.dtype == np.bool_:
        return np.where(array, np.uint8(255), np.uint8(0))
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # NaN is neither
            found = "NaN" if math.isnan(low) else f"values from {low:g} to {high:g}"
            raise ValueError(
                "Float images must be finite and lie in [0, 1]. Received: "
                f"{origin} with {found}. Pass images in 0..255 as uint8, images in "
                "[-1, 1] as (images + 1) / 2."
            )
        return np.rint(array * 255).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            "Images must be uint8, other integers in 0..255, bool, or floats in "
            f"[0, 1]. Received: {origin} with dtype {array.dtype}."
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        raise ValueError(
            f"Integer images must lie in 0..255. Received: {origin} with values from "
            f"{low} to {high}. Divide floats of it by the largest possible value."
        )
    if high == 1:
        raise ValueError(
            "Integer images count from 0 (black) to 255 (white), and these would all "
            f"be black. Received: {origin} with values 0 and 1. Pass them as bool, or "
            "multiply by 255."
        )
    return array.astype(np.uint8, copy=False)


def as_labels(array: Any, origin: str, num_rows: int) -> np.ndarray:
    """Returns labels as int32 [n].

    Raises:
        ValueError: Labels of another type or shape, or negative.
    """
    array = np.asarray(array)
    if array.shape != (num_rows,):
        hint = " Pass labels[:, 0]." if array.shape == (num_rows, 1) else ""
        raise ValueError(
            f"Labels must be one integer per image, here {num_rows}, and not one-hot. "
            f"Received: {origin} with shape {array.shape}.{hint}"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            "Labels must be integers from 0 on. Received: "
            f"{origin} with dtype {array.dtype}."
        )
    if array.min() < 0 or array.max() >= 2**31 - 1:
        raise ValueError(
            "Labels must be integers from 0 on, below 2**31. Received: "
            f"{origin} with values from {array.min()} to {array.max()}. Leave out "
            "rows without a label, or give them a class of their own."
        )
    return array.astype(np.int32)


def _fitted(images: np.ndarray, wanted: ImageFormat, origin: str) -> np.ndarray:
    _, height, width, depth = images.shape
    if wanted.size in (None, (height, width)) and wanted.channels in (None, depth):
        return images
    return np.stack([wanted.fit(as_pillow(row), origin) for row in images])


def as_pillow(pixels: np.ndarray) -> Image.Image:
    """Returns the image of uint8 [height, width, 1 or 3]."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def open_digits(wanted: ImageFormat) -> Source:
    """Opens the 1,797 handwritten digits of 8x8 pixels that come with scikit-learn."""
    spec = importlib.util.find_spec("sklearn")
    path = Path(spec.origin if spec and spec.origin else "").parent
    path = path / "datasets" / "data" / "digits.csv.gz"
    if path.exists():
        table = np.loadtxt(path, delimiter=",", dtype=np.int64)
        pixels, labels = table[:, :64], table[:, 64]
    else:  # the same, but the import takes seconds
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    # Pixels are 0 to 16: 0 becomes 0, 8 becomes 128 (127.5, to even), 16 becomes 255.
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    found = {
        ("train", "images"): Named(images, "digits"),
        ("train", "labels"): Named(labels, "the labels of digits"),
    }
    return source_from_arrays("digits", found, wanted)


def open_python_arrays(source: Any, wanted: ImageFormat) -> Source:
    """Opens an array, a pair (images, labels), or a dict with the keys of an .npz."""
    if isinstance(source, tuple):
        if len(source) != 2:
            raise ValueError(
                "A tuple must be a pair (images, labels). Received: a tuple of "
                f"{len(source)}."
            )
        source = {"images": source[0], "labels": source[1]}
    elif not isinstance(source, Mapping):
        source = {"images": source}
    return _open_keys("array", source, "", wanted)


def open_npz(path: Path, wanted: ImageFormat) -> Source:
    """Opens an .npz file; see `ARRAY_KEYS` for its keys."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(
                f"Cannot read {path}: it is not an .npz file, or not complete. Save it "
                "with numpy.savez."
            )
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict.fromkeys(archive.files)
            for key in _KNOWN_KEYS & set(arrays):
                try:
                    array = archive[key]
                except (ValueError, zipfile.BadZipFile, EOFError, zlib.error) as error:
                    raise ValueError(
                        f"Cannot read `{key}` in {path}: {error}. Arrays of Python "
                        "objects are never read: save plain numbers."
                    ) from error
                # MedMNIST keeps labels in a column.
                column = array.ndim == 2 and array.shape[1] == 1
                arrays[key] = array[:, 0] if column else array
    return _open_keys(path.stem, arrays, f" in {path}", wanted)


def _open_keys(
    name: str, arrays: Mapping[str, Any], place: str, wanted: ImageFormat
) -> Source:
    found: dict[tuple[str, str], Named] = {}
    for (split, kind), keys in ARRAY_KEYS.items():
        present = [key for key in keys if key in arrays]
        if len(present) > 1:
            raise ValueError(
                f"The {split} split must be given once. Received: the keys "
                f"{', '.join(present)}{place}. Leave one of them out."
            )
        for key in present:
            found[split, kind] = Named(arrays[key], f"`{key}`{place}")
        if kind == "labels" and present and (split, "images") not in found:
            raise ValueError(
                "Labels must have images. Received: labels without images, "
                f"`{present[0]}`{place} but none of the keys "
                f"{', '.join(ARRAY_KEYS[split, 'images'])}."
            )
    if ("train", "images") not in found:
        raise ValueError(
            f"One of the keys {', '.join(ARRAY_KEYS['train', 'images'])} must hold the "
            f"images. Received: {', '.join(arrays) or 'no keys'}{place}."
        )
    unused = [key for key in arrays if key not in _KNOWN_KEYS]
    return source_from_arrays(name, found, wanted, not_read(unused))


def find_idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """Returns the IDX files of a folder by split and by "images" or "labels"."""
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):  # x.gz after x, of which it is a copy
        match = _IDX_NAME.fullmatch(path.name)
        if match is None:
            continue
        split = "test" if match["split"] == "t10k" else match["split"]
        known = files.setdefault((split, match["kind"]), path)
        if known is not path and path.name != f"{known.name}.gz":
            raise ValueError(
                "A folder of IDX files holds one data set. Received: "
                f"{known} and {path}. Move one set into a folder of its own."
            )
    return files


def open_idx_folder(folder: Path, wanted: ImageFormat) -> Source:
    """Opens a folder of IDX files with MNIST's file names."""
    files = find_idx_files(folder)
    if ("train", "images") not in files:
        raise FileNotFoundError(
            "A folder of IDX files needs the training images, "
            "train-images-idx3-ubyte or train-images-idx3-ubyte.gz. Found in "
            f"{folder}: {', '.join(path.name for path in files.values())}."
        )
    found = {key: Named(read_idx(path), str(path)) for key, path in files.items()}
    return source_from_arrays(folder.resolve().name, found, wanted)


def read_idx(path: Path) -> np.ndarray:
    """Returns the uint8 array of an IDX file, plain or compressed by gzip.

    The file is two zero bytes, a byte for the type (8: uint8), one for the number of
    dimensions, each dimension in four bytes, big-endian, and the values.

    Raises:
        ValueError: The file is no IDX file of uint8, or not complete.
    """
    content = read_unpacked(path)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not content[3]:
        raise ValueError(
            "An IDX file of uint8 begins with the bytes 00 00 08. Received: "
            f"{path} that begins with {content[:4].hex(' ') or 'nothing'}."
        )
    begin = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:begin].ljust(4 * content[3], b"\0"), ">u4")
    if len(content) != begin + math.prod(shape.tolist()):
        raise ValueError(
            f"{path} is damaged: its header says {shape.tolist()}, which are "
            f"{math.prod(shape.tolist()):,} values, and "
            f"{max(len(content) - begin, 0):,} follow. Copy or download it again."
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
