"""Exports: what they hold, what they compute, and what a failed one leaves behind."""

import contextlib
import logging
import os
import resource
import subprocess
import sys

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

import kgen
from kgen.export import ExportError, to_onnx, to_saved_model
from kgen.export.comparison import difference
from kgen.export.run_export import run_job
from kgen.export.runtime_process import RuntimeProcess
from kgen.export.staging import remove_leftovers, rename_to_next_version, staged
from kgen.export.verification import signatures_for
from kgen.models import VAE, Signature
from kgen.models.shared.specs import InputSpec

SEEDS = np.array([0, 1, 2**40 + 3, -5], np.int64)


class OneSignature:
    """The part of a model that an exporter uses, with a signature made by hand."""

    def __init__(self, function, layers=(), **changes):
        options = {
            "name": "shift",
            "function": function,
            "inputs": {"values": InputSpec((2,))},
            "outputs": {"shifted": "latent"},
            "layers": layers,
            "examples": (lambda n: {"values": np.arange(2.0 * n).reshape(n, 2) / n},),
        }
        self.signature = Signature(**(options | changes))

    def float32_clone(self):
        return self

    def signatures(self):
        return [self.signature]


def plus_one(values):
    return {"shifted": values + 1.0}


def off_by_a_thousandth(values):
    """Stands for a conversion that computes something else than Keras."""
    error = 0.0 if tf.executing_eagerly() else 1e-3
    return {"shifted": values + error}


# -- SavedModel ---------------------------------------------------------------


def test_saved_model_computes_what_the_model_computes(vae, saved_model):
    signatures = tf.saved_model.load(saved_model).signatures
    labels = np.array([0, 1, 2, 0], np.int32)
    expected = vae.generate(SEEDS, labels)
    for name in ("generate", "serving_default"):
        images = signatures[name](seeds=tf.constant(SEEDS), labels=tf.constant(labels))
        np.testing.assert_allclose(images["images"], expected, rtol=0, atol=1e-6)


def test_saved_model_has_every_signature_with_its_names(vae, saved_model):
    loaded = tf.saved_model.load(saved_model).signatures
    ours = {one.name: one for one in signatures_for(vae, "saved_model")}
    assert set(loaded) == {*ours, "serving_default"}
    for name, signature in ours.items():
        _, inputs = loaded[name].structured_input_signature
        assert {key: spec.dtype for key, spec in inputs.items()} == {
            key: spec.dtype for key, spec in signature.tensor_specs().items()
        }
        assert set(loaded[name].structured_outputs) == set(signature.outputs)


def test_saved_model_holds_the_networks_once_and_nothing_else(vae, saved_model):
    stored = tf.train.list_variables(str(saved_model.path / "variables/variables"))
    shapes = [tuple(shape) for name, shape in stored if "OBJECT_GRAPH" not in name]
    networks = [*vae.encoder.variables, *vae.decoder.variables]
    assert sorted(shapes) == sorted(tuple(v.shape) for v in networks)


def test_saved_model_record_says_what_was_found(vae, saved_model):
    assert saved_model.path.name == "1"
    assert [proof.signature for proof in saved_model.verifications] == [
        one.name for one in signatures_for(vae, "saved_model")
    ]
    assert all(0 <= proof.difference <= 1e-5 for proof in saved_model.verifications)
    assert all(0 < proof.milliseconds < 1000 for proof in saved_model.verifications)
    assert saved_model.num_bytes > 1000
    assert "generate: differs from Keras by at most" in str(saved_model)


def test_saved_model_that_differs_leaves_older_versions_alone(saved_model):
    folder = saved_model.path.parent
    with pytest.raises(ExportError, match="shifted differ by 0.00.*tolerance 1e-05"):
        to_saved_model(OneSignature(off_by_a_thousandth), folder)
    assert sorted(os.listdir(folder)) == [
        "1",
        "batching.config",
        "compose.yaml",
        "models.config",
    ]


def test_versions_count_up_from_the_highest(tmp_path):
    for name in ("2", "10", "samples", "new"):
        (tmp_path / name).mkdir()
    path = rename_to_next_version(tmp_path / "new", tmp_path)
    assert path == tmp_path / "11"
    assert sorted(os.listdir(tmp_path)) == ["10", "11", "2", "samples"]


def test_saved_model_refuses_a_variable_of_no_layer(tmp_path):
    layer = keras.layers.Dense(2)
    layer.build((None, 2))
    model = OneSignature(lambda values: {"shifted": layer(values)})
    with pytest.raises(ExportError, match="every variable.*Missing: .*kernel"):
        to_saved_model(model, tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == []


def test_every_size_of_example_is_verified(tmp_path):
    """The graph is wrong for rows of three, Keras never: the second example says so."""

    def wrong_on_three(values):
        is_wrong = not tf.executing_eagerly() and tf.shape(values)[1] == 3
        return {"shifted": values + (1e-3 * tf.cast(is_wrong, tf.float32))}

    def example(width):
        return lambda n: {"values": np.arange(n * width).reshape(n, width) / 100}

    inputs = {"values": InputSpec((None,))}
    for widths, message in (((2, 4), None), ((2, 3), "differ by 0.001")):
        examples = tuple(example(width) for width in widths)
        model = OneSignature(wrong_on_three, inputs=inputs, examples=examples)
        if message is None:
            to_onnx(model, tmp_path / "right.onnx")
            continue
        with pytest.raises(ExportError, match=message):
            to_onnx(model, tmp_path / "wrong.onnx")
    assert not (tmp_path / "wrong.onnx").exists()


# -- ONNX ---------------------------------------------------------------------


def test_onnx_computes_what_the_model_computes(vae, onnx_file):
    session = onnxruntime.InferenceSession(onnx_file)
    labels = np.array([0, 1, 2, 0], np.int32)
    [images] = session.run(["images"], {"seeds": SEEDS, "labels": labels})
    np.testing.assert_allclose(images, vae.generate(SEEDS, labels), rtol=0, atol=1e-6)


def test_onnx_names_its_tensors_and_says_what_it_is(onnx_file):
    session = onnxruntime.InferenceSession(onnx_file)
    assert {
        value.name: (value.type, value.shape) for value in session.get_inputs()
    } == {
        "seeds": ("tensor(int64)", ["batch"]),
        "labels": ("tensor(int32)", ["batch"]),
    }
    [output] = session.get_outputs()
    assert (output.name, output.shape) == ("images", ["batch", 4, 4, 1])
    assert session.get_modelmeta().custom_metadata_map == {
        "kgen_version": kgen.__version__,
        "model": "VAE",
        "signature": "generate",
        "image_layout": "NHWC",
        "image_range": "[0, 1]",
        "preprocessing": "values of 0 to 255 divided by 255",
        "class_names": '["a", "b", "c"]',
    }
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    assert [opset.version for opset in model.opset_import if not opset.domain] == [18]


@pytest.mark.parametrize(("layout", "dtype"), [("nchw", "uint8"), ("nchw", "float32")])
def test_onnx_images_have_the_layout_that_is_asked_for(vae, tmp_path, layout, dtype):
    export = to_onnx(
        vae, tmp_path / "r.onnx", "reconstruct", layout=layout, dtype=dtype
    )
    session = onnxruntime.InferenceSession(export)
    assert session.get_inputs()[0].shape == ["batch", 1, 4, 4]
    labels = np.array([0, 2])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
    expected = vae.reconstruct(pixels, labels)
    images = pixels if dtype == "uint8" else np.float32(pixels / 255)
    inputs = {"images": images.transpose(0, 3, 1, 2), "labels": labels}
    [received] = session.run(None, inputs)
    assert received.dtype == dtype
    received = received.transpose(0, 2, 3, 1)
    if dtype == "uint8":
        assert np.abs(received - 255.0 * expected).max() <= 0.501
    else:
        np.testing.assert_allclose(received, expected, atol=1e-6)
    about = session.get_modelmeta().custom_metadata_map
    assert about["image_layout"] == "NCHW"
    assert about["image_range"] == ("[0, 255]" if dtype == "uint8" else "[0, 1]")


def test_onnx_refuses_a_layout_where_there_are_no_images(tmp_path):
    with pytest.raises(ValueError, match="signature shift has none"):
        to_onnx(OneSignature(plus_one), tmp_path / "m.onnx", layout="nchw")
    with pytest.raises(ValueError, match="`layout` must be one of.*layout='chw'"):
        to_onnx(OneSignature(plus_one), tmp_path / "m.onnx", layout="chw")
    assert os.listdir(tmp_path) == []


def test_onnx_of_a_mixed_precision_model_is_float32(tmp_path):
    model = VAE(
        image_shape=(4, 4, 1), latent_dim=2, hidden_units=(3,), dtype="mixed_bfloat16"
    )
    export = to_onnx(model, tmp_path / "vae.encode.onnx", signature="encode")
    assert export.verifications[0].difference <= 1e-5
    types = {value.data_type for value in onnx.load(export).graph.initializer}
    assert onnx.TensorProto.FLOAT in types
    assert onnx.TensorProto.BFLOAT16 not in types


def test_onnx_keeps_the_old_file_when_the_new_one_fails(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older export")
    with pytest.raises(ExportError, match="shifted differ by 0.00.*tolerance 1e-05"):
        to_onnx(OneSignature(off_by_a_thousandth), path)
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert path.read_bytes() == b"an older export"


def test_onnx_names_the_operations_it_lacks(tmp_path):
    def noisy_steps(values):
        def step(i, values):
            noise = tf.random.stateless_normal(tf.shape(values), tf.stack([i, i]))
            return i + 1, values + noise

        limit, first = tf.constant(3), tf.constant(0)
        _, values = tf.while_loop(lambda i, _: i < limit, step, (first, values))
        return {"shifted": tf.math.erfc(values)}

    with pytest.raises(ExportError, match="Erfc.*StatelessRandomNormalV2"):
        to_onnx(OneSignature(noisy_steps), tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


def test_onnx_refuses_a_captured_tensor(tmp_path):
    ones = tf.ones([1, 2])
    model = OneSignature(lambda values: {"shifted": values + ones})
    with pytest.raises(ExportError, match="made outside the function"):
        to_onnx(model, tmp_path / "model.onnx")


def test_rows_must_not_depend_on_their_batch(tmp_path):
    def centred(values):
        return {"shifted": values - tf.reduce_mean(values, axis=0)}

    with pytest.raises(
        ExportError, match="on 3 rows: shifted differ by .* others follow"
    ):
        to_onnx(OneSignature(centred), tmp_path / "model.onnx")


def test_outputs_must_have_a_row_for_each_input_row(tmp_path):
    def total(values):
        return {"shifted": tf.reduce_sum(values, axis=0)}

    with pytest.raises(ExportError, match="not one row for each row"):
        to_onnx(OneSignature(total), tmp_path / "model.onnx")


def test_broken_weights_are_named(tmp_path):
    def broken(values):
        return {"shifted": values * np.float32("nan")}

    with pytest.raises(ExportError, match="shifted are NaN in Keras already"):
        to_onnx(OneSignature(broken), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtimes": ("saved_model",)}, "needs a signature that exists"),
        ({"outputs": {"values": "latent"}}, "unique.*called values"),
        ({"outputs": {"moved": "latent"}}, "must return .'moved'."),
        ({"examples": (lambda n: {"value": np.zeros([n, 2])},)}, "`example`.*'value'"),
    ],
)
def test_onnx_refuses_a_wrong_signature(changes, message, tmp_path):
    model = OneSignature(**({"function": plus_one} | changes))
    with pytest.raises(ExportError, match=message):
        to_onnx(model, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


def test_onnx_of_an_unknown_signature_names_those_there_are(vae, tmp_path):
    with pytest.raises(
        ValueError, match="generate, generate_with_options, encode.*signature='encde'"
    ):
        to_onnx(vae, tmp_path / "vae.onnx", signature="encde")


def test_onnx_leaves_the_environment_and_the_loggers_as_they_were(
    tmp_path, monkeypatch, capfd
):
    # tf2onnx sets this one, which hides TensorFlow's errors in later processes.
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    to_onnx(OneSignature(plus_one), tmp_path / "model.onnx")
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
    assert logging.getLogger("tf2onnx").propagate
    assert logging.getLogger("tf2onnx").handlers == []
    assert "tf2onnx" not in capfd.readouterr().err


# -- the file system ----------------------------------------------------------


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 100 bytes: writing fails as it does on a full disk.

    A fixture would last until pytest has written its dot, perhaps into a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing_of_a_saved_model(tmp_path):
    with full_disk(), pytest.raises(OSError, match="could not be written"):
        to_saved_model(OneSignature(plus_one), tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing_of_an_onnx_file(tmp_path):
    with full_disk(), pytest.raises(OSError):
        to_onnx(OneSignature(plus_one), tmp_path / "run" / "model.onnx")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match="run"):
        to_saved_model(OneSignature(plus_one), tmp_path / "run")
    with pytest.raises(IsADirectoryError, match="must name a file"):
        to_onnx(OneSignature(plus_one), tmp_path)


KILLED = """
import os, pathlib, sys
from kgen.export.staging import staged
with staged(pathlib.Path(sys.argv[1]), "saved_model") as path:
    path.mkdir()
    (path / "saved_model.pb").touch()
    os.kill(os.getpid(), 9)
"""


def test_the_next_export_removes_what_a_killed_one_left(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    [left] = tmp_path.iterdir()
    with staged(tmp_path, "a") as path:
        assert not left.exists()
        path.touch()
        with staged(tmp_path, "b"):  # Of two that run, none removes the other's.
            assert path.exists()
        remove_leftovers(tmp_path)
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


# -- the comparison -----------------------------------------------------------


def test_difference_is_absolute_for_small_and_relative_for_large_values():
    expected = np.array([0.0, 0.5, 200.0], np.float32)
    assert difference(expected, expected) == 0.0
    assert difference(np.array([0.25, 0.5, 200.0]), expected) == 0.25
    assert difference(np.array([0.0, 0.5, 201.0]), expected) == 1 / 200


def test_difference_counts_masked_scores_as_equal_and_nan_as_infinite():
    scores = np.array([-np.inf, 1.0])
    assert difference(scores, scores) == 0.0
    assert difference(np.array([np.nan, 1.0]), scores) == np.inf
    assert difference(np.array([0.0, 1.0]), scores) == np.inf
    assert difference(np.zeros([0, 2]), np.zeros([0, 2])) == 0.0


def test_difference_of_token_ids_is_exact():
    assert difference(np.array([7, 9]), np.array([7, 8])) >= 1 / 8


def test_trace_keeps_the_batch_dynamic():
    function = OneSignature(plus_one).signature.compiled
    assert (
        function.get_concrete_function().structured_outputs["shifted"].shape[0] is None
    )


# -- the process of a runtime --------------------------------------------------


def test_an_export_that_runs_beside_kgen_proves_nothing(onnx_file):
    assert "imported kgen" in run_job("onnx", str(onnx_file.path), {})


def test_one_process_runs_many_exports(onnx_file, tmp_path):
    process = RuntimeProcess("onnx")
    inputs = {"seeds": SEEDS[:1], "labels": np.zeros(1, np.int32)}
    batches = {"generate": {1: inputs}}
    outputs, milliseconds = process.run(onnx_file.path, batches)
    assert outputs["generate"][1]["images"].shape == (1, 4, 4, 1)
    assert milliseconds["generate"] > 0
    (tmp_path / "damaged.onnx").write_bytes(b"?")
    assert "InvalidProtobuf" in process.run(tmp_path / "damaged.onnx", batches)

    again, _ = process.run(onnx_file.path, batches)
    np.testing.assert_array_equal(
        again["generate"][1]["images"], outputs["generate"][1]["images"]
    )
    process._process.kill()
    assert "(exit status -9)" in process.run(onnx_file.path, batches)
    assert not process.is_running
    process.close()
