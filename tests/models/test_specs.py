"""Rules of inputs: the same sentence for arrays, in graphs, and under XLA."""

import numpy as np
import pytest
import tensorflow as tf

from kgen.models.shared.batches import assertions_as_value_errors
from kgen.models.shared.recommender import BoolSpec
from kgen.models.shared.signatures import Signature, with_short_forms
from kgen.models.shared.specs import (
    ClassSpec,
    ImageSpec,
    InputSpec,
    ItemSpec,
    MaskSpec,
    StateSpec,
    TokenSpec,
)

IMAGES = ImageSpec(2, 2, 1)
TOKENS = TokenSpec(high=4, min_tokens=1, max_tokens=3)


def by_array(spec, values):
    return spec.check("x", values)


def by_dataset(spec, values):
    dataset = tf.data.Dataset.from_tensors(values)
    dataset = dataset.map(lambda x: spec.assert_in_graph("x", x))
    with assertions_as_value_errors():
        return next(iter(dataset))


def by_traced_function(spec, values):
    @tf.function(autograph=False)
    def check(x):
        return spec.assert_in_graph("x", x)

    with assertions_as_value_errors():
        return check(tf.convert_to_tensor(values))


WAYS = [by_array, by_dataset, by_traced_function]


@pytest.mark.parametrize("check", WAYS)
@pytest.mark.parametrize(
    ("spec", "values", "rule", "received"),
    [
        (IMAGES, np.full([3, 2, 2, 1], 7, "float32"), "uint8, or floats", "7 to 7"),
        (IMAGES, np.full([3, 2, 2, 1], np.nan), "uint8, or floats in", "nan to nan"),
        (IMAGES, np.full([3, 2, 2, 1], -0.5, "float16"), r"in \[0, 1\]", "-0.5 to -0"),
        (ClassSpec(3), np.array([0, 3]), r"in \[0, 2\].*not one-hot", "0 to 3"),
        (ClassSpec(3), np.array([-1, 2], "int8"), r"in \[0, 2\]", "-1 to 2"),
        (TOKENS, np.array([[1, 9]]), r"in \[0, 4\]", "1 to 9"),
        (TOKENS, np.array([[1, 2], [-1, -1]]), "1 to 3 tokens", "rows of 0 to 2"),
        (TOKENS, np.array([[1, 2, 0, 0]]), "1 to 3 tokens", "rows of 4 to 4"),
        (MaskSpec(), np.array([[0.0, 2.0]]), r"in \[0, 1\]", "0 to 2"),
        (InputSpec(low=0, above=True), np.array([0.0, 1.0]), "above 0", "0 to 1"),
        (InputSpec(low=0), np.array([np.inf, 1.0]), "from 0", "1 to inf"),
        (InputSpec(dtype="int64"), np.array([1.5]), "integers", "float64"),
    ],
)
def test_wrong_values_get_the_same_sentence_everywhere(
    check, spec, values, rule, received
):
    with pytest.raises(
        ValueError, match=f"`x` must be .*{rule}.* Received: .*{received}"
    ):
        check(spec, values)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint16", "uint32"])
@pytest.mark.parametrize("check", WAYS)
def test_integer_images_other_than_uint8_are_refused_with_a_way_out(check, dtype):
    images = np.full([3, 2, 2, 1], 100, dtype)
    message = rf"Received: {dtype} of the shape .*images.astype\('uint8'\)"
    with pytest.raises(ValueError, match=message):
        check(IMAGES, images)


@pytest.mark.parametrize("check", WAYS)
@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (IMAGES, np.full([3, 2, 2, 1], 255, "uint8")),
        (IMAGES, np.full([3, 2, 2, 1], 1, "float16")),
        (IMAGES, np.zeros([0, 2, 2, 1], "float32")),
        (ImageSpec(None, None, 3), np.zeros([1, 7, 5, 3], "float64")),
        (ClassSpec(3), np.array([0, 2], "uint8")),
        (TOKENS, np.array([[4, 0, -1], [0, -1, -1]])),
        (MaskSpec(), np.array([[True, False]])),
        (InputSpec(dtype="int64"), np.array([-(2**63), 2**63 - 1])),
        (InputSpec(low=0), np.array([0, 3])),
        (BoolSpec(), np.array([True])),
        (StateSpec((2,)), np.array([[np.inf, 1]], "float32")),
    ],
)
def test_right_values_pass_everywhere(check, spec, values):
    np.testing.assert_array_equal(np.float64(check(spec, values)), np.float64(values))


def test_images_reach_networks_in_the_unit_range():
    for cast in (IMAGES.cast, lambda images: IMAGES.to_network(tf.constant(images))):
        scaled = np.asarray(cast(np.array([[[[0], [51]], [[102], [255]]]], "uint8")))
        np.testing.assert_allclose(scaled.ravel(), [0, 0.2, 0.4, 1])
        assert scaled.dtype == np.float32


def test_labels_reach_networks_one_hot():
    one_hot = ClassSpec(3).to_network(tf.constant([2, 0], tf.int64))
    np.testing.assert_array_equal(one_hot, [[0, 0, 1], [1, 0, 0]])
    assert ClassSpec(None).to_network(tf.constant([7])) is None


@pytest.mark.parametrize("check", WAYS[:2])
def test_items_are_ragged_known_and_different(check):
    spec = ItemSpec(5)
    good = tf.ragged.constant([[0, 4], [], [4]])
    for rows in ([[0, 4], [], [4]], [[4, 0, 2], [], [2], [2, 1]], [[], [3], []], [[]]):
        assert check(spec, tf.ragged.constant(rows, tf.int32)).to_list() == rows
    short_splits = good.with_row_splits_dtype(tf.int32)
    assert check(spec, short_splits).to_list() == [[0, 4], [], [4]]
    for wrong, received in (
        (tf.ragged.constant([[0, 5]]), "0 to 5"),
        (tf.ragged.constant([[-1], [2]]), "-1 to 2"),
        (tf.ragged.constant([[1], [3, 2, 3]]), "an item twice"),
        (tf.ragged.constant([[1, 1], []]), "an item twice"),
        (tf.constant([[1, 2]]), "Tensor"),
    ):
        with pytest.raises(ValueError, match=f"RaggedTensor.* Received: .*{received}"):
            check(spec, wrong)


def test_every_spec_makes_valid_examples():
    rng = np.random.default_rng(0)
    for spec in (
        IMAGES,
        ImageSpec(None, None, 3),
        ClassSpec(3),
        BoolSpec(),
        MaskSpec(),
        InputSpec(low=0, above=True),
        InputSpec(dtype="int64"),
        InputSpec((3,)),
    ):
        example = spec.cast(spec.check("x", spec.example(rng, 5), 5))
        tensor_spec = spec.tensor_spec()
        assert tensor_spec.shape.is_compatible_with(example.shape)
        assert example.dtype == tensor_spec.dtype.as_numpy_dtype


def twice(values, factor):
    return {"products": values * factor}


def test_a_signature_fills_in_defaults_and_spreads_single_numbers():
    signature = Signature(
        "multiply",
        twice,
        {"values": InputSpec(), "factor": InputSpec(low=1, default=2)},
        {"products": "scores"},
        (),
    )
    for factor, expected in ((None, [2, 4]), (3, [3, 6]), ([1, 5], [1, 10])):
        arrays = signature.check(values=[1, 2], factor=factor)
        outputs = signature.compiled(*map(tf.constant, arrays.values()))
        np.testing.assert_array_equal(outputs["products"], expected)
    for wrong, message in (
        ({"values": [1, 2], "factor": [1, 2, 3]}, "Received: 3 rows, where 2"),
        ({"values": [1, 2], "power": 2}, "takes values, factor.*Leave out power"),
        ({"factor": 2}, "Give values, one for each row"),
    ):
        with pytest.raises(ValueError, match=message):
            signature.check(**wrong)
    short, full = with_short_forms([signature])
    assert (short.name, full.name) == ("multiply", "multiply_with_options")
    assert [*short.inputs] == ["values"] and [*short.example(3)] == ["values"]
    products = short.compiled(tf.constant([1.0, 2.0]))["products"]
    np.testing.assert_array_equal(products, [2, 4])
