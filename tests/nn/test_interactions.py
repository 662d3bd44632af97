"""Multi-hot rows, top items and NDCG, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from kgen.evaluation import ranking
from kgen.nn.interactions import batch_ndcg, multi_hot, multi_hot_from_padded, top_items


@pytest.mark.parametrize("splits", [tf.int32, tf.int64])
def test_ragged_items_become_multi_hot_rows(splits):
    items = tf.ragged.constant(
        [[0, 3], [], [1]], dtype=tf.int32, row_splits_dtype=splits
    )
    rows = multi_hot(items, 4)
    assert rows.numpy().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    rows = multi_hot(items, 4, tf.constant([0.5, 2.0, -1.0]))
    assert rows.numpy().tolist() == [[0.5, 0, 0, 2], [0, 0, 0, 0], [0, -1, 0, 0]]


def test_padded_items_become_multi_hot_rows():
    items = tf.constant([[0, 3, 0], [-1, -1, -1], [-1, 1, -1]], tf.int64)
    rows = multi_hot_from_padded(items, 4)
    assert rows.numpy().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert (
        multi_hot_from_padded(tf.zeros([2, 0], tf.int64), 4).numpy().tolist()
        == [[0] * 4] * 2
    )


def test_ties_go_to_the_lower_column():
    scores = tf.constant([[1.0, 5.0, 5.0, 5.0], [2.0, 2.0, 2.0, 2.0]])
    seen = tf.constant([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    values, items = top_items(scores, seen, 3)
    assert items.numpy().tolist() == [[2, 3, 0], [0, 1, 2]]
    assert values.numpy().tolist() == [[5, 5, 1], [2, 2, 2]]


@pytest.mark.parametrize("k", [1, 5, 100])
def test_batch_ndcg_equals_the_evaluation(k):
    from scipy.sparse import csr_array

    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, (40, 30))
    kinds[:, 0] = 2  # each user has a target
    scores = rng.integers(0, 9, (40, 30)).astype(np.float32)  # with ties
    seen, targets = (kinds == 1).astype("f4"), (kinds == 2).astype("f4")
    top = ranking.top_items(scores, csr_array(seen), k)
    expected = ranking.ndcg(top, csr_array(targets))
    np.testing.assert_allclose(
        batch_ndcg(scores, seen, targets, k), expected, rtol=1e-5
    )
