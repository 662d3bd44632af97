"""Versions of exported models in memory."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from kgen.data import Tokenizer, tokenizer_from_json
from kgen.export import check_sums
from kgen.export.manifest import sums_of
from kgen.export.tensorflow_serving import check_versions, model_name, versions_in

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Endpoint:
    """A signature of a SavedModel.

    Attributes:
        call: Takes arrays and returns arrays.
        inputs: Specification of each input.
        max_concurrency: Calls at the same time. One is best for decoding steps: clients
            ask for the next step at once, and so all of them join the next call.
    """

    call: Callable[[Arrays], Arrays]
    inputs: dict[str, tf.TensorSpec]
    max_concurrency: int = sys.maxsize


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of a model, loaded.

    Attributes:
        number: The name of its folder.
        endpoints: Endpoints by name.
        about: The content of `assets.extra/kgen.json`.
        definitions: The endpoints by name, as TensorFlow Serving describes them.
        sums: The checksums of its files.
        tokenizer_json: The tokenizer of a text model.
        created: Unix time of the export.
    """

    number: int
    endpoints: dict[str, Endpoint]
    about: dict[str, Any]
    definitions: dict[str, Any] = dataclasses.field(default_factory=dict)
    sums: bytes = b""
    tokenizer_json: str | None = None
    created: int = 0

    @property
    def has_completions(self) -> bool:
        """Whether it has the endpoints and the tokenizer that completions need."""
        return {"prefill", "decode"} <= self.roles.keys() and bool(self.tokenizer_json)

    @functools.cached_property
    def roles(self) -> dict[str, Endpoint]:
        """The endpoint of each role, such as "prefill" and "decode"."""
        described = self.about.get("signatures", {})
        return {
            one["role"]: self.endpoints[name]
            for name, one in reversed(described.items())  # The first of a role counts.
        }

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a text model.

        Raises:
            ImportError: Its library is not installed.
        """
        return tokenizer_from_json(self.tokenizer_json or "")


def load_version(folder: Path) -> Version:
    """Loads a version after checking its files against their checksums.

    Raises:
        ExportError: A file was changed, or there are no sums.
        OSError: TensorFlow cannot read it.
    """
    sums = _sums(folder)
    check_sums(folder)
    loaded = tf.saved_model.load(str(folder))
    about, tokenizer = (
        file.read_text(encoding="utf-8") if file.is_file() else None
        for file in (
            folder / "assets.extra" / "kgen.json",
            folder / "assets.extra" / "tokenizer.json",
        )
    )
    about = json.loads(about or "{}")
    described = about.get("signatures", {})
    endpoints = {
        name: _endpoint(loaded, name, described.get(name, {}).get("role"))
        for name in loaded.signatures
    }
    number = int(folder.name)
    created = int((folder / "saved_model.pb").stat().st_mtime)
    definitions = _definitions(folder, loaded.signatures)
    return Version(number, endpoints, about, definitions, sums, tokenizer, created)


def _definitions(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """The definitions of some endpoints in the file of a SavedModel, as JSON values."""
    file = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    found = file.meta_graphs[0].signature_def
    return {
        name: MessageToDict(
            found[name],
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        for name in names
    }


def _sums(folder: Path) -> bytes:
    """The checksums of a version's files; empty where there are none."""
    path = sums_of(folder)
    return path.read_bytes() if path.is_file() else b""


def _endpoint(loaded: Any, name: str, role: str | None) -> Endpoint:
    function = loaded.signatures[name]
    _, inputs = function.structured_input_signature

    def call(arrays: Arrays) -> Arrays:
        tensors = {key: tf.constant(array) for key, array in arrays.items()}
        # `loaded` keeps the variables alive: the function alone does not.
        outputs = loaded.signatures[name](**tensors)
        return {key: value.numpy() for key, value in outputs.items()}

    return Endpoint(call, dict(inputs), 1 if role == "decode" else sys.maxsize)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The versions in memory, and the one that answers where none is asked for."""

    versions: dict[int, Version]
    newest: int


class ServedModel:
    """The folder of a model's versions, and the versions in memory.

    Args:
        folder: The folder of the versions, which are folders named by numbers.
        labels: Versions that stay in memory, by label. The newest version is in memory
            too, and replaces the one before it.

    Attributes:
        loaded: The versions in memory.
        failed: Reasons why versions cannot be loaded, by number.

    Raises:
        ExportError: No version can be loaded, or one with a label.
        FileNotFoundError: There is no version.
        ValueError: A label names a version that is not there.
    """

    def __init__(self, folder: Path, labels: dict[str, int] | None = None):
        self.folder = folder
        self.name = model_name(folder)
        self.labels = labels or {}
        self.failed: dict[int, str] = {}
        self._stamps: dict[int, set] = {}  # names, times and sizes of their files
        check_versions(folder, self.labels)
        labelled = {n: load_version(folder / str(n)) for n in {*self.labels.values()}}
        newest = self._newest_that_loads(versions_in(folder), labelled)
        self.loaded = Loaded(labelled | {newest.number: newest}, newest.number)

    @property
    def newest(self) -> Version:
        """The version that answers where none is asked for."""
        return self.loaded.versions[self.loaded.newest]

    def refresh(self) -> int | None:
        """Loads the newest version of the folder where it is not the one in memory.

        That version has a higher number, or was exported again under the same number,
        or under a lower one in place of all others. The version in memory answers until
        then, and afterwards too if the other one cannot be loaded.

        Returns:
            The number of the version that answers from now on; None: no change.
        """
        number = max(versions_in(self.folder), default=0)
        if not number:
            return None
        folder, now = self.folder / str(number), self.loaded
        try:
            if number == now.newest and now.versions[number].sums == _sums(folder):
                return None
            stamps = {path: path.stat() for path in folder.rglob("*")}
            stamp = {(p, s.st_mtime_ns, s.st_size) for p, s in stamps.items()}
            if self._stamps.get(number) == stamp:
                return None  # Half copied, perhaps: tried again when it has changed.
            self._stamps[number] = stamp
            version = load_version(folder)
        except Exception as error:
            # Whatever is wrong with it, the version in memory goes on answering.
            self.failed[number] = str(error)
            return None
        self.failed.pop(number, None)
        self._stamps.pop(number)  # It may go, and come back as it is.
        kept = {n: now.versions[n] for n in self.labels.values()}
        # One assignment: a request that is under way has its own reference.
        self.loaded = Loaded(kept | {number: version}, number)
        return number

    def _newest_that_loads(
        self, numbers: list[int], labelled: dict[int, Version]
    ) -> Version:
        oldest, *others = numbers
        for number in reversed(others):
            try:
                return labelled.get(number) or load_version(self.folder / str(number))
            except Exception as error:  # As in `refresh`.
                self.failed[number] = str(error)
        return labelled.get(oldest) or load_version(self.folder / str(oldest))
