"""CelebA, in a folder as its authors publish it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from pathlib import Path, PurePosixPath

from kgen.data.dataset import SPLITS
from kgen.data.image_folders import ClassedFiles, FoundFiles, most_common, walk
from kgen.data.image_rows import not_read
from kgen.data.source_files import SourceFile, open_root, visible

_IMAGES = ("img_align_celeba", "img_align_celeba.zip")
_PARTITION = "list_eval_partition.txt"
_LAST_NUMBERS = (162_770, 182_637, 202_599)  # of each split, as published


def find_celeba_files(folder: Path) -> FoundFiles | None:
    """Finds the images of CelebA, split by its published partition.

    The folder holds img_align_celeba.zip or, unpacked, img_align_celeba/, and no images
    beside it. If it has both, the zip is read: it is complete or refused. The split is
    given by list_eval_partition.txt if it exists (lines like "000001.jpg 0" with 0 for
    train, 1 for validation, 2 for test), or else by the number of each image: 1 to
    162770 train, to 182637 validation, to 202599 test. A part of the images is enough;
    an empty split is left out.

    Returns:
        The files of each split, without classes; None if the folder is not CelebA's.

    Raises:
        FileNotFoundError: There are no images, or none for training.
        ValueError: A damaged zip or list, or an image without a split.

    Reference: Liu et al., 2015, Deep Learning Face Attributes in the Wild.
    """
    roots = [folder / name for name in _IMAGES if (folder / name).exists()]
    if not roots:
        return None
    others: Counter[str] = Counter()
    for child in visible(folder):
        if child.name not in (*_IMAGES, _PARTITION) and walk(child, others):
            return None
    *unused, root = roots
    others.update(f"folder {child.name}" for child in unused)
    partition = folder / _PARTITION
    listed = _read_partition(partition) if partition.exists() else None
    files: dict[str, ClassedFiles] = {split: [] for split in SPLITS}
    for file in walk(open_root(root), others):
        split = _split_by_number(file) if listed is None else listed.get(file.stem)
        if split is None:
            raise ValueError(
                "Every image of CelebA must belong to a split: by a line in "
                f"{_PARTITION} or, without that file, by its name, 000001 to 202599. "
                f"Received: {file}. Move it elsewhere, or add a line for it."
            )
        files[split].append((file, ""))
    if not files["train"]:
        counts = ", ".join(f"{len(files[split])} {split}" for split in SPLITS)
        raise FileNotFoundError(f"No training images of CelebA in {root}: {counts}.")
    files = {split: found for split, found in files.items() if found}
    return FoundFiles(files, not_read(most_common(others)))


def _read_partition(path: Path) -> dict[str, str]:
    """Returns the split of each image by its name without suffix."""
    splits = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"(\S+)\s+([012])\s*", line)
        if match:
            splits[PurePosixPath(match[1]).stem] = SPLITS[int(match[2])]
        elif line.strip():
            raise ValueError(
                "A line of the partition is the name of an image and 0, 1 or 2. "
                f"Received: {line[:80]!r}, line {number} of {path}."
            )
    return splits


def _split_by_number(file: SourceFile) -> str | None:
    number = int(file.stem) if re.fullmatch("[0-9]{6}", file.stem) else 0
    if not 1 <= number <= _LAST_NUMBERS[-1]:
        return None
    return SPLITS[bisect_left(_LAST_NUMBERS, number)]
