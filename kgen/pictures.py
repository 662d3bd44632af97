"""PNG files of single images, and of grids of images."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from kgen.files import replacing

SOFTWARE = "kgen"  # value of the text "Software" in each PNG file
SEPARATOR = 2  # Pixels of white between two images of a grid.
MIN_CELL_SIZE = 32  # Smaller images are enlarged, to be recognisable.


def write_image_grid(
    images: npt.ArrayLike,
    path: str | os.PathLike[str],
    *,
    columns: int | None = None,
) -> None:
    """Writes images as a grid, row by row, into one PNG file.

    Images smaller than 32 pixels are enlarged by a whole factor, so that each of their
    pixels becomes a square. The file appears complete or not at all.

    Args:
        images: `[count, height, width, channels]`, float in [0, 1] or uint8, with one,
            three or four channels.
        path: The file to write. An existing one is replaced.
        columns: Number of images in a row; by default the grid is nearly square.

    Raises:
        ValueError: Images of another shape or type, or outside [0, 1]; or `columns`
            below 1.
    """
    pixels = _as_bytes(images)
    count, height, width, channels = pixels.shape
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    if columns < 1:
        raise ValueError(f"`columns` must be at least 1. Received: columns={columns}")
    columns = min(columns, count)
    factor = max(1, math.ceil(MIN_CELL_SIZE / max(height, width)))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor

    rows = math.ceil(count / columns)
    size = (
        rows * (height + SEPARATOR) - SEPARATOR,
        columns * (width + SEPARATOR) - SEPARATOR,
    )
    grid = np.full((*size, channels), 255, np.uint8)
    for index, image in enumerate(pixels):
        top = index // columns * (height + SEPARATOR)
        left = index % columns * (width + SEPARATOR)
        grid[top : top + height, left : left + width] = image
    _write_png(grid, Path(path))


def write_image(image: npt.ArrayLike, path: str | os.PathLike[str]) -> None:
    """Writes one image, pixel by pixel, into a PNG file.

    Args:
        image: `[height, width, channels]`, float in [0, 1] or uint8.
        path: The file to write. An existing one is replaced.

    Raises:
        ValueError: An image of another shape or type, or outside [0, 1].
    """
    [pixels] = _as_bytes(np.asarray(image)[None])
    _write_png(pixels, Path(path))


def _as_bytes(images: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Returns the images as uint8, after checks of shape, type and range."""
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            "Images must have the shape [count, height, width, channels], none of them "
            "zero, with 1, 3 or 4 channels. Received: "
            f"shape={array.shape}"
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"Images must be uint8 or float. Received: dtype={array.dtype}"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # Written so that NaN fails, too.
        raise ValueError(
            "Float images must lie in [0, 1]. Received: values from "
            f"{low} to {high}. Divide by their largest possible value."
        )
    return np.round(array * 255.0).astype(np.uint8)


def _write_png(pixels: npt.NDArray[Any], path: Path) -> None:
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", SOFTWARE)
    with replacing(path) as file:
        Image.fromarray(pixels).save(file, format="PNG", pnginfo=about)
