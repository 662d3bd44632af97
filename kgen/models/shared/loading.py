"""Load models from .keras files and run folders."""

import json
import pathlib
import zipfile
from typing import Any

import keras

from kgen.models.shared.model import GenerativeModel

CONTENTS = ("config.json", "metadata.json", "model.weights.h5", "assets")


def load(path: str | pathlib.Path) -> GenerativeModel:
    """Loads a model, its optimizer and its step.

    A file from elsewhere runs no code: it may hold weights and the configuration of
    classes that Keras, kgen or a module that has been imported has registered.

    Args:
        path: A `.keras` file, or the folder of a run, which holds `model.keras`.

    Raises:
        FileNotFoundError: If there is no such file, or no model in the folder yet.
        ValueError: If the file is not a model that Keras can load safely.
    """
    path = pathlib.Path(path)
    file = path / "model.keras" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            "A model is loaded from a .keras file or from a run's folder, which holds "
            f"model.keras once the run has finished. Received: {path}"
        )
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file} is no .keras file, or a damaged one: it is not the zip archive "
            "that Keras writes."
        )
    try:
        _check_contents(file)
        return keras.saving.load_model(file, safe_mode=True)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is damaged: {error}.") from error


def _check_contents(file: pathlib.Path) -> None:
    """Refuses a file that holds more than weights and known classes.

    Raises:
        ValueError: It does; the message says what.
    """
    with zipfile.ZipFile(file) as archive:
        strange = [name for name in archive.namelist() if not _belongs(name)]
        if strange or "config.json" not in archive.namelist():
            raise ValueError(
                f"{file} is not a file that Keras writes: it holds "
                f"{', '.join(strange[:3]) or 'no config.json'}. It was not loaded."
            )
        try:
            config = json.loads(archive.read("config.json"))
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged: its config.json is no JSON."
            ) from error
    unknown = sorted(_unknown_classes(config))
    if unknown:
        raise ValueError(
            f"{file} names {unknown[0]}, which could run any code, and was not loaded. "
            "If it is a layer of yours, register it with "
            "keras.saving.register_keras_serializable, and import it first."
        )


def _belongs(name: str) -> bool:
    parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
    inside = ".." not in parts and not name.startswith("/")
    return inside and parts[:1] != () and parts[0] in CONTENTS


def _unknown_classes(config: Any) -> set[str]:
    """Classes in a configuration that neither Keras nor kgen defines or registers."""
    if isinstance(config, list):
        return set().union(*map(_unknown_classes, config))
    if not isinstance(config, dict):
        return set()
    found = set().union(*map(_unknown_classes, config.values()))
    name, module = config.get("class_name"), config.get("module")
    if isinstance(name, str) and "config" in config:
        registered = keras.saving.get_registered_object(config.get("registered_name"))
        known = module is None or str(module).split(".")[0] in ("keras", "kgen")
        if name in ("Lambda", "__lambda__"):
            found.add("a Lambda")
        elif not (known or registered):
            found.add(f"{module}.{name}")
    return found
