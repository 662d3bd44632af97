"""Data sets of tensorflow-datasets: opened by name, prepared, and read in order."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# name, name/config, name:version or name/config:version.
NAME = re.compile(r"\w+(/[\w-]+)?(:[\w.*]+)?")
# tensorflow-datasets tries ten times, which takes minutes where there is no network.
_DOWNLOAD_RETRIES = 4
# Beginnings of log messages that are hidden: on the folder of a failed download, on a
# deprecation within tensorflow-datasets, on each retry.
_NOISE = ("Variant folder", "`FeatureConnector.dtype`", "Retrying")

DataDir = str | os.PathLike | None


def find_builder(name: str, data_dir: DataDir, own_names: Sequence[str] = ()) -> Any:
    """Returns the builder of a data set; its files may be missing.

    Args:
        name: A name that `NAME` matches.
        data_dir: The folder of all data sets, or None for the default.
        own_names: Further names of sources, for a suggestion.

    Raises:
        ValueError: There is no such data set, configuration or version.
    """
    import tensorflow_datasets as tfds

    for logger in ("absl", "urllib3.connectionpool"):
        logging.getLogger(logger).addFilter(_is_no_noise)
    try:
        folder = None if data_dir is None else Path(data_dir).expanduser()
        return tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as error:
        known = [*own_names, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name, known)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"There is no file or folder {name}, and no data set of that name. A "
            f"source is {''.join(f'{own}, ' for own in own_names)}the name of a data "
            f"set of tensorflow-datasets, or a path. Received: {name!r}.{hint}"
        ) from error
    except Exception as error:  # configurations and versions: of many types
        raise ValueError(
            f"tensorflow-datasets cannot open {name!r}: {_first_line(error)}"
        ) from error


def named_features(builder: Any) -> dict[str, Any]:
    """Returns the features of a data set by their names, if they have names."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    named = isinstance(features, tfds.features.FeaturesDict)
    return dict(features.items()) if named else {}


def splits_note(builder: Any) -> tuple[str, ...]:
    """Returns the note on splits that are read as one, if there are several."""
    count = len(builder.info.splits)
    return (f"read as one: its {count} splits",) if count > 1 else ()


def prepare(builder: Any, name: str, download: bool) -> None:
    """Downloads and prepares a data set unless its files exist.

    Raises:
        FileNotFoundError: The files are missing, and a download failed or is not
            allowed.
    """
    if builder.is_prepared():
        return
    data_path = Path(builder.data_path)
    data_dir = data_path.parents[len(Path(builder.info.full_name).parts) - 1]
    if not download:
        raise FileNotFoundError(
            f"The data set {name} is not in {data_path}, and nothing is downloaded "
            "where `download` is False, as in a dry run. Name the folder it was "
            "prepared in with `data_dir`, or that of its own files as the data, or do "
            "without the dry run."
        )
    folders = (data_dir / "downloads", data_path, *data_path.parents)
    missing = [folder for folder in folders if not folder.exists()]
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, _DOWNLOAD_RETRIES
    try:
        builder.download_and_prepare()
    except Exception as error:  # a builder's own code may raise anything
        for path in missing:
            _remove_empty_folders(path)
        raise FileNotFoundError(
            f"The data set {name} is not in {data_path} and could not be "
            f"downloaded ({_first_line(error)}). If it was prepared elsewhere, name "
            f"the folder that holds {Path(builder.info.full_name).parts[0]}/ with "
            "`data_dir`."
        ) from error
    finally:
        downloader.MAX_RETRIES = retries


@contextmanager
def examples(builder: Any, split: str, features: Iterable[str]) -> Iterator[Any]:
    """Opens a tf.data.Dataset of some features, in the order of the files.

    Args:
        builder: A builder whose files exist.
        split: The name of one of its splits.
        features: The names of the features to read.

    Raises:
        ValueError: A file is damaged; raised while the dataset is read.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # One file after the other: a row number must always mean the same row.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    try:
        yield builder.as_dataset(
            split=split,
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(features, True)),
            read_config=config,
            shuffle_files=False,
        )
    except tf.errors.OpError as error:
        reason = re.sub(r"{{.*?}} | \[Op:.*", "", error.message)
        raise ValueError(
            f"Cannot read the {split} split in {builder.data_path}: a file is damaged "
            f"({reason}). Delete the folder and prepare the data set again."
        ) from error


def _remove_empty_folders(top: Path) -> None:
    """Removes the empty folders of a failed download; downloaded files stay."""
    for path, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):  # not empty
            os.rmdir(path)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 400 else f"{lines[0][:400]}..."
