"""Text generation: prefill, decoding in chunks, sampling, beam search, streaming."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kgen.data.stop_sequences import streamable_prefix, truncate_at_stop
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import InputSpec, StateSpec, TextSpec, TokenSpec
from kgen.models.shared.text_model import ROWS_AT_A_TIME, TOKENS, padded
from kgen.nn import random
from kgen.nn.sampling import DEFAULT_SAMPLING, MAX_TOKENS, next_tokens

SAMPLING: dict[str, InputSpec] = {
    "temperature": InputSpec(low=0),
    "top_k": InputSpec(dtype="int32", low=0),
    "top_p": InputSpec(low=0, high=1, above=True),
    "min_p": InputSpec(low=0, high=1),
    "repetition_penalty": InputSpec(low=0, above=True),
}
SEEDS = InputSpec(dtype="int64")
MAX_NEW_TOKENS = InputSpec(dtype="int32", low=1, high=MAX_TOKENS)
CHUNK = 64  # tokens of one call of the decoding loop
STREAM_CHUNK = 8  # tokens of one call with a waiting client, or with stop sequences


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


class TextGenerationMixin:
    """Generation for a `TextModelMixin` that defines `prefill` and `decode_step`.

    `prefill(tokens)` runs the network over prompts and returns a `DecodingState`.
    `decode_step(cache, tokens, positions)` appends a token to each row and returns the
    KV cache and the logits of the next token. `is_endless`: whether texts may be longer
    than the context.
    """

    text: Any
    vocab_size: Any
    context: int
    hidden_dim: int
    num_heads: int
    num_layers: int
    is_endless: Any
    jit_compile: bool
    compute_dtype: Any
    prefill: Any
    decode_step: Any
    graph: Any
    check_tokens: Any
    encode: Any
    tokenizer_files: Any
    transformer_layers: Any

    # -- the decoding loop ----------------------------------------------------

    def multi_hot_tokens(self, tokens):
        """The tokens that each row holds: bool [batch, vocab_size]."""
        num_rows = tf.shape(tokens)[0]
        rows = tf.range(num_rows)[:, None] + tf.zeros_like(tokens)
        columns = tf.where(tokens < 0, self.vocab_size, tokens)  # one for the padding
        counts = tf.tensor_scatter_nd_update(
            tf.zeros([num_rows, self.vocab_size + 1], tf.int32),
            tf.stack([rows, columns], axis=2),
            tf.ones_like(tokens),
        )
        return counts[:, : self.vocab_size] > 0

    def _decode(self, state, seeds, num_generated, max_tokens, sampling, chunk):
        """Generates up to `chunk` tokens for each row, and at most `max_tokens` in all.

        Args:
            state: A `DecodingState`.
            seeds: int64 [batch].
            num_generated: Tokens generated for each row before, int32 [batch].
            max_tokens: Tokens to generate for each row in all, int32 [batch].
            sampling: Sampling parameters: see `next_tokens`.
            chunk: A scalar; for XLA no tensor.

        Returns:
            Tokens, int32 [batch, chunk], -1 after the last of a row; their margins over
            the second-best candidates, float32; and the next state.
        """
        columns = tf.range(chunk)[None]
        noise_keys = random.keys(seeds, random.STREAM_GENERATE)

        def step(column, tokens, margins, state):
            keys = random.fold_in(noise_keys, num_generated + column)
            new, margin = next_tokens(state.logits, state.seen_tokens, keys, sampling)
            active = num_generated + column < max_tokens
            new = tf.where(active, new, -1)
            margin = tf.where(active, margin, math.inf)
            is_here = columns == column
            tokens = tf.where(is_here, new[:, None], tokens)
            margins = tf.where(is_here, margin[:, None], margins)
            seen_tokens = state.seen_tokens | self.multi_hot_tokens(new[:, None])
            cache, logits = self.decode_step(state.cache, new, state.positions)
            state = DecodingState(cache, logits, state.positions + 1, seen_tokens)
            return column + 1, tokens, margins, state

        shape = [tf.shape(state.logits)[0], chunk]
        _, tokens, margins, state = tf.while_loop(
            lambda column, *_: tf.reduce_any(num_generated + column < max_tokens),
            step,
            (0, tf.fill(shape, -1), tf.fill(shape, math.inf), state),
            maximum_iterations=2**31 - 1,  # a constant: ONNX has no loop without one
        )
        return tokens, margins, state

    def _beam_search(self, tokens, max_tokens, chunk, num_beams):
        """The likeliest continuations of a beam search: int32 [batch, chunk]."""
        state = self.prefill(tokens)
        num_rows, vocab_size = tf.shape(tokens)[0], self.vocab_size
        cache, logits, positions = tf.nest.map_structure(
            lambda one: tf.repeat(one, num_beams, axis=0), state[:3]
        )
        first = tf.range(num_rows)[:, None] * num_beams  # of the beams of each row
        beams = tf.range(num_beams)[None]

        def step(column, found, scores, cache, logits, positions):
            log_probs = tf.nn.log_softmax(logits)
            log_probs = tf.reshape(log_probs, [num_rows, -1, vocab_size])
            totals = tf.reshape(scores[..., None] + log_probs, [num_rows, -1])
            totals, best = tf.math.top_k(totals, num_beams)
            active = (column < max_tokens)[:, None]
            tokens = tf.where(active, best % vocab_size, -1)
            parents = tf.where(active, best // vocab_size, beams)
            scores = tf.where(active, totals, scores)
            order = tf.reshape(first + parents, [-1])
            found = tf.gather(found, parents, batch_dims=1)
            found = tf.where(tf.range(chunk) == column, tokens[..., None], found)
            cache = tuple(tf.gather(one, order) for one in cache)
            cache, logits = self.decode_step(cache, tf.reshape(tokens, [-1]), positions)
            return column + 1, found, scores, cache, logits, positions + 1

        found = tf.fill([num_rows, num_beams, chunk], -1)
        # All beams are equal at first: only one takes part in the first choice.
        scores = tf.where(beams == 0, 0.0, -1e9) + tf.zeros([num_rows, 1])
        _, found, *_ = tf.while_loop(
            lambda column, *_: column < chunk,
            step,
            (0, found, scores, cache, logits, positions),
        )
        return found[:, 0]

    # -- use ------------------------------------------------------------------

    def generate(
        self,
        prompts: Any,
        *,
        max_new_tokens: Any = 100,
        seeds: Any = 0,
        stop: str | Sequence[str] = (),
        num_beams: int = 1,
        **sampling: Any,
    ) -> Any:
        """Continues prompts; each row depends on its own prompt, seed and parameters.

        After `compile(jit_compile=True)` XLA compiles the loop, once for every number
        of rows, rounded up to a power of two: seconds, and several times the speed.

        Args:
            prompts: A text or a list of texts; or tokens, a list for each row. None is
                empty. With "rotary" positions they may be of any length: the last
                `context` tokens are attended to.
            max_new_tokens: Tokens to generate, 1 or more: a number, or one for each
                row, as for all sampling parameters.
            seeds: Integers, one for each row, that the noise follows from. A single one
                is that of the first row, and the next rows have the next integers.
            stop: Stop sequences: a row ends before the first of them.
            num_beams: Above 1: the likeliest text that a beam search finds, without
                noise and sampling parameters.
            **sampling: `temperature` (default 1; 0: always the likeliest token),
                `top_k` (0: all), `top_p` (1), `min_p` (0), `repetition_penalty` (1):
                see `kgen.nn.sampling.next_tokens`.

        Returns:
            The continuations without the prompts: a text for a text, a list of texts
            for a list, an int32 array of each row's tokens for tokens.

        Raises:
            ValueError: An argument is out of its range, or a prompt is empty or, for
                "learned" positions, longer with its continuation than the context.
        """
        rows, is_text = self.tokens_of(prompts)
        stops = self._stop_sequences(stop)
        arrays = self._parameters(rows, max_new_tokens, seeds, sampling)
        self._check_beams(num_beams, sampling)
        generated: list[np.ndarray] = []
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            part = slice(start, start + ROWS_AT_A_TIME)
            some = {name: values[part] for name, values in arrays.items()}
            if num_beams > 1:
                generated += self._search(rows[part], some["max_new_tokens"], num_beams)
            else:
                *_, tokens = self._chunks(rows[part], some, stops)
                generated += tokens
        if not is_text:
            return generated
        texts = [truncate_at_stop(self.text.decode(row), stops) for row in generated]
        return texts[0] if isinstance(prompts, str) else texts

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 100,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        **sampling: float,
    ) -> Iterator[str]:
        """Yields the text that `generate` returns for a prompt, piece by piece.

        Args:
            prompt: A text.
            max_new_tokens: As in `generate`, like all others.
            seed: Seed of the one row.
            stop: Stop sequences.
            **sampling: Sampling parameters.

        Raises:
            ValueError: As `generate`.
        """
        if self.text is None or not isinstance(prompt, str):
            raise TypeError(
                "`stream` continues one text, with a model that has a tokenizer. "
                f"Received: {type(prompt).__name__}. `generate` takes lists and tokens."
            )
        rows, _ = self.tokens_of([prompt])
        stops = self._stop_sequences(stop)
        arrays = self._parameters(rows, max_new_tokens, seed, sampling)
        [max_tokens], num_shown = arrays["max_new_tokens"], 0
        for (tokens,) in self._chunks(rows, arrays, stops, STREAM_CHUNK):
            is_whole = len(tokens) == max_tokens
            text = streamable_prefix(self.text.decode(tokens), stops, is_whole=is_whole)
            if len(text) > num_shown:
                yield text[num_shown:]
                num_shown = len(text)

    def tokens_of(self, prompts: Any) -> tuple[list[np.ndarray], bool]:
        """Returns the tokens of each prompt, int32, and whether prompts are texts."""
        if isinstance(prompts, str):
            prompts = [prompts]
        prompts = list(prompts)
        is_text = any(isinstance(prompt, str) for prompt in prompts)
        rows = [
            self.check_tokens(self.encode(one) if is_text else one) for one in prompts
        ]
        return rows, is_text

    def _stop_sequences(self, stop):
        stops = [stop] if isinstance(stop, str) else list(stop)
        if stops and self.text is None:
            raise ValueError(f"`stop` needs a tokenizer. Received: stop={stop!r}")
        for text in stops:
            if not text:
                raise ValueError(f"`stop` must not be empty. Received: stop={stop!r}")
            self.text.encode(text)  # Refuses a text that can never be generated.
        return stops

    def _parameters(self, rows, max_new_tokens, seeds, sampling):
        """Limits, seeds and sampling parameters: an array of each, a value per row."""
        unknown = sorted(sampling.keys() - SAMPLING.keys())
        if unknown:
            raise ValueError(
                f"Sampling parameters are {', '.join(SAMPLING)}. "
                f"Received: {', '.join(unknown)}."
            )
        seeds = SEEDS.check("seeds", np.atleast_1d(np.asarray(seeds)))
        if len(seeds) == 1:
            seeds = seeds + np.arange(len(rows))
        values = DEFAULT_SAMPLING | sampling
        values |= {"max_new_tokens": max_new_tokens, "seeds": seeds}
        limit = dataclasses.replace(MAX_NEW_TOKENS, high=None)
        specs = {**SAMPLING, "max_new_tokens": limit, "seeds": SEEDS}
        arrays = {}
        for name, spec in specs.items():
            value = values[name]
            value = np.full(len(rows), value) if np.ndim(value) == 0 else value
            arrays[name] = spec.cast(spec.check(name, value, len(rows)))
        lengths = zip(rows, arrays["max_new_tokens"], strict=True)
        longest = max((len(row) + most for row, most in lengths), default=0)
        if not self.is_endless and longest > self.context:
            raise ValueError(
                "With learned positions a prompt and its continuation must fit the "
                f"context of {self.context} tokens. Received: {longest} of both "
                "together. Shorten the prompt, lower max_new_tokens, or train with "
                "positions='rotary'."
            )
        return arrays

    def _check_beams(self, num_beams, sampling):
        is_integer = isinstance(num_beams, int | np.integer)
        if not is_integer or not 1 <= num_beams <= self.vocab_size:
            raise ValueError(
                f"`num_beams` must be in [1, {self.vocab_size}], the number of tokens. "
                f"Received: num_beams={num_beams}"
            )
        if num_beams > 1 and sampling:
            raise ValueError(
                "A beam search has no noise, and so no sampling parameters. Received: "
                f"num_beams={num_beams} and {', '.join(sampling)}."
            )

    def _chunks(self, rows, arrays, stops, chunk=None):
        """Yields all tokens of each row so far, chunk by chunk, until all end."""
        cache = tf.TensorSpec(
            [None, self.num_heads, self.context, self.hidden_dim // self.num_heads],
            self.compute_dtype,
        )
        state_spec = DecodingState(
            (cache,) * (2 * self.num_layers),
            tf.TensorSpec([None, self.vocab_size], tf.float32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, self.vocab_size], tf.bool),
        )
        prefill = self.graph("prefill", self.prefill, tokens=TOKENS)
        decode = self.graph(
            "decode",
            lambda **values: self._decode(**values, chunk=CHUNK),
            jit_compile=self.jit_compile,
            state=state_spec,
            seeds=tf.TensorSpec([None], tf.int64),
            num_generated=tf.TensorSpec([None], tf.int32),
            max_tokens=tf.TensorSpec([None], tf.int32),
            sampling={name: spec.tensor_spec() for name, spec in SAMPLING.items()},
        )
        num_rows = len(rows)
        if self.jit_compile:
            # XLA compiles for each number of rows: padding leaves few numbers.
            spare = (0, 2 ** math.ceil(math.log2(num_rows)) - num_rows)
            rows = rows + rows[:1] * spare[1]
            arrays = {name: np.pad(values, spare) for name, values in arrays.items()}
        max_tokens, num_generated = arrays["max_new_tokens"].copy(), 0
        seeds = tf.constant(arrays["seeds"])
        sampling = {name: tf.constant(arrays[name]) for name in SAMPLING}
        state = prefill(tokens=tf.constant(padded(rows)))
        tokens = np.zeros((num_rows, 0), np.int32)
        chunk = chunk or (STREAM_CHUNK if stops else CHUNK)
        while num_generated < max(max_tokens):
            size = min(chunk, max(max_tokens) - num_generated)
            new, _, state = decode(
                state=state,
                seeds=seeds,
                num_generated=tf.fill([len(rows)], num_generated),
                max_tokens=tf.constant(np.minimum(max_tokens, num_generated + size)),
                sampling=sampling,
            )
            num_generated += int(size)
            tokens = np.concatenate([tokens, new.numpy()[:num_rows, :size]], axis=1)
            found = [row[row >= 0] for row in tokens]
            for index, row in enumerate(found):
                text = self.text.decode(row) if stops else ""
                if truncate_at_stop(text, stops) != text:
                    max_tokens[index] = 0  # It has ended.
            yield found

    def _search(self, rows, max_tokens, num_beams):
        graph = self.graph(
            f"search/{num_beams}",
            lambda **values: self._beam_search(**values, num_beams=num_beams),
            tokens=TOKENS,
            max_tokens=tf.TensorSpec([None], tf.int32),
            chunk=tf.TensorSpec([], tf.int32),
        )
        found = graph(
            tokens=tf.constant(padded(rows)),
            max_tokens=tf.constant(max_tokens),
            chunk=tf.constant(max(max_tokens)),
        ).numpy()
        return [row[row >= 0] for row in found]

    # -- signatures -----------------------------------------------------------

    def generation_signatures(self) -> list[Signature]:
        """Returns `generate`, from prompts to continuations; and `prefill`, `decode`.

        Prompts are text in SavedModel where the tokenizer runs in a graph, and else
        tokens. Sampling parameters are inputs, one value for each row. With "learned"
        positions a text ends where the context does.

        `prefill` turns prompts into a state; `decode` takes it and returns the next
        tokens, -1 after the last, whether there are more to generate, and the next
        state, zeros at the end: so a server streams many texts at once.
        """
        limit = None if self.is_endless else self.context - 1
        in_graph = self.text is not None and self.text.in_graph
        texts = TextSpec(max_tokens=limit)
        rows = TokenSpec(high=self.vocab_size - 1, min_tokens=1, max_tokens=limit)
        prompt: dict[str, InputSpec] = {"tokens": rows}
        if in_graph:
            prompt = {"prompts": texts}
        request = {"seeds": SEEDS, "max_new_tokens": MAX_NEW_TOKENS, **SAMPLING}
        cache = (2 * self.num_layers, self.num_heads, self.context)
        state = {
            "cache": StateSpec((*cache, self.hidden_dim // self.num_heads)),
            "logits": StateSpec((self.vocab_size,)),
            "positions": StateSpec(dtype="int32"),
            "seen_tokens": StateSpec((self.vocab_size,), "bool"),
        }

        def tokens_in(prompts=None, tokens=None):
            if prompts is None:
                return tokens
            return texts.encode("prompts", prompts, self.text)

        def generate(seeds, max_new_tokens, prompts=None, tokens=None, **sampling):
            state = self.prefill(tokens_in(prompts, tokens))
            num_generated = tf.zeros_like(max_new_tokens)
            limits = self._max_tokens(max_new_tokens, num_generated, state.positions)
            chunk = tf.maximum(tf.reduce_max(limits), 0)  # There may be no rows.
            return self._decode(state, seeds, num_generated, limits, sampling, chunk)

        def generate_text(**inputs):
            return {"text": self.text.decode_ids(generate(**inputs)[0])}

        def generate_tokens(**inputs):
            return {"generated": generate(**inputs)[0]}

        def prefill(**prompt):
            return _packed(self.prefill(tokens_in(**prompt)))

        def decode_chunk(seeds, max_new_tokens, num_generated, **inputs):
            state = DecodingState(*(inputs.pop(name) for name in DecodingState._fields))
            state = state._replace(cache=tuple(tf.unstack(state.cache, axis=1)))
            limits = self._max_tokens(max_new_tokens, num_generated, state.positions)
            end = tf.minimum(limits, num_generated + STREAM_CHUNK)
            tokens, margins, state = self._decode(
                state, seeds, num_generated, end, inputs, STREAM_CHUNK
            )
            active = num_generated + STREAM_CHUNK < limits
            return {
                "tokens": tokens,
                "active": active,
                **_packed(state, active),
            }, margins

        def example(num_rows):
            values = self._example(num_rows)
            if in_graph:
                tokens = values.pop("tokens")
                values["prompts"] = [self.text.decode(row).encode() for row in tokens]
            return values

        def example_of_prefill(num_rows):
            values = example(num_rows)
            return {name: values[name] for name in prompt}

        def example_of_decode(num_rows):
            values = self._example(num_rows)
            state = _packed(self.prefill(tf.constant(values.pop("tokens"))))
            state = {name: value.numpy() for name, value in state.items()}
            num_generated = np.arange(num_rows, dtype=np.int32) % 5
            return {**state, "num_generated": num_generated, **values}

        kinds = dict.fromkeys(state, "state")
        shared: dict[str, Any] = {
            "layers": self.transformer_layers(),
            "runtimes": ("saved_model",),
            "files": self.tokenizer_files(),
            "max_rows": ROWS_AT_A_TIME,
        }
        halves = shared | {"tolerance": 1e-4, "verified_rows": 8}
        written = {"num_generated": InputSpec(dtype="int32", low=0)}
        return [
            Signature(
                "generate",
                generate_text if in_graph else generate_tokens,
                {**prompt, **request},
                {"text": "text"} if in_graph else {"generated": "tokens"},
                examples=(example,),
                margins=lambda **inputs: generate(**inputs)[1],
                **shared,
            ),
            Signature(
                "prefill",
                prefill,
                prompt,
                kinds,
                examples=(example_of_prefill,),
                role="prefill",
                **halves,
            ),
            Signature(
                "decode",
                lambda **inputs: decode_chunk(**inputs)[0],
                {**state, **written, **request},
                {"tokens": "tokens", "active": "state", **kinds},
                examples=(example_of_decode,),
                role="decode",
                margins=lambda **inputs: decode_chunk(**inputs)[1],
                **halves,
            ),
            Signature(
                "generate",
                generate_tokens,
                {"tokens": rows, **request},
                {"generated": "tokens"},
                examples=(self._example,),
                margins=lambda **inputs: generate(**inputs)[1],
                **shared | {"runtimes": ("onnx",)},
            ),
        ]

    def _max_tokens(self, max_new_tokens, num_generated, positions):
        """Tokens to generate for each row in all, int32 [batch]."""
        if self.is_endless:
            return max_new_tokens
        return tf.minimum(max_new_tokens, num_generated + self.context - positions)

    def _example(self, num_rows):
        """Prompts of several lengths, with sampling parameters of all kinds."""
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


def _packed(state: DecodingState, active: Any = None) -> dict[str, tf.Tensor]:
    """A state as tensors by name; zeros for rows that are not active."""
    packed = state._replace(cache=tf.stack(state.cache, axis=1))._asdict()
    if active is None:
        return packed
    return {
        name: tf.where(
            tf.reshape(active, [-1, *[1] * (value.shape.rank - 1)]),
            value,
            tf.zeros_like(value),
        )
        for name, value in packed.items()
    }
