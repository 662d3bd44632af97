"""Example requests of text generation, to verify exports with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.nn.decoding import STREAM_CHUNK


def example_request(
    names: Iterable[str],
    context: int,
    vocab_size: int,
    prefill: Callable[[tf.Tensor], tuple[dict[str, tf.Tensor], Any]],
    num_rows: int,
) -> dict[str, np.ndarray]:
    """Returns inputs of these names, with prompts of several lengths.

    Args:
        names: Inputs of a signature.
        context: Of the model.
        vocab_size: Number of tokens.
        prefill: Maps prompts to the tensors of a state, and more.
        num_rows: Number of rows.
    """
    rng, rows = np.random.default_rng(0), np.arange(num_rows)
    half = max(context // 2, 1)
    most = min(half, STREAM_CHUNK + 4)
    lengths = np.where(rows == 0, 1, rng.integers(1, 1 + half, num_rows))
    longest = max(lengths, default=1)
    tokens = rng.integers(0, vocab_size, (num_rows, longest), np.int32)
    # The first row has the most, so that all batches are as wide.
    limits = np.where(rows == 0, most, rng.integers(1, most + 1, num_rows))
    values = {
        "tokens": np.where(np.arange(longest) < lengths[:, None], tokens, -1),
        "seeds": rows,
        "max_new_tokens": limits.astype(np.int32),
        "num_beams": np.minimum(1 + rows % 3, vocab_size).astype(np.int32),
        "length_penalty": np.array([0, 0.6], np.float32)[rows % 2],
        "num_generated": (rows % 5).astype(np.int32),
        "chunk_size": np.full(num_rows, STREAM_CHUNK, np.int32),
        "temperature": np.array([0, 0.7, 1], np.float32)[rows % 3],
        "top_k": np.array([0, 5], np.int32)[rows % 2],
        "top_p": np.array([1, 0.9], np.float32)[rows // 2 % 2],
        "min_p": np.array([0, 0.02], np.float32)[rows // 4 % 2],
        "repetition_penalty": np.array([1, 1.2], np.float32)[rows // 8 % 2],
    }
    if "logits" in names:
        state, _ = prefill(tf.constant(values["tokens"]))
        values |= {name: value.numpy() for name, value in state.items()}
    return {name: values[name] for name in names}
