"""Zips of images, and CelebA: they read like the folders that they unpack to."""

import io
import os
import re
import signal
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import processes
from kgen.data import open_images
from kgen.data.image_folders import ImageFiles, find_image_files
from kgen.data.image_rows import ImageFormat
from kgen.data.source_files import open_root


def grey(value, height=6, width=5):
    return np.full([height, width], value, np.uint8)


def encoded(pixels, suffix=".png"):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(
        file, format={".png": "PNG", ".jpg": "JPEG"}[suffix]
    )
    return file.getvalue()


def pack(path, members, method=zipfile.ZIP_DEFLATED):
    """Writes a zip of members: name -> pixels, or the content itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            if isinstance(content, np.ndarray):
                content = encoded(content, Path(name).suffix)
            archive.writestr(name, content)
    return path


def all_rows(opened, split, key="images"):
    dataset = opened.pipeline(split, batch_size=64).dataset()
    return np.concatenate([batch[key].numpy() for batch in dataset])


def values(opened, split):
    """The first pixel of each image."""
    return all_rows(opened, split)[:, 0, 0, 0].tolist()


CLASSES = {f"{'ab'[i % 2]}/{i:02}.png": grey(i) for i in range(12)}


# Layouts


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_zip_reads_like_the_folder_that_it_unpacks_to(
    tmp_path, monkeypatch, method, cache
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    others = {"notes.txt": "-", "__MACOSX/a/._00.png": "-", ".DS_Store": "-"}
    path = pack(tmp_path / "pets.zip", {**CLASSES, **others}, method)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "pets")
    folder = open_images(tmp_path / "pets")
    opened = open_images(path, cache=cache)
    assert opened.class_names == ("a", "b")
    assert opened.notes == ("not read: 1 .txt",)
    assert opened.describe().replace("0..255", "0..11") == folder.describe()
    assert (opened.fingerprint == folder.fingerprint) == (cache == "memory")
    for split in folder.splits:
        for key in ("images", "labels"):
            np.testing.assert_array_equal(
                all_rows(opened, split, key), all_rows(folder, split, key)
            )
    assert sorted(item.name for item in tmp_path.iterdir()) == (
        ["cache"] * (cache == "disk") + ["pets", "pets.zip"]
    )


def test_images_lie_anywhere_in_a_zip(tmp_path):
    members = {f"{i}.{'png' if i % 2 else 'jpg'}": grey(9) for i in range(4)}
    for number, place in enumerate(("", "x/", "x/y/z/", "/", "./x/")):
        placed = {f"{place}{name}": pixels for name, pixels in members.items()}
        opened = open_images(pack(tmp_path / f"{number}.zip", placed))
        assert opened.class_names is None
        assert opened.splits == {"train": 2, "validation": 1, "test": 1}
        assert opened.value_range == (9, 9)
    path = pack(tmp_path / "mixed.zip", {**members, "x/0.png": grey(9)})
    with pytest.raises(
        ValueError, match=r"mixed\.zip/0\.jpg and .*mixed\.zip/x/0\.png"
    ):
        open_images(path)


def test_a_single_folder_in_a_zip_stands_for_the_zip(tmp_path):
    path = pack(tmp_path / "a.zip", {f"top/{k}": m for k, m in CLASSES.items()})
    assert open_images(path).class_names == ("a", "b")


def test_split_folders_in_a_zip_are_honoured(tmp_path):
    members = {
        f"set/{split}/{i}.png": grey(start + i)
        for split, start in (("train", 10), ("val", 20), ("test", 30))
        for i in range(3)
    }
    opened = open_images(str(pack(tmp_path / "a.zip", members)))
    assert opened.splits == {"train": 3, "validation": 3, "test": 3}
    assert values(opened, "validation") == [20, 21, 22]
    del members["set/train/0.png"], members["set/train/1.png"]
    members["set/cats/1.png"] = grey(1)
    with pytest.raises(ValueError, match=r"images in .*a\.zip/set/cats"):
        open_images(pack(tmp_path / "a.zip", members))


def test_backslashes_separate_folders_as_windows_archivers_write_them(tmp_path):
    members = {
        f"{split}/{'ab'[i % 2]}/{i}.png": grey(start + i)
        for split, start in (("train", 10), ("val", 20), ("test", 30))
        for i in range(5)
    }
    windows = {name.replace("/", "\\"): pixels for name, pixels in members.items()}
    windows |= {"train\\": "", "train\\a\\": ""}
    opened = open_images(pack(tmp_path / "windows" / "a.zip", windows))
    same = open_images(pack(tmp_path / "a.zip", members))
    assert opened.splits == {"train": 5, "validation": 5, "test": 5}
    assert opened.class_names == ("a", "b") and opened.notes == ()
    assert values(opened, "test") == [30, 32, 34, 31, 33]
    assert opened.fingerprint == same.fingerprint


def test_the_last_of_equal_names_counts(tmp_path):
    path = pack(tmp_path / "a.zip", {f"{i}.png": grey(i) for i in range(3)})
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("2.png", encoded(grey(9)))
    opened = open_images(path)
    assert sorted(sum((values(opened, s) for s in opened.splits), [])) == [0, 1, 9]


def test_zips_that_were_written_as_streams_or_follow_other_bytes_are_read(tmp_path):
    class Pipe(io.BytesIO):
        """A file that cannot go back: sizes follow the data instead."""

        def seekable(self):
            return False

        def seek(self, *_):
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(4):
            with archive.open(f"{i}.png", "w", force_zip64=True) as member:
                member.write(encoded(grey(i)))
    (tmp_path / "a.zip").write_bytes(b"#!/bin/self-extracting\n" + pipe.getvalue())
    opened = open_images(tmp_path / "a.zip")
    assert sorted(sum((values(opened, s) for s in opened.splits), [])) == [0, 1, 2, 3]


# Errors


def test_a_broken_zip_is_refused_by_name(tmp_path):
    path = pack(tmp_path / "half.zip", CLASSES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"Cannot read .*half\.zip: it is no zip arch"):
        open_images(path)
    for content in (b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"Cannot read .*half\.zip"):
            open_images(path)


def test_a_zip_with_a_damaged_directory_never_ends_in_another_error(tmp_path):
    """Every byte of the directory, changed in turn: read, or refused by name."""
    members = {f"{i}.png": grey(i) for i in range(3)}
    content = pack(tmp_path / "a.zip", members).read_bytes()
    refused = 0
    for place in range(content.index(b"PK\x01\x02"), len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "a.zip").write_bytes(damaged)
        try:
            open_images(tmp_path / "a.zip")
        except (ValueError, FileNotFoundError) as error:
            assert re.search(r"a\.zip|Received: [12] in a\.", str(error))
            refused += 1
    assert refused > 50


def test_zips_without_images_list_their_files(tmp_path):
    path = pack(tmp_path / "empty.zip", {})
    with pytest.raises(FileNotFoundError, match=r"No images in .*empty\.zip.*nothing"):
        open_images(path)
    path = pack(tmp_path / "text.zip", {"a/": "", "a/b.txt": "-"})
    with pytest.raises(FileNotFoundError, match=r"text\.zip.*1 \.txt"):
        open_images(path)


def test_encrypted_members_are_named(tmp_path):
    path = pack(tmp_path / "secret.zip", CLASSES)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"b/11.png") - 46 + 8] |= 1  # its flags in the directory
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"not be encrypted.*secret\.zip/b/11\.png, encrypted\. Unpack"
    ):
        open_images(path)


def test_members_packed_in_other_ways_are_named(tmp_path):
    path = pack(tmp_path / "a.zip", CLASSES, zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match=r"a\.zip/a/00\.png, method 12\. Unpack"):
        open_images(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_damaged_member_is_named(tmp_path, method, cache):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64))
    members = {f"{i}.png": encoded(noise) for i in range(4)}
    path = pack(tmp_path / "a.zip", members, method)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("1.png")
    content = path.read_bytes()
    for place in (0, 30 + len("1.png") + member.compress_size // 2):
        damaged = bytearray(content)
        damaged[member.header_offset + place] ^= 0xFF  # its header, its data
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"Cannot read .*a\.zip/1\.png: the zip is damaged"
        ):
            open_images(path, cache=cache)


def test_a_member_that_is_no_image_is_named(tmp_path):
    path = pack(tmp_path / "a.zip", {**CLASSES, "b/11.png": "text"})
    with pytest.raises(ValueError, match=r"a\.zip/b/11\.png: it is not an image"):
        open_images(path)
    half = encoded(np.random.default_rng(0).integers(0, 256, (6, 5)))[:70]
    path = pack(tmp_path / "a.zip", {**CLASSES, "b/11.png": half})
    with pytest.raises(ValueError, match=r"Cannot read the image .*a\.zip/b/11\.png"):
        open_images(path)


def test_a_member_larger_than_announced_is_not_inflated(tmp_path):
    path = pack(tmp_path / "bomb.zip", {**CLASSES, "a/00.png": bytes(10**6)})
    content = bytearray(path.read_bytes())
    size = content.rindex(b"a/00.png") - 46 + 24  # in the directory
    assert int.from_bytes(content[size : size + 4], "little") == 10**6
    content[size : size + 4] = (50).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bomb\.zip/a/00\.png: the zip is damaged"):
        open_images(path)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_mixed_sizes_and_channels_name_two_members(tmp_path, cache):
    path = pack(tmp_path / "a.zip", {**CLASSES, "b/99.png": grey(0, 8, 8)})
    with pytest.raises(
        ValueError, match=r"a\.zip/a/00\.png is 6x5.*a\.zip/b/99\.png is 8x8"
    ):
        open_images(path, cache=cache)
    colour = np.zeros([6, 5, 3], np.uint8)
    path = pack(tmp_path / "a.zip", {**CLASSES, "b/99.png": colour})
    with pytest.raises(
        ValueError, match=r"a\.zip/a/00\.png is grey.*a\.zip/b/99\.png is RGB"
    ):
        open_images(path, cache=cache)
    assert open_images(path, cache=cache, channels=3).image_shape == (6, 5, 3)


def test_a_zip_that_changes_after_opening_is_named_when_it_is_read(tmp_path):
    path = pack(tmp_path / "a.zip", CLASSES)
    in_memory, opened = open_images(path), open_images(path, cache="none")
    path.write_bytes(b"-" * path.stat().st_size)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a\.zip/a/02\.png"):
        all_rows(opened, "train")
    path.unlink()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a\.zip/a/02\.png"):
        all_rows(opened, "train")
    # What is in memory is decoded once, and needs no file any more.
    assert len(all_rows(in_memory, "train")) == 10


def test_the_content_of_a_zip_identifies_it(tmp_path):
    def fingerprint(path, members):
        return open_images(pack(path, members), cache="none").fingerprint

    first = fingerprint(tmp_path / "a.zip", CLASSES)
    assert fingerprint(tmp_path / "elsewhere" / "b.zip", CLASSES) == first
    assert fingerprint(tmp_path / "c.zip", {**CLASSES, "a/00.png": grey(9)}) != first


# Threads and processes


def test_threads_read_a_zip_at_once(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 16, 16), np.uint8)
    path = pack(tmp_path / "a.zip", {f"{i:03}.png": noise[i] for i in range(200)})
    found = find_image_files(open_root(path)).files["train"]
    reader = ImageFiles([file for file, _ in found], ImageFormat())

    def read(seed):
        rows = np.random.default_rng(seed).integers(0, 200, 64)
        return (reader[rows][..., 0] == noise[rows]).all()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(40)))


def read_in_a_fork(path):
    """Whether a process and its fork, at once, read what was read before."""
    found = find_image_files(open_root(path)).files["train"]
    reader = ImageFiles([file for file, _ in found], ImageFormat())
    rows = np.arange(len(found))
    expected = reader[rows]  # starts the threads
    child = os.fork()
    if not child:
        signal.alarm(60)
    alike = all((reader[rows] == expected).all() for _ in range(20))
    if not child:
        os._exit(not alike)
    _, status = os.waitpid(child, 0)
    return alike and status == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_forked_process_reads_beside_the_one_it_was_forked_from(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 16, 16), np.uint8)
    path = pack(tmp_path / "a.zip", {f"{i}.png": noise[i] for i in range(100)})
    assert processes.run(read_in_a_fork, path)


# CelebA

# The first and the last image of each published split.
CELEBA = [1, 162_770, 162_771, 182_637, 182_638, 202_599]


def faces(numbers=CELEBA, prefix="img_align_celeba/"):
    return {
        f"{prefix}{n:06}.jpg": grey(min(40 * i, 255)) for i, n in enumerate(numbers)
    }


def unpack(folder, members):
    for name, pixels in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(pixels, Path(name).suffix))


@pytest.mark.parametrize("zipped", [True, False])
def test_celeba_is_split_by_number(tmp_path, zipped):
    folder = tmp_path / "celeba"
    if zipped:
        pack(folder / "img_align_celeba.zip", faces())
    else:
        unpack(folder, faces(prefix="img_align_celeba/img_align_celeba/"))
    (folder / "identity_CelebA.txt").write_text("000001.jpg 2880\n")
    opened = open_images(folder)
    assert opened.describe() == (
        "celeba: 6 images 6x5x1, uint8 in 0..200, no labels; train 2, validation 2, "
        "test 2; not read: 1 .txt"
    )
    assert [values(opened, split) for split in opened.splits] == [
        [0, 40],
        [80, 120],
        [160, 200],
    ]


def test_the_partition_file_has_precedence_over_the_numbers(tmp_path):
    pack(tmp_path / "img_align_celeba.zip", faces())
    lines = [f"{n:06}.jpg {i % 3}" for i, n in enumerate([*CELEBA, 777])]
    partition = tmp_path / "list_eval_partition.txt"
    partition.write_text("\n".join(lines) + "\n\n")
    opened = open_images(tmp_path)
    assert opened.notes == ()
    assert [values(opened, split) for split in opened.splits] == [
        [0, 120],
        [40, 160],
        [80, 200],
    ]
    partition.write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match=r"celeba\.zip/img_align_celeba/000001\.jpg"):
        open_images(tmp_path)
    for bad in ("000001.jpg 3", "000001.jpg", "image_id,partition", "1 2 3", "\xff"):
        partition.write_text("\n".join([lines[0], bad, *lines[1:]]), encoding="latin-1")
        with pytest.raises(
            ValueError, match=r"line 2 of .*list_eval_partition\.txt"
        ) as caught:
            open_images(tmp_path)
        assert "0, 1 or 2" in str(caught.value)


@pytest.mark.parametrize("name", ["000000", "202600", "7", "0000001", "face", "٠٠٠٠٠١"])
def test_an_image_that_is_in_no_split_is_named(tmp_path, name):
    image = f"img_align_celeba/{name}.jpg"
    pack(tmp_path / "img_align_celeba.zip", {**faces(), image: grey(0)})
    with pytest.raises(ValueError, match=rf"000001 to 202599.*{image}"):
        open_images(tmp_path)


def test_the_zip_of_celeba_has_precedence_over_the_folder(tmp_path):
    pack(tmp_path / "img_align_celeba.zip", faces())
    unpack(tmp_path, faces(CELEBA[:1]))  # killed while it was unpacked
    opened = open_images(tmp_path)
    assert sum(opened.splits.values()) == 6
    assert opened.notes == ("not read: 1 folder img_align_celeba",)


def test_missing_splits_of_a_part_of_celeba_are_made_or_refused(tmp_path):
    pack(tmp_path / "img_align_celeba.zip", faces(range(1, 21)))
    assert open_images(tmp_path).splits == {"train": 16, "validation": 2, "test": 2}
    pack(tmp_path / "img_align_celeba.zip", faces(CELEBA[2:]))
    with pytest.raises(
        FileNotFoundError, match=r"celeba\.zip: 0 train, 2 validation, 2 test"
    ):
        open_images(tmp_path)


def test_a_folder_that_only_has_a_part_called_like_celebas_is_any_folder(tmp_path):
    unpack(tmp_path, faces([1, 2, 3]) | faces([1, 2, 3], prefix="generated/"))
    opened = open_images(tmp_path)
    assert opened.class_names == ("generated", "img_align_celeba")
    assert open_images(tmp_path / "generated").splits["train"] == 1


def test_faces_are_cropped_at_the_centre_and_scaled_with_antialiasing(tmp_path):
    rng = np.random.default_rng(0)
    photographs = rng.integers(0, 256, (3, 218, 178, 3), np.uint8)
    names = [f"{number:06}.png" for number in CELEBA[::2]]
    pack(tmp_path / "img_align_celeba.zip", dict(zip(names, photographs, strict=True)))
    opened = open_images(tmp_path, image_size=64)
    assert opened.image_shape == (64, 64, 3)
    for split, photograph in zip(opened.splits, photographs, strict=True):
        # The rows 20 to 197 are the centre. The filter reaches two rows of the result
        # around each of its own, so next to the cut two see what was cut away.
        square = Image.fromarray(photograph[20:198])
        scaled = np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC))
        (row,) = all_rows(opened, split)
        np.testing.assert_array_equal(row[2:-2], scaled[2:-2])
        # Noise of deviation 73.9 and 2.78**2 pixels to each: without antialiasing the
        # deviation would stay.
        assert row[2:-2].std() < 40


def test_the_part_of_celeba_in_the_test_data_is_read_whole(test_data):
    folder = test_data / "data" / "celeba"
    opened = open_images(folder, image_size=64)
    assert opened.image_shape == (64, 64, 3)
    assert opened.splits == {"train": 4155, "validation": 565, "test": 550}
    with zipfile.ZipFile(folder / "img_align_celeba.zip") as archive:
        content = archive.read("img_align_celeba/000017.jpg")
    with Image.open(io.BytesIO(content)) as photograph:
        assert photograph.size == (178, 218)
        square = photograph.crop((0, 20, 178, 198))
    scaled = np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC))
    first = all_rows(opened, "train")[0]
    np.testing.assert_array_equal(first[2:-2], scaled[2:-2])
