"""Data sets of tensorflow-datasets: found by name, prepared, and read in order."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# name, name/config, name:version or name/config:version.
NAME = re.compile(r"\w+(/[\w-]+)?(:[\w.*]+)?")
# tensorflow-datasets tries ten times, which takes minutes where there is no network.
_DOWNLOAD_RETRIES = 4


def find_builder(name: str, data_dir: Path | None, own_names: Sequence[str]) -> Any:
    """Returns the builder of a data set, whether or not its files are there.

    Args:
        name: A name that `NAME` matches.
        data_dir: The folder of all data sets, or None for the default.
        own_names: The names of our own that could have been meant.

    Raises:
        ValueError: There is no such data set, configuration or version.
    """
    import tensorflow_datasets as tfds

    try:
        with _muted("absl", "Variant folder"):  # what a download that failed left
            return tfds.builder(name, data_dir=data_dir)
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


def prepare(builder: Any, name: str, download: bool) -> None:
    """Downloads and prepares a data set unless its files are there.

    Raises:
        FileNotFoundError: They are not there, and a download failed or is not allowed.
    """
    with _muted("absl", "Variant folder"):
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
    missing = [
        path
        for path in (data_dir / "downloads", data_path, *data_path.parents)
        if not path.exists()
    ]
    import tensorflow_datasets as tfds

    # For good: threads of a download that failed go on trying for a while.
    logging.getLogger("urllib3.connectionpool").addFilter(_all_but("Retrying"))
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with _few_retries():
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


def read_examples(builder: Any, split: str, features: dict[str, bool]) -> Any:
    """Returns a tf.data.Dataset of the features asked for, in the order of the files.

    Args:
        builder: A builder whose files are there.
        split: The name of one of its splits.
        features: True for each feature to read.
    """
    import tensorflow_datasets as tfds

    # One file after the other: the order is part of what a row number means.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    with _muted("absl", "`FeatureConnector.dtype`"):  # deprecated, and used there
        return builder.as_dataset(
            split=split,
            decoders=tfds.decode.PartialDecoding(features),
            read_config=config,
            shuffle_files=False,
        )


def _remove_empty_folders(top: Path) -> None:
    """Removes what a failed download made; what it did download stays."""
    for path, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):  # not empty
            os.rmdir(path)


@contextmanager
def _few_retries() -> Iterator[None]:
    """Gives up a hopeless download in seconds."""
    from tensorflow_datasets.core.download import downloader

    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, _DOWNLOAD_RETRIES
    try:
        yield
    finally:
        downloader.MAX_RETRIES = retries


@contextmanager
def _muted(logger_name: str, beginning: str) -> Iterator[None]:
    """Hides the messages of one logger that begin with these words, and no others."""
    others = _all_but(beginning)
    logger = logging.getLogger(logger_name)
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def _all_but(beginning: str) -> Callable[[logging.LogRecord], bool]:
    """Returns a filter of messages that begin with these words."""
    return lambda record: not record.getMessage().startswith(beginning)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 400 else f"{lines[0][:400]}..."
