"""Files that are no models, or models that could run code."""

import json
import shutil
import zipfile

import keras
import pytest

import kgen
from kgen.models import VAE


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "vae.keras"
    VAE(image_shape=(4, 4, 1), latent_dim=2, hidden_units=(3,)).save(path)
    return path


def changed(saved, path, change):
    """The file with another configuration."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config)
            new.writestr(name, content)
    return path


def test_a_lambda_is_refused(tmp_path):
    inputs = keras.Input((4,))
    layer = keras.layers.Lambda(lambda x: x + 1)
    keras.Model(inputs, layer(inputs)).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="names a Lambda, which could run any code"):
        kgen.load(tmp_path / "m.keras")


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen")],
)
def test_other_peoples_classes_are_refused(saved, tmp_path, module, name):
    def change(config):
        config["config"]["dtype"] = {
            "module": module,
            "class_name": name,
            "config": {"command": "touch /tmp/owned"},
            "registered_name": None,
        }

    path = changed(saved, tmp_path / "m.keras", change)
    with pytest.raises(ValueError, match=rf"names {module}.{name}, which could run"):
        kgen.load(path)


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/evil", "assets/../../evil", "model.pkl", "..\\evil"]
)
def test_a_path_out_of_the_file_is_refused(saved, tmp_path, name):
    path = tmp_path / "m.keras"
    shutil.copy(saved, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="not a file that Keras writes: it holds"):
        kgen.load(path)


def test_a_damaged_file_says_so(saved, tmp_path):
    path = tmp_path / "m.keras"
    content = bytearray(saved.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 40):
        content[place] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged|not a file that Keras writes"):
        kgen.load(path)


def test_what_kgen_writes_is_loaded(saved):
    assert kgen.load(saved).latent_dim == 2
