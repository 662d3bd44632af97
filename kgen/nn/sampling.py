"""Sampling of the next token from logits, with parameters per row.

Only operations that convert to ONNX are used, also inside a loop.
"""

import tensorflow as tf

from kgen.nn import random
from kgen.nn.decoding_parameters import SamplingParameters


def next_tokens(
    logits: tf.Tensor,
    seen: tf.Tensor,
    keys: tf.Tensor,
    settings: SamplingParameters,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Samples a token for each row.

    The filters, in this order: logits of seen tokens are divided by the repetition
    penalty if positive, and multiplied by it if negative; all logits are divided by the
    temperature; top-k keeps the `top_k` most likely tokens; top-p keeps the fewest most
    likely of these whose probabilities sum to at least `top_p`; min-p keeps tokens with
    at least `min_p` of the highest probability. A temperature of 0 is greedy.

    Args:
        logits: float32 [batch, tokens].
        seen: Tokens that the row holds already, bool [batch, tokens].
        keys: Random keys, int64 [batch].
        settings: Tensors: float32 [batch], `top_k` int32 [batch], where 0 keeps all
            tokens.

    Returns:
        The tokens, int32 [batch], and their margins, float32 [batch]: the noisy logit
        minus the second best. Where it is small, another runtime may choose another
        token.

    Reference:
        Keskar et al., 2019, CTRL (the penalty); Fan et al., 2018 (top-k); Holtzman et
        al., 2020 (top-p); Nguyen et al., 2024 (min-p).
    """
    penalty = settings.repetition_penalty[:, None]
    temperature, top_k = settings.temperature[:, None], settings.top_k[:, None]
    penalised = tf.where(logits > 0, logits / penalty, logits * penalty)
    logits = tf.where(seen, penalised, logits)
    greedy = temperature == 0
    logits /= tf.where(greedy, 1.0, temperature)

    num_tokens = logits.shape[1]
    descending, _ = tf.math.top_k(logits, num_tokens)
    log_z = tf.reduce_logsumexp(descending, axis=1, keepdims=True)
    ranks = tf.range(num_tokens)[None]
    kept = (top_k == 0) | (ranks < top_k)
    # Probabilities of the tokens that top-k kept, and their exclusive sums.
    log_kept = tf.where(kept, descending - log_z, -1e9)
    probabilities = tf.nn.softmax(log_kept)
    preceding = tf.cumsum(probabilities, axis=1) - probabilities
    kept &= preceding < settings.top_p[:, None]
    kept &= probabilities >= settings.min_p[:, None] * probabilities[:, :1]
    kept |= ranks == 0
    # The lowest kept logit; all tokens with an equal one are kept.
    lowest = tf.reduce_min(tf.where(kept, descending, descending[:, :1]), axis=1)
    logits = tf.where(logits >= lowest[:, None], logits, -1e9)

    gumbel = -tf.math.log(-tf.math.log(random.uniform(keys, (num_tokens,))))
    noisy = logits + tf.where(greedy, 0.0, gumbel)
    best, tokens = tf.math.top_k(noisy, 2)
    return tokens[:, 0], best[:, 0] - best[:, 1]
