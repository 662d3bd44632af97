"""Bodies of requests and answers of TensorFlow Serving's REST API."""

import base64
import json

import numpy as np
import pytest
import tensorflow as tf

from kgen.serving.batching import BadRequest
from kgen.serving.tf_serving_api import (
    read_request,
    write_metadata,
    write_predictions,
)
from kgen.serving.versions import Endpoint, Version, load_version


def endpoint(**inputs):
    return Endpoint(lambda arrays: arrays, inputs)


VALUES = tf.TensorSpec([None, 2], tf.float32)
SEEDS = tf.TensorSpec([None], tf.int64)
LABELS = tf.TensorSpec([None], tf.int32)
TEXTS = tf.TensorSpec([None], tf.string)
FLAGS = tf.TensorSpec([None], tf.bool)
WORDS = tf.TensorSpec([None, None], tf.string)
VERSION = Version(
    3,
    {
        "serving_default": endpoint(values=VALUES),
        "seeds": endpoint(seeds=SEEDS, labels=LABELS),
        "texts": endpoint(texts=TEXTS),
        "words": endpoint(words=WORDS),
        "flags": endpoint(flags=FLAGS),
    },
    {},
)


def read(**request):
    return read_request(json.dumps(request).encode(), VERSION)


def test_rows_and_columns_are_the_same_request():
    _, rows, by_row = read(instances=[[1, 2], [3, 4.5]])
    _, columns, by_column = read(inputs=[[1, 2], [3, 4.5]])
    _, named, _ = read(inputs={"values": [[1, 2], [3, 4.5]]})
    for arrays in (rows, columns, named):
        np.testing.assert_array_equal(arrays["values"], [[1, 2], [3, 4.5]])
        assert arrays["values"].dtype == np.float32
    assert (by_row, by_column) == (True, False)
    found, rows, _ = read(
        signature_name="seeds",
        instances=[{"seeds": 2**63 - 1, "labels": 0}, {"labels": 5, "seeds": -(2**63)}],
    )
    assert found is VERSION.endpoints["seeds"]
    assert rows["seeds"].tolist() == [2**63 - 1, -(2**63)]
    assert rows["labels"].tolist() == [0, 5] and rows["labels"].dtype == np.int32


def test_an_empty_signature_name_is_the_default():
    for name in ("", "serving_default"):
        found, _, _ = read(signature_name=name, inputs=[[1, 2]])
        assert found is VERSION.endpoints["serving_default"]


def test_texts_are_utf8_or_base_64():
    encoded = base64.b64encode(b"\xff\x00").decode()
    for request in (
        {"instances": ["é", {"b64": encoded}]},
        {"instances": [{"texts": "é"}, {"texts": {"b64": encoded}}]},
        {"inputs": {"texts": ["é", {"b64": encoded}]}},
    ):
        _, arrays, _ = read(signature_name="texts", **request)
        assert arrays["texts"].tolist() == ["é".encode(), b"\xff\x00"]
    _, arrays, _ = read(signature_name="words", instances=[["a", "b"], ["c", "d"]])
    assert arrays["words"].tolist() == [[b"a", b"b"], [b"c", b"d"]]


def test_no_rows_are_an_answer_without_rows():
    _, arrays, _ = read(signature_name="seeds", inputs={"seeds": [], "labels": []})
    assert arrays["seeds"].shape == (0,) and arrays["seeds"].dtype == np.int64


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\xff\xfe", "JSON Parse error"),
        (b"", "JSON Parse error"),
        (b"[" * 100_000, "JSON Parse error"),
        (b'{"a":' * 100_000, "JSON Parse error"),
        (b"[1]", "A request is an object"),
        (b"{}", "either .instances. or .inputs."),
        (b'{"instances": [[1, 2]], "inputs": [[1, 2]]}', "and not both"),
        (b'{"inputs": [[1, 2]], "signature": "shift"}', "Received: signature"),
        (b'{"signature_name": "x", "inputs": 1}', "not found in signature def"),
        (b'{"signature_name": ["x"], "inputs": 1}', "not found in signature def"),
        (b'{"signature_name": null, "inputs": 1}', "not found in signature def"),
        (b'{"signature_name": [], "inputs": 1}', "not found in signature def"),
        (b'{"instances": []}', "a row at least"),
        (b'{"instances": 7}', "a row at least"),
        (b'{"instances": [[1, 2], {"values": [1, 2]}]}', "all objects, or all"),
        (b'{"instances": [{"value": [1, 2]}]}', "inputs are values. Received: value"),
        (b'{"inputs": {}}', "Received: none"),
        (b'{"inputs": [1, 2]}', r"shape \[-1, 2\]. Received: the shape \[2\]"),
        (b'{"inputs": [[1, 2, 3]]}', r"Received: the shape \[1, 3\]"),
        (b'{"inputs": [[1, 2], [3]]}', "different lengths"),
        (b'{"inputs": [[1, "a"]]}', "Received: text"),
        (b'{"inputs": [[1, null]]}', "Received: other values"),
        (b'{"inputs": [[true, false]]}', "true or false"),
        (b'{"inputs": [[1, NaN]]}', "JSON Parse error"),
        (b'{"inputs": [[1, 1e39]]}', "not finite"),
        (b'{"inputs": [[1, 1e999]]}', "JSON Parse error"),
    ],
)
def test_bodies_that_cannot_be_read_are_refused(body, message):
    with pytest.raises(BadRequest, match=message):
        read_request(body, VERSION)


@pytest.mark.parametrize(
    ("seeds", "labels", "message"),
    [
        ([1], [2**31], "`labels` must be int32.*beyond its range"),
        ([2**63], [1], "beyond its range"),
        ([10**40], [1], "with a fraction"),
        ([1.0], [1], "`seeds` must be int64.*with a fraction"),
        ([1, 2], [1], "Received: seeds 2, labels 1"),
    ],
)
def test_whole_numbers_must_fit(seeds, labels, message):
    with pytest.raises(BadRequest, match=message):
        read(signature_name="seeds", inputs={"seeds": seeds, "labels": labels})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([1], "values that are not text"),
        ([{"b64": "?"}], "not base 64"),
        (["a", ["b"]], "lengths|shape|not text"),
    ],
)
def test_texts_must_be_texts(texts, message):
    with pytest.raises(BadRequest, match=message):
        read(signature_name="texts", inputs=texts)


def test_answers_have_the_form_of_the_request():
    one = {"images": np.float32([[0.5, 0.1]])}
    assert json.loads(write_predictions(one, by_row=True)) == {
        "predictions": [[0.5, 0.1]]
    }
    assert write_predictions(one, by_row=False) == b'{"outputs":[[0.5,0.1]]}'
    two = {
        "ids": np.array([[b"a", b"b"], [b"c", b"\xc3\xa9"]], object),
        "file_bytes": np.array([b"\xff", b""], object),
    }
    assert json.loads(write_predictions(two, by_row=True)) == {
        "predictions": [
            {"ids": ["a", "b"], "file_bytes": {"b64": "/w=="}},
            {"ids": ["c", "é"], "file_bytes": {"b64": ""}},
        ]
    }
    assert (
        json.loads(write_predictions(two, by_row=False))["outputs"]["ids"][1][1] == "é"
    )


def test_metadata_have_the_types_and_shapes(folder):
    whole = json.loads(write_metadata("shift", load_version(folder / "1")))
    assert whole["model_spec"] == {
        "name": "shift",
        "signature_name": "",
        "version": "1",
    }
    signatures = whole["metadata"]["signature_def"]["signature_def"]
    assert signatures.keys() == {"serving_default", "shift", "repeat"}
    assert signatures["repeat"]["inputs"]["texts"]["dtype"] == "DT_STRING"
    values = signatures["serving_default"]["inputs"]["values"]
    assert values["dtype"] == "DT_FLOAT"
    assert values["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
        "unknown_rank": False,
    }
    method = signatures["shift"]["method_name"]
    assert method == "tensorflow/serving/predict"


def test_true_and_false_are_taken_where_they_are_needed():
    _, arrays, _ = read(signature_name="flags", inputs=[True, False])
    assert arrays["flags"].tolist() == [True, False]
    with pytest.raises(BadRequest, match="`flags` must be bool.*whole numbers"):
        read(signature_name="flags", inputs=[1, 0])
