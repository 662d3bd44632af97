"""GPT: an autoregressive language model on a causal transformer."""

from __future__ import annotations

import math
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf

from kgen.arguments import PositiveFloat, PositiveInt, Share, one_of
from kgen.data.tokenizer_interface import Tokenizer
from kgen.models.shared.generation import TextGenerationMixin
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature
from kgen.models.shared.text_model import padded
from kgen.nn import random
from kgen.nn.decoding import MAX_STEPS, DecodingState, multi_hot_tokens
from kgen.nn.transformer import (
    Perplexity,
    apply_dropout,
    slot_writer,
    tied_logits,
)

POSITIONS = ("rotary", "learned")
PREFILL_CHUNK = 256  # tokens of a prompt at a time: bounds the memory of attention


@keras.saving.register_keras_serializable(package="kgen")
class GPT(TextGenerationMixin, GenerativeModel):
    """Language model: the probability of each token, given the tokens before it.

    Args:
        tokenizer: One of `kgen.data`'s tokenizers, for a model that takes and generates
            text. None: tokens alone.
        vocab_size: Number of tokens; by default the tokenizer's.
        context: Largest number of tokens that a token is predicted from.
        num_layers: Blocks of attention and two dense layers.
        num_heads: Heads of each attention.
        hidden_dim: Length of the vector of a token: `num_heads` times an even number.
        positions: "rotary": texts grow without an end, and each token sees the last
            `context` ones. "learned": texts end where the context does.
        dropout: Share of vectors' elements left out in training, in [0, 1).
        end_token: Special token of the tokenizer that ends a text; None: there is none.
        tokens_per_character: Of the training text, for the log `bits_per_character`.

    Shapes:
        tokens: whole numbers [batch, time + 1]: each but the first is predicted from
        the tokens before it; -1 is padding, at the end of a row
        mask: bool [batch, time + 1], which tokens count in the loss; optional

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> model = GPT(tokenizer=CharTokenizer.of_text("to be or not"))
        >>> model.compile(keras.optimizers.AdamW(1e-3))
        >>> tokens = tf.constant([model.encode("to be or not")])
        >>> model.fit(tf.data.Dataset.from_tensors({"tokens": tokens}), epochs=3)
        >>> model.generate("to ", max_new_tokens=5, seeds=1)

    Reference:
        Radford et al., 2019, Language Models are Unsupervised Multitask Learners. The
        embedding is the last layer, too: Press and Wolf, 2017, Using the Output
        Embedding to Improve Language Models.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | None = None,
        vocab_size: int | None = None,
        context: PositiveInt = 64,
        num_layers: PositiveInt = 4,
        num_heads: PositiveInt = 4,
        hidden_dim: int = 128,
        positions: Annotated[str, one_of(POSITIONS)] = "rotary",
        dropout: Share = 0.0,
        end_token: str | None = None,
        tokens_per_character: PositiveFloat = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.take_tokenizer(tokenizer, vocab_size)
        self.check_transformer_arguments()
        enough = self.is_endless or context >= 2
        self.check_argument("context", enough, "be 2 or more with learned positions")
        self.highest_token = self.vocab_size - 1
        known = end_token is None or self.tokenizer is not None
        self.check_argument("end_token", known, "come with a tokenizer that has it")
        self.end_id = -1 if end_token is None else self.tokenizer.special_id(end_token)
        self.declare_batches(has_mask=True)

        self.make_transformer(rotary=self.is_endless)
        self.add_log_metrics(
            "loss", Perplexity(name="perplexity"), "bits_per_character"
        )

    @property
    def is_endless(self) -> bool:
        """Whether texts may be longer than the context."""
        return self.positions == "rotary"

    # -- the loss -------------------------------------------------------------

    def call(self, data: Any, training: bool = False) -> tf.Tensor:
        """Logits of the token after each: [batch, time, vocab_size]."""
        return self._logits(self.read(data)["tokens"])

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one step on the mean loss of the tokens of the global batch."""
        batch = self.read(data)
        keys = self.noise_keys(batch["tokens"], random.STREAM_TRAIN)
        with self.recording() as recording:
            losses, weights = self._token_losses(batch, keys if self.dropout else None)
        recording.minimize(losses, weights)
        self.finish_step(batch["tokens"])
        return self._log(losses, weights, training=True)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates the loss without dropout."""
        losses, weights = self._token_losses(self.read(data))
        return self._log(losses, weights, training=False)

    def _token_losses(self, batch, keys=None):
        """Negative log-likelihood of each token, and its weight: [batch, time]."""
        tokens = batch["tokens"]
        targets = tokens[:, 1:]
        weights = tf.cast(targets >= 0, tf.float32)
        if "mask" in batch:
            weights *= tf.cast(batch["mask"], tf.float32)[:, 1:]
        if "sample_weight" in batch:
            weights *= batch["sample_weight"][:, None]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.maximum(targets, 0), self._logits(tokens[:, :-1], keys)
        )
        return losses, weights

    def _log(self, losses, weights, training):
        bits = losses * (self.tokens_per_character / math.log(2.0))
        values = {"loss": losses, "perplexity": losses, "bits_per_character": bits}
        return self.log(values, training=training, weights=weights)

    # -- the network ----------------------------------------------------------

    def _logits(self, tokens, keys=None):
        """Logits of the next token: float32 [batch, time, vocab_size]."""
        positions = tf.range(tf.shape(tokens)[1])[None]
        hidden = apply_dropout(self._embed(tokens, positions), keys, self.dropout)
        mask = self._can_attend(positions, positions)
        for index, block in enumerate(self.blocks, start=1):
            block_keys = None if keys is None else random.fold_in(keys, index)
            hidden, _ = block(hidden, positions, mask, block_keys)
        return self._head(hidden)

    def _can_attend(self, positions, others):
        """Causal mask over the last `context` tokens: [.., positions, others]."""
        distances = positions[..., None] - others[..., None, :]
        return (distances >= 0) & (distances < self.context)

    def _embed(self, tokens, positions):
        hidden = self.embedding(tf.maximum(tokens, 0))
        if not self.is_endless:
            hidden += self.position_embedding(tf.minimum(positions, self.context - 1))
        return hidden

    def _head(self, hidden):
        return tied_logits(self.norm(hidden), self.embedding.embeddings)

    # -- prefill and decode ---------------------------------------------------

    def prefill(self, tokens: tf.Tensor) -> DecodingState:
        """Runs the network over prompts, a chunk of tokens at a time.

        A token at position p is in slot p % context of the KV cache.
        """
        seen_tokens = multi_hot_tokens(tokens, self.vocab_size)
        tokens, lengths = self._within_reach(tokens)
        longest = tf.shape(tokens)[1]

        def extend(start, cache, hidden):
            chunk = tokens[:, start : start + PREFILL_CHUNK]
            last = tf.clip_by_value(lengths - 1 - start, 0, tf.shape(chunk)[1] - 1)
            cache, outputs = self._extend(cache, chunk, start, lengths)
            outputs = tf.gather(outputs, last, batch_dims=1)
            is_here = (lengths > start)[:, None]
            return start + PREFILL_CHUNK, cache, tf.where(is_here, outputs, hidden)

        # The first chunk has no cache to attend to, and most prompts no second one.
        state = extend(tf.constant(0), None, 0.0)
        _, cache, hidden = tf.while_loop(
            lambda start, *_: start < longest,
            extend,
            state,
            maximum_iterations=MAX_STEPS,
        )
        return DecodingState(cache, self._head(hidden), lengths, seen_tokens)

    def _extend(self, cache, tokens, start, lengths):
        """Appends tokens from position `start` on: KV cache and outputs of the blocks.

        Tokens beyond a row's length leave its cache unchanged.
        """
        count, slots = tf.shape(tokens)[1], tf.range(self.context)[None]
        positions = start + tf.range(count)[None]
        others = positions
        if (
            cache is not None
        ):  # The last position of each slot, negative if it is empty.
            held = start - 1 - (start - 1 - slots) % self.context
            others = tf.concat([held, positions], axis=1)
        mask = self._can_attend(positions, others) & (others >= 0)[:, None]
        # For each slot the last position of the row that falls into it.
        last = tf.minimum(lengths, start + count)[:, None] - 1
        kept = slots + (last - slots) // self.context * self.context
        is_new = (kept >= start)[:, None, :, None]
        kept = tf.clip_by_value(kept - start, 0, count - 1)
        hidden, extended = self._embed(tokens, positions), []
        for index, block in enumerate(self.blocks):
            old = None if cache is None else cache[2 * index : 2 * index + 2]

            def attend_to_both(*new, old=old):
                return [tf.concat(pair, axis=2) for pair in zip(old, new, strict=True)]

            hidden, seen = block(
                hidden, positions, mask, cache=attend_to_both if old else None
            )
            for which, one in enumerate(seen):
                new = tf.gather(one[:, :, -count:], kept, axis=2, batch_dims=1)
                before = tf.zeros_like(new) if old is None else old[which]
                extended.append(tf.where(is_new, new, before))
        return tuple(extended), hidden

    def _within_reach(self, tokens):
        """Ends of rows, and their lengths: no logit depends on the tokens before.

        Each block attends to `context` tokens, so the reach grows by that per block.
        """
        lengths = tf.reduce_sum(tf.cast(tokens >= 0, tf.int32), axis=1)
        reach = self.num_layers * (self.context - 1) + 1
        longest = tf.shape(tokens)[1]
        begins = tf.maximum(lengths - reach, 0)[:, None]
        positions = begins + tf.range(tf.minimum(longest, reach))[None]
        positions = tf.minimum(positions, longest - 1)
        return tf.gather(tokens, positions, batch_dims=1), tf.minimum(lengths, reach)

    def decode_step(self, cache, tokens, positions):
        """Appends a token to each row; returns the KV cache and the next logits."""
        slots = tf.range(self.context)[None]
        mask = slots <= positions[:, None]
        mask = (mask | (positions[:, None] >= self.context))[:, None]
        hidden = self._embed(tokens[:, None], positions[:, None])
        extended = []
        for index, block in enumerate(self.blocks):
            write = slot_writer(cache[2 * index : 2 * index + 2], positions)
            hidden, seen = block(hidden, positions[:, None], mask, cache=write)
            extended += seen
        return tuple(extended), self._head(hidden[:, 0])

    # -- use ------------------------------------------------------------------

    def score(self, texts: Any) -> np.ndarray:
        """The log-likelihood of each text, given its first token: float64 [n], in nats.

        The memory it takes grows with the square of the longest text.

        Args:
            texts: A list of texts, or of lists of tokens; none is empty.

        Raises:
            ValueError: A text is empty, holds an unknown character, or, for "learned"
                positions, does not fit the context.
        """
        rows, _ = self.tokens_of(texts)
        parts = [padded(rows[start : start + 16]) for start in range(0, len(rows), 16)]
        scores = [self.run("score", tokens=part)["log_likelihoods"] for part in parts]
        return np.concatenate([np.zeros(0), *scores])

    def _log_likelihoods(self, tokens):
        losses, weights = self._token_losses({"tokens": tokens})
        return {"log_likelihoods": -tf.reduce_sum(losses * weights, axis=1)}

    def signatures(self) -> list[Signature]:
        """Returns `generate`, `beam_search`, `prefill`, `decode`; `score` in Python."""
        score = Signature(
            "score",
            self._log_likelihoods,
            self.token_inputs(None if self.is_endless else self.context + 1),
            {"log_likelihoods": "scores"},
            layers=self.transformer_layers(),
            runtimes=(),
        )
        return [*self.generation_signatures(), score]
