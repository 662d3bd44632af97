"""Interactions as multi-hot rows: one row per user, one column per item.

Batches hold the column numbers of each user's items, ragged or padded with -1, and
become multi-hot rows inside the step: the dense matrix of all users is never made.
"""

import math

import tensorflow as tf

from kgen.nn import random


def multi_hot(
    items: tf.RaggedTensor, num_items: int, values: tf.Tensor | None = None
) -> tf.Tensor:
    """Builds multi-hot rows: a value, by default 1, for each item, and 0 elsewhere.

    Shapes:
        items: integers [batch, None], values: [all items of the batch] ->
        float32 [batch, num_items]
    """
    flat = tf.cast(items.values, tf.int64)
    if values is None:
        values = tf.ones_like(flat, tf.float32)
    indices = tf.stack([tf.cast(items.value_rowids(), tf.int64), flat], axis=1)
    shape = tf.stack([tf.cast(items.nrows(), tf.int64), num_items])
    return tf.scatter_nd(indices, values, shape)


def normalized_multi_hot(
    items: tf.RaggedTensor,
    num_items: int,
    keys: tf.Tensor | None = None,
    dropout: float = 0.0,
) -> tf.Tensor:
    """Builds multi-hot rows of L2 norm 1, then applies dropout to the items.

    Args:
        items: Column numbers of each user's items.
        num_items: Number of columns.
        keys: One random key per user; needed with `dropout`.
        dropout: Probability of dropping an item, in [0, 1); kept ones are scaled up.

    Shapes:
        items: integers [batch, None], keys: int64 [batch] -> float32 [batch,
        num_items]
    """
    users = items.value_rowids()
    counts = tf.cast(items.row_lengths(), tf.float32)
    values = tf.gather(tf.math.rsqrt(counts), users)
    if dropout:
        # Keyed by user and item, so the order of a user's items does not matter.
        noise = random.uniform(random.fold_in(tf.gather(keys, users), items.values), ())
        values *= tf.cast(noise >= dropout, tf.float32) / (1.0 - dropout)
    return multi_hot(items, num_items, values)


def multinomial_loss(items: tf.RaggedTensor, logits: tf.Tensor) -> tf.Tensor:
    """Negative multinomial log-likelihood, summed over each user's items: [batch].

    Shapes:
        items: integers [batch, None], logits: float32 [batch, num_items]
    """
    counts = tf.cast(items.row_lengths(), tf.float32)
    probabilities = tf.gather(1.0 / counts, items.value_rowids())
    rows = multi_hot(items, logits.shape[1], probabilities)
    return counts * tf.nn.softmax_cross_entropy_with_logits(rows, logits)


def multi_hot_from_padded(items: tf.Tensor, num_items: int) -> tf.Tensor:
    """Builds multi-hot rows from padded rows of items.

    Args:
        items: Column numbers, padded with -1. Numbers outside of [0, num_items) are
            ignored and repeated ones count once.
        num_items: Number of columns.

    Shapes:
        items: int64 [batch, longest] -> float32 [batch, num_items]
    """
    items = tf.pad(items, [[0, 0], [0, 1]], constant_values=-1)  # ONNX needs a column
    num_rows, longest = tf.unstack(tf.shape(items, out_type=tf.int64))
    is_item = (items >= 0) & (items < num_items)
    columns = tf.where(is_item, items, tf.constant(num_items, tf.int64))
    rows = tf.repeat(tf.range(num_rows), longest)
    indices = tf.stack([rows, tf.reshape(columns, [-1])], axis=1)
    # One more column takes the padding.
    empty = tf.zeros(tf.stack([num_rows, num_items + 1]))
    ones = tf.ones(tf.shape(rows))
    return tf.tensor_scatter_nd_update(empty, indices, ones)[:, :num_items]


def top_items(
    scores: tf.Tensor, seen: tf.Tensor | None, k: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the k items with the highest scores; ties go to the lower column.

    Shapes:
        scores, seen: float32 [batch, num_items] -> scores [batch, k] and columns
        int32 [batch, k]. Seen items score minus infinity.
    """
    if seen is not None:
        scores = tf.where(seen > 0, -math.inf, scores)
    return tf.math.top_k(scores, k)


def batch_ndcg(
    scores: tf.Tensor, seen: tf.Tensor, targets: tf.Tensor, k: int
) -> tf.Tensor:
    """Normalised discounted cumulative gain at k, with binary gains: [batch].

    The validation log of the models; `kgen.evaluation.ranking.ndcg` is its NumPy form
    for sparse test matrices.

    Shapes:
        scores, seen, targets: float32 [batch, num_items]; users without targets get 0.

    Reference:
        Järvelin and Kekäläinen, 2002, Cumulated gain-based evaluation of IR techniques.
    """
    k = min(k, scores.shape[1])
    discounts = 1.0 / tf.math.log(tf.range(2, k + 2, dtype=tf.float32))
    _, items = top_items(scores, seen, k)
    gains = tf.gather(targets, items, batch_dims=1)  # [batch, k]
    num_targets = tf.minimum(tf.reduce_sum(targets, axis=1), float(k))
    ideal = tf.range(k, dtype=tf.float32)[None] < num_targets[:, None]
    best = tf.linalg.matvec(tf.cast(ideal, tf.float32), discounts)
    return tf.math.divide_no_nan(tf.linalg.matvec(gains, discounts), best)
