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
from kgen.nn.decoding_parameters import SamplingParameters
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
    sampling: SamplingParameters,
    width: tf.Tensor | int,
    end_token: int = -1,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, DecodingState]:
    """Samples up to `width` tokens for each row, and at most `max_tokens` in all.

    A row ends at the end token, which is not among its tokens, or at its limit.

    Args:
        step: See the module.
        state: State before the first of the tokens.
        seeds: int64 [batch].
        num_generated: Tokens generated for each row before, int32 [batch].
        max_tokens: Tokens to generate for each row in all, int32 [batch].
        sampling: Tensors [batch]: see `next_tokens`.
        width: A scalar; for XLA no tensor.
        end_token: Token that ends a text; -1: none does.

    Returns:
        Tokens, int32 [batch, width], -1 after the last of a row; their margins over the
        second-best candidates, float32; whether a row has met the end token, bool
        [batch]; and the next state.
    """
    columns = tf.range(width)[None]
    noise_keys = random.keys(seeds, random.STREAM_GENERATE)
    vocab_size = state.logits.shape[1]

    def is_active(column, ended):
        return (num_generated + column < max_tokens) & ~ended

    def body(column, tokens, margins, ended, state):
        keys = random.fold_in(noise_keys, num_generated + column)
        new, margin = next_tokens(state.logits, state.seen_tokens, keys, sampling)
        active = is_active(column, ended)
        ended |= active & (new == end_token)
        new = tf.where(active & ~ended, new, -1)
        is_here = (columns == column) & active[:, None]
        tokens = tf.where(is_here, new[:, None], tokens)
        margins = tf.where(is_here, margin[:, None], margins)
        seen_tokens = state.seen_tokens | multi_hot_tokens(new[:, None], vocab_size)
        cache, logits = step(state.cache, new, state.positions)
        state = DecodingState(cache, logits, state.positions + 1, seen_tokens)
        return column + 1, tokens, margins, ended, state

    shape = [tf.shape(state.logits)[0], width]
    _, tokens, margins, ended, state = tf.while_loop(
        lambda column, _, __, ended, ___: tf.reduce_any(is_active(column, ended)),
        body,
        (
            0,
            tf.fill(shape, -1),
            tf.fill(shape, math.inf),
            tf.zeros(shape[:1], tf.bool),
            state,
        ),
        maximum_iterations=MAX_STEPS,
    )
    return tokens, margins, ended, state


class BeamResults(NamedTuple):
    """Results of a beam search, the best of each row first.

    Attributes:
        tokens: int32 [batch, beams, longest], -1 from the end token on.
        scores: log p / ((5 + n) / 6) ** length_penalty of n tokens, the end token among
            them: float32 [batch, beams]. Beyond the beams of a row: -1e9.
        margins: Smallest difference of score between what was kept and what was not,
            and between two results: float32 [batch, 1]. Where it is small, another
            runtime may find other results.
    """

    tokens: tf.Tensor
    scores: tf.Tensor
    margins: tf.Tensor


def beam_search(
    step: Step,
    state: DecodingState,
    *,
    max_tokens: tf.Tensor,
    num_beams: tf.Tensor,
    length_penalty: tf.Tensor,
    end_token: int = -1,
) -> BeamResults:
    """Searches the likeliest continuations of each row.

    After each token the `num_beams` likeliest live beams of a row are kept, and as many
    of those that have ended, at the end token or at the limit of tokens. The search of
    a row stops when its best live beam cannot reach the worst of these results. A row
    has the same results alone and beside rows of more beams.

    Args:
        step: See the module.
        state: State before the first token.
        max_tokens: Tokens to generate for each row, int32 [batch].
        num_beams: Beams of each row, int32 [batch], in [1, vocab_size].
        length_penalty: Exponent of the length, 0 or more: float32 [batch]. 0 compares
            likelihoods; larger values favour longer texts.
        end_token: Token that ends a text; -1: none does.

    Reference:
        Wu et al., 2016, Google's Neural Machine Translation System (the penalty).
    """
    num_rows, vocab_size = tf.shape(state.logits)[0], state.logits.shape[1]
    longest = tf.reduce_max(tf.concat([max_tokens, [0]], 0))  # There may be no rows.
    most = tf.reduce_max(tf.concat([num_beams, [1]], 0))
    ranks, columns = tf.range(most)[None], tf.range(longest)
    is_beam = ranks < num_beams[:, None]
    first = tf.range(num_rows)[:, None] * most  # of the beams of each row
    # Among twice as many candidates as beams there are enough live ones, even if each
    # beam can end; one more shows the margin.
    num_candidates = 2 * most + 1
    is_candidate = tf.range(num_candidates)[None] < 2 * num_beams[:, None]
    is_seen = tf.range(num_candidates)[None] <= 2 * num_beams[:, None]

    def is_possible(scores):
        return scores > NEVER / 2

    def penalised(scores, num_tokens):
        lengths = (5.0 + tf.cast(num_tokens, tf.float32)) / 6.0
        return scores / tf.pow(lengths, length_penalty[:, None])

    def best_of(scores, tokens):
        """The beams of the highest scores, and the gap to the next one."""
        best, order = tf.math.top_k(scores, most + 1)
        ends = tf.stack([num_beams - 1, num_beams], axis=1)
        last, after = tf.unstack(tf.gather(best, ends, batch_dims=1), axis=1)
        order = order[:, :most]
        tokens = tf.gather(tokens, order, batch_dims=1)
        best = tf.where(is_beam, best[:, :most], NEVER)
        gap = tf.where(is_possible(last), last - after, math.inf)
        return best, tokens, order, last, gap

    def body(column, active, live, results, margins, cache, logits, positions):
        log_probs = tf.nn.log_softmax(logits)
        log_probs = tf.reshape(log_probs, [num_rows, most, vocab_size])
        totals = tf.reshape(live[0][..., None] + log_probs, [num_rows, -1])
        totals = tf.pad(totals, [[0, 0], [0, 1]], constant_values=NEVER)
        totals, index = tf.math.top_k(totals, num_candidates)
        parents = tf.minimum(index // vocab_size, most - 1)  # The padding has any.
        new = index % vocab_size
        is_end = new == end_token
        is_last = (column + 1 == max_tokens)[:, None]
        kept = tf.where(is_end, -1, new)[..., None]
        tokens = tf.gather(live[1], parents, batch_dims=1)
        tokens = tf.where(columns == column, kept, tokens)

        ended = penalised(totals, column + 1)
        has_ended = is_candidate & is_possible(totals) & (is_end | is_last)
        ended = tf.where(has_ended, ended, NEVER)
        ended, ended_tokens, _, worst, ended_margin = best_of(
            tf.concat([results[0], ended], 1), tf.concat([results[1], tokens], 1)
        )
        going = tf.where(is_seen & ~is_end, totals, NEVER)
        *live, order, _, live_margin = best_of(going, tokens)
        bound = penalised(live[0][:, :1], max_tokens[:, None])[:, 0]
        still_active = active & ~is_last[:, 0] & (worst < bound)
        margin = tf.where(
            still_active, tf.minimum(live_margin, ended_margin), ended_margin
        )
        margin = tf.where(active, margin, math.inf)[:, None]
        margins = tf.minimum(margins, margin)
        results = (
            tf.where(active[:, None], ended, results[0]),
            tf.where(active[:, None, None], ended_tokens, results[1]),
        )

        beams = tf.reshape(first + tf.gather(parents, order, batch_dims=1), [-1])
        cache = tf.nest.map_structure(lambda one: tf.gather(one, beams), cache)
        new = tf.reshape(tf.gather(new, order, batch_dims=1), [-1])
        cache, logits = step(cache, new, positions)
        state = (cache, logits, positions + 1)
        return column + 1, still_active, tuple(live), results, margins, *state

    state = tf.nest.map_structure(lambda one: tf.repeat(one, most, axis=0), state[:3])
    nothing = tf.fill([num_rows, most, longest], -1)
    # All beams are equal at first: only one takes part in the first choice.
    scores = tf.where(ranks == 0, 0.0, NEVER) + tf.zeros([num_rows, 1])
    none = tf.fill([num_rows, most], NEVER)
    margins = tf.fill([num_rows, 1], math.inf)
    _, _, _, (scores, tokens), margins, *_ = tf.while_loop(
        lambda _, active, *__: tf.reduce_any(active),
        body,
        (0, max_tokens > 0, (scores, nothing), (none, nothing), margins, *state),
        maximum_iterations=MAX_STEPS,
    )
    gaps = tf.where(is_beam[:, 1:], scores[:, :-1] - scores[:, 1:], math.inf)
    margins = tf.reduce_min(tf.concat([margins, gaps], 1), axis=1, keepdims=True)
    return BeamResults(tokens, scores, margins)
