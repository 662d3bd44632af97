"""Images and grids of images as PNG files."""

import os

import numpy as np
import pytest
from PIL import Image

from kgen.pictures import write_image, write_image_grid


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_a_grid_is_nearly_square_with_white_between(tmp_path):
    # Five images of 32 x 32: three columns and two rows, and one empty cell.
    shades = np.arange(5, dtype=np.uint8) * 10
    images = np.broadcast_to(shades[:, None, None, None], (5, 32, 32, 1))
    write_image_grid(images, tmp_path / "grid.png")
    grid = read(tmp_path / "grid.png")
    assert grid.shape == (2 * 32 + 2, 3 * 32 + 2 * 2)
    for index, shade in enumerate(shades):
        top, left = index // 3 * 34, index % 3 * 34
        assert (grid[top : top + 32, left : left + 32] == shade).all()
    assert (grid[32:34] == 255).all() and (grid[:, 32:34] == 255).all()
    assert (grid[34:, 68:] == 255).all()


def test_small_images_are_enlarged_pixel_by_pixel(tmp_path):
    image = np.array([[0, 50], [100, 150]], np.uint8).repeat(4, 0).repeat(4, 1)
    write_image_grid(image[None, :, :, None], tmp_path / "grid.png")
    # 8 x 8 becomes 32 x 32: each pixel a square of 4 x 4.
    assert (read(tmp_path / "grid.png") == image.repeat(4, 0).repeat(4, 1)).all()


def test_columns_can_be_chosen(tmp_path):
    images = np.zeros((4, 40, 40, 3), np.float32)
    write_image_grid(images, tmp_path / "grid.png", columns=4)
    assert read(tmp_path / "grid.png").shape == (40, 4 * 40 + 3 * 2, 3)
    with pytest.raises(ValueError, match="columns=0"):
        write_image_grid(images, tmp_path / "grid.png", columns=0)


def test_floats_are_rounded_to_the_nearest_of_256_levels(tmp_path):
    image = np.array([[[0.0], [0.5], [1.0], [0.4999 / 255]]], np.float32)
    write_image(image, tmp_path / "image.png")
    # 0.5 * 255 = 127.5, which rounds to the even neighbour.
    assert read(tmp_path / "image.png").tolist() == [[0, 128, 255, 0]]


def test_one_image_keeps_its_size_and_channels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
    write_image(image, tmp_path / "image.png")
    assert (read(tmp_path / "image.png") == image).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4)), "shape=\\(2, 4, 4\\)"),
        (np.zeros((0, 4, 4, 1)), "shape=\\(0, 4, 4, 1\\)"),
        (np.zeros((1, 4, 4, 2)), "1, 3 or 4 channels"),
        (np.zeros((1, 4, 4, 1), np.int64), "dtype=int64"),
        (np.full((1, 4, 4, 1), 1.01), "to 1.01"),
        (np.full((1, 4, 4, 1), np.nan), "nan"),
    ],
)
def test_other_arrays_are_refused(images, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_image_grid(images, tmp_path / "grid.png")
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_image(np.zeros((4, 4, 1)), tmp_path / "image.png")
    before = (tmp_path / "image.png").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_image(np.ones((4, 4, 1)), tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["image.png"]
