"""The rules of the layout, read from the sources themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Left to right: a module may import from its own folder and from those with a lower
# rank.
RANKS = {
    "arguments": -3,
    "files": -2,
    "pictures": -1,
    "nn": 0,
    "data": 1,
    "models": 2,
    "training": 3,
    "evaluation": 4,
    "export": 5,
    "serving": 6,
    "recipes": 7,
    "cli": 8,
}
SOURCES = sorted([*ROOT.glob("kgen/**/*.py"), *ROOT.glob("cli/**/*.py")])
PACKAGES = [path for path in SOURCES if path.name == "__init__.py"]
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def folder_of(path: Path) -> str:
    """The ranked folder that a source file lies in; "" for kgen/__init__.py itself."""
    parts = path.relative_to(ROOT).parts
    if parts[0] == "cli":
        return "cli"
    return parts[1].removesuffix(".py") if parts[1] != "__init__.py" else ""


def imported_modules(tree: ast.AST, package: tuple[str, ...]) -> set[str]:
    """The full dotted names of what a module imports, at the top or in a function.

    `from kgen import models` counts as kgen.models: what is imported may be a module.
    """
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            modules.update(f"{start}.{alias.name}" for alias in node.names)
    return modules


def ranked_imports(tree: ast.AST, path: Path) -> set[str]:
    package = path.relative_to(ROOT).parent.parts
    names = [name.split(".") for name in imported_modules(tree, package)]
    ranked = {name[1] for name in names if name[0] == "kgen" and len(name) > 1}
    cli = {"cli" for name in names if name[0] in ("cli", "kgen_cli")}
    return ranked & set(RANKS) | cli


def attribute_uses(tree: ast.AST) -> set[str]:
    """The folders used as `kgen.models...` after a plain `import kgen`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "kgen"
        and node.attr in RANKS
    }


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_point_one_way(path):
    folder = folder_of(path)
    if not folder:
        pytest.skip("kgen/__init__.py is the lazy table of all folders")
    assert folder in RANKS, f"give {folder}/ a rank, or move the file"
    tree = ast.parse(path.read_text())
    used = (ranked_imports(tree, path) | attribute_uses(tree)) - {folder}
    assert {name for name in used if RANKS[name] >= RANKS[folder]} == set()


@pytest.mark.parametrize("path", sorted(ROOT.glob("kgen/models/*.py")), ids=relative)
def test_models_do_not_import_each_other(path):
    models = {file.stem for file in path.parent.glob("*.py")}
    tree = ast.parse(path.read_text())
    names = imported_modules(tree, ("kgen", "models"))
    others = {
        name.split(".")[2]
        for name in names
        if name.startswith("kgen.models.") and name.count(".") >= 2
    }
    if path.stem != "__init__":
        assert others & models - {path.stem} == set()


def test_the_import_reader_sees_every_form():
    text = """
import kgen.models.vae
from kgen import export
from kgen.data.pipeline import Pipeline
from ..training import run
from . import base
def later():
    from kgen.nn import random
"""
    path = ROOT / "kgen" / "evaluation" / "made_up.py"
    assert ranked_imports(ast.parse(text), path) == {
        "models",
        "export",
        "data",
        "training",
        "evaluation",
        "nn",
    }
    assert attribute_uses(ast.parse("import kgen\nkgen.models.VAE()")) == {"models"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_are_named_for_what_they_hold(path):
    assert path.stem not in FORBIDDEN_NAMES
    assert path.stem == path.stem.lower()


@pytest.mark.parametrize("path", PACKAGES, ids=relative)
def test_a_package_holds_a_docstring_and_one_lazy_table(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a package says what it is for"
    for node in tree.body[1:]:
        allowed = isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)
        # A constant table may say its type.
        allowed = allowed or isinstance(node, ast.AnnAssign)
        assert allowed, f"line {node.lineno} belongs into a module"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.If)


def lazy_names(path: Path) -> dict[str, list[str]]:
    """The `submod_attrs` table of a package, as module -> public names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy.attach":
            for keyword in node.keywords:
                if keyword.arg == "submod_attrs":
                    return ast.literal_eval(keyword.value)
    return {}


@pytest.mark.parametrize("path", PACKAGES, ids=relative)
def test_no_module_has_the_name_of_a_public_function(path):
    public = {name for names in lazy_names(path).values() for name in names}
    modules = {file.stem for file in path.parent.glob("*.py")}
    folders = {folder.name for folder in path.parent.iterdir() if folder.is_dir()}
    assert public & (modules | folders) == set()


@pytest.mark.parametrize("path", PACKAGES, ids=relative)
def test_lazy_tables_name_what_exists(path):
    for module, names in lazy_names(path).items():
        file = path.parent.joinpath(*module.split(".")).with_suffix(".py")
        defined = set()
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign):
                defined.update(ast.unparse(target) for target in node.targets)
            elif isinstance(node, ast.AnnAssign):
                defined.add(ast.unparse(node.target))
        assert set(names) - defined == set()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_library_code_neither_prints_nor_asserts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise instead"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"


def test_the_recipe_table_is_complete():
    from kgen.recipes import RECIPES

    files = {path.stem for path in ROOT.glob("kgen/recipes/*.py")}
    shared = {"__init__", "recipe", "records", "training_run"}
    shared |= {"images", "recommenders", "texts"}
    assert set(RECIPES) == files - shared
    for name, place in RECIPES.items():
        assert place.startswith(f"kgen.recipes.{name}:")
