"""The interface that images, ratings and text share."""

import warnings

import numpy as np
import pytest

import kgen.data

# Ten images are split 8, 1, 1; four users 2, 1, 1; and of 110 characters 99 are for
# training: 99 // 10 - 1 shuffled windows.
IMAGES = (kgen.data.images, np.zeros([10, 2, 2], np.uint8), {}, 128, 8)
RATINGS = (
    kgen.data.ratings,
    (np.repeat(range(4), 3), np.tile(range(3), 4)),
    {"min_items": 1},
    128,
    2,
)
TEXT = (kgen.data.text, ["abcdefghij" * 11], {"context": 10}, 64, 8)


@pytest.mark.parametrize(
    ("read", "source", "options", "default", "rows"), [IMAGES, RATINGS, TEXT]
)
def test_a_default_batch_size_shrinks_to_the_rows_and_a_typed_one_is_refused(
    read, source, options, default, rows
):
    message = f"batch_size={rows} in place of the default {default}"
    with pytest.warns(UserWarning, match=message) as caught:
        batches = read(source, **options)
    assert caught[0].filename == __file__  # the line that asked for the batches
    assert next(iter(batches.element_spec.values())).shape[0] == rows
    with pytest.raises(ValueError, match=f"Try batch_size={rows} or less"):
        read(source, batch_size=rows + 1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(source, batch_size=rows, **options)
        read(source, split="validation", **options)
        read(source, drop_remainder=False, **options)


@pytest.mark.parametrize(
    ("default", "replicas", "fitting"),
    # Of eight rows; divisible by the replicas; unchanged where it fits.
    [(128, 1, 8), (8, 1, 8), (4, 1, 4), (9, 3, 6), (16, 16, 16)],
)
def test_a_lowered_batch_size_is_divisible_by_the_replicas(default, replicas, fitting):
    opened = kgen.data.open_images(np.zeros([10, 2, 2], np.uint8))
    assert opened.fitting_batch_size(default, replicas) == fitting


@pytest.mark.parametrize(
    ("read", "opened"),
    [
        (kgen.data.images, "open_images"),
        (kgen.data.ratings, "open_ratings"),
        (kgen.data.text, "open_text"),
    ],
)
def test_an_unknown_option_is_refused_before_anything_is_read(read, opened):
    with pytest.raises(TypeError, match=rf"{opened}\(\) got an unexpected .*'bach"):
        read("no/such/path", bach_size=8)
