"""Rows of decoded images: the content of a source, and the storage of its pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
from PIL import Image, ImageOps

from kgen.files import replacing

# Decoded sets up to this size are kept in memory: 2.7 million MNIST images or 175,000
# colour images of 64x64. Twice as much fits beside a model on a machine of 16 GB.
MEMORY_LIMIT = 2 * 2**30

Size = tuple[int, int]  # height, width
Shape = tuple[int, int, int]  # height, width, channels


class ImageFormat(NamedTuple):
    """The format that images are brought to.

    Attributes:
        size: Height and width, or None to keep them.
        channels: 1 (grey) or 3 (RGB), or None to keep them.
    """

    size: Size | None = None
    channels: int | None = None

    def fit(self, image: Image.Image, origin: str) -> np.ndarray:
        """Returns one image in this format.

        It is scaled, antialiased, until it just covers the size, and cropped at the
        centre. RGB becomes grey by the luma of ITU-R 601, grey becomes RGB by
        repetition.

        Args:
            image: A Pillow image of mode "L" or "RGB".
            origin: Name of the image in an error.

        Returns:
            uint8 [height, width, channels].

        Raises:
            ValueError: The image is smaller than the wanted size.
        """
        if self.channels is not None:
            image = image.convert("L" if self.channels == 1 else "RGB")
        own_size = (image.height, image.width)
        if self.size is not None and self.size != own_size:
            height, width = self.size
            if image.height < height or image.width < width:
                raise ValueError(
                    "`image_size` must not exceed the size of any image: images are "
                    f"not enlarged. Received: image_size={size_text(self.size)}, and "
                    f"{origin} is {size_text(own_size)}. Try "
                    f"image_size={min(own_size)} or less."
                )
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        return pixels[:, :, None] if pixels.ndim == 2 else pixels


class ImageRows(Protocol):
    """Images that are read by their row numbers, such as an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, height, width, channels."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns uint8 [n, height, width, channels] for rows, int64 [n]."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The images of one split, and their labels, int32 [n], or None."""

    images: ImageRows
    labels: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Split:
        """Returns a split of some of the rows."""
        images: ImageRows
        if is_in_memory(self.images):
            images = self.images[rows]
        else:
            images = RowSelection(self.images, rows)
        return Split(
            images=images, labels=None if self.labels is None else self.labels[rows]
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Content of a source, before missing splits are split off.

    Attributes:
        splits: At least "train"; "validation" and "test" if the source has them.
        class_names: One name per label, or None without labels.
        identity: Text that identifies the content if the rows are not in memory.
        notes: Remarks on unused content, one phrase each.
    """

    name: str
    splits: dict[str, Split]
    class_names: tuple[str, ...] | None = None
    identity: str = ""
    notes: tuple[str, ...] = ()


class RowSelection:
    """A selection of rows of images that are not in memory."""

    def __init__(self, images: ImageRows, rows: np.ndarray):
        self._images = images
        self._rows = rows
        self.shape = (len(rows), *images.shape[1:])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._images[self._rows[rows]]


def is_in_memory(images: ImageRows) -> TypeGuard[np.ndarray]:
    """Returns whether the rows are an array that needs no file to be read."""
    return isinstance(images, np.ndarray) and not isinstance(images, np.memmap)


def not_read(content: Sequence[str]) -> tuple[str, ...]:
    """Returns the note on content that is not read, if there is any."""
    return (f"not read: {', '.join(content)}",) if content else ()


def size_text(size: Iterable[int]) -> str:
    """Returns a size as text: 28x28, height before width."""
    return "x".join(str(length) for length in size)


def keep_rows(
    chunks: Iterable[np.ndarray], shape: tuple[int, ...], cache: str, identity: Any
) -> np.ndarray:
    """Returns the chunks, concatenated, in memory or as a memory-mapped file.

    The file is written if it is missing; it appears complete or not at all.

    Args:
        chunks: uint8 [rows, ...]; not read if the file exists.
        shape: Shape of all rows together.
        cache: "memory" or "disk".
        identity: Values that identify the rows, for the name of the file.

    Raises:
        ValueError: The file is damaged.
    """
    if cache == "memory":
        rows = np.empty(shape, np.uint8)
        filled = 0
        for chunk in chunks:
            rows[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return rows[:filled]
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    path = Path(base) / "kgen" / "images" / f"{key}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written, not mapped: a full disk is then an OSError and not a killed process.
        header = {"shape": shape, "fortran_order": False, "descr": "|u1"}
        with replacing(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"Cannot read the decoded images in {path}: {error}. Delete the "
            "file: it is a cache."
        ) from error
