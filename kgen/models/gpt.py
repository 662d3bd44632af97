"""GPT: a transformer that writes text, one token after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kgen.data.stop_sequences import streamable_prefix, truncate_at_stop
from kgen.models.shared.batches import check_seeds
from kgen.models.shared.model import GenerativeModel
from kgen.models.shared.signatures import Signature
from kgen.models.shared.text_model import ROWS_AT_A_TIME, TOKENS, TextModelMixin, padded
from kgen.nn import random
from kgen.nn.metrics import Perplexity
from kgen.nn.sampling import DEFAULT_SAMPLING, MAX_TOKENS, next_tokens
from kgen.nn.transformer import apply_dropout, tied_logits

POSITIONS = ("rotary", "learned")
# What the settings of `next_tokens` may be: arguments of `_each`.
RANGES: dict[str, dict[str, Any]] = {
    "temperature": {},
    "top_k": {"dtype": np.int32, "high": 2**31 - 1},
    "top_p": {"high": 1, "above": True},
    "min_p": {"high": 1},
    "repetition_penalty": {"above": True},
}
MAX_CHUNK = 64  # tokens written in one call, ...
STREAM_CHUNK = 8  # ... and where somebody waits for them, or for a stop


@keras.saving.register_keras_serializable(package="kgen")
class GPT(TextModelMixin, GenerativeModel):
    """Language model: the probability of each token, given those before it.

    Args:
        tokenizer: What `config()` of one of `kgen.data`'s tokenizers returns: then the
            model takes and makes text. None: tokens alone.
        vocab_size: Number of tokens; by default the tokenizer's.
        context: How many tokens, at most, a token is predicted from.
        num_layers: Blocks of attention and two dense layers.
        num_heads: Heads of each attention.
        hidden_dim: Length of the vector of a token: `num_heads` times an even number.
        positions: "rotary": texts grow without an end, and each token sees the last
            `context` ones. "learned": texts end where the context does.
        dropout: Share of vectors' elements left out in training, in [0, 1).
        tokens_per_character: Of the training text, for the log `bits_per_character`.

    Shapes:
        tokens: whole numbers [batch, time + 1]: each but the first is predicted from
        those before it; -1 is padding, at the end of a row
        mask: bool [batch, time + 1], which tokens count in the loss; optional

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> model = GPT(tokenizer=CharTokenizer.of_text("to be or not").config())
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
        tokenizer: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        context: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        hidden_dim: int = 128,
        positions: str = "rotary",
        dropout: float = 0.0,
        tokens_per_character: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.take_tokenizer(tokenizer, vocab_size)
        self.context = context
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.positions = positions
        self.dropout = dropout
        self.tokens_per_character = tokens_per_character
        self._check_arguments()
        self.highest_token = self.vocab_size - 1

        self.make_transformer(rotary=self.is_endless)
        self.add_log_metrics(
            keras.metrics.Mean(name="loss"),
            Perplexity(name="perplexity"),
            keras.metrics.Mean(name="bits_per_character"),
        )
        self.built = True

    @property
    def is_endless(self) -> bool:
        """Whether texts may be longer than the context."""
        return self.positions == "rotary"

    # -- the loss -------------------------------------------------------------

    def call(self, data: Any, training: bool = False) -> tf.Tensor:
        """Logits of the token after each: [batch, time, vocab_size]."""
        return self._logits(self.unpack(data)["tokens"])

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one step on the mean loss of the tokens."""
        batch = self.unpack(data)
        keys = self.noise_keys(batch["tokens"], random.STREAM_TRAIN)

        def compute_loss():
            losses, counted = self._token_losses(batch, keys if self.dropout else None)
            total = tf.reduce_sum(losses * counted)
            return tf.math.divide_no_nan(total, tf.reduce_sum(counted)), (
                losses,
                counted,
            )

        losses, counted = self.minimize(compute_loss)
        self.step.assign_add(1)
        return self._log(losses, counted, training=True)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The same without dropout."""
        losses, counted = self._token_losses(self.unpack(data))
        return self._log(losses, counted, training=False)

    def _token_losses(self, batch, keys=None):
        """Nats of each predicted token, and which of them count: [batch, time]."""
        tokens = batch["tokens"]
        targets = tokens[:, 1:]
        counted = targets >= 0
        if "mask" in batch:
            counted &= tf.cast(batch["mask"], tf.bool)[:, 1:]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.maximum(targets, 0), self._logits(tokens[:, :-1], keys)
        )
        return losses, tf.cast(counted, tf.float32)

    def _log(self, losses, counted, training):
        bits = losses * (self.tokens_per_character / math.log(2.0))
        values = {"loss": losses, "perplexity": losses, "bits_per_character": bits}
        return self.log(values, training=training, weights=counted)

    # -- the network ----------------------------------------------------------

    def _logits(self, tokens, keys=None):
        """What follows each token: float32 [batch, time, vocab_size]."""
        places = tf.range(tf.shape(tokens)[1])[None]
        hidden = apply_dropout(self._embed(tokens, places), keys, self.dropout)
        mask = self._sees(places, places)
        for index, block in enumerate(self.blocks, start=1):
            block_keys = None if keys is None else random.fold_in(keys, index)
            hidden, _ = block(hidden, places, mask, block_keys)
        return self._head(hidden)

    def _sees(self, places, others):
        """Which tokens see which: the last `context` ones, [.., places, others]."""
        distances = places[..., None] - others[..., None, :]
        return (distances >= 0) & (distances < self.context)

    def _embed(self, tokens, places):
        hidden = self.embedding(tf.maximum(tokens, 0))
        if not self.is_endless:
            hidden += self.places(tf.minimum(places, self.context - 1))
        return hidden

    def _head(self, hidden):
        return tied_logits(self.norm(hidden), self.embedding.embeddings)

    # -- one token after the other --------------------------------------------

    def _read(self, tokens):
        """Reads prompts: the logits of what follows, and what is kept of the prompts.

        Returns:
            caches: Keys and values of each block, [batch, heads, context, dim]; a token
                at place p is in slot p % context.
            logits: float32 [batch, vocab_size].
            places: The place of the next token, int32 [batch].
            held: Which tokens the prompt holds, bool [batch, vocab_size].
        """
        held = self._holds(tokens)
        tokens, lengths = self._within_reach(tokens)
        places = tf.range(tf.shape(tokens)[1])[None]
        hidden = self._embed(tokens, places)
        mask = self._sees(places, places)
        # For each slot the last place that falls into it, as far as there is one.
        slots, last = tf.range(self.context)[None], lengths[:, None] - 1
        kept = slots + (last - slots) // self.context * self.context
        kept = tf.clip_by_value(kept, 0, tf.shape(tokens)[1] - 1)
        caches = []
        for block in self.blocks:
            hidden, seen = block(hidden, places, mask)
            caches += [tf.gather(one, kept, axis=2, batch_dims=1) for one in seen]
        hidden = tf.gather(hidden, lengths - 1, batch_dims=1)
        return tuple(caches), self._head(hidden), lengths, held

    def _within_reach(self, tokens):
        """The ends of rows, and their lengths: nothing depends on what was before.

        Each block sees `context` tokens, the last of which have seen as many before.
        """
        lengths = tf.reduce_sum(tf.cast(tokens >= 0, tf.int32), axis=1)
        reach = self.num_layers * (self.context - 1) + 1
        longest = tf.shape(tokens)[1]
        begins = tf.maximum(lengths - reach, 0)[:, None]
        places = begins + tf.range(tf.minimum(longest, reach))[None]
        places = tf.minimum(places, longest - 1)
        return tf.gather(tokens, places, batch_dims=1), tf.minimum(lengths, reach)

    def _holds(self, tokens):
        """Which tokens each row holds: bool [batch, vocab_size]."""
        num_rows = tf.shape(tokens)[0]
        rows = tf.range(num_rows)[:, None] + tf.zeros_like(tokens)
        known = tf.where(tokens < 0, self.vocab_size, tokens)  # A column for padding.
        held = tf.tensor_scatter_nd_update(
            tf.zeros([num_rows, self.vocab_size + 1], tf.int32),
            tf.stack([rows, known], axis=2),
            tf.ones_like(tokens),
        )
        return held[:, : self.vocab_size] > 0

    def _extend(self, caches, tokens, places):
        """Appends a token to each row: the caches, and the logits of what follows."""
        shape = [tf.shape(places)[0], self.num_heads]
        here = tf.stack(  # row, head and slot of what is new
            [
                tf.broadcast_to(tf.range(shape[0])[:, None], shape),
                tf.broadcast_to(tf.range(shape[1])[None], shape),
                tf.broadcast_to((places % self.context)[:, None], shape),
            ],
            axis=2,
        )
        places = places[:, None]
        slots = tf.range(self.context)[None]
        mask = ((slots <= places) | (places >= self.context))[:, None]
        hidden = self._embed(tokens[:, None], places)
        extended = []
        for index, block in enumerate(self.blocks):
            old = caches[2 * index : 2 * index + 2]

            def remember(*new, old=old):
                return [
                    tf.tensor_scatter_nd_update(b, here, a[:, :, 0])
                    for a, b in zip(new, old, strict=True)
                ]

            hidden, seen = block(hidden, places, mask, remember=remember)
            extended += seen
        return tuple(extended), self._head(hidden[:, 0])

    def _write(self, caches, logits, places, held, seeds, done, limits, settings, most):
        """Writes tokens to each row up to its limit, at most `most` of them.

        Args:
            caches: As `_read` and this return it, like the next three.
            logits: Likewise.
            places: Likewise.
            held: Likewise.
            seeds: int64 [batch].
            done: How many tokens of each row were generated before, int32 [batch].
            limits: How many it has in the end, int32 [batch].
            settings: Those of `next_tokens`.
            most: A scalar; for XLA no tensor.

        Returns:
            Tokens, int32 [batch, most], -1 where a row was at its limit, and how far
            each was ahead of the second best, float32; and the first four arguments as
            they are now.
        """
        columns = tf.range(most)[None]
        noise_keys = random.keys(seeds, random.STREAM_GENERATE)

        def write(column, written, caches, logits, places, held):
            keys = random.fold_in(noise_keys, done + column)
            tokens, margins = next_tokens(logits, held, keys, settings)
            going = done + column < limits
            tokens = tf.where(going, tokens, -1)
            margins = tf.where(going, margins, math.inf)
            is_here = columns == column
            written = (
                tf.where(is_here, tokens[:, None], written[0]),
                tf.where(is_here, margins[:, None], written[1]),
            )
            held |= self._holds(tokens[:, None])
            caches, logits = self._extend(caches, tokens, places)
            return column + 1, written, caches, logits, places + 1, held

        shape = [tf.shape(logits)[0], most]
        written = (tf.fill(shape, -1), tf.fill(shape, math.inf))
        _, *state = tf.while_loop(
            lambda column, *_: tf.reduce_any(done + column < limits),
            write,
            (0, written, caches, logits, places, held),
            maximum_iterations=2**31 - 1,  # a constant: ONNX has no loop without one
        )
        return tuple(state)

    def _search(self, tokens, limits, num_beams, most):
        """Writes the likeliest texts that a beam search finds: int32 [batch, most]."""
        caches, logits, places, _ = self._read(tokens)
        num_rows, hidden_dim = tf.shape(tokens)[0], self.vocab_size
        caches, logits, places = tf.nest.map_structure(
            lambda one: tf.repeat(one, num_beams, axis=0), (caches, logits, places)
        )
        first = tf.range(num_rows)[:, None] * num_beams  # of the beams of each row
        beams = tf.range(num_beams)[None]

        def extend(column, written, scores, caches, logits, places):
            log_probs = tf.reshape(
                tf.nn.log_softmax(logits), [num_rows, -1, hidden_dim]
            )
            totals = tf.reshape(scores[..., None] + log_probs, [num_rows, -1])
            totals, best = tf.math.top_k(totals, num_beams)
            going = (column < limits)[:, None]
            tokens = tf.where(going, best % hidden_dim, -1)
            parents = tf.where(going, best // hidden_dim, beams)
            scores = tf.where(going, totals, scores)
            order = tf.reshape(first + parents, [-1])
            written = tf.gather(written, parents, batch_dims=1)
            written = tf.where(tf.range(most) == column, tokens[..., None], written)
            caches = tuple(tf.gather(one, order) for one in caches)
            caches, logits = self._extend(caches, tf.reshape(tokens, [-1]), places)
            return column + 1, written, scores, caches, logits, places + 1

        written = tf.fill([num_rows, num_beams, most], -1)
        # All beams begin alike: but for one, they are left out of the first choice.
        scores = tf.where(beams == 0, 0.0, -1e9) + tf.zeros([num_rows, 1])
        _, written, *_ = tf.while_loop(
            lambda column, *_: column < most,
            extend,
            (0, written, scores, caches, logits, places),
        )
        return written[:, 0]

    # -- use ------------------------------------------------------------------

    def generate(
        self,
        prompts: Any,
        *,
        max_new_tokens: Any = 100,
        seeds: Any = 0,
        stop: str | Sequence[str] = (),
        num_beams: int = 1,
        **settings: Any,
    ) -> Any:
        """Writes what follows; each row depends on its prompt, seed and settings alone.

        After `compile(jit_compile=True)` XLA compiles the loop, once for every number
        of rows, rounded up to a power of two: seconds, and several times the speed.

        Args:
            prompts: A text or a list of texts; or tokens, a list for each row. None is
                empty. With "rotary" positions they may be of any length: as of all
                text, the last `context` tokens are seen of them.
            max_new_tokens: How many tokens to write, 1 or more: a number, or one for
                each row, as all settings.
            seeds: Whole numbers, one for each row, that the noise follows from. A
                single one is that of the first row, and the next rows have the next.
            stop: Texts before which a row ends.
            num_beams: More than 1: the likeliest text that a search with so many beams
                finds, without noise and settings.
            **settings: `temperature` (default 1; 0: always the likeliest token),
                `top_k` (0: all), `top_p` (1), `min_p` (0), `repetition_penalty` (1):
                see `kgen.nn.sampling.next_tokens`.

        Returns:
            What follows the prompts, and not these: a text for a text, a list of texts
            for a list, an int32 array of each row's tokens for tokens.

        Raises:
            ValueError: An argument is out of its range, or a prompt is empty or, for
                "learned" positions, longer with its text than the context.
        """
        rows, is_text = self._prompts(prompts)
        stops = self._stops(stop)
        limits, seeds, knobs = self._settings(rows, max_new_tokens, seeds, settings)
        self._check_beams(num_beams, settings)
        written: list[np.ndarray] = []
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            part = slice(start, start + ROWS_AT_A_TIME)
            if num_beams > 1:
                written += self._searched(rows[part], limits[part], num_beams)
                continue
            part_knobs = {name: value[part] for name, value in knobs.items()}
            *_, tokens = self._written(
                rows[part], limits[part], seeds[part], part_knobs, stops
            )
            written += tokens
        if not is_text:
            return written
        texts = [
            truncate_at_stop(self.text.decode(tokens), stops) for tokens in written
        ]
        return texts[0] if isinstance(prompts, str) else texts

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 100,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        **settings: float,
    ) -> Iterator[str]:
        """Yields the pieces of what `generate` returns for a text, as they are written.

        Args:
            prompt: A text.
            max_new_tokens: As in `generate`, like all others.
            seed: That of the one row.
            stop: Texts before which it ends.
            **settings: The other settings.

        Raises:
            ValueError: As `generate`.
        """
        if self.text is None or not isinstance(prompt, str):
            raise TypeError(
                "`stream` goes on from one text, of a model with a tokenizer. "
                f"Received: {type(prompt).__name__}. `generate` takes lists and tokens."
            )
        rows, _ = self._prompts([prompt])
        stops = self._stops(stop)
        limits, seeds, knobs = self._settings(rows, max_new_tokens, seed, settings)
        shown = 0
        for (tokens,) in self._written(rows, limits, seeds, knobs, stops, STREAM_CHUNK):
            whole = self.text.decode(tokens)
            text = streamable_prefix(whole, stops, is_whole=len(tokens) == limits[0])
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)

    def score(self, texts: Any) -> np.ndarray:
        """The log-likelihood of each text, given its first token: float64 [n], in nats.

        The memory it takes grows with the square of the longest text.

        Args:
            texts: A list of texts, or of lists of tokens; none is empty.

        Raises:
            ValueError: A text is empty, holds what the tokenizer does not know, or, for
                "learned" positions, does not fit the context.
        """
        rows, _ = self._prompts(texts)
        longest = max(map(len, rows), default=0)
        if not self.is_endless and longest > self.context + 1:
            raise ValueError(
                "With learned positions a text must have at most context + 1 tokens, "
                f"{self.context + 1}. Received: {longest}. Cut it, or train with "
                "positions='rotary'."
            )
        graph = self.graph("score", self._log_likelihoods, tokens=TOKENS)
        parts = [rows[start : start + 16] for start in range(0, len(rows), 16)]
        scores = [graph(tokens=padded(part)).numpy() for part in parts]
        return np.concatenate([np.zeros(0), *scores])

    def _log_likelihoods(self, tokens):
        losses, counted = self._token_losses({"tokens": tokens})
        return -tf.reduce_sum(losses * counted, axis=1)

    def _prompts(self, prompts):
        """Tokens of each row, int32, and whether they were texts."""
        if isinstance(prompts, str):
            prompts = [prompts]
        prompts = list(prompts)
        is_text = any(isinstance(prompt, str) for prompt in prompts)
        rows = [
            self.check_tokens(self.encode(one) if is_text else one) for one in prompts
        ]
        return rows, is_text

    def _stops(self, stop):
        stops = [stop] if isinstance(stop, str) else list(stop)
        if stops and self.text is None:
            raise ValueError(f"`stop` needs a tokenizer. Received: stop={stop!r}")
        for text in stops:
            if not text:
                raise ValueError(f"`stop` must not be empty. Received: stop={stop!r}")
            self.text.encode(text)  # Refuses what can never be written.
        return stops

    def _settings(self, rows, max_new_tokens, seeds, settings):
        """Limits, seeds and settings: an array of each, with a value for each row."""
        unknown = sorted(settings.keys() - DEFAULT_SAMPLING.keys())
        if unknown:
            raise ValueError(
                f"Settings are {', '.join(DEFAULT_SAMPLING)}. "
                f"Received: {', '.join(unknown)}."
            )
        n = len(rows)
        limits = _each("max_new_tokens", max_new_tokens, n, np.int32, 1, 2**31 - 1)
        seeds = check_seeds(seeds)
        if len(seeds) == 1:
            seeds = seeds + np.arange(n)
        if len(seeds) != n:
            raise ValueError(
                f"`seeds` must be a number, or {n}, one for each row. Received: "
                f"{len(seeds)}."
            )
        values = DEFAULT_SAMPLING | settings
        knobs = {
            name: _each(name, values[name], n, **limits_)
            for name, limits_ in RANGES.items()
        }
        longest = max(
            (len(r) + limit for r, limit in zip(rows, limits, strict=True)), default=0
        )
        if not self.is_endless and longest > self.context:
            raise ValueError(
                "With learned positions a prompt and its text must fit the context of "
                f"{self.context} tokens. Received: {longest} of both together. Shorten "
                "the prompt, lower max_new_tokens, or train with positions='rotary'."
            )
        return limits, seeds, knobs

    def _check_beams(self, num_beams, settings):
        is_whole = isinstance(num_beams, int | np.integer)
        if not is_whole or not 1 <= num_beams <= self.vocab_size:
            raise ValueError(
                f"`num_beams` must be in [1, {self.vocab_size}], the number of tokens. "
                f"Received: num_beams={num_beams}"
            )
        if num_beams > 1 and settings:
            raise ValueError(
                "A beam search has no noise, and so no settings of it. Received: "
                f"num_beams={num_beams} and {', '.join(settings)}."
            )

    def _written(self, rows, limits, seeds, knobs, stops, piece=None):
        """Yields all that each row has so far, again and again until all have ended."""
        cache = tf.TensorSpec(
            [None, self.num_heads, self.context, self.hidden_dim // self.num_heads],
            self.compute_dtype,
        )
        state = {
            "caches": (cache,) * (2 * self.num_layers),
            "logits": tf.TensorSpec([None, self.vocab_size], tf.float32),
            "places": tf.TensorSpec([None], tf.int32),
            "held": tf.TensorSpec([None, self.vocab_size], tf.bool),
        }
        read = self.graph("read", self._read, tokens=TOKENS)
        write = self.graph(
            "write",
            lambda **values: self._write(**values, most=MAX_CHUNK),
            jit_compile=self.jit_compile,
            **state,
            seeds=tf.TensorSpec([None], tf.int64),
            done=tf.TensorSpec([None], tf.int32),
            limits=tf.TensorSpec([None], tf.int32),
            settings={
                name: tf.TensorSpec([None], value.dtype)
                for name, value in knobs.items()
            },
        )
        num_rows = len(rows)
        if self.jit_compile:
            # XLA compiles anew for each number of rows: let there be few numbers.
            spare = (0, 2 ** math.ceil(math.log2(num_rows)) - num_rows)
            rows = rows + rows[:1] * spare[1]
            limits = np.pad(limits, spare)
            seeds = np.pad(seeds, spare)
            knobs = {name: np.pad(value, spare) for name, value in knobs.items()}
        limits, done = limits.copy(), 0
        values = read(tokens=padded(rows))
        tokens = np.zeros((num_rows, 0), np.int32)
        step = piece or (STREAM_CHUNK if stops else MAX_CHUNK)
        while done < max(limits):
            most = min(step, max(limits) - done)
            (new, _), *values = write(
                **dict(zip(state, values, strict=True)),
                seeds=tf.constant(seeds),
                done=tf.fill([len(rows)], done),
                limits=tf.constant(np.minimum(limits, done + most)),
                settings={name: tf.constant(value) for name, value in knobs.items()},
            )
            done += int(most)
            tokens = np.concatenate([tokens, new.numpy()[:num_rows, :most]], axis=1)
            found = [row[row >= 0] for row in tokens]
            for index, row in enumerate(found):
                text = self.text.decode(row) if stops else ""
                if truncate_at_stop(text, stops) != text:
                    limits[index] = 0  # Nothing more of it is wanted.
            yield found

    def _searched(self, rows, limits, num_beams):
        graph = self.graph(
            f"search/{num_beams}",
            lambda tokens, limits, most: self._search(tokens, limits, num_beams, most),
            tokens=TOKENS,
            limits=tf.TensorSpec([None], tf.int32),
            most=tf.TensorSpec([], tf.int32),
        )
        found = graph(
            tokens=padded(rows),
            limits=tf.constant(limits),
            most=tf.constant(max(limits)),
        ).numpy()
        return [row[row >= 0] for row in found]

    def signatures(self) -> list[Signature]:
        """`generate`: a prompt in, what follows it out. `read`, `write`: in pieces.

        Prompts are text in SavedModel where the tokenizer runs in a graph, and else
        tokens. Knobs are inputs, one value for each row. With "learned" positions a
        text ends where the context does.

        `read` turns prompts into a state; `write` takes it and returns the next tokens,
        -1 after the last, whether there is more to write, and the state then, else
        zeros: so a server sends text as it is written, of many prompts at once.
        """
        networks = [self.embedding, *self.blocks, self.norm]
        if not self.is_endless:
            networks.append(self.places)
        knobs = {
            "seeds": tf.TensorSpec([None], tf.int64),
            "max_new_tokens": tf.TensorSpec([None], tf.int32),
            **{
                name: tf.TensorSpec([None], tf.int32 if name == "top_k" else tf.float32)
                for name in DEFAULT_SAMPLING
            },
        }
        takes_text = self.text is not None and self.text.in_graph
        prompt = (
            {"prompts": tf.TensorSpec([None], tf.string)}
            if takes_text
            else {"tokens": TOKENS}
        )

        def write_all(tokens, seeds, max_new_tokens, **settings):
            caches, logits, places, held = self._read(tokens)
            done = tf.zeros_like(max_new_tokens)
            limits = self._limits(max_new_tokens, done, places)
            most = tf.maximum(tf.reduce_max(limits), 0)  # There may be no rows.
            state = (caches, logits, places, held)
            written, *_ = self._write(*state, seeds, done, limits, settings, most)
            return written

        def write_checked(**values):
            given = {name: values.pop(name) for name in prompt}
            return write_all(self._checked_tokens(**given), **_checked(values))

        def generate(**values):
            written, _ = write_checked(**values)
            if takes_text:
                return {"text": self.text.decode_ids(written)}
            return {"generated": written}

        def read(**given):
            return _packed(self._read(self._checked_tokens(**given)))

        def write_next(caches, logits, places, held, seeds, written, **values):
            knobs = _checked(values)
            limits = self._limits(knobs.pop("max_new_tokens"), written, places)
            state = (tuple(tf.unstack(caches, axis=1)), logits, places, held)
            here = tf.minimum(limits, written + STREAM_CHUNK)
            tokens, *state = self._write(
                *state, seeds, written, here, knobs, STREAM_CHUNK
            )
            going = written + STREAM_CHUNK < limits
            return tokens, {"going": going, **_packed(state, going)}

        def write(**values):
            (tokens, _), state = write_next(**values)
            return {"tokens": tokens, **state}

        def example_of_prompts(num_rows):
            values = self._example(num_rows)
            if takes_text:
                rows = values.pop("tokens")
                values["prompts"] = [self.text.decode(row) for row in rows]
            return values

        def example_to_read(num_rows):
            values = example_of_prompts(num_rows)
            return {name: values[name] for name in prompt}

        def example_to_write(num_rows):
            values = self._example(num_rows)
            state = _packed(self._read(tf.constant(values.pop("tokens"))))
            state = {name: value.numpy() for name, value in state.items()}
            written = np.arange(num_rows, dtype=np.int32) % 5
            return {**state, "written": written, **values}

        cache = [None, 2 * self.num_layers, self.num_heads, self.context]
        state = {
            "caches": tf.TensorSpec(
                [*cache, self.hidden_dim // self.num_heads], tf.float32
            ),
            "logits": tf.TensorSpec([None, self.vocab_size], tf.float32),
            "places": tf.TensorSpec([None], tf.int32),
            "held": tf.TensorSpec([None, self.vocab_size], tf.bool),
        }
        kinds = dict.fromkeys(state, "state")
        written = {"written": tf.TensorSpec([None], tf.int32)}
        shared: dict[str, Any] = {
            "layers": tuple(networks),
            "runtimes": ("saved_model",),
            "files": self.files_of_tokens(),
        }
        pieces = shared | {"tolerance": 1e-4, "proof_rows": 8}
        return [
            Signature(
                "generate",
                generate,
                prompt | knobs,
                {"text": "text"} if takes_text else {"generated": "tokens"},
                example=example_of_prompts,
                margins=lambda **values: write_checked(**values)[1],
                **shared,
            ),
            Signature("read", read, prompt, kinds, example=example_to_read, **pieces),
            Signature(
                "write",
                write,
                state | written | knobs,
                {"tokens": "tokens", "going": "state"} | kinds,
                example=example_to_write,
                margins=lambda **values: write_next(**values)[0][1],
                **pieces,
            ),
            Signature(
                "generate",
                lambda **values: {"generated": write_all(**values)[0]},
                {"tokens": TOKENS} | knobs,
                {"generated": "tokens"},
                example=self._example,
                margins=lambda **values: write_all(**values)[1],
                **shared | {"runtimes": ("onnx",)},
            ),
        ]

    def _example(self, num_rows):
        """Rows of any length, with settings of all kinds."""
        rng, rows = np.random.default_rng(0), np.arange(num_rows)
        half = max(self.context // 2, 1)
        most = min(half, STREAM_CHUNK + 4)
        lengths = np.where(rows == 0, 1, rng.integers(1, 1 + half, num_rows))
        longest = max(lengths, default=1)
        tokens = rng.integers(0, self.vocab_size, (num_rows, longest), np.int32)
        # The first row has the most, so that all batches are as wide.
        limits = np.where(rows == 0, most, rng.integers(1, most + 1, num_rows))
        return {
            "tokens": np.where(np.arange(longest) < lengths[:, None], tokens, -1),
            "seeds": rows,
            "max_new_tokens": limits.astype(np.int32),
            "temperature": np.array([0, 0.7, 1], np.float32)[rows % 3],
            "top_k": np.array([0, 5], np.int32)[rows % 2],
            "top_p": np.array([1, 0.9], np.float32)[rows // 2 % 2],
            "min_p": np.array([0, 0.02], np.float32)[rows // 4 % 2],
            "repetition_penalty": np.array([1, 1.2], np.float32)[rows // 8 % 2],
        }

    def _limits(self, max_new_tokens, done, places):
        """How many tokens each row has in the end, int32 [batch]."""
        if self.is_endless:
            return max_new_tokens
        return tf.minimum(max_new_tokens, done + self.context - places)

    def _checked_tokens(self, prompts=None, tokens=None):
        """The tokens of a request: nothing is made of those that are wrong."""
        name, least = "`tokens`", "token"
        if prompts is not None:
            name, least = "`prompts`", "character"
            tokens = self.text.encode_strings(prompts).to_tensor(-1)
        lengths = tf.reduce_sum(tf.cast(tokens >= 0, tf.int32), axis=1)
        checks = {
            f"{name} must hold a {least} at least, such as a new line.": lengths > 0,
            f"{name} must be below {self.vocab_size}.": tokens < self.vocab_size,
        }
        if not self.is_endless:
            message = f"{name} must have fewer than {self.context} tokens."
            checks[message] = lengths < self.context
        asserts = [
            tf.debugging.Assert(tf.reduce_all(fits), [message])
            for message, fits in checks.items()
        ]
        with tf.control_dependencies(asserts):
            return tf.identity(tokens)

    def _check_arguments(self) -> None:
        self.check_transformer_arguments()
        known = self.positions in POSITIONS
        self.check_argument("positions", known, f"be one of {POSITIONS}")
        enough = self.is_endless or self.context >= 2
        self.check_argument("context", enough, "be 2 or more with learned positions")
        self.check_argument(
            "tokens_per_character", self.tokens_per_character > 0, "be above 0"
        )


def _packed(state: Any, going: Any = None) -> dict[str, tf.Tensor]:
    """What `_read` and `_write` keep of rows; zeros where they do not go on."""
    caches, *others = state
    values = (tf.stack(caches, axis=1), *others)
    packed = dict(zip(("caches", "logits", "places", "held"), values, strict=True))
    if going is None:
        return packed
    return {
        name: tf.where(
            tf.reshape(going, [-1, *[1] * (value.shape.rank - 1)]),
            value,
            tf.zeros_like(value),
        )
        for name, value in packed.items()
    }


def _checked(values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The settings of a request: nothing is made of those out of their ranges."""
    ranges = {"max_new_tokens": {"low": 1, "high": MAX_TOKENS}, **RANGES}
    asserts = []
    for name, limits in ranges.items():
        low, high = limits.get("low", 0), limits.get("high", math.inf)
        value = tf.cast(values[name], tf.float64)
        from_low = value > low if limits.get("above") else value >= low
        fits = tf.reduce_all(from_low & (value <= high) & tf.math.is_finite(value))
        begin = "above" if limits.get("above") else "from"
        end = "" if high in (math.inf, 2**31 - 1) else f" to {high}"
        message = f"`{name}` must be {begin} {low}{end}."
        asserts.append(tf.debugging.Assert(fits, [message]))
    with tf.control_dependencies(asserts):
        return {name: tf.identity(value) for name, value in values.items()}


def _each(
    name: str,
    values: Any,
    num_rows: int,
    dtype: Any = np.float32,
    low: float = 0,
    high: float = math.inf,
    above: bool = False,
) -> np.ndarray:
    """A value for each row, in its range.

    Raises:
        ValueError: If one is out of it, or there is another number of them.
    """
    array = np.asarray(values)
    whole = dtype != np.int32 or array.dtype.kind in "iu"
    fits = array.ndim == 0 or array.shape == (num_rows,)
    inside = fits and whole and array.dtype.kind in "iuf"
    if inside and dtype == np.float32:
        with np.errstate(over="ignore"):
            array = array.astype(dtype)  # What is too small for it is 0.
    inside = inside and bool(np.isfinite(array).all())
    if inside:
        above_low = array > low if above else array >= low
        inside = bool((above_low & (array <= high)).all())
    if not inside:
        kind = "a number" if dtype != np.int32 else "a whole number"
        begin = "above" if above else "from"
        end = "" if high == math.inf else f" to {high}"
        raise ValueError(
            f"`{name}` must be {kind} {begin} {low}{end}, or one for each of the "
            f"{num_rows} rows. Received: {name}={values!r}"
        )
    return np.broadcast_to(array.astype(dtype), (num_rows,))
