"""Texts by name: the manual of Python, and data sets of tensorflow-datasets."""

from __future__ import annotations

import platform
from typing import Any

from kgen.data import named_builders
from kgen.data.named_builders import DataDir
from kgen.data.text_files import Documents, decode_utf8, filled

PYTHON_MANUAL = "python-manual"


def read_python_manual() -> Documents:
    """Reads the pages of Python's manual that `help()` shows, from the installation."""
    from pydoc_data.topics import topics

    pages = [topics[name] for name in sorted(topics)]
    return Documents(PYTHON_MANUAL, pages, (f"of Python {platform.python_version()}",))


def read_named_texts(
    name: str, data_dir: DataDir, text_key: str, download: bool
) -> Documents:
    """Reads a data set of tensorflow-datasets; see `open_text` for the errors.

    Its splits are read one after the other, in the order of its files.
    """
    builder = named_builders.find_builder(name, data_dir)
    feature = _find_feature(builder, name, text_key)
    named_builders.prepare(builder, name, download)
    texts = []
    for split in builder.info.splits:
        with named_builders.examples(builder, split, [feature]) as dataset:
            texts += [
                decode_utf8(row[feature], f"{name}, {split}, row {number}")
                for number, row in enumerate(dataset.as_numpy_iterator(), 1)
            ]
    return filled(name, texts, name, named_builders.splits_note(builder))


def _find_feature(builder: Any, name: str, text_key: str) -> str:
    """Returns the feature of that name; for "text", also the only text feature."""
    import tensorflow_datasets as tfds

    found = sorted(
        key
        for key, feature in named_builders.named_features(builder).items()
        if isinstance(feature, tfds.features.Text)
    )
    if text_key in found:
        return text_key
    if text_key == "text" and len(found) == 1:
        return found[0]
    raise ValueError(
        f"A data set must have a text feature {text_key!r}, or just one text feature. "
        f"Received: {name} with {', '.join(found) or 'no text features'}. Name one by "
        "`text_key`."
    )
