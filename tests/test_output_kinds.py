"""Each layer treats every kind of output, in one table."""

import re
from pathlib import Path

import kgen.serving
import kgen_cli.generate
import kgen_cli.tasks
from kgen.export.comparison import COMPARISONS
from kgen.export.image_files import FILE_KINDS
from kgen.models.shared.signatures import OUTPUT_KINDS
from kgen.training.callbacks import SAMPLE_WRITERS

EXPORTED_KINDS = {*OUTPUT_KINDS, "png", "pixels"}  # Files, and uint8 images of ONNX.


def test_exports_compare_every_kind():
    assert COMPARISONS.keys() == EXPORTED_KINDS


def test_exports_have_files_or_none_for_every_kind():
    assert FILE_KINDS.keys() == {*OUTPUT_KINDS}
    assert {*FILE_KINDS.values()} - {None} <= EXPORTED_KINDS


def test_training_writes_samples_or_none_of_every_kind():
    assert SAMPLE_WRITERS.keys() == {*OUTPUT_KINDS}


def test_a_command_or_none_shows_every_kind():
    shown = kgen_cli.tasks.EXAMPLES
    assert shown.keys() == {*OUTPUT_KINDS}
    generated = kgen_cli.generate.GENERATORS
    assert generated.keys() | {"items"} == {k for k in shown if shown[k] is not None}


def test_the_page_has_a_panel_or_none_for_every_kind():
    page = Path(kgen.serving.__file__).with_name("page.html").read_text()
    table = re.search(r"const PANELS = \{\n(.*?)\n\};", page, re.S)[1]
    kinds = re.findall(r"^  (\w+):", table, re.M)
    assert len(kinds) == len({*kinds})
    assert {*kinds} == EXPORTED_KINDS
