"""Transformer blocks and their parts, tied logits and perplexity."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from kgen.nn import random

ROTARY_BASE = 10_000.0
KeyValueCache = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def attention(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, mask: tf.Tensor
) -> tf.Tensor:
    """Scaled dot-product attention; the softmax is computed in float32.

    Shapes:
        queries: [batch, heads, time, dim], keys and values: [batch, heads, positions,
        dim] -> [batch, heads, time, dim]
        mask: bool, broadcast to [batch, time, positions]: True where a query attends.

    Reference:
        Vaswani et al., 2017, Attention Is All You Need.
    """
    scale = 1.0 / math.sqrt(queries.shape[-1])
    scores = tf.matmul(queries * scale, keys, transpose_b=True)
    # Not minus infinity: a fully masked row gets the mean, not NaN.
    scores = tf.where(mask[:, None], tf.cast(scores, tf.float32), -1e9)
    weights = tf.cast(tf.nn.softmax(scores), values.dtype)
    return tf.matmul(weights, values)


def apply_rotary_embedding(vectors: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Rotates pairs of a vector's elements by angles that grow with its position.

    The dot product of two rotated vectors depends on their positions only through the
    distance. Element i is paired with element i + dim / 2.

    Shapes:
        vectors: [batch, heads, time, dim], positions: integers, [batch, time] or [1,
        time] -> [batch, heads, time, dim]

    Reference:
        Su et al., 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding.
    """
    half = vectors.shape[-1] // 2
    exponents = tf.range(half, dtype=tf.float32) / half
    angles = tf.cast(positions, tf.float32)[..., None] * ROTARY_BASE**-exponents
    cosines = tf.cast(tf.cos(angles), vectors.dtype)[:, None]
    sines = tf.cast(tf.sin(angles), vectors.dtype)[:, None]
    first, second = tf.split(vectors, 2, axis=-1)
    return tf.concat(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )


def apply_dropout(
    inputs: tf.Tensor, row_keys: tf.Tensor | None, rate: float
) -> tf.Tensor:
    """Applies dropout with counter-based noise; none without keys.

    Shapes:
        inputs: [batch, time, hidden_dim], row_keys: int64 [batch]
    """
    if row_keys is None or not rate:
        return inputs
    hidden_dim = tuple(inputs.shape[2:])
    noise = random.uniform_by_position(row_keys, tf.shape(inputs)[1], hidden_dim)
    return inputs * tf.cast(noise >= rate, inputs.dtype) / (1.0 - rate)


def slot_writer(
    cache: Sequence[tf.Tensor], positions: tf.Tensor
) -> Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor]]:
    """Returns a function that writes one key and one value of each row into a KV cache.

    The token at position p is in slot p % slots.

    Args:
        cache: Keys and values, [batch, heads, slots, dim].
        positions: Position of each row's token, int32 [batch].
    """
    heads, slots = cache[0].shape[1:3]
    shape = [tf.shape(positions)[0], heads]
    indices = tf.stack(  # row, head and slot of the new keys and values
        [
            tf.broadcast_to(tf.range(shape[0])[:, None], shape),
            tf.broadcast_to(tf.range(shape[1])[None], shape),
            tf.broadcast_to((positions % slots)[:, None], shape),
        ],
        axis=2,
    )

    def write(*new: tf.Tensor) -> list[tf.Tensor]:
        return [
            tf.tensor_scatter_nd_update(old, indices, one[:, :, 0])
            for old, one in zip(cache, new, strict=True)
        ]

    return write


def tied_logits(hidden: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Float32 logits by the transposed embedding table (weight tying).

    Shapes:
        hidden: [..., hidden_dim], table: [tokens, hidden_dim] -> [..., tokens]

    Reference:
        Press and Wolf, 2017, Using the Output Embedding to Improve Language Models.
    """
    # Flattened to a matrix: TensorFlow's gradient of a product with more axes is slow.
    rows = tf.reshape(hidden, [-1, hidden.shape[-1]])
    logits = tf.matmul(rows, tf.cast(table, hidden.dtype), transpose_b=True)
    shape = tf.concat([tf.shape(hidden)[:-1], tf.shape(table)[:1]], axis=0)
    return tf.cast(tf.reshape(logits, shape), tf.float32)


@keras.saving.register_keras_serializable(package="kgen")
class TransformerBlock(keras.layers.Layer):
    """Pre-norm transformer block: self-attention and a two-layer MLP, both residual.

    With cross-attention, it attends to the vectors of an encoder between the two.

    Args:
        num_heads: Number of attention heads; divides the hidden_dim of the inputs.
        rotary: Whether queries and keys get rotary position embeddings.
        dropout: Dropout rate of the outputs of attention and MLP in training.
        num_blocks: Number of blocks in the model: the initial weights of the residual
            outputs are divided by sqrt(2 * num_blocks).
        cross_attention: Whether the block attends to a memory: see `memory_of`.

    Shapes:
        [batch, time, hidden_dim] -> [batch, time, hidden_dim]

    Reference:
        Radford et al., 2019, Language Models are Unsupervised Multitask Learners.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        rotary: bool = False,
        dropout: float = 0.0,
        num_blocks: int = 1,
        cross_attention: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.rotary = rotary
        self.dropout = dropout
        self.num_blocks = num_blocks
        self.cross_attention = cross_attention

    def build(self, input_shape):
        """Creates the layers: six, and four for cross-attention."""
        hidden_dim = input_shape[-1]

        def dense(units, width_in, scale=1.0):
            normal = keras.initializers.RandomNormal(stddev=0.02 * scale)
            layer = keras.layers.Dense(
                units, kernel_initializer=normal, dtype=self.dtype_policy
            )
            layer.build((None, None, width_in))
            return layer

        def norm():
            options = {"epsilon": 1e-5, "dtype": self.dtype_policy}
            layer = keras.layers.LayerNormalization(**options)
            layer.build((None, None, hidden_dim))
            return layer

        smaller = 1.0 / math.sqrt(2 * self.num_blocks)
        self.first_norm, self.second_norm = norm(), norm()
        self.qkv = dense(3 * hidden_dim, hidden_dim)
        self.attention_output = dense(hidden_dim, hidden_dim, smaller)
        self.mlp_up = dense(4 * hidden_dim, hidden_dim)
        self.mlp_down = dense(hidden_dim, 4 * hidden_dim, smaller)
        if self.cross_attention:
            self.cross_norm = norm()
            self.cross_query = dense(hidden_dim, hidden_dim)
            self.memory_keys_values = dense(2 * hidden_dim, hidden_dim)
            self.cross_output = dense(hidden_dim, hidden_dim, smaller)
        self.built = True

    def memory_of(self, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Keys and values of an encoder's vectors, for cross-attention.

        Shapes:
            encoded: [batch, source, hidden_dim] -> two of [batch, heads, source, dim]
        """
        heads = self._heads(self.memory_keys_values(encoded), 2 * self.num_heads)
        keys, values = tf.split(heads, 2, axis=1)
        return keys, values

    def call(
        self,
        inputs: tf.Tensor,
        positions: tf.Tensor,
        mask: tf.Tensor,
        row_keys: tf.Tensor | None = None,
        cache: KeyValueCache | None = None,
        memory: tuple[tf.Tensor, tf.Tensor] | None = None,
        memory_mask: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        """Applies the block.

        Args:
            inputs: [batch, time, hidden_dim].
            positions: Integers, [batch, time] or [1, time].
            mask: Attention mask; see `attention`.
            row_keys: Random keys of the dropout, int64 [batch]; None: no dropout.
            cache: Takes the keys and values of these positions and returns those of
                all positions to attend to. None: attend to these positions only.
            memory: Keys and values of `memory_of`, for cross-attention.
            memory_mask: Bool [batch, source], True where there is a token; None: all.

        Returns:
            The outputs, and the attended keys and values, [batch, heads, positions,
            dim].
        """
        heads = self._heads(self.qkv(self.first_norm(inputs)), 3 * self.num_heads)
        queries, keys, values = tf.split(heads, 3, axis=1)
        if self.rotary:
            queries = apply_rotary_embedding(queries, positions)
            keys = apply_rotary_embedding(keys, positions)
        if cache is not None:
            keys, values = cache(keys, values)
        mixed = self._joined(attention(queries, keys, values, mask))
        hidden = inputs + self._drop(self.attention_output(mixed), row_keys, 0)
        if memory is not None:
            if memory_mask is None:
                memory_mask = tf.ones([1, 1], tf.bool)
            queries = self.cross_query(self.cross_norm(hidden))
            queries = self._heads(queries, self.num_heads)
            mixed = self._joined(attention(queries, *memory, memory_mask[:, None]))
            hidden += self._drop(self.cross_output(mixed), row_keys, 2)
        wide = self.mlp_up(self.second_norm(hidden))
        outputs = self.mlp_down(keras.activations.gelu(wide, approximate=True))
        return hidden + self._drop(outputs, row_keys, 1), (keys, values)

    def _heads(self, vectors, number):
        """Cuts vectors into heads: [batch, number, time, dim]."""
        dim = vectors.shape[-1] // number
        vectors = tf.reshape(vectors, [-1, _time(vectors), number, dim])
        return tf.transpose(vectors, [0, 2, 1, 3])

    def _joined(self, heads):
        """Joins heads to vectors: [batch, time, hidden_dim]."""
        heads = tf.transpose(heads, [0, 2, 1, 3])
        width = heads.shape[2] * heads.shape[3]
        return tf.reshape(heads, [-1, _time(heads), width])

    def _drop(self, outputs, row_keys, use):
        keys = None if row_keys is None else random.fold_in(row_keys, use)
        return apply_dropout(outputs, keys, self.dropout)


def _time(vectors):
    """Size of the second axis, an integer where it is known."""
    return tf.shape(vectors)[1] if vectors.shape[1] is None else vectors.shape[1]


@keras.saving.register_keras_serializable(package="kgen")
class Perplexity(keras.metrics.Mean):
    """Exponential of the mean loss per token in nats."""

    def result(self) -> tf.Tensor:
        """Returns the perplexity so far, float32; 1 before the first token."""
        return tf.exp(super().result())
