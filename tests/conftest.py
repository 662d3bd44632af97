"""What all tests share: a quiet TensorFlow, and where the data sets are."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with `data/` and `tfds/`; a test that needs it is skipped without."""
    folder = os.environ.get("KGEN_TEST_DATA")
    if not folder:
        pytest.skip("KGEN_TEST_DATA is not set: it names the folder of data sets")
    if not Path(folder).is_dir():
        pytest.fail(f"KGEN_TEST_DATA names no folder: {folder}")
    return Path(folder)
