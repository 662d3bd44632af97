"""Folders and zips of image files: their layout, and their pixels."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from kgen.data.dataset import SPLITS
from kgen.data.image_rows import (
    MEMORY_LIMIT,
    ImageFormat,
    ImageRows,
    Shape,
    Source,
    Split,
    keep_rows,
    not_read,
    size_text,
)
from kgen.data.source_files import SourceFile, ZipEntry, files_below, visible

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPLIT_FOLDERS = dict(zip(SPLITS, SPLITS, strict=True))
SPLIT_FOLDERS |= {"val": "validation", "valid": "validation"}

# Number of channels of an image of each Pillow mode, without alpha.
_CHANNELS = {
    **dict.fromkeys(("1", "L", "LA", "I;16", "I;16L", "I;16B"), 1),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"), 3),
}
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_CHUNK_ROWS = 1024

ClassedFiles = list[tuple[SourceFile, str]]  # each with its class, "" without one


class FoundFiles(NamedTuple):
    """The image files of a folder.

    Attributes:
        files: The files of each split, in order, each with the name of its class.
        notes: Remarks on files that are not read.
    """

    files: dict[str, ClassedFiles]
    notes: tuple[str, ...]


def open_image_files(
    path: Path, found: FoundFiles, wanted: ImageFormat, cache: str
) -> Source:
    """Opens the image files of a path; see `open_images`."""
    files, notes = found
    class_names = _class_names(files)
    readers = {
        split: ImageFiles([file for file, _ in classed], wanted)
        for split, classed in files.items()
    }
    first = readers["train"]
    decoded_bytes = sum(int(np.prod(reader.shape)) for reader in readers.values())
    if cache == "auto":
        cache = "memory" if decoded_bytes <= MEMORY_LIMIT else "none"
    splits = {}
    for split, reader in readers.items():
        reader.expect(first)
        if cache != "memory" and None in wanted:
            reader.check_all()  # in memory, every file is decoded and so checked
        images: ImageRows = reader
        if cache != "none":
            place = (reader.identity(path), reader.shape)
            images = keep_rows(reader.chunks(), reader.shape, cache, place)
        labels = None
        if class_names is not None:
            labels = np.array([class_names.index(c) for _, c in files[split]], np.int32)
        splits[split] = Split(images=images, labels=labels)
    return Source(
        name=path.resolve().name if path.is_dir() else path.stem,
        splits=splits,
        class_names=class_names,
        identity="\n".join(reader.identity(path) for reader in readers.values()),
        notes=notes,
    )


def find_image_files(folder: SourceFile) -> FoundFiles:
    """Finds the image files of a folder.

    Raises:
        FileNotFoundError: There are no image files.
        ValueError: The layout is ambiguous.
    """
    children = visible(folder)
    by_split: dict[str, SourceFile] = {}
    for child in children:
        split = SPLIT_FOLDERS.get(child.name.lower())
        if split is None or not child.is_dir():
            continue
        if split in by_split:
            raise ValueError(
                f"A folder has one folder per split. Received: {by_split[split]} and "
                f"{child}, both for the {split} split. Merge or rename one of them."
            )
        by_split[split] = child
    if by_split and "train" not in by_split and len(by_split) == len(children):
        raise FileNotFoundError(
            f"A folder with splits needs a folder called train. Found in {folder}: "
            f"{', '.join(child.name for child in children)}."
        )
    others: Counter[str] = Counter()
    if "train" not in by_split:
        files = {"train": _classed_files(folder, others)}
    else:
        for child in children:
            if child not in by_split.values() and walk(child, others):
                raise ValueError(
                    "Beside a folder called train only validation and test folders "
                    f"may hold images. Received: images in {child}. Move it into one "
                    "of them, or rename train if it is a class."
                )
        files = {split: _classed_files(by_split[split], others) for split in by_split}
    for split, found in files.items():
        if not found:
            raise FileNotFoundError(
                f"No images in {by_split.get(split, folder)}: there must be files "
                f"ending in {', '.join(IMAGE_SUFFIXES)}. Found: "
                f"{', '.join(most_common(others)) or 'nothing'}."
            )
    return FoundFiles(files, not_read(most_common(others)))


def _class_names(files: dict[str, ClassedFiles]) -> tuple[str, ...] | None:
    """Returns the classes of the training files, by name; None for fewer than two."""
    names = sorted({name for _, name in files["train"]})
    if len(names) < 2:
        return None
    for split, found in files.items():
        for path, name in found:
            if name not in names:
                raise ValueError(
                    "The classes of every split must be classes of the training "
                    f"split: {', '.join(names)}. Received: {path} in the {split} split."
                )
    return tuple(names)


def _classed_files(folder: SourceFile, others: Counter[str]) -> ClassedFiles:
    """Returns the image files of one split; a subfolder with images is a class."""
    loose: list[SourceFile] = []
    classed: ClassedFiles = []
    for child in visible(folder):
        images = walk(child, others)
        if child.is_dir():
            classed += [(path, child.name) for path in images]
        else:
            loose += images
    if loose and classed:
        raise ValueError(
            "Images must either all lie in class folders or all lie outside of them. "
            f"Received: {loose[0]} and {classed[0][0]}. Move the first into a class "
            "folder, or the others out of theirs."
        )
    return classed or [(path, "") for path in loose]


def walk(path: SourceFile, others: Counter[str]) -> list[SourceFile]:
    """Returns all image files at or below a path, by name; counts the others."""
    files = list(files_below(path))
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    kinds = [file.suffix.lower() or "no suffix" for file in files]
    others.update(kind for kind in kinds if kind not in IMAGE_SUFFIXES)
    return images


def most_common(others: Counter[str]) -> list[str]:
    """Returns the most common kinds of other files, each with their number."""
    return [f"{count:,} {kind}" for kind, count in others.most_common(5)]


class ImageFiles:
    """Images in files, decoded on request, on all processors.

    Args:
        files: The files, one row each; at least one.
        wanted: The format of the result; as the first file's where it is None.
    """

    def __init__(self, files: Sequence[SourceFile], wanted: ImageFormat):
        self._files = files
        self._wanted = wanted
        self._first = files[0]
        self._image_shape = self._probe(files[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all rows together: (rows, height, width, channels)."""
        return (len(self._files), *self._image_shape)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        files = [self._files[row] for row in rows]
        images = np.empty((len(files), *self._image_shape), np.uint8)
        for index, image in enumerate(_pool(os.getpid()).map(self._decode, files)):
            images[index] = image
        return images

    def chunks(self) -> Iterator[np.ndarray]:
        """Yields all rows in chunks."""
        for start in range(0, len(self._files), _CHUNK_ROWS):
            yield self[np.arange(start, min(start + _CHUNK_ROWS, len(self._files)))]

    def expect(self, first: ImageFiles) -> None:
        """Requires the shape of the first file of another set."""
        self._first, self._image_shape = first._first, first._image_shape
        self._check(self._files[0], self._probe(self._files[0]))

    def check_all(self) -> None:
        """Raises ValueError unless the headers of all files hold the same shape."""
        shapes = _pool(os.getpid()).map(self._probe, self._files)
        for file, shape in zip(self._files, shapes, strict=True):
            self._check(file, shape)

    def identity(self, folder: Path) -> str:
        """Returns names, sizes and times of the files, which identify the pixels.

        A file in a zip has its checksum in place of the time.
        """
        return "\n".join(_identity(file, folder) for file in self._files)

    def _probe(self, file: SourceFile) -> Shape:
        """Returns the shape an image will have, from the header of its file."""
        with _opened(file) as image:
            height, width = image.height, image.width
            if image.getexif().get(0x0112) in _TURNED:
                height, width = width, height
            height, width = self._wanted.size or (height, width)
            return height, width, self._wanted.channels or _CHANNELS[image.mode]

    def _decode(self, file: SourceFile) -> np.ndarray:
        pixels = self._wanted.fit(decode_image(file), str(file))
        height, width, channels = pixels.shape
        self._check(file, (height, width, channels))
        return pixels

    def _check(self, file: SourceFile, shape: Shape) -> None:
        if shape[2] != self._image_shape[2]:
            kinds = {1: "grey", 3: "RGB"}
            raise ValueError(
                "Images must all have the same channels unless `channels` is given. "
                f"Received: {self._first} is {kinds[self._image_shape[2]]} and {file} "
                f"is {kinds[shape[2]]}. Pass channels=1 to make all of them grey, or "
                "channels=3 for RGB."
            )
        if shape != self._image_shape:
            size = min(*shape[:2], *self._image_shape[:2])
            raise ValueError(
                "Images must all have the same size unless `image_size` is given. "
                f"Received: {self._first} is {size_text(self._image_shape[:2])} and "
                f"{file} is {size_text(shape[:2])} (height x width). Pass "
                f"image_size={size}, for example, to scale and crop all of them."
            )


def _identity(file: SourceFile, folder: Path) -> str:
    if isinstance(file, ZipEntry):
        return file.identity()
    name, status = file.relative_to(folder).as_posix(), file.stat()
    return f"{name} {status.st_size} {status.st_mtime_ns}"


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Returns the decoding threads of a process: a fork does not inherit them."""
    return ThreadPoolExecutor(os.cpu_count() or 1)


@contextlib.contextmanager
def _opened(file: SourceFile) -> Iterator[Image.Image]:
    """Opens the image of a file; an error of Pillow becomes one that names the file.

    Raises:
        ValueError: The file is no image, is damaged, or of an unknown kind.
    """
    source = io.BytesIO(file.read_bytes()) if isinstance(file, ZipEntry) else file
    try:
        with Image.open(source) as image:
            known = image.mode in _CHANNELS
            if known:
                yield image
    except Exception as error:  # Pillow's readers raise many types
        # Pillow's message for a file that it cannot identify repeats the path.
        reason = f"{error}" or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is not an image, or its beginning is damaged."
        raise ValueError(f"Cannot read the image {file}: {reason}") from error
    if not known:
        raise ValueError(
            f"Images must have 8 or 16 bits per channel in grey, RGB, CMYK or a "
            f"palette. Received: {file} with Pillow mode {image.mode}. Convert it to "
            "8-bit grey or RGB first."
        )


def decode_image(file: SourceFile) -> Image.Image:
    """Returns the image of a file, upright, as 8-bit grey ("L") or "RGB".

    16-bit grey is scaled to 8 bits; transparency is blended over white.

    Raises:
        ValueError: The file is no image, is damaged, or of an unknown kind.
    """
    with _opened(file) as image:
        upright = ImageOps.exif_transpose(image)
        mode = "L" if _CHANNELS[upright.mode] == 1 else "RGB"
        if upright.mode.startswith("I;16"):
            # 65535 / 257 = 255: the whole range on the whole range.
            values = np.asarray(upright).astype(np.uint32)
            return Image.fromarray(((values + 128) // 257).astype(np.uint8))
        if upright.has_transparency_data:
            coloured = upright.convert("RGBA")
            white = Image.new("RGBA", coloured.size, "white")
            upright = Image.alpha_composite(white, coloured)
        return upright if upright.mode == mode else upright.convert(mode)
