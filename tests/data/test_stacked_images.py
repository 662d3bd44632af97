"""Stacks of digits: draws, labels and splits."""

import gzip
import struct

import numpy as np
import pytest

from kgen.data import open_images
from kgen.data.image_rows import Split
from kgen.data.stacked_images import stack_channels
from kgen.nn import random


def all_rows(opened, split, key="images"):
    dataset = opened.pipeline(split, batch_size=64).dataset()
    return np.concatenate([batch[key].numpy() for batch in dataset])


def grey_split(num_rows, num_classes=10):
    """Images of one pixel, which is their class."""
    labels = np.arange(num_rows, dtype=np.int32) % num_classes
    return Split(images=labels.astype(np.uint8).reshape(-1, 1, 1, 1), labels=labels)


def drawn_rows(split, stack, num_rows):
    """The rows that the docstring promises, in Python's integers."""
    key = random.keys(0, random.STREAM_STACK, split, stack)
    noise = random.bits(key[None], (3,)).numpy()[0].tolist()
    return [h * num_rows // 2**32 for h in noise]


def idx(array):
    array = np.asarray(array, np.uint8)
    header = b"\0\0\x08" + bytes([array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def digits(tmp_path):
    """IDX files of 100 training and 12 test digits of 2x2 pixels, all of them alike."""
    for name, first, count in (("train", 0, 100), ("t10k", 200, 12)):
        numbers = np.arange(first, first + count)
        pixels = np.repeat(numbers, 4).reshape(-1, 2, 2)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels))
        labels = gzip.compress(idx(numbers % 10))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(labels)
    return tmp_path


def test_the_draws_are_pinned():
    stacked = stack_channels("s", {"train": grey_split(1000)}, None).splits["train"]
    for stack in (0, 1, 999):
        rows = drawn_rows(0, stack, 1000)
        assert stacked.images[stack, 0, 0].tolist() == [row % 10 for row in rows]
    # Numbers that must never change: data sets are compared by them.
    assert drawn_rows(0, 0, 60_000) == [4134, 56119, 388]
    assert drawn_rows(0, 59_999, 60_000) == [1572, 12412, 1644]


def test_the_label_is_the_number_that_the_three_digits_make():
    splits = {"train": grey_split(50), "test": grey_split(20)}
    source = stack_channels("stacks", splits, tuple("0123456789"))
    assert len(source.class_names) == 1000
    for split, num_rows in (("train", 50), ("test", 20)):
        stacked = source.splits[split]
        assert stacked.images.shape == (num_rows, 1, 1, 3)
        digits = stacked.images[:, 0, 0].astype(int)
        np.testing.assert_array_equal(stacked.labels, digits @ [100, 10, 1])
        assert stacked.labels.dtype == np.int32
        for label, (a, b, c) in zip(stacked.labels, digits, strict=True):
            assert source.class_names[label] == f"{a}{b}{c}"
    # Each split has draws of its own.
    np.testing.assert_array_equal(
        source.splits["test"].images[7, 0, 0],
        [row % 10 for row in drawn_rows(1, 7, 20)],
    )


def test_other_numbers_of_classes_and_no_labels_are_stacked_too():
    source = stack_channels("s", {"train": grey_split(30, 2)}, ("a", "b"))
    assert source.class_names == (
        "aaa",
        "aab",
        "aba",
        "abb",
        "baa",
        "bab",
        "bba",
        "bbb",
    )
    split = source.splits["train"]
    np.testing.assert_array_equal(split.labels, split.images[:, 0, 0] @ [4, 2, 1])
    unlabelled = Split(images=grey_split(30).images)
    source = stack_channels("s", {"train": unlabelled}, None)
    assert source.class_names is None and source.splits["train"].labels is None


def test_digits_are_drawn_alike_and_independently():
    num_rows = 20_000
    pixels = np.arange(num_rows)  # wider than uint8, to see which row was drawn
    split = Split(images=pixels.reshape(-1, 1, 1, 1))
    drawn = stack_channels("s", {"train": split}, None).splits["train"].images[:, 0, 0]
    # 3n draws of n rows: 3 each on average; the statistic is chi-squared with n - 1
    # degrees of freedom, mean n - 1 and variance 2 (n - 1).
    counts = np.bincount(drawn.ravel(), minlength=num_rows)
    statistic = ((counts - 3) ** 2 / 3).sum()
    assert abs(statistic - (num_rows - 1)) < 4 * np.sqrt(2 * (num_rows - 1))
    # The digits of one stack: 1,000 triples of n / 1000 = 20 each on average.
    triples = np.bincount(drawn * 10 // num_rows @ [100, 10, 1], minlength=1000)
    statistic = ((triples - 20) ** 2 / 20).sum()
    assert abs(statistic - 999) < 4 * np.sqrt(2 * 999)


def test_stacked_mnist_is_made_of_the_digits_of_each_split_alone(digits):
    opened = open_images("stacked_mnist", data_dir=digits)
    single = open_images(digits)
    assert (
        opened.splits
        == single.splits
        == {
            "train": 90,
            "validation": 10,
            "test": 12,
        }
    )
    assert opened.image_shape == (2, 2, 3)
    assert opened.num_classes == 1000
    for index, split in enumerate(opened.splits):
        images, labels = (all_rows(opened, split, key) for key in ("images", "labels"))
        own = all_rows(single, split)[:, 0, 0, 0]
        assert set(images.ravel()) <= set(own)
        np.testing.assert_array_equal(labels, images[:, 0, 0] % 10 @ [100, 10, 1])
        rows = drawn_rows(index, 3, len(own))
        assert images[3, 1, 1].tolist() == own[rows].tolist()
    again = open_images("stacked_mnist", data_dir=str(digits), channels=3)
    assert again.fingerprint == opened.fingerprint
    assert open_images("stacked_mnist", data_dir=digits, image_size=1).image_shape == (
        1,
        1,
        3,
    )


def test_stacked_mnist_names_missing_files(digits, tmp_path_factory):
    with pytest.raises(ValueError, match="must be 3 or left out. Received: channels=1"):
        open_images("stacked_mnist", data_dir=digits, channels=1)
    with pytest.raises(
        FileNotFoundError, match="data set mnist is not in .*`data_dir`"
    ):
        open_images(
            "stacked_mnist", data_dir=tmp_path_factory.mktemp("none"), download=False
        )
    (digits / "train-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="needs the training images"):
        open_images("stacked_mnist", data_dir=digits)
    with pytest.raises(ValueError, match="Did you mean.* stacked_mnist"):
        open_images("stackd_mnist", data_dir=digits)


def test_stacked_mnist_is_the_real_mnist_by_name(test_data, monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    # Not a folder called mnist in the working directory.
    (tmp_path / "mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    opened = open_images("stacked_mnist", data_dir=test_data / "tfds")
    assert opened.describe() == (
        "stacked_mnist: 70,000 images 28x28x3, uint8 in 0..255, 1000 classes; "
        "train 55,000, validation 5,000, test 10,000"
    )
    # Each of the 1,000 modes is there to be found.
    assert len(set(all_rows(opened, "train", "labels"))) == 1000
    digits, labels = tfds.load(
        "mnist",
        split="test",
        data_dir=test_data / "tfds",
        as_supervised=True,
        batch_size=-1,
    )
    digits, labels = digits.numpy()[..., 0], labels.numpy()
    stacked = all_rows(opened, "test")
    stacked_labels = all_rows(opened, "test", "labels")
    for stack in (0, 17, 9999):
        rows = drawn_rows(2, stack, 10_000)
        np.testing.assert_array_equal(stacked[stack], np.stack(digits[rows], axis=-1))
        assert stacked_labels[stack] == labels[rows] @ [100, 10, 1]
