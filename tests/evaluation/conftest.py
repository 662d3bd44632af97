"""Data sets shared by the tests of the evaluation."""

import pytest

import kgen.data


@pytest.fixture(scope="module")
def mnist(test_data):
    # By name from `tfds/` it is the same, shuffled, and takes seconds
    # (test_image_sets.py). In the files the first test digits are neater: read samples.
    return kgen.data.open_images(test_data / "data" / "mnist")


@pytest.fixture(scope="module")
def clothes(test_data):
    return kgen.data.open_images(test_data / "data" / "fashion_mnist")
