"""BERT: a masked language model on a bidirectional transformer."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kgen.arguments import PositiveInt, ProperFraction, Share
from kgen.data.tokenizer_interface import Tokenizer
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature
from kgen.models.shared.text_model import ROWS_AT_A_TIME, TextModelMixin, padded
from kgen.nn import random
from kgen.nn.transformer import Perplexity, apply_dropout, tied_logits

MASK = "[MASK]"  # in a text: the token to predict
HIDDEN, REPLACED = 0.8, 0.1  # shares of the chosen tokens, as in the paper


class Prediction(NamedTuple):
    """Candidate token for a mask.

    Attributes:
        token: Its id.
        text: Its text; None where the model has no tokenizer.
        probability: In [0, 1].
    """

    token: int
    text: str | None
    probability: float


@keras.saving.register_keras_serializable(package="kgen")
class BERT(TextModelMixin, GenerativeModel):
    """Masked language model: predicts hidden tokens from the context on both sides.

    In training a share of each row's tokens, at least one, is chosen anew in each step.
    Of these 80 % are hidden, 10 % replaced by a random one, and 10 % left as they are;
    the loss of a row is the mean over them.

    Args:
        tokenizer: `config()` of one of `kgen.data`'s tokenizers, for a model that takes
            text. None: tokens alone.
        vocab_size: Number of tokens, without the mask, which has the next number; by
            default the tokenizer's.
        context: How many tokens a text may have.
        num_layers: Blocks of attention and two dense layers.
        num_heads: Heads of each attention.
        hidden_dim: Length of the vector of a token: `num_heads` times an even number.
        mask_rate: Share of a row's tokens that are chosen, in (0, 1).
        dropout: Share of vectors' elements left out in training, in [0, 1).

    Shapes:
        tokens: whole numbers [batch, time], time at most `context`; -1 is padding, at
        the end of a row

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> tokenizer = kgen.data.CharTokenizer.of_text("to be or not")
        >>> model = BERT(tokenizer=tokenizer, context=16)
        >>> model.compile()
        >>> tokens = tf.constant([tokenizer.encode("to be or not")])
        >>> model.fit(tf.data.Dataset.from_tensors({"tokens": tokens}))
        >>> model.fill_mask("to b[MASK] or not", k=2)  # [[Prediction, Prediction]]
        >>> model.embed(["to be", "or not"]).shape
        (2, 128)

    Reference:
        Devlin et al., 2019, BERT: Pre-training of Deep Bidirectional Transformers for
        Language Understanding; with norms before the layers and rotary positions, and
        without its second task.
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
        mask_rate: ProperFraction = 0.15,
        dropout: Share = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.take_tokenizer(tokenizer, vocab_size)
        self.check_transformer_arguments()
        self.highest_token = self.vocab_size  # the mask
        self.declare_batches(has_mask=False)

        self.make_transformer()
        self.add_log_metrics("loss", Perplexity(name="perplexity"), "accuracy")

    # -- the loss -------------------------------------------------------------

    def call(self, data: Any, training: bool = False) -> tf.Tensor:
        """Logits of each token: [batch, time, vocab_size]."""
        return self._logits(self._hidden(self.read(data)["tokens"]))

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one step on the mean loss of the rows."""
        batch = self.read(data)
        weights = batch.get("sample_weight")
        keys = self.noise_keys(batch["tokens"], random.STREAM_TRAIN)
        with self.recording() as recording:
            terms = self._masked_terms(batch["tokens"], keys, training=True)
        recording.minimize(terms["loss"], weights)
        self.finish_step(batch["tokens"])
        return self.log(terms, training=True, weights=weights)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates without dropout; the masked tokens are always the same ones."""
        batch = self.read(data)
        keys = self.noise_keys(batch["tokens"], random.STREAM_TEST)
        terms = self._masked_terms(batch["tokens"], keys, training=False)
        return self.log(terms, training=False, weights=batch.get("sample_weight"))

    def _masked_terms(self, tokens, keys, training):
        """Loss and accuracy of each row's chosen tokens: [batch]."""
        shown, chosen = self._hide(tokens, keys)
        dropout_keys = random.fold_in(keys, 4) if training and self.dropout else None
        logits = self._logits(self._hidden(shown, dropout_keys))
        targets = tf.clip_by_value(tokens, 0, self.vocab_size - 1)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        right = tf.math.argmax(logits, axis=2, output_type=tf.int32) == targets
        chosen = tf.cast(chosen, tf.float32)
        loss, accuracy = (
            tf.math.divide_no_nan(
                tf.reduce_sum(values * chosen, axis=1), tf.reduce_sum(chosen, axis=1)
            )
            for values in (loss, tf.cast(right, tf.float32))
        )
        return {"loss": loss, "perplexity": loss, "accuracy": accuracy}

    def _hide(self, tokens, keys):
        """Hides or replaces some tokens; returns the new tokens and the chosen ones."""
        choice, fate, other = (
            random.uniform_by_position(random.fold_in(keys, use), tf.shape(tokens)[1])
            for use in (1, 2, 3)
        )
        can_be = (tokens >= 0) & (tokens < self.vocab_size)
        counts = tf.reduce_sum(tf.cast(can_be, tf.float32), axis=1, keepdims=True)
        counts = tf.maximum(tf.round(self.mask_rate * counts), 1.0)
        # The tokens of the lowest noise; special ones and padding come last.
        choice = tf.where(can_be, choice, 2.0)
        last = tf.cast(counts, tf.int32) - 1
        limits = tf.gather(tf.sort(choice, axis=1), last, batch_dims=1)
        chosen = (choice <= limits) & can_be
        drawn = tf.cast(other * self.vocab_size, tf.int32)
        shown = tf.where(fate < HIDDEN, self.vocab_size, tokens)
        shown = tf.where((fate >= HIDDEN) & (fate < HIDDEN + REPLACED), drawn, shown)
        return tf.where(chosen, shown, tokens), chosen

    # -- the network ----------------------------------------------------------

    def _hidden(self, tokens, keys=None):
        """Hidden states of tokens, given the whole row: [batch, time, hidden_dim]."""
        places = tf.range(tf.shape(tokens)[1])[None]
        hidden = apply_dropout(
            self.embedding(tf.maximum(tokens, 0)), keys, self.dropout
        )
        mask = (tokens >= 0)[:, None]
        for index, block in enumerate(self.blocks, start=1):
            block_keys = None if keys is None else random.fold_in(keys, index)
            hidden, _ = block(hidden, places, mask, block_keys)
        return self.norm(hidden)

    def _logits(self, hidden):
        return tied_logits(hidden, self.embedding.embeddings[: self.vocab_size])

    def _log_probabilities(self, tokens):
        return tf.nn.log_softmax(self._logits(self._hidden(tokens)))

    def _embeddings(self, tokens):
        """The mean vector of each row's tokens: float32 [batch, hidden_dim]."""
        hidden = tf.cast(self._hidden(tokens), tf.float32)
        is_token = tf.cast(tokens >= 0, tf.float32)[..., None]
        counts = tf.maximum(tf.reduce_sum(is_token, axis=1), 1.0)
        return tf.reduce_sum(hidden * is_token, axis=1) / counts

    # -- use ------------------------------------------------------------------

    def fill_mask(self, texts: Any, *, k: int = 5) -> Any:
        """Predicts the token at each mask.

        Args:
            texts: A text or a list of texts, with one "[MASK]" or more in each; or
                lists of tokens, with one `vocab_size` or more.
            k: Number of predictions for each mask.

        Returns:
            For each text a list with an item for each mask: the k likeliest tokens, a
            `Prediction` each, the likeliest first.

        Raises:
            ValueError: A text has no mask, is longer than the context, or holds
                a character the tokenizer does not know.
        """
        if isinstance(texts, str):
            return self.fill_mask([texts], k=k)[0]
        is_whole = isinstance(k, int | np.integer)
        if not is_whole or not 1 <= k <= self.vocab_size:
            raise ValueError(
                f"`k` must be in [1, {self.vocab_size}], the number of tokens. "
                f"Received: k={k}"
            )
        rows = [self._masked_tokens(text) for text in texts]
        outputs = self.run("fill", tokens=padded(rows))["log_probabilities"]
        return [
            [
                self._best(log_probs[at], k)
                for at in np.flatnonzero(row == self.vocab_size)
            ]
            for log_probs, row in zip(outputs, rows, strict=True)
        ]

    def _best(self, log_probs, k):
        """The k likeliest tokens at a position, as predictions."""
        best = np.argsort(-log_probs, kind="stable")[:k]
        texts = [
            None if self.tokenizer is None else self.tokenizer.decode([i]) for i in best
        ]
        probabilities = np.exp(log_probs[best]).tolist()
        return list(map(Prediction, best.tolist(), texts, probabilities))

    def embed(self, texts: Any) -> np.ndarray:
        """The mean vector of each text's tokens: float32 [n, hidden_dim].

        Args:
            texts: A text, which gives [hidden_dim], or a list of texts, or of lists of
                tokens; none is empty.

        Raises:
            ValueError: A text is empty, longer than the context, or holds what the
                tokenizer does not know.
        """
        if isinstance(texts, str):
            return self.embed([texts])[0]
        rows = [
            self._checked(self.encode(text) if isinstance(text, str) else text)
            for text in texts
        ]
        return self.run("embed", tokens=padded(rows))["embeddings"]

    def _masked_tokens(self, text):
        if not isinstance(text, str):
            row = self._checked(text)
            if not (row == self.vocab_size).any():
                raise ValueError(
                    f"A row must have the mask in it, the token {self.vocab_size}. "
                    f"Received: {row.tolist()}"
                )
            return row
        parts = [self.encode(part) for part in text.split(MASK)]
        if len(parts) < 2:
            raise ValueError(f"A text must have {MASK} in it. Received: {text!r}")
        mask = np.array([self.vocab_size], np.int32)
        joined = [piece for part in parts for piece in (part, mask)][:-1]
        return self._checked(np.concatenate(joined))

    def _checked(self, tokens):
        row = self.check_tokens(tokens)
        if len(row) > self.context:
            raise ValueError(
                f"A text must have at most {self.context} tokens, the context. "
                f"Received: {len(row)}. Cut it, or train with a longer context."
            )
        return row

    def signatures(self) -> list[Signature]:
        """Returns `embed`, texts or tokens to vectors; `fill`, tokens to log-probs.

        The mask is the token `vocab_size`. Text in SavedModel, where the tokenizer runs
        in a graph; tokens in ONNX.
        """
        inputs = self.token_inputs(self.context)
        shared: dict[str, Any] = {
            "layers": self.transformer_layers(),
            "examples": (self._example,),
            "files": self.tokenizer_files(),
            "max_rows": ROWS_AT_A_TIME,
        }
        embed = Signature(
            "embed",
            lambda tokens: {"embeddings": self._embeddings(tokens)},
            inputs,
            {"embeddings": "latent"},
            **shared,
        )
        fill = Signature(
            "fill",
            lambda tokens: {"log_probabilities": self._log_probabilities(tokens)},
            inputs,
            {"log_probabilities": "scores"},
            **shared,
        )
        return [*self.text_forms("texts", [embed]), fill]

    def _example(self, num_rows):
        """Rows of several lengths, with masks in them."""
        rng = np.random.default_rng(0)
        lengths = rng.integers(1, self.context + 1, num_rows)[:, None]
        shape = (num_rows, self.context)
        tokens = rng.integers(0, self.vocab_size + 1, shape, np.int32)
        return {"tokens": np.where(np.arange(self.context) < lengths, tokens, -1)}
