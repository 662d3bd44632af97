"""Files that TensorFlow Serving reads beside a SavedModel."""

import dataclasses
import json
import shlex

import numpy as np
import pytest
import tensorflow as tf

from kgen.export.tensorflow_serving import (
    WARM_UP,
    curl,
    model_name,
    write_configuration,
)
from kgen.export.verification import signatures_for
from kgen.models import GPT
from kgen.models.shared.specs import TextSpec


@pytest.fixture
def folder(saved_model):
    return saved_model.path.parent


def fields(message):
    """The fields of a protocol buffer that hold bytes, by number, in order."""
    found, at = [], 0
    while at < len(message):
        number, wire = message[at] >> 3, message[at] & 7
        assert wire == 2
        at, length, shift = at + 1, 0, 0
        while True:
            length |= (message[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if message[at - 1] < 128:
                break
        found.append((number, message[at : at + length]))
        at += length
    return found


def test_a_request_to_each_endpoint_warms_it_up(vae, folder):
    signatures = {one.name: one for one in signatures_for(vae, "saved_model")}
    loaded = tf.saved_model.load(str(folder / "1")).signatures
    seen = []
    for record in tf.data.TFRecordDataset(str(folder / "1" / WARM_UP)):
        [(six, predict_log)] = fields(record.numpy())
        [(one, request)] = fields(predict_log)
        assert (six, one) == (6, 1)
        (_, spec), *entries = fields(request)
        assert fields(spec)[0] == (1, b"my_vae")
        name = fields(spec)[1][1].decode()
        inputs = {}
        for two, entry in entries:
            (_, key), (_, value) = fields(entry)
            tensor = tf.make_ndarray(
                tf.compat.v1.AttrValue.FromString(b"\x42" + size(value) + value).tensor
            )
            assert two == 2
            inputs[key.decode()] = tf.constant(tensor)
        assert {key: x.dtype for key, x in inputs.items()} == {
            key: spec.dtype for key, spec in signatures[name].tensor_specs().items()
        }
        assert loaded[name](**inputs)
        seen.append(name)
    assert seen == [*signatures]


def size(value):
    """The length of a field, as protocol buffers have it."""
    length, found = len(value), []
    while length > 127:
        found.append(length & 127 | 128)
        length >>= 7
    return bytes([*found, length])


def test_the_configuration_names_the_model_and_stays(vae, folder, tmp_path):
    assert 'name: "my_vae"' in (folder / "models.config").read_text()
    assert 'base_path: "/models/my_vae"' in (folder / "models.config").read_text()
    compose = (folder / "compose.yaml").read_text()
    assert '".:/models/my_vae:ro"' in compose
    assert "--batching_parameters_file=/models/my_vae/batching.config" in compose
    assert "max_batch_size { value: 64 }" in (folder / "batching.config").read_text()
    (tmp_path / "compose.yaml").write_text("mine")
    write_configuration(tmp_path, vae.signatures())
    assert (tmp_path / "compose.yaml").read_text() == "mine"


def test_rows_of_different_lengths_are_not_batched(tmp_path):
    gpt = GPT(vocab_size=5, context=4, num_layers=1, num_heads=1, hidden_dim=4)
    write_configuration(tmp_path, gpt.signatures())
    assert not (tmp_path / "batching.config").exists()
    assert "batching" not in (tmp_path / "compose.yaml").read_text()


def test_the_export_has_an_example_request(saved_model):
    command = shlex.split(saved_model.request)
    assert command[:2] == ["curl", "-d"]
    assert json.loads(command[2]) == {
        "signature_name": "generate_png",
        "inputs": {"seeds": [0], "labels": [0]},
    }
    assert command[3] == "http://localhost:8501/v1/models/my_vae:predict"


def test_the_command_is_quoted_for_the_shell():
    text = "it's"
    gpt = GPT(vocab_size=5, context=4, num_layers=1, num_heads=1, hidden_dim=4)
    signature = gpt.signatures()[0]
    made = signature.example
    signature = dataclasses.replace(
        signature,
        inputs=signature.inputs | {"prompts": TextSpec()},
        examples=(lambda n: made(n) | {"prompts": np.array([text] * n)},),
    )
    command = shlex.split(curl("gpt", [signature]))
    assert json.loads(command[2])["inputs"]["prompts"] == [text]


def test_what_a_version_says_of_itself(vae, folder):
    about = json.loads((folder / "1" / "assets.extra" / "kgen.json").read_text())
    assert about["model"] == "VAE" and about["recipe"] == "vae"
    generate = about["signatures"]["generate_png"]
    assert generate["outputs"] == {"images_bytes": "png"}
    assert generate["inputs"]["labels"]["high"] == 2


def test_names_are_plain_letters(tmp_path):
    assert model_name(tmp_path / "a b/ü.1") == "_.1"
