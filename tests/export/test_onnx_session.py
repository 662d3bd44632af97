"""ONNX files of a run, as the command line runs them."""

import os

import numpy as np
import pytest

from kgen.export import session_of_run, to_onnx
from kgen.models import VAE


@pytest.fixture(scope="module")
def model():
    return VAE(image_shape=(8, 8, 1), latent_dim=2, hidden_units=(4,), num_classes=3)


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model.keras")
    to_onnx(model, tmp_path / "vae.onnx")
    return tmp_path


def test_any_number_of_rows_equals_keras(model, folder):
    session = session_of_run(folder, "vae", ["labels", "seeds"])
    assert session.inputs == {"seeds": "int64", "labels": "int32"}
    seeds, labels = np.arange(600) * 7, np.arange(600) % 3
    images = session(seeds=seeds, labels=labels)["images"]
    np.testing.assert_allclose(images, model.generate(seeds, labels), atol=1e-5)
    both = session(seeds=seeds[:2], labels=1)["images"]
    np.testing.assert_allclose(both, model.generate(seeds[:2], [1, 1]), atol=1e-5)


def test_a_file_that_does_not_suffice_is_passed_over(model, folder):
    assert session_of_run(folder, "vae", ["labels", "seeds", "temperature"]) is None
    assert session_of_run(folder, "gan", ["labels", "seeds"]) is None
    os.utime(folder / "vae.onnx", (0, 0))
    assert session_of_run(folder, "vae", ["labels", "seeds"]) is None
    to_onnx(model, folder / "vae.onnx", layout="nchw", dtype="uint8")
    assert session_of_run(folder, "vae", ["labels", "seeds"]) is None


def test_a_damaged_file_is_named(folder):
    (folder / "vae.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="vae.onnx, which ONNX Runtime refuses"):
        session_of_run(folder, "vae", ["labels", "seeds"])
