"""Versions of exported models in memory."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.data import Tokenizer, tokenizer_from_json
from kgen.export import check_sums
from kgen.export.tensorflow_serving import model_name

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A signature of a SavedModel.

    Attributes:
        call: Takes arrays and returns arrays.
        inputs: Specification of each input.
        outputs: Likewise.
        names: The tensors that inputs and outputs are in the graph.
    """

    call: Callable[[Arrays], Arrays]
    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]
    names: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of a model, loaded.

    Attributes:
        number: Its folder's name.
        endpoints: By their names.
        about: What `assets.extra/kgen.json` says.
        tokenizer_json: That of a model of text that has one.
    """

    number: int
    endpoints: dict[str, Endpoint]
    about: dict[str, Any]
    tokenizer_json: str | None = None

    @property
    def writes_text(self) -> bool:
        """Whether it has what completions are made with."""
        return {"read", "write"} <= self.endpoints.keys() and bool(self.tokenizer_json)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """What turns text to tokens and back.

        Raises:
            ImportError: It is of a kind whose library is not installed.
        """
        return tokenizer_from_json(self.tokenizer_json or "")


def load_version(folder: Path) -> Version:
    """Loads a version whose files are what was exported, and calls it once.

    Raises:
        ExportError: A file was changed, or there are no sums.
        OSError: TensorFlow cannot read it.
    """
    check_sums(folder)
    loaded = tf.saved_model.load(str(folder))
    about, tokenizer = (
        file.read_text(encoding="utf-8") if file.is_file() else None
        for file in (
            folder / "assets.extra" / "kgen.json",
            folder / "assets.extra" / "tokenizer.json",
        )
    )
    endpoints = {name: _endpoint(loaded, name) for name in loaded.signatures}
    return Version(int(folder.name), endpoints, json.loads(about or "{}"), tokenizer)


def _endpoint(loaded: Any, name: str) -> Endpoint:
    function = loaded.signatures[name]
    _, inputs = function.structured_input_signature
    names = {tensor.name.partition(":")[0]: tensor.name for tensor in function.inputs}
    names |= {key: one.name for key, one in function.structured_outputs.items()}

    def call(arrays: Arrays) -> Arrays:
        tensors = {key: tf.constant(array) for key, array in arrays.items()}
        # `loaded` is what keeps the variables: the function alone does not.
        outputs = loaded.signatures[name](**tensors)
        return {key: value.numpy() for key, value in outputs.items()}

    return Endpoint(call, dict(inputs), dict(function.structured_outputs), names)


class ServedModel:
    """The folder of a model's versions, and those of them that are in memory.

    Args:
        folder: Where the versions lie, in folders named by numbers.
        labels: Versions that stay in memory, by a label of theirs; the newest is there
            anyway, and takes the place of the one before it.

    Raises:
        FileNotFoundError: There is no version.
        ValueError: A label is of a version that is not there.
    """

    def __init__(self, folder: Path, labels: dict[str, int] | None = None):
        self.folder = folder
        self.name = model_name(folder)
        self.labels = labels or {}
        self.versions: dict[int, Version] = {}
        self.failed: dict[int, str] = {}  # why, of versions that cannot be loaded
        self._stamps: dict[int, int] = {}  # and when their files were changed last
        numbers = self._numbers()
        if not numbers:
            raise FileNotFoundError(
                "A model to serve has a version, a folder named by a number. Received: "
                f"{folder}, which has none. Make one: kgen export {folder.name}."
            )
        for label, number in self.labels.items():
            if number not in numbers:
                raise ValueError(
                    f"The label {label} must be of a version in {folder}: "
                    f"{', '.join(map(str, numbers))}. Received: {label}={number}"
                )
        for number in {*self.labels.values(), numbers[-1]}:
            self.versions[number] = load_version(folder / str(number))

    @property
    def newest(self) -> int:
        """The number of the version that answers where none is asked for."""
        return max(self.versions)

    def refresh(self) -> int | None:
        """Loads a version that has appeared; the one before it answers till then.

        Returns:
            Its number, or None where there is no newer one or it cannot be loaded.
        """
        number = max(self._numbers(), default=0)
        if number <= self.newest:
            return None
        folder = self.folder / str(number)
        try:
            stamp = max(path.stat().st_mtime_ns for path in folder.rglob("*"))
            if self._stamps.get(number) == stamp:
                return None  # Half copied, perhaps: tried again when it has changed.
            self._stamps[number] = stamp
            version = load_version(folder)
        except Exception as error:
            # Whatever is wrong with it, the version in memory goes on.
            self.failed[number] = str(error)
            return None
        self.failed.pop(number, None)
        kept = {n: self.versions[n] for n in self.labels.values()}
        # One assignment: a request that is under way has its own reference.
        self.versions = kept | {version.number: version}
        return version.number

    def _numbers(self) -> list[int]:
        found = [path.parent.name for path in self.folder.glob("*/saved_model.pb")]
        return sorted(int(name) for name in found if name.isdigit())
