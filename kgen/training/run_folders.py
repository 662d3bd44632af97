"""The folder of a run: who may write into it, and what its files are called."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import keras

from kgen.files import replacing

# What a run leaves; --overwrite removes these and nothing else.
CONTENTS = (
    "recipe.json",
    "model.keras",
    "checkpoint",
    "history.csv",
    "metrics.json",
    "evaluate-unfinished.npz",
    "samples",
    "tensorboard",
)


# Options that change nothing about what is trained; the data has its fingerprint.
NON_TRAINING_OPTIONS = (
    "checkpoint_seconds",
    "data",
    "data_dir",
    "export",
    "folder",
    "measure",
    "name",
    "sample_epochs",
    "worker_timeout",
)


class RunFolder:
    """Names the files of a run and guards those of another.

    Args:
        path: The folder; made by `claim`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.model = self.path / "model.keras"
        self.checkpoint = self.path / "checkpoint" / "state.npz"
        self.history = self.path / "history.csv"
        self.metrics = self.path / "metrics.json"
        self.samples = self.path / "samples"
        self.tensorboard = self.path / "tensorboard"

    def claim(
        self, record: dict[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> list[str]:
        """Makes the folder and writes recipe.json, or checks that it is the same run.

        Args:
            record: What recipe.json holds. Its "recipe", "options" and "data" must be
                those of the run that is resumed.
            resume: Go on with the run that is in the folder, if there is one.
            overwrite: Remove the run that is in the folder.

        Returns:
            What is not as it was when the resumed run was started, so that the two
            parts may differ in the last bits; empty for a new run.

        Raises:
            FileExistsError: If the folder holds a run, or other people's files.
            ValueError: If the run to resume was started with other options.
            OSError: If the folder cannot be written.
        """
        self.check_free(resume=resume, overwrite=overwrite)
        if self.recipe.is_file() and resume:
            changes = self._check_same_run(record)
            for unfinished in self.path.rglob(".*.tmp"):  # what a kill has left
                if unfinished.is_file():
                    unfinished.unlink()
            return changes
        if overwrite and self.path.is_dir():
            self._remove()
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(self.recipe, record)
        return []

    def check_free(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Checks that the folder may be written to, before anything is computed.

        Raises:
            FileExistsError: If the folder holds a run, or other people's files.
        """
        if self.recipe.is_file() and not resume and not overwrite:
            raise FileExistsError(
                f"{self.path} holds a run already. Go on with it (--resume), replace "
                "it (--overwrite), or choose another folder (--name)."
            )
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(
                f"{self.path} is a file, and a run needs a folder. Choose another "
                "(--name)."
            )
        if (
            not self.recipe.is_file()
            and self.path.is_dir()
            and any(self.path.iterdir())
        ):
            raise FileExistsError(
                f"{self.path} holds files that are not a run's; nothing was written. "
                "Choose another folder (--name) or empty this one."
            )

    def remove_versions(self) -> None:
        """Removes all versions of the SavedModel."""
        for file in self.path.glob("*/saved_model.pb"):
            if file.parent.name.isdigit():
                shutil.rmtree(file.parent)

    def save_model(self, model: keras.Model) -> None:
        """Writes model.keras, all or nothing."""
        temporary = self.path / ".model.tmp.keras"
        try:
            model.save(temporary)
            os.replace(temporary, self.model)
        finally:
            temporary.unlink(missing_ok=True)

    def write_json(self, file: Path, value: Any) -> None:
        """Writes a JSON file, all or nothing."""
        with replacing(file) as opened:
            opened.write(json.dumps(value, indent=2).encode() + b"\n")

    def _check_same_run(self, record: dict[str, Any]) -> list[str]:
        saved = json.loads(self.recipe.read_text())
        ours, theirs = record["options"], saved.get("options", {})
        changed = [
            f"{name}={theirs.get(name)!r} (now {ours.get(name)!r})"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name) and name not in NON_TRAINING_OPTIONS
        ]
        if saved.get("recipe") != record["recipe"]:
            changed.insert(0, f"recipe {saved.get('recipe')} (now {record['recipe']})")
        if saved.get("data", {}).get("fingerprint") != record["data"]["fingerprint"]:
            changed.append("other data (its fingerprint has changed)")
        if changed:
            raise ValueError(
                f"The run in {self.path} was started otherwise: {'; '.join(changed)}. "
                "Resume it with its own options and data, or choose another --name; "
                "--start-from takes over its weights once it has ended."
            )
        names = ("versions", "strategy", "replicas", "threads", "precision")
        return [
            f"{name} {saved.get(name)} then, {record.get(name)} now"
            for name in names
            if saved.get(name) != record.get(name)
        ]

    def _remove(self) -> None:
        for name in CONTENTS:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path in list(self.path.iterdir()):
            # Exports; and what a killed run was writing.
            if path.is_dir() and path.name.isdigit():
                shutil.rmtree(path)
            elif path.suffix == ".onnx" or path.match(".*.tmp"):
                path.unlink()
