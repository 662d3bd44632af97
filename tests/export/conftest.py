"""A small model and its exports, made once."""

import pytest
import tensorflow as tf

from kgen.export import to_onnx, to_saved_model
from kgen.models import VAE


@pytest.fixture(scope="session")
def vae():
    # A strategy's variables are of a class of their own, on one device as on many.
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = VAE(
            image_shape=(4, 4, 1), latent_dim=2, hidden_units=(40,), num_classes=3
        )
        model.compile()  # An optimizer's variables must not reach the export.
    return model


@pytest.fixture(scope="session")
def saved_model(vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "my vae"
    return to_saved_model(vae, folder, metadata={"recipe": "vae"})


@pytest.fixture(scope="session")
def onnx_file(vae, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "vae.onnx"
    return to_onnx(vae, path, metadata={"class_names": '["a", "b", "c"]'})
