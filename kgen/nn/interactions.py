"""Rows of items: who has what, as one row of ones and zeros for each person.

Item ids travel as the positions of the items that a person has, ragged or padded with
-1, and become rows here, a batch at a time.
"""

import math

import tensorflow as tf

from kgen.nn import random


def dense_rows(
    items: tf.RaggedTensor, num_items: int, values: tf.Tensor | None = None
) -> tf.Tensor:
    """Writes a value, by default 1, at the place of each item, and 0 elsewhere.

    Shapes:
        items: whole numbers [batch, None], values: [all items of the batch] ->
        float32 [batch, num_items]
    """
    flat = tf.cast(items.values, tf.int64)
    if values is None:
        values = tf.ones_like(flat, tf.float32)
    places = tf.stack([tf.cast(items.value_rowids(), tf.int64), flat], axis=1)
    shape = tf.stack([tf.cast(items.nrows(), tf.int64), num_items])
    return tf.scatter_nd(places, values, shape)


def input_rows(
    items: tf.RaggedTensor,
    num_items: int,
    keys: tf.Tensor | None = None,
    dropout: float = 0.0,
) -> tf.Tensor:
    """Rows of length 1, from which items are then left out; what stays is scaled up.

    Args:
        items: Positions of the items of each person.
        num_items: Length of a row.
        keys: Of each person, for the noise that leaves out; needed with `dropout`.
        dropout: Share of the items that are left out, in [0, 1).

    Shapes:
        items: whole numbers [batch, None], keys: int64 [batch] -> float32 [batch,
        num_items]
    """
    people = items.value_rowids()
    counts = tf.cast(items.row_lengths(), tf.float32)
    values = tf.gather(tf.math.rsqrt(counts), people)
    if dropout:
        # By the person and the item: their order does not count.
        noise = random.uniform(
            random.fold_in(tf.gather(keys, people), items.values), ()
        )
        values *= tf.cast(noise >= dropout, tf.float32) / (1.0 - dropout)
    return dense_rows(items, num_items, values)


def multinomial_loss(items: tf.RaggedTensor, logits: tf.Tensor) -> tf.Tensor:
    """Minus the log-probability of the items, summed over each person's: [batch].

    Shapes:
        items: whole numbers [batch, None], logits: float32 [batch, num_items]
    """
    counts = tf.cast(items.row_lengths(), tf.float32)
    shares = tf.gather(1.0 / counts, items.value_rowids())
    rows = dense_rows(items, logits.shape[1], shares)
    return counts * tf.nn.softmax_cross_entropy_with_logits(rows, logits)


def rows_of_padded(items: tf.Tensor, num_items: int) -> tf.Tensor:
    """Writes 1 at the place of each item, and 0 elsewhere; an item twice counts once.

    Args:
        items: Positions, padded with -1; what is no position is passed over.
        num_items: How many items there are.

    Shapes:
        items: int64 [batch, longest] -> float32 [batch, num_items]
    """
    items = tf.pad(items, [[0, 0], [0, 1]], constant_values=-1)  # ONNX needs a column
    num_rows, longest = tf.unstack(tf.shape(items, out_type=tf.int64))
    is_item = (items >= 0) & (items < num_items)
    columns = tf.where(is_item, items, tf.constant(num_items, tf.int64))
    rows = tf.repeat(tf.range(num_rows), longest)
    places = tf.stack([rows, tf.reshape(columns, [-1])], axis=1)
    # One column more, for the padding.
    empty = tf.zeros(tf.stack([num_rows, num_items + 1]))
    ones = tf.ones(tf.shape(rows))
    return tf.tensor_scatter_nd_update(empty, places, ones)[:, :num_items]


def best_items(
    scores: tf.Tensor, seen: tf.Tensor | None, k: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k items of the highest scores; of equal ones those that come first.

    Shapes:
        scores, seen: float32 [batch, num_items] -> scores [batch, k] and positions
        int32 [batch, k]. Items that are seen score minus infinity.
    """
    if seen is not None:
        scores = tf.where(seen > 0, -math.inf, scores)
    return tf.math.top_k(scores, k)


def ndcg(scores: tf.Tensor, seen: tf.Tensor, targets: tf.Tensor, k: int) -> tf.Tensor:
    """Normalised discounted cumulative gain at k, with gains of 0 and 1: [batch].

    Shapes:
        scores, seen, targets: float32 [batch, num_items]; rows of `targets` without
        an item are 0.

    Reference:
        Järvelin and Kekäläinen, 2002, Cumulated gain-based evaluation of IR techniques.
    """
    k = min(k, scores.shape[1])
    discounts = 1.0 / tf.math.log(tf.range(2, k + 2, dtype=tf.float32))
    _, items = best_items(scores, seen, k)
    gains = tf.gather(targets, items, batch_dims=1)  # [batch, k]
    num_targets = tf.minimum(tf.reduce_sum(targets, axis=1), float(k))
    ideal = tf.range(k, dtype=tf.float32)[None] < num_targets[:, None]
    best = tf.linalg.matvec(tf.cast(ideal, tf.float32), discounts)
    return tf.math.divide_no_nan(tf.linalg.matvec(gains, discounts), best)
