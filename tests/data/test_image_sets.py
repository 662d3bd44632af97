"""Image data sets: sources, splits, batches and errors."""

import gzip
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import kgen.data.image_sets as image_sets
from kgen.data import images, open_images
from kgen.data.image_folders import decode_image
from kgen.data.image_sets import ImageSet


def numbered(num_rows, height=4, width=4, channels=1):
    """Images in which every pixel of image i is i."""
    rows = np.arange(num_rows, dtype=np.uint8)[:, None, None, None]
    return np.tile(rows, (1, height, width, channels))


def all_rows(opened, split, key="images", **options):
    dataset = opened.pipeline(split, batch_size=64, **options).dataset()
    return np.concatenate([batch[key].numpy() for batch in dataset])


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels, np.uint8)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
        path, **options
    )
    return path


@pytest.fixture
def folder(tmp_path):
    """Twelve grey 6x5 images in two classes, with other files in their folders."""
    for index, pixels in enumerate(numbered(12, 6, 5)):
        name = "zwölf" if index % 2 else "été"
        save(tmp_path / "set" / name / f"{index:02}.png", pixels)
    for other in (".DS_Store", "été/Thumbs.db", "notes.txt", "zwölf/a.txt", "b.csv"):
        (tmp_path / "set" / other).write_text("not an image")
    return tmp_path / "set"


# Splits


@pytest.mark.parametrize(
    ("num_rows", "train", "tenth"),
    [(3, 1, 1), (10, 8, 1), (19, 17, 1), (20, 16, 2), (60_000, 50_000, 5000)],
)
def test_a_missing_split_is_a_tenth_of_the_training_images(num_rows, train, tenth):
    opened = open_images(np.zeros([num_rows, 1, 1], np.uint8))
    assert opened.splits == {"train": train, "validation": tenth, "test": tenth}


def test_a_set_with_a_test_split_keeps_it():
    opened = open_images({"x_train": numbered(40), "x_test": numbered(7) + 100})
    assert opened.splits == {"train": 36, "validation": 4, "test": 7}
    assert all_rows(opened, "test")[:, 0, 0, 0].tolist() == list(range(100, 107))


def test_the_splits_share_no_row_and_keep_the_order_of_the_source():
    opened = open_images((numbered(30), np.arange(30)))
    rows = {split: all_rows(opened, split, "labels") for split in opened.splits}
    for split, labels in rows.items():
        np.testing.assert_array_equal(labels, np.sort(labels))
        pixels = all_rows(opened, split)[:, 0, 0, 0]
        np.testing.assert_array_equal(pixels, labels)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(30))
    # Not the first or the last rows, which in a folder would be one class.
    assert rows["test"].tolist() == [0, 15, 23]


@pytest.mark.parametrize("num_rows", [1, 2])
def test_too_few_images_to_split_are_refused(num_rows):
    with pytest.raises(ValueError, match="at least 3 training images.*array"):
        open_images(numbered(num_rows) + 9)


# Digits


def test_digits_are_scikit_learns_digits():
    from sklearn.datasets import load_digits

    expected, labels = load_digits(return_X_y=True)
    opened = open_images("digits")
    assert opened.image_shape == (8, 8, 1)
    assert opened.splits == {"train": 1439, "validation": 179, "test": 179}
    assert opened.value_range == (0, 255)
    assert opened.class_names == tuple("0123456789")
    assert str(opened) == (
        "digits: 1,797 images 8x8x1, uint8 in 0..255, 10 classes; "
        "train 1,439, validation 179, test 179"
    )
    read = np.concatenate([all_rows(opened, split) for split in opened.splits])
    read_labels = np.concatenate(
        [all_rows(opened, split, "labels") for split in opened.splits]
    )
    rounded = np.rint(expected * 255 / 16)
    seen = np.column_stack([read.reshape(-1, 64), read_labels])
    wanted = np.column_stack([rounded, labels])
    np.testing.assert_array_equal(np.unique(seen, axis=0), np.unique(wanted, axis=0))


def test_images_shuffles_and_drops_only_in_training():
    training = images("digits", batch_size=100)
    assert training.cardinality() == 14
    assert training.element_spec["images"] == tf.TensorSpec([100, 8, 8, 1], tf.uint8)
    assert training.element_spec["labels"] == tf.TensorSpec([100], tf.int32)
    firsts = [next(iter(training))["images"].numpy() for _ in range(2)]
    assert (firsts[0] != firsts[1]).any()
    test = images("digits", split="test", batch_size=100)
    assert test.cardinality() == 2
    firsts = [next(iter(test))["images"].numpy() for _ in range(2)]
    np.testing.assert_array_equal(firsts[0], firsts[1])


def test_a_batch_larger_than_the_training_split_names_the_way_out():
    with pytest.raises(ValueError, match="Try batch_size=1439 or less"):
        images("digits", batch_size=2000)


# Arrays


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0, 7, 255], np.uint8), [0, 7, 255]),
        (np.array([0, 7, 255], np.int64), [0, 7, 255]),
        (np.array([False, True, True]), [0, 255, 255]),
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255]),  # 127.5, to even
    ],
)
def test_arrays_turn_into_uint8(array, expected):
    opened = open_images(
        {"images": array.reshape(3, 1, 1), "x_test": array[:, None, None]}
    )
    assert all_rows(opened, "test").ravel().tolist() == expected


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full([5, 2, 2], 1.5), r"\[0, 1\].*`images` with values from 1.5 to 1.5"),
        (np.full([5, 2, 2], np.nan), "`images` with NaN"),
        (np.full([5, 2, 2], np.inf), "from inf to inf"),
        (np.full([5, 2, 2], -0.1), r"\(images \+ 1\) / 2"),
        (np.full([5, 2, 2], 256), "0..255.*from 256 to 256"),
        (np.full([5, 2, 2], -1), "from -1 to -1"),
        (np.full([5, 2, 2], 1, np.uint8), "Pass them as bool"),
        (np.zeros([5, 4]), r"shape \(5, 4\)"),
        (np.zeros([5, 3, 8, 8]), "move the channels last"),
        (np.zeros([5, 2, 2, 4]), "1 or 3 channels"),
        (np.zeros([0, 2, 2]), r"shape \(0, 2, 2, 1\)"),
        (np.array([[["a"]]]), "dtype <U1"),
        (np.zeros([5, 2, 2], complex), "dtype complex128"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        open_images(array)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4, int), r"one integer per image, here 5.*shape \(4,\)"),
        (np.zeros([5, 2], int), r"not one-hot.*shape \(5, 2\)"),
        # As in `fit`.
        (np.zeros([5, 1], int), r"shape \(5, 1\)\. Pass labels\[:, 0\]"),
        (np.zeros(5), "`labels` with dtype float64"),
        (np.full(5, -1), "from -1 to -1"),
        (np.full(5, 2**31), "below 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        open_images((numbered(5), labels))


@pytest.mark.parametrize("source", [None, b"digits"])
def test_a_source_of_another_type_is_a_type_error(source):
    with pytest.raises(TypeError, match="a name, a path or an array"):
        open_images(source)


# .npz


def test_npz_keeps_its_splits_and_lists_unread_keys(tmp_path):
    path = tmp_path / "kleine Bilder.npz"
    np.savez_compressed(
        path,
        train_images=numbered(20),
        train_labels=np.arange(20)[:, None] % 3,
        val_images=numbered(5) + 50,
        val_labels=np.zeros([5, 1], int),
        x_test=numbered(6) + 100,
        y_test=np.full(6, 7),
        mean=3.0,
    )
    opened = open_images(path)
    assert opened.splits == {"train": 20, "validation": 5, "test": 6}
    assert opened.num_classes == 8
    assert all_rows(opened, "validation")[:, 0, 0, 0].tolist() == list(range(50, 55))
    assert all_rows(opened, "validation", "labels").shape == (5,)  # saved as a column
    assert str(opened).startswith("kleine Bilder: 31 images 4x4x1, uint8 in 0..105, 8")
    assert str(opened).endswith("; not read: mean")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": numbered(5)}, "One of the keys images, x_train.*pictures in"),
        ({"images": np.array([1, "a"], object)}, "Cannot read `images` in .*objects"),
        ({"images": numbered(5), "x_train": numbered(5)}, "images, x_train in"),
        ({"images": numbered(5), "y_test": np.zeros(5, int)}, "labels without images"),
        ({"images": numbered(5), "x_test": numbered(5, 3)}, "the same shape"),
        (
            {"images": numbered(5), "labels": np.arange(5), "x_test": numbered(5)},
            "`x_test` in .* without labels, unlike `images`",
        ),
        ({"images": np.full([5, 2, 2], 2.0)}, "`images` in .*bad.npz with values"),
    ],
)
def test_npz_that_does_not_fit_is_refused_by_file_and_key(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        open_images(str(path))
    assert "bad.npz" in str(caught.value)


def test_a_damaged_npz_is_refused_by_name(tmp_path):
    path = tmp_path / "half.npz"
    np.savez(path, images=numbered(50))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"Cannot read .*half\.npz"):
        open_images(path)
    path.write_text("this is text")
    with pytest.raises(ValueError, match=r"Cannot read .*half\.npz"):
        open_images(path)


# Size and channels


def test_resizing_scales_the_shorter_side_and_crops_the_centre():
    image = np.random.default_rng(0).integers(0, 256, (8, 24), np.uint8)
    opened = open_images(np.stack([image] * 10), image_size=4)
    assert opened.image_shape == (4, 4, 1)
    # 8x24 becomes 4x12, and its columns 4 to 7 are the centre.
    scaled = Image.fromarray(image).resize((12, 4), Image.Resampling.BICUBIC)
    pixels = all_rows(opened, "test")[0, :, :, 0]
    np.testing.assert_array_equal(pixels, np.asarray(scaled)[:, 4:8])


def test_downscaling_is_antialiased():
    # Columns of 0 and 255 in turn: without a filter a quarter of them is all black.
    stripes = np.tile(np.array([0, 255], np.uint8), (10, 32, 16))
    pixels = all_rows(open_images(stripes, image_size=8), "test")
    assert abs(pixels[:, :, 2:-2].astype(int) - 127.5).max() < 2


def test_grey_is_the_luma_of_rgb_and_rgb_is_grey_three_times():
    red = np.zeros([10, 2, 2, 3], np.uint8)
    red[..., 0] = 255
    # ITU-R 601: 0.299 * 255 = 76.2
    assert np.unique(all_rows(open_images(red, channels=1), "test")).tolist() == [76]
    expected = np.asarray(Image.fromarray(red[0]).convert("L"))
    assert np.unique(expected).tolist() == [76]
    rgb = all_rows(open_images(numbered(10), channels=3), "train")
    assert rgb.shape == (8, 4, 4, 3)
    assert (rgb == rgb[..., :1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 5}, "not enlarged.*image_size=5x5.*4x4. Try image_size=4"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": (4,)}, r"image_size=\(4,\)"),
        ({"image_size": 2.5}, "image_size=2.5"),
        ({"channels": 4}, "channels=4"),
        ({"cache": "ram"}, "auto, memory, disk, none.*cache='ram'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        open_images(numbered(10), **options)


# Binarisation


def test_binarised_pixels_are_0_or_255_with_the_probability_of_the_pixel():
    values = [0, 1, 64, 128, 254, 255]
    row = np.repeat(np.array(values, np.uint8), 500).reshape(1, 6, 500)
    opened = open_images(np.repeat(row, 40, axis=0))
    for binarize in ("dynamic", "static"):
        drawn = all_rows(opened, "train", binarize=binarize, seed=1)
        assert drawn.dtype == np.uint8 and set(np.unique(drawn)) == {0, 255}
        shares = (drawn == 255).mean(axis=(0, 2, 3))
        assert shares[0] == 0.0 and shares[-1] == 1.0
        for share, value in zip(shares, values, strict=True):
            p = value / 255
            deviation = np.sqrt(p * (1 - p) / (32 * 500))
            assert abs(share - p) <= 5 * deviation, (binarize, value)


def test_a_pixel_is_white_for_its_share_of_the_noise():
    """2**32 * pixel / 255 of the 2**32 numbers, rounded up: the last, and one on."""
    pixels = np.arange(256, dtype=np.int64)
    num_white = -(-(2**32) * pixels // 255)
    for noise, expected in ((num_white - 1, 255), (num_white, 0)):
        drawn = image_sets._white_or_black(tf.constant(pixels.astype(np.uint8)), noise)
        inside = (noise >= 0) & (noise < 2**32)  # none is white at 0, all are at 255
        assert inside.sum() == 255
        assert set(drawn.numpy()[inside]) == {expected}


def test_dynamic_draws_change_with_the_epoch_and_static_ones_do_not():
    opened = open_images(np.full([40, 8, 8], 128, np.uint8))
    draws = {}
    for binarize in ("dynamic", "static"):
        pipeline = opened.pipeline(
            "test", batch_size=4, binarize=binarize, shuffle=True, seed=3
        )
        dataset = pipeline.dataset()
        draws[binarize] = [
            np.concatenate([batch["images"].numpy() for batch in dataset])
            for _ in range(2)
        ]
    assert (draws["dynamic"][0] != draws["dynamic"][1]).any()
    first, second = (np.unique(rows, axis=0) for rows in draws["static"])
    np.testing.assert_array_equal(first, second)
    assert len(first) == 4  # each image has a draw of its own
    again = all_rows(opened, "test", binarize="static", seed=4)
    assert (np.unique(again, axis=0) != first).any()


def test_resuming_in_the_middle_of_an_epoch_repeats_the_dynamic_draws():
    opened = open_images(np.full([40, 4, 4], 128, np.uint8))
    pipeline = opened.pipeline("train", batch_size=8, binarize="dynamic", shuffle=True)
    pipeline.epoch = 2
    whole = [batch["images"].numpy() for batch in pipeline.dataset()]
    tail = [batch["images"].numpy() for batch in pipeline.dataset(skip=3)]
    np.testing.assert_array_equal(tail[0], whole[3])


@pytest.mark.parametrize(
    ("split", "binarize", "message"),
    [
        ("eval", None, "train, validation, test.*'eval'"),
        ("train", True, "binarize=Tru"),
    ],
)
def test_a_pipeline_refuses_unknown_words(split, binarize, message):
    with pytest.raises(ValueError, match=message):
        open_images("digits").pipeline(split, batch_size=4, binarize=binarize)


# Folders


def test_class_folders_are_labels_in_the_order_of_their_names(folder):
    opened = open_images(folder)
    assert opened.class_names == ("zwölf", "été")
    assert opened.image_shape == (6, 5, 1)
    assert opened.splits == {"train": 10, "validation": 1, "test": 1}
    for split in opened.splits:
        pixels = all_rows(opened, split)[:, 0, 0, 0]
        labels = all_rows(opened, split, "labels")
        np.testing.assert_array_equal(labels, 1 - pixels % 2)
    assert str(opened) == (
        "set: 12 images 6x5x1, uint8 in 0..11, 2 classes; train 10, validation 1, "
        "test 1; not read: 2 .txt, 1 .csv"
    )


def test_split_folders_are_honoured(tmp_path):
    for split, value in (("train", 10), ("val", 20), ("Test", 30)):
        for index in range(3):
            save(tmp_path / split / f"{index}.png", np.full([4, 4, 1], value + index))
    opened = open_images(str(tmp_path))
    assert opened.splits == {"train": 3, "validation": 3, "test": 3}
    assert opened.class_names is None
    assert opened.num_classes is None
    assert all_rows(opened, "validation")[:, 0, 0, 0].tolist() == [20, 21, 22]
    assert all_rows(opened, "test")[:, 0, 0, 0].tolist() == [30, 31, 32]


def test_a_single_subfolder_is_no_class_and_links_do_not_go_round(tmp_path):
    for index in range(4):
        save(tmp_path / "deep" / "deeper" / f"{index}.png", np.zeros([4, 4, 1]))
    (tmp_path / "deep" / "loop").symlink_to(tmp_path / "deep", target_is_directory=True)
    opened = open_images(tmp_path)
    assert opened.num_classes is None
    assert sum(opened.splits.values()) == 4


def test_a_class_of_one_image_is_a_class(tmp_path):
    for index in range(4):
        save(tmp_path / "many" / f"{index}.png", np.zeros([4, 4, 1]))
    save(tmp_path / "one" / "0.png", np.zeros([4, 4, 1]))
    assert open_images(tmp_path).class_names == ("many", "one")


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_folder_reads_alike_wherever_its_pixels_are_kept(
    folder, tmp_path, monkeypatch, cache
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = open_images(folder)
    opened = open_images(folder, cache=cache)
    again = open_images(folder, cache=cache)  # from the file, where there is one
    assert (opened.value_range is None) == (cache != "memory")
    assert opened.fingerprint == again.fingerprint
    assert (opened.fingerprint == expected.fingerprint) == (cache == "memory")
    options = {"batch_size": 12, "shuffle": True, "seed": 1}
    for binarize in (None, "static", "dynamic"):
        (wanted,), (read,) = (
            images_of.pipeline("train", binarize=binarize, **options).dataset()
            for images_of in (expected, again)
        )
        for key in ("images", "labels"):
            np.testing.assert_array_equal(read[key], wanted[key])
    files = list((tmp_path / "cache").rglob("*.*"))
    assert len(files) == (1 if cache == "disk" else 0)


def test_auto_streams_what_does_not_fit_in_memory(folder, monkeypatch):
    monkeypatch.setattr("kgen.data.image_folders.MEMORY_LIMIT", 12 * 6 * 5)
    assert open_images(folder).value_range == (0, 11)
    monkeypatch.setattr("kgen.data.image_folders.MEMORY_LIMIT", 12 * 6 * 5 - 1)
    assert open_images(folder).value_range is None


def test_a_cache_that_cannot_be_written_leaves_nothing_behind(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / "été" / "02.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"02\.png"):
        open_images(folder, cache="disk", image_size=4, channels=1)
    assert not list((tmp_path / "cache").rglob("*.*"))


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_mixed_sizes_and_channels_name_two_files_and_the_way_out(folder, cache):
    save(folder / "été" / "99.png", np.zeros([8, 8, 1]))
    with pytest.raises(ValueError, match=r"01\.png is 6x5.*99\.png is 8x8.*size=5"):
        open_images(folder, cache=cache)
    assert open_images(folder, cache=cache, image_size=5).image_shape == (5, 5, 1)
    save(folder / "été" / "99.png", np.zeros([6, 5, 3]))
    with pytest.raises(
        ValueError, match=r"01\.png is grey.*99\.png is RGB.*channels=3"
    ):
        open_images(folder, cache=cache)
    assert open_images(folder, cache=cache, channels=1).image_shape == (6, 5, 1)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("index", [0, 3])  # the first file gives the shape
def test_a_damaged_image_is_named(tmp_path, monkeypatch, suffix, cache, zipped, index):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    for number in range(4):
        save(folder / f"{number}.{suffix}", noise)
    bad = folder / f"{index}.{suffix}"
    whole = bad.read_bytes()

    def opened():
        path = folder
        if zipped:
            path = shutil.make_archive(str(folder), "zip", folder)
        sets = open_images(path, cache=cache)
        # Where no pixels are kept, they are decoded when they are read.
        return [all_rows(sets, split) for split in sets.splits]

    refused = (ValueError, tf.errors.InvalidArgumentError)
    name = rf"Cannot read the image .*images.*{index}\.{suffix}: "
    for length in (0, 3, 30, len(whole) // 2, len(whole) - 50):
        bad.write_bytes(whole[:length])
        with pytest.raises(refused, match=f"{name}.+"):
            opened()
    bad.write_text("no image at all")
    with pytest.raises(refused, match=f"{name}it is not an image"):
        opened()


def test_an_image_damaged_after_opening_is_named_when_it_is_read(folder):
    opened = open_images(folder, cache="none")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"gone")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\.png: it is not an im"):
        all_rows(opened, "train")


def test_an_image_smaller_than_image_size_is_named(folder):
    with pytest.raises(ValueError, match=r"not enlarged.*01\.png is 6x5. Try .*=5 or"):
        open_images(folder, image_size=(6, 6))


def test_folders_without_images_say_what_was_found(tmp_path):
    (tmp_path / ".hidden.png").write_text("")
    with pytest.raises(FileNotFoundError, match="Found: nothing"):
        open_images(tmp_path)
    (tmp_path / "table.csv").write_text("")
    (tmp_path / "README").write_text("")
    with pytest.raises(
        FileNotFoundError, match=r"\.png, \.jpg.*Found: 1 no suffix, 1 \.csv"
    ):
        open_images(tmp_path)


def test_layouts_that_say_two_things_are_refused(tmp_path):
    def image_at(*names):
        save(tmp_path.joinpath(*names), np.zeros([4, 4, 1]))

    image_at("loose", "a.png")
    image_at("loose", "cats", "b.png")
    with pytest.raises(ValueError, match=r"a\.png and .*b\.png"):
        open_images(tmp_path / "loose")
    image_at("no_train", "val", "a.png")
    with pytest.raises(FileNotFoundError, match="needs a folder called train.*val"):
        open_images(tmp_path / "no_train")
    image_at("twice", "train", "a.png")
    image_at("twice", "val", "a.png")
    image_at("twice", "validation", "a.png")
    with pytest.raises(ValueError, match="both for the validation split"):
        open_images(tmp_path / "twice")
    image_at("beside", "train", "a.png")
    image_at("beside", "cats", "a.png")
    with pytest.raises(ValueError, match="images in .*cats"):
        open_images(tmp_path / "beside")
    for name in ("cats", "dogs"):
        image_at("classes", "train", name, "a.png")
    image_at("classes", "test", "birds", "c.png")
    with pytest.raises(ValueError, match=r"cats, dogs\. Received: .*c\.png"):
        open_images(tmp_path / "classes")


# Kinds of image files


def decoded(path):
    return np.asarray(decode_image(path))


def test_exif_orientation_is_respected(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    pixels = np.zeros([4, 8, 1])
    pixels[:, :4] = 200  # left half bright; turned clockwise: the upper half
    for index in range(3):
        save(tmp_path / f"{index}.png", pixels, exif=exif)
    for cache in ("memory", "none"):
        opened = open_images(tmp_path, cache=cache)
        assert opened.image_shape == (8, 4, 1)
        upright = all_rows(opened, "test")[0, :, :, 0]
        assert (upright[:4] == 200).all() and (upright[4:] == 0).all()


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    path = tmp_path / "16.png"
    values = np.array([[0, 128, 129, 257, 32767, 65535]], np.uint16)
    Image.fromarray(values).save(path)
    assert decoded(path).tolist() == [[0, 0, 1, 1, 127, 255]]  # round(value / 257)


def test_transparent_pixels_are_laid_over_white(tmp_path):
    colour = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    colour.putpixel((0, 0), (10, 20, 30, 255))
    colour.save(tmp_path / "rgba.png")
    assert decoded(tmp_path / "rgba.png")[0].tolist() == [[10, 20, 30], [255] * 3]
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la.png")
    assert decoded(tmp_path / "la.png").tolist() == [[255, 255], [255, 255]]


def test_palettes_bits_and_cmyk_are_read(tmp_path):
    palette = Image.new("RGB", (2, 2), (10, 20, 30)).convert(
        "P", palette=Image.Palette.ADAPTIVE
    )
    palette.save(tmp_path / "palette.png")
    assert decoded(tmp_path / "palette.png")[0, 0].tolist() == [10, 20, 30]
    Image.new("1", (2, 2), 1).save(tmp_path / "bits.png")
    assert decoded(tmp_path / "bits.png").tolist() == [[255, 255], [255, 255]]
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "cmyk.jpg")
    assert decoded(tmp_path / "cmyk.jpg").max() < 10


def test_image_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "float.png"  # a TIFF with 32-bit floats under another name
    Image.new("F", (2, 2)).save(path, format="TIFF")
    with pytest.raises(ValueError, match=r"float\.png with Pillow mode F"):
        decode_image(path)


# IDX


def idx(array):
    array = np.asarray(array, np.uint8)
    header = b"\0\0\x08" + bytes([array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    folder = tmp_path / "letters"
    folder.mkdir()
    pixels = numbered(20)[..., 0]
    (folder / "train-images-idx3-ubyte").write_bytes(idx(pixels))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(idx(np.arange(20) % 5))
    )
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[:3])))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx([4, 3, 2]))
    return folder


def test_idx_folders_are_read_plain_and_compressed(idx_folder):
    opened = open_images(idx_folder)
    assert opened.splits == {"train": 18, "validation": 2, "test": 3}
    assert opened.num_classes == 5
    assert all_rows(opened, "test", "labels").tolist() == [4, 3, 2]
    assert all_rows(opened, "test")[:, 1, 2, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(numbered(20)[..., 0])[:-1], "319 follow"),
        ("train-images-idx3-ubyte", idx(numbered(20)[..., 0])[:9], "damaged"),
        ("train-images-idx3-ubyte", b"", "begins with nothing"),
        ("train-images-idx3-ubyte", b"\0\0\x0d\x03" + bytes(12), "00 00 0d 03"),
        ("train-labels-idx1-ubyte.gz", b"text", "not a gzipped file|Not a gzipped"),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.arange(20)), mtime=0)[:-9],
            "end-of-stream|Compressed file ended",
        ),
        ("t10k-labels-idx1-ubyte", idx([1, 2]), r"here 3.*shape \(2,\)"),
    ],
)
def test_damaged_idx_files_are_named(idx_folder, name, content, message):
    (idx_folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_images(idx_folder)
    assert name in str(caught.value)


def test_an_idx_folder_without_training_images_is_refused(idx_folder):
    (idx_folder / "train-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="needs the training images"):
        open_images(idx_folder)


def test_two_sets_of_idx_files_in_a_folder_are_refused(idx_folder):
    (idx_folder / "emnist-train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match="emnist-train-images.* and .*train-images"):
        open_images(idx_folder)


# Paths and names


def test_a_file_that_is_no_npz_or_zip_is_refused_by_name(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("no images")
    with pytest.raises(ValueError, match=r"\.npz or a \.zip. Received: .*poem\.txt"):
        open_images(path)


@pytest.mark.parametrize("source", ["/no/such", "no.npz", "./no", "a/b/c", Path("no")])
def test_a_path_that_is_not_there_is_not_found(source):
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        open_images(source)


@pytest.mark.parametrize(("name", "near"), [("mnsit", "mnist"), ("digit", "digits")])
def test_an_unknown_name_suggests_the_nearest(tmp_path, name, near):
    with pytest.raises(ValueError, match=f"Received: '{name}'. Did you mean.* {near}"):
        open_images(name, data_dir=tmp_path)


def test_an_unknown_version_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="only: 3.0.1"):
        open_images("mnist:9.9.9", data_dir=tmp_path)


def test_a_data_set_without_images_is_refused_before_it_is_downloaded(tmp_path):
    with pytest.raises(ValueError, match="feature called image. Received: imdb_rev"):
        open_images("imdb_reviews", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_download_that_fails_names_the_way_out(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **options):
        raise ConnectionError("no network\nand a page of details")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(FileNotFoundError) as caught:
        open_images("celeb_a", data_dir=tmp_path)
    message = str(caught.value)
    assert "celeb_a is not in" in message and "(no network)" in message
    assert "holds celeb_a/ with `data_dir`" in message


def test_a_download_that_fails_leaves_no_folder_behind(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **options):
        (tmp_path / "new" / "downloads" / "half.tmp").mkdir(parents=True)
        (tmp_path / "new" / "celeb_a").mkdir()
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(FileNotFoundError):
        open_images("celeb_a", data_dir=tmp_path / "new")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="as in a dry run.* with `data_dir`"):
        open_images("celeb_a", data_dir=tmp_path / "new", download=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set of tensorflow-datasets whose images have two sizes, and labels."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("prepared")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )

    def examples(count):
        for index in range(count):
            shape = (6, 4, 3) if index % 2 else (4, 8, 3)
            yield {"image": np.full(shape, index, np.uint8), "label": index % 2}

    signature = {
        "image": tf.TensorSpec([None, None, 3], tf.uint8),
        "label": tf.TensorSpec([], tf.int64),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="pets",
        version="1.0.0",
        features=features,
        split_datasets={
            split: tf.data.Dataset.from_generator(
                lambda count=count: examples(count), output_signature=signature
            )
            for split, count in (("train", 20), ("test", 6), ("extra", 3))
        },
        data_dir=folder,
        disable_shuffling=True,
    )
    # As celeb_a has it: no label, and features that are not read.
    faces = {"image": np.full([218, 178, 3], 9, np.uint8), "landmarks": {"nose_x": 90}}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="faces",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(
                    shape=(218, 178, 3), encoding_format="jpeg"
                ),
                "landmarks": {"nose_x": np.int64},
                "attributes": {"Smiling": np.bool_},
            }
        ),
        split_datasets={
            split: tf.data.Dataset.from_tensors(
                faces | {"attributes": {"Smiling": True}}
            ).repeat(count)
            for split, count in (("train", 5), ("validation", 2), ("test", 3))
        },
        data_dir=folder,
    )
    return folder


def test_a_prepared_data_set_without_labels_is_read(prepared):
    opened = open_images("faces", data_dir=prepared, image_size=64)
    assert str(opened) == (
        "faces: 10 images 64x64x3, uint8 in 9..9, no labels; train 5, validation 2, "
        "test 3"
    )
    assert set(next(iter(opened.pipeline("test", batch_size=3).dataset()))) == {
        "images"
    }


def test_any_prepared_data_set_is_read_by_its_name(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="`image_size` is needed. Received: pets"):
        open_images("pets", data_dir=prepared)
    with pytest.raises(ValueError, match="cache='disk'"):
        open_images("pets", data_dir=prepared, image_size=4, cache="none")
    options = {"data_dir": prepared, "image_size": 4, "channels": 1}
    opened = open_images("pets", **options)
    assert opened.class_names == ("cat", "dog")
    assert opened.splits == {"train": 18, "validation": 2, "test": 6}
    assert str(opened).endswith("; not read: extra")
    on_disk = open_images("pets", cache="disk", **options)
    (labels,) = [p for p in tmp_path.rglob("*.npy") if p.stat().st_size == 128 + 20 * 4]
    labels.unlink()  # as if the first open had been killed between the two
    again = open_images("pets", cache="disk", **options)
    for found in (opened, on_disk, again):
        assert all_rows(found, "test")[:, 3, 3, 0].tolist() == [0, 1, 2, 3, 4, 5]
        train = all_rows(found, "train")[:, 0, 0, 0]
        np.testing.assert_array_equal(all_rows(found, "train", "labels"), train % 2)
    with pytest.raises(ValueError, match="an image of pets is 4x8"):
        open_images("pets", data_dir=prepared, image_size=5)


def test_a_damaged_file_of_a_prepared_data_set_is_named(prepared, tmp_path):
    shutil.copytree(prepared / "pets", tmp_path / "pets")
    [path] = (tmp_path / "pets" / "1.0.0").glob("*train*tfrecord*")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (bytes(flipped), whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match="train split in .*pets.*a file is damaged"
        ):
            open_images("pets", data_dir=tmp_path, image_size=4)


def test_a_damaged_cache_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_images(folder, cache="disk")
    [path] = (tmp_path / "cache").rglob("*.npy")
    for content in (path.read_bytes()[:200], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name}: .*Delete the file"):
            open_images(folder, cache="disk")
    path.unlink()
    assert open_images(folder, cache="disk").splits["train"]


def test_fingerprints_tell_pixels_and_labels_apart():
    def fingerprint(change_image=0, change_label=0, **options):
        pixels, labels = numbered(10), np.zeros(10, int)
        pixels[3, 0, 0] += change_image
        labels[3] = change_label
        return open_images((pixels, labels), **options).fingerprint

    prints = [fingerprint(), fingerprint(1), fingerprint(0, 1), fingerprint(channels=3)]
    assert len(set(prints)) == 4
    assert fingerprint() == prints[0]
    assert len(prints[0]) == 64


def test_opening_is_exported():
    assert isinstance(open_images(numbered(10)), ImageSet)


# The real MNIST


TEST_DATA = os.environ.get("KGEN_TEST_DATA")


@pytest.mark.skipif(not TEST_DATA, reason="KGEN_TEST_DATA names no folder of data sets")
def test_mnist_is_the_same_by_name_and_from_idx_files():
    by_name = open_images("mnist", data_dir=Path(TEST_DATA) / "tfds")
    from_files = open_images(Path(TEST_DATA) / "data" / "mnist")
    for opened in (by_name, from_files):
        assert opened.splits == {"train": 55_000, "validation": 5_000, "test": 10_000}
        assert opened.image_shape == (28, 28, 1)
        assert opened.num_classes == 10
        assert opened.value_range == (0, 255)
    # tensorflow-datasets keeps the rows in an order of its own.
    sums = [
        sorted(
            zip(
                all_rows(opened, "test").sum(axis=(1, 2, 3)).tolist(),
                all_rows(opened, "test", "labels").tolist(),
                strict=True,
            )
        )
        for opened in (by_name, from_files)
    ]
    assert sums[0] == sums[1]
    # The published label counts of the 10,000 test images.
    counts = np.bincount(all_rows(from_files, "test", "labels"))
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
