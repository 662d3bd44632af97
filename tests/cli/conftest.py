"""Fixtures of the tests that run commands."""

import functools
from pathlib import Path

import pytest

import kgen


@pytest.fixture(scope="module")
def load_once():
    """Load the model of a run once for all commands of a module, traced graphs too."""
    load = functools.cache(kgen.load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kgen, "load", lambda run: load(Path(run).resolve()))
        yield
