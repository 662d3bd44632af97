"""Counter-based random numbers: the same bits in TensorFlow, XLA and ONNX Runtime.

Every number is a hash of (seed, stream, step, row, element). So there is no state to
save, no number depends on the batch, and a resumed or distributed run draws the same
numbers as an uninterrupted run on one device. Only integer operations that exist in
ONNX are used: TensorFlow's own random operations do not convert.

A stream is a small integer that separates independent uses of one seed.
"""

import math
from typing import TypeVar

import numpy as np
import tensorflow as tf

T = TypeVar("T", tf.Tensor, np.ndarray)

MASK = 0xFFFFFFFF  # 32 bits, kept in int64 so that no product overflows
STREAM_GENERATE = 1
STREAM_TRAIN = 2
STREAM_TEST = 3
STREAM_LIKELIHOOD = 4
STREAM_RESAMPLE = 5
STREAM_BINARIZE = 6
STREAM_BINARIZE_ONCE = 7
STREAM_STACK = 8
STREAM_FEATURES = 9
STREAM_WINDOWS = 10


def keys(seeds: tf.Tensor | int, *parts: tf.Tensor | int) -> tf.Tensor:
    """Hashes seeds and counters into one key per row.

    With all other parts fixed, the map from any one part (below 2**32) to the key is
    one to one: rows, steps and seeds below 2**32 never share a key by accident.

    Args:
        seeds: int64, scalar or [rows]; all 64 bits are hashed.
        *parts: Non-negative integers below 2**32, scalars or [rows]: stream, step,
            position in the global batch, sample.

    Returns:
        int64 [rows] (or scalar), each in 0 .. 2**32 - 1.
    """
    seeds = tf.cast(seeds, tf.int64)
    low = seeds & MASK
    high = ((seeds - low) // 2**32) & MASK
    return fold_in(_mix(high), low, *parts)


def fold_in(row_keys: tf.Tensor, *parts: tf.Tensor | int) -> tf.Tensor:
    """Hashes more counters into keys: `keys(s, a, b)` is `fold_in(keys(s, a), b)`."""
    for part in parts:
        row_keys = _mix(row_keys ^ tf.cast(part, tf.int64))
    return row_keys


def global_number(rows: tf.Tensor) -> tf.Tensor:
    """Number of rows of the global batch, of which these are a replica's: int64."""
    context = tf.distribute.get_replica_context()
    if rows.shape[0] is not None:  # All replicas have as many.
        return tf.constant(rows.shape[0] * context.num_replicas_in_sync, tf.int64)
    num_rows = tf.shape(rows, out_type=tf.int64)[0]
    return context.all_reduce(tf.distribute.ReduceOp.SUM, num_rows)


def global_positions(rows: tf.Tensor) -> tf.Tensor:
    """Positions of this replica's rows in the global batch: int64 [rows]."""
    context = tf.distribute.get_replica_context()
    replica = context.replica_id_in_sync_group
    num_rows = tf.shape(rows, out_type=tf.int64)[0]
    if context.num_replicas_in_sync == 1 or rows.shape[0] is not None:
        first = tf.cast(replica, tf.int64) * num_rows  # All replicas have as many.
    else:  # The last batch of a pass may be split unevenly.
        replicas = tf.range(context.num_replicas_in_sync)
        counts = tf.where(replicas > replica, num_rows, 0)  # for later replicas
        first = context.all_reduce(tf.distribute.ReduceOp.SUM, counts)[replica]
    return first + tf.range(num_rows)


def bits(row_keys: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns random 32-bit integers: int64 [rows, *shape] from int64 [rows] keys."""
    count = math.prod(shape)
    # Hashed before the xor with the key: otherwise keys that differ only in their last
    # bits would give the same numbers in another order. Hashed in NumPy, because XLA
    # would repeat the hash for each row.
    elements = tf.constant(_mix(np.arange(count, dtype=np.int64)))
    return tf.reshape(_mix(row_keys[:, None] ^ elements), [-1, *shape])


def uniform(row_keys: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns float32 [rows, *shape], uniform in the open interval (0, 1).

    The top 23 bits, centred: neither 0 nor 1 can occur, so log(u) and log(1 - u) are
    finite.
    """
    top = tf.cast(bits(row_keys, shape) // 2**9, tf.float32)
    return (top + 0.5) * 2.0**-23


def uniform_by_position(
    row_keys: tf.Tensor, num_positions: tf.Tensor, shape: tuple[int, ...] = ()
) -> tf.Tensor:
    """Returns uniform numbers for each position of rows of any length.

    Returns:
        float32 [rows, num_positions, *shape]; independent of `num_positions` otherwise.
    """
    keys_ = fold_in(row_keys[:, None], tf.range(num_positions))  # [rows, positions]
    numbers = uniform(tf.reshape(keys_, [-1]), shape)
    return tf.reshape(numbers, tf.concat([tf.shape(keys_), shape], axis=0))


def normal(row_keys: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns float32 [rows, *shape] of standard normals (Box and Muller, 1958)."""
    radius_keys, angle_keys = _mix(row_keys ^ 1), _mix(row_keys ^ 2)
    radius = tf.sqrt(-2.0 * tf.math.log(uniform(radius_keys, shape)))
    return radius * tf.cos(2.0 * math.pi * uniform(angle_keys, shape))


def truncate(normals: tf.Tensor, bound: tf.Tensor) -> tf.Tensor:
    """Maps standard normals to a normal truncated at -bound and bound, by quantiles.

    Both tails are computed from their own small probability, for precision in float32,
    and without erfc and erfinv, which ONNX lacks.

    Args:
        normals: float32.
        bound: float32 above 0, broadcastable to `normals`.

    Reference:
        The tail of the normal: Press et al., 1992, Numerical Recipes in C, section 6.2
        (a relative error below 1.2e-7); its inverse: Giles, 2012, Approximating the
        erfinv function.
    """
    cut_off = 0.5 * _erfc(bound * math.sqrt(0.5))  # on each side
    tail = cut_off + (1.0 - 2.0 * cut_off) * 0.5 * _erfc(abs(normals) * math.sqrt(0.5))
    # log((1 - x)(1 + x)) of x = erf(z / sqrt(2)) = 1 - 2 * tail
    w = -tf.math.log(4.0 * tail * (1.0 - tail))
    central = _polynomial(w - 2.5, _ERFINV_CENTRAL)
    outer = _polynomial(tf.sqrt(tf.maximum(w, 5.0)) - 3.0, _ERFINV_OUTER)
    half_normal = tf.where(w < 5.0, central, outer) * (1.0 - 2.0 * tail)
    return tf.sign(normals) * math.sqrt(2.0) * half_normal


def categorical(row_keys: tf.Tensor, logits: tf.Tensor, num_draws: int) -> tf.Tensor:
    """Samples from softmax(logits) with replacement, by the Gumbel-max trick.

    Shapes:
        row_keys: [rows], logits: [rows, classes] -> int64 [rows, num_draws]
    """
    noise = uniform(row_keys, (num_draws, logits.shape[1]))
    gumbel = -tf.math.log(-tf.math.log(noise))  # [rows, draws, classes]
    return tf.argmax(logits[:, None] + gumbel, axis=2)


def _mix(state: T) -> T:
    """A bijection of 32-bit integers in which every input bit reaches every output bit.

    Xor-shift and multiply with the constants of the "prospecting for hash functions"
    search (C. Wellons and T. Ettinger: 16 21f0aaad 15 735a2d97 15). Both multipliers
    are below 2**31, so no product overflows int64; ONNX has no right shift of int64,
    but division of a non-negative number is one. The first addition moves 0 off the
    function's only obvious fixed point.
    """
    state = (state + 0x9E3779B9) & MASK
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        state = state ^ state // 2**shift
        state = state * multiplier & MASK
    return state ^ state // 2**15


def _erfc(values: tf.Tensor) -> tf.Tensor:
    """Complementary error function of non-negative numbers."""
    t = 1.0 / (1.0 + 0.5 * values)
    return t * tf.exp(-tf.square(values) + _polynomial(t, _ERFC))


def _polynomial(values: tf.Tensor, coefficients: tuple[float, ...]) -> tf.Tensor:
    """Evaluates a polynomial by Horner's rule, highest power first."""
    result = tf.fill(tf.shape(values), coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * values + coefficient
    return result


_ERFC = (
    0.17087277,
    -0.82215223,
    1.48851587,
    -1.13520398,
    0.27886807,
    -0.18628806,
    0.09678418,
    0.37409196,
    1.00002368,
    -1.26551223,
)
_ERFINV_CENTRAL = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_ERFINV_OUTER = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)
