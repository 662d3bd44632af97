"""Decoding of tokens, one after the other: sampling in chunks, and beam search.

Both take `step(cache, tokens, positions)`, which appends a token to each row and
returns the KV cache and the logits of the next token. Only operations that convert to
ONNX are used, in one loop each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from kgen.nn import random
from kgen.nn.sampling import next_tokens

Step = Callable[[Any, tf.Tensor, tf.Tensor], tuple[Any, tf.Tensor]]
NEVER = -1e9  # a score below those of all tokens
STREAM_CHUNK = 8  # tokens of one call with a waiting client, or with stop sequences
MAX_STEPS = 2**31 - 1  # a constant: ONNX has no loop without one


class DecodingState(NamedTuple):
    """State between two steps of decoding, one row for each text.

    Attributes:
        cache: Keys and values of each block, [batch, heads, context, dim].
        logits: Logits of the next token, float32 [batch, vocab_size].
        positions: Position of the next token, int32 [batch].
        seen_tokens: Tokens that the text holds so far, bool [batch, vocab_size].
    """

    cache: Any
    logits: Any
    positions: Any
    seen_tokens: Any


def multi_hot_tokens(tokens: tf.Tensor, vocab_size: int) -> tf.Tensor:
    """The tokens that each row holds: bool [batch, vocab_size].

    Args:
        tokens: int32 [batch, time]; -1 is padding.
        vocab_size: Number of tokens.
    """
    num_rows = tf.shape(tokens)[0]
    rows = tf.range(num_rows)[:, None] + tf.zeros_like(tokens)
    columns = tf.where(tokens < 0, vocab_size, tokens)  # one for the padding
    counts = tf.tensor_scatter_nd_update(
        tf.zeros([num_rows, vocab_size + 1], tf.int32),
        tf.stack([rows, columns], axis=2),
        tf.ones_like(tokens),
    )
    return counts[:, :vocab_size] > 0


def sample(
    step: Step,
    state: DecodingState,
    *,
    seeds: tf.Tensor,
    num_generated: tf.Tensor,
    max_tokens: tf.Tensor,
    sampling: dict[str, tf.Tensor],
    width: tf.Tensor | int,
) -> tuple[tf.Tensor, tf.Tensor, DecodingState]:
    """Samples up to `width` tokens for each row, and at most `max_tokens` in all.

    Args:
        step: See the module.
        state: State before the first of the tokens.
        seeds: int64 [batch].
        num_generated: Tokens generated for each row before, int32 [batch].
        max_tokens: Tokens to generate for each row in all, int32 [batch].
        sampling: Sampling parameters: see `next_tokens`.
        width: A scalar; for XLA no tensor.

    Returns:
        Tokens, int32 [batch, width], -1 after the last of a row; their margins over the
        second-best candidates, float32; and the next state.
    """
    columns = tf.range(width)[None]
    noise_keys = random.keys(seeds, random.STREAM_GENERATE)
    vocab_size = state.logits.shape[1]

    def body(column, tokens, margins, state):
        keys = random.fold_in(noise_keys, num_generated + column)
        new, margin = next_tokens(state.logits, state.seen_tokens, keys, sampling)
        active = num_generated + column < max_tokens
        new = tf.where(active, new, -1)
        margin = tf.where(active, margin, math.inf)
        is_here = columns == column
        tokens = tf.where(is_here, new[:, None], tokens)
        margins = tf.where(is_here, margin[:, None], margins)
        seen_tokens = state.seen_tokens | multi_hot_tokens(new[:, None], vocab_size)
        cache, logits = step(state.cache, new, state.positions)
        state = DecodingState(cache, logits, state.positions + 1, seen_tokens)
        return column + 1, tokens, margins, state

    shape = [tf.shape(state.logits)[0], width]
    _, tokens, margins, state = tf.while_loop(
        lambda column, *_: tf.reduce_any(num_generated + column < max_tokens),
        body,
        (0, tf.fill(shape, -1), tf.fill(shape, math.inf), state),
        maximum_iterations=MAX_STEPS,
    )
    return tokens, margins, state


def beam_search(
    step: Step, state: DecodingState, *, max_tokens: tf.Tensor, num_beams: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Searches the likeliest continuation of each row.

    After each token the `num_beams` likeliest continuations of a row are kept: its
    beams. A row with fewer beams than another has the same result as alone.

    Args:
        step: See the module.
        state: State before the first token.
        max_tokens: Tokens to generate for each row, int32 [batch].
        num_beams: Beams of each row, int32 [batch], in [1, vocab_size].

    Returns:
        Tokens, int32 [batch, longest], -1 after the last of a row; and margins, float32
        [batch, 1]: the smallest difference of log-likelihood between what was kept and
        what was not. Where it is small, another runtime may find another continuation.
    """
    num_rows, vocab_size = tf.shape(state.logits)[0], state.logits.shape[1]
    longest = tf.reduce_max(tf.concat([max_tokens, [0]], 0))  # There may be no rows.
    most = tf.reduce_max(tf.concat([num_beams, [1]], 0))
    ranks = tf.range(most)[None]
    first = tf.range(num_rows)[:, None] * most  # of the beams of each row
    is_beam = ranks < num_beams[:, None]
    columns = tf.range(longest)

    def body(column, found, scores, margins, cache, logits, positions):
        log_probs = tf.reshape(tf.nn.log_softmax(logits), [num_rows, most, vocab_size])
        totals = tf.reshape(scores[..., None] + log_probs, [num_rows, -1])
        best, indices = tf.math.top_k(totals, most + 1)
        active = column < max_tokens
        # Of the last token's beams the best alone counts.
        num_kept = tf.where(column + 1 < max_tokens, num_beams, 1)[:, None]
        last_kept = tf.gather(best, num_kept - 1, batch_dims=1)
        margin = last_kept - tf.gather(best, num_kept, batch_dims=1)
        margins = tf.where(active[:, None], tf.minimum(margins, margin), margins)

        is_new, indices = active[:, None], indices[:, :most]
        tokens = tf.where(is_new, indices % vocab_size, -1)
        parents = tf.where(is_new, indices // vocab_size, ranks)
        scores = tf.where(is_new, tf.where(is_beam, best[:, :most], NEVER), scores)
        found = tf.gather(found, parents, batch_dims=1)
        found = tf.where(columns == column, tokens[..., None], found)
        order = tf.reshape(first + parents, [-1])
        cache = tf.nest.map_structure(lambda one: tf.gather(one, order), cache)
        cache, logits = step(cache, tf.reshape(tokens, [-1]), positions)
        return column + 1, found, scores, margins, cache, logits, positions + 1

    cache, logits, positions = tf.nest.map_structure(
        lambda one: tf.repeat(one, most, axis=0), state[:3]
    )
    found = tf.fill([num_rows, most, longest], -1)
    # All beams are equal at first: only one takes part in the first choice.
    scores = tf.where(ranks == 0, 0.0, NEVER) + tf.zeros([num_rows, 1])
    margins = tf.fill([num_rows, 1], math.inf)
    _, found, _, margins, *_ = tf.while_loop(
        lambda column, *_: column < longest,
        body,
        (0, found, scores, margins, cache, logits, positions),
        maximum_iterations=MAX_STEPS,
    )
    return found[:, 0], margins
