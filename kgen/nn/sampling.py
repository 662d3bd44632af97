"""The next token: from logits to a choice, row by row.

Everything is a tensor with a value for each row, and uses operations that convert to
ONNX, inside a loop too.
"""

import tensorflow as tf

from kgen.nn import random

# The settings of `next_tokens`, and what leaves the distribution as it is.
DEFAULT_SAMPLING = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}

MAX_TOKENS = 4096  # that a server writes for a row


def next_tokens(
    logits: tf.Tensor,
    seen: tf.Tensor,
    keys: tf.Tensor,
    settings: dict[str, tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chooses a token for each row.

    In this order: logits of tokens that have been seen are divided by the repetition
    penalty if positive, and multiplied by it if negative; all are divided by the
    temperature; of what is left, the `top_k` most likely tokens stay, then the most
    likely ones that together have at least `top_p` of the probability, then those with
    at least `min_p` of the highest probability. The token is drawn from these. A
    temperature of 0 takes the most likely one.

    Args:
        logits: float32 [batch, tokens].
        seen: Which tokens the row holds already, bool [batch, tokens].
        keys: Of the noise, int64 [batch].
        settings: float32 [batch] each, but `top_k`, int32 [batch], whose 0 is all:
            `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`.

    Returns:
        The tokens, int32 [batch]; and by how much the logit and the noise of each are
        above those of the second best, float32 [batch]: where that is little, another
        runtime may choose another token.

    Reference:
        Keskar et al., 2019, CTRL (the penalty); Fan et al., 2018 (top-k); Holtzman et
        al., 2020 (top-p); Nguyen et al., 2024 (min-p).
    """
    column = {name: value[:, None] for name, value in settings.items()}
    penalty = column["repetition_penalty"]
    penalised = tf.where(logits > 0, logits / penalty, logits * penalty)
    logits = tf.where(seen, penalised, logits)
    greedy = column["temperature"] == 0
    logits /= tf.where(greedy, 1.0, column["temperature"])

    num_tokens = logits.shape[1]
    descending, _ = tf.math.top_k(logits, num_tokens)
    log_z = tf.reduce_logsumexp(descending, axis=1, keepdims=True)
    ranks = tf.range(num_tokens)[None]
    kept = (column["top_k"] == 0) | (ranks < column["top_k"])
    # Of what the last filter left: the probabilities, and those before each.
    log_kept = tf.where(kept, descending - log_z, -1e9)
    shares = tf.nn.softmax(log_kept)
    before = tf.cumsum(shares, axis=1) - shares
    kept &= before < column["top_p"]
    kept &= shares >= column["min_p"] * shares[:, :1]
    kept |= ranks == 0
    # The lowest logit that stays; of equal ones all do.
    lowest = tf.reduce_min(tf.where(kept, descending, descending[:, :1]), axis=1)
    logits = tf.where(logits >= lowest[:, None], logits, -1e9)

    gumbel = -tf.math.log(-tf.math.log(random.uniform(keys, (num_tokens,))))
    noisy = logits + tf.where(greedy, 0.0, gumbel)
    best, tokens = tf.math.top_k(noisy, 2)
    return tokens[:, 0], best[:, 0] - best[:, 1]
