"""Models from files."""

import pathlib
import zipfile

import keras

from kgen.models.base import GenerativeModel


def load(path: str | pathlib.Path) -> GenerativeModel:
    """Loads a model, its optimizer and its step.

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
        return keras.saving.load_model(file, safe_mode=True)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
