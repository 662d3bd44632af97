"""Sums of exports."""

import subprocess

import pytest

from kgen.export import ExportError, check_sums
from kgen.export.manifest import sums_of, write_sums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "1" / "variables").mkdir(parents=True)
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "1" / "variables" / "data").write_bytes(bytes(1000))
    write_sums(tmp_path / "1")
    return tmp_path / "1"


@pytest.fixture
def onnx_file(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"graph")
    (tmp_path / "tokenizer.json").write_text("{}")
    write_sums(tmp_path / "a.onnx", ("tokenizer.json",))
    return tmp_path / "a.onnx"


def test_what_was_written_is_found(folder, onnx_file):
    assert check_sums(folder) == 2
    assert check_sums(onnx_file) == 2


def test_sha256sum_reads_them(folder, onnx_file):
    for path in (folder, onnx_file):
        sums = sums_of(path)
        command = ["sha256sum", "--strict", "-c", sums.name]
        assert subprocess.run(command, cwd=sums.parent, check=False).returncode == 0


def test_a_changed_a_missing_and_an_added_file_are_named(folder):
    (folder / "saved_model.pb").write_bytes(b"grapy")
    (folder / "variables" / "data").unlink()
    (folder / "assets").write_text("")
    with pytest.raises(ExportError) as error:
        check_sums(folder)
    for words in ("saved_model.pb is changed", "data is missing", "assets was added"):
        assert words in str(error.value)


def test_a_file_beside_an_onnx_file_belongs_to_it(onnx_file):
    (onnx_file.parent / "tokenizer.json").write_text("[]")
    with pytest.raises(ExportError, match=r"tokenizer.json is changed"):
        check_sums(onnx_file)


def test_exports_without_sums_are_not_trusted(folder):
    sums_of(folder).unlink()
    with pytest.raises(ExportError, match=r"SHA256SUMS is missing. Export the run"):
        check_sums(folder)


@pytest.mark.parametrize("line", ["../../etc/passwd", "/etc/passwd", ""])
def test_sums_of_files_elsewhere_are_damaged(folder, line):
    sums_of(folder).write_text(f"{'0' * 64}  {line}\n")
    with pytest.raises(ExportError, match="is damaged"):
        check_sums(folder)
