"""Data sets shared by the tests of the evaluation."""

import pytest

import kgen.data


@pytest.fixture(scope="session")
def mnist(test_data):
    return kgen.data.open_images("mnist", data_dir=test_data / "tfds")


@pytest.fixture(scope="session")
def clothes(test_data):
    return kgen.data.open_images(test_data / "data" / "fashion_mnist")
