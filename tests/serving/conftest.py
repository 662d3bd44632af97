"""A folder of versions to serve."""

import pytest

from served_models import export_model


@pytest.fixture
def folder(tmp_path):
    """The folder of a model with one version, which adds 1."""
    folder = tmp_path / "shift"
    export_model(folder, 1, added=1.0)
    return folder
