"""Each layer treats every kind of output, in one table."""

import re
from pathlib import Path

import kgen.serving
from kgen.export.comparison import COMPARISONS
from kgen.models.shared.signatures import OUTPUT_KINDS

EXPORTED_KINDS = {*OUTPUT_KINDS, "png", "pixels"}  # Files, and uint8 images of ONNX.


def test_exports_compare_every_kind():
    assert COMPARISONS.keys() == EXPORTED_KINDS


def test_the_page_has_a_panel_or_none_for_every_kind():
    page = Path(kgen.serving.__file__).with_name("page.html").read_text()
    table = re.search(r"const PANELS = \{\n(.*?)\n\};", page, re.S)[1]
    kinds = re.findall(r"^  (\w+):", table, re.M)
    assert len(kinds) == len({*kinds})
    assert {*kinds} == EXPORTED_KINDS
