"""Records of runs, recipe.json: written, read, compared, and made recipes again."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

from kgen.recipes import RECIPES
from kgen.recipes.recipe import Recipe

# Standard library only up here: `kgen list` costs what click costs.
KEYS = {"recipe", "options", "signatures"}


def recipe_class(name: str) -> type[Recipe]:
    """Returns the recipe of that name in the recipe table."""
    module, _, attribute = RECIPES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def presets(name: str) -> dict[str, Recipe]:
    """Returns the named instances beside the class of that name."""
    module, _, _ = RECIPES[name].partition(":")
    return importlib.import_module(module).PRESETS


def now() -> str:
    """Returns the time to the second, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")


def titles_by_id(data: Any) -> dict[str, str] | None:
    """Returns the titles of items by their ids as text, or None."""
    titles = getattr(data, "item_titles", None)
    if titles is None:
        return None
    return dict(zip(map(str, data.item_ids.tolist()), titles, strict=True))


def make_record(recipe: Recipe, data: Any, model: Any, strategy: Any) -> dict[str, Any]:
    """Returns the content of recipe.json at the start of a run."""
    import tensorflow as tf

    import kgen

    packages = ("keras", "tensorflow", "numpy", "tensorflow-datasets")
    versions = {name: importlib.metadata.version(name) for name in packages}
    has_labels = getattr(model, "num_classes", None) is not None
    return {
        **_identity(recipe),
        "data": {"description": data.describe(), "fingerprint": data.fingerprint},
        "class_names": list(map(str, data.class_names)) if has_labels else None,
        "item_titles": titles_by_id(data),
        # Of those with one name the first counts.
        "signatures": {s.name: s.describe() for s in reversed(model.signatures())},
        "precision": model.dtype_policy.name,
        "strategy": type(strategy).__name__,
        "replicas": strategy.num_replicas_in_sync,
        "threads": {
            "cores": os.cpu_count(),
            "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
            "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
        },
        "versions": {"kgen": kgen.__version__} | versions,
        "started": now(),
    }


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Returns the recipe with paths that hold in any working directory."""
    bundled = {field.default for field in dataclasses.fields(recipe)}
    changed: dict[str, Any] = {}
    for name in ("data", "data_dir", "start_from"):
        value = getattr(recipe, name)
        if value not in bundled and Path(value).expanduser().exists():
            changed[name] = str(Path(value).expanduser().absolute())
    return dataclasses.replace(recipe, **changed)


def training_options(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a record that resumed runs and all workers must share."""
    fields = dataclasses.fields(recipe_class(record["recipe"]))
    settings = {field.name for field in fields if "is_setting" in field.metadata}
    return {k: value for k, value in record["options"].items() if k not in settings}


def check_resumable(record: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Checks that a record is of the saved run, to be resumed.

    Returns:
        Differences of machine and versions, with which the resumed part may differ in
        the last bits from an uninterrupted run.

    Raises:
        ValueError: If the saved run was started with other options or data.
    """
    changed = _changed_options(record, saved)
    if saved.get("data", {}).get("fingerprint") != record["data"]["fingerprint"]:
        changed.append("other data (its fingerprint has changed)")
    _refuse(changed)
    names = ("versions", "strategy", "replicas", "threads", "precision")
    return [
        f"{name} {saved.get(name)} then, {record.get(name)} now"
        for name in names
        if saved.get(name) != record.get(name)
    ]


def check_options(recipe: Recipe, saved: dict[str, Any]) -> None:
    """Checks that a run was started with these options, to be resumed.

    Raises:
        ValueError: If it was not.
    """
    _refuse(_changed_options(_identity(recipe), saved))


def _identity(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe's name and its options, as JSON has them."""
    options = dataclasses.asdict(with_absolute_paths(recipe))
    return json.loads(json.dumps({"recipe": recipe.recipe_name, "options": options}))


def _changed_options(record: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    if saved["recipe"] != record["recipe"]:
        return [f"recipe {saved['recipe']} (now {record['recipe']})"]
    ours, theirs = training_options(record), training_options(saved)
    return [
        f"{name}={theirs.get(name)!r} (now {ours.get(name)!r})"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _refuse(changed: list[str]) -> None:
    if changed:
        raise ValueError(
            f"The run was started otherwise: {'; '.join(changed)}. Resume it with its "
            "own options and data, or choose another --name; --start-from takes over "
            "its weights once it has ended."
        )


def read_record(folder: str | Path) -> dict[str, Any]:
    """Returns the content of a run's recipe.json.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the file is not the JSON that `kgen fit` wrote.
    """
    file = Path(folder) / "recipe.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"A run's folder must hold recipe.json. Received: {folder}. `kgen list` "
            "shows the runs there are; `kgen fit` makes one."
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(record, dict) or not KEYS <= record.keys():
        raise ValueError(
            f"{file} must hold an object with the recipe, its options and the model's "
            f"signatures, as `kgen fit` writes it. Received: {str(record)[:40]}"
        )
    return record


def export_metadata(folder: str | Path) -> dict[str, str]:
    """Returns metadata for the exports of a run: its recipe, and its classes as JSON.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its recipe.json is damaged.
    """
    record = read_record(folder)
    about = {"recipe": record["recipe"]}
    if record.get("class_names"):
        about["class_names"] = json.dumps(record["class_names"])
    return about


def recipe_of_run(folder: str | Path) -> Recipe:
    """Returns the recipe of a run, with the options it was started with.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If its recipe.json is not what `kgen fit` wrote.
    """
    record = read_record(folder)
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in record["options"].items()
    }
    # The folder may have been moved since.
    path = Path(folder)
    options |= {"folder": str(path.parent), "name": path.name}
    if record["recipe"] not in RECIPES:
        raise ValueError(
            f"{path / 'recipe.json'} must name a recipe: {', '.join(RECIPES)}. "
            f"Received: {record['recipe']!r}"
        )
    return recipe_class(record["recipe"])(**options)
