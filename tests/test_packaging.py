"""Contents of the wheel, the sdist and an editable install."""

import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import kgen

ROOT = Path(__file__).resolve().parents[1]
# The source tree without what was built or trained in it.
SOURCES = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "cli",
    "kgen",
    "pyproject.toml",
    "saved_models/README.md",
    "setup.py",
    "tests",
    "tox.ini",
]


def build(kind: str, source: Path, folder: Path) -> Path:
    """Builds with setuptools itself, as pip would, but without downloading it."""
    code = (
        "import sys; from setuptools import build_meta; "
        "getattr(build_meta, sys.argv[1])(sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", code, f"build_{kind}", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the source tree, so that a build leaves the checkout clean."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        target = copy / name
        target.parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, target, ignore=ignored)
        else:
            shutil.copy(ROOT / name, target)
    return copy


def python_files(folder: str, package: str) -> set[str]:
    return {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for path in (ROOT / folder).rglob("*.py")
    }


def test_the_wheel_holds_both_packages_and_nothing_else(source, tmp_path):
    wheel = build("wheel", source, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"kgen-{kgen.__version__}.dist-info/METADATA").decode()
        scripts = archive.read(
            f"kgen-{kgen.__version__}.dist-info/entry_points.txt"
        ).decode()
    files = {name for name in names if ".dist-info/" not in name}
    expected = python_files("kgen", "kgen") | python_files("cli", "kgen_cli")
    data = {
        "kgen/py.typed",
        "kgen/evaluation/kgen_mnist_v1.npz",
        "kgen/serving/page.html",
    }
    assert files == expected | data
    assert "kgen = kgen_cli.main:main" in scripts
    assert f"Version: {kgen.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_the_sdist_builds_the_same_wheel(source, tmp_path):
    sdist = build("sdist", source, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"kgen-{kgen.__version__}"
    for name in SOURCES:
        assert (unpacked / name).exists(), f"the sdist lacks {name}"
    from_sdist = build("wheel", unpacked, tmp_path / "from_sdist")
    from_source = build("wheel", source, tmp_path / "from_source")
    with zipfile.ZipFile(from_sdist) as one, zipfile.ZipFile(from_source) as other:
        assert set(one.namelist()) == set(other.namelist())


def test_an_editable_install_finds_both_packages(source, tmp_path):
    wheel = build("editable", source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    # Read from its file: an installed kgen would win over this editable one.
    [finder] = (tmp_path / "site").glob("__editable___*finder.py")
    mapping = runpy.run_path(str(finder))["MAPPING"]
    assert mapping == {"kgen": str(source / "kgen"), "kgen_cli": str(source / "cli")}


def test_the_contributing_guide_gives_every_dependency_a_reason():
    setup = (ROOT / "setup.py").read_text()
    block = setup.split("install_requires=[")[1].split("]")[0]
    names = re.findall(r'"([\w-]+)', block)
    assert len(names) > 5
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    assert [name for name in names if f"`{name}`" not in guide] == []
