"""Text generation: the verbs of a language model, and their signatures."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.data.stop_sequences import streamable_prefix, truncate_at_stop
from kgen.models.shared.generation_examples import example_request
from kgen.models.shared.signatures import Signature
from kgen.models.shared.specs import InputSpec, StateSpec
from kgen.models.shared.text_model import ROWS_AT_A_TIME, TextModelMixin, padded
from kgen.nn import decoding
from kgen.nn.decoding import STREAM_CHUNK, DecodingState
from kgen.nn.decoding_parameters import (
    MAX_TOKENS,
    BeamParameters,
    SamplingParameters,
    defaults,
)


def _specs(parameters: type[Any]) -> dict[str, InputSpec]:
    fields = dataclasses.fields(parameters)
    return {field.name: InputSpec(**field.metadata["spec"]) for field in fields}


SAMPLING, BEAMS = _specs(SamplingParameters), _specs(BeamParameters)
SEEDS = InputSpec(dtype="int64")
MAX_NEW_TOKENS = InputSpec(dtype="int32", low=1, high=MAX_TOKENS)
CHUNK = 64  # most tokens of one call of `decode`


class TextGenerationMixin(TextModelMixin):
    """Generation for a text model that defines `prefill` and `decode_step`.

    `prefill(tokens)` runs the network over prompts and returns a `DecodingState`.
    `decode_step(cache, tokens, positions)` appends a token to each row and returns the
    KV cache and the logits of the next token. `is_endless`: whether texts may be longer
    than the context. `end_id`: the token that ends a text, -1 for none.
    """

    is_endless: Any
    end_id: int
    jit_compile: bool
    compute_dtype: Any
    prefill: Any
    decode_step: Any
    graph: Any
    run: Any
    signature: Any

    # -- use ------------------------------------------------------------------

    def generate(
        self,
        prompts: Any,
        *,
        max_new_tokens: Any = 100,
        seeds: Any = 0,
        stop: str | Sequence[str] = (),
        num_beams: Any = 1,
        length_penalty: Any = 0.0,
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
            num_beams: Above 1: the best text that a beam search finds, without noise
                and sampling parameters; at most 64, and the number of tokens.
            length_penalty: Exponent a of the score of n tokens in a beam search,
                log p / ((5 + n) / 6)^a, 0 or more: see `kgen.nn.decoding.beam_search`.
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
        arrays = self._parameters(
            rows,
            seeds,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            length_penalty=length_penalty,
            **sampling,
        )
        beams = {name: arrays.pop(name) for name in BEAMS}
        is_search = bool((beams["num_beams"] > 1).any())
        if is_search and sampling:
            raise ValueError(
                "A beam search has no noise, and so no sampling parameters. Received: "
                f"num_beams={num_beams} and {', '.join(sampling)}."
            )
        generated: list[np.ndarray] = []
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            part = slice(start, start + ROWS_AT_A_TIME)
            some = {name: values[part] for name, values in arrays.items()}
            if is_search:
                found = self.run(
                    "beam_search",
                    tokens=padded(rows[part]),
                    max_new_tokens=some["max_new_tokens"],
                    **{name: values[part] for name, values in beams.items()},
                )["generated"]
                generated += [row[row >= 0] for row in found]
            else:
                *_, (tokens, _) = self._chunks(rows[part], some, stops)
                generated += tokens
        if not is_text:
            return generated
        texts = [
            truncate_at_stop(self.tokenizer.decode(row), stops) for row in generated
        ]
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
        if self.tokenizer is None or not isinstance(prompt, str):
            raise TypeError(
                "`stream` continues one text, with a model that has a tokenizer. "
                f"Received: {type(prompt).__name__}. `generate` takes lists and tokens."
            )
        rows, _ = self.tokens_of([prompt])
        stops = self._stop_sequences(stop)
        arrays = self._parameters(rows, seed, max_new_tokens=max_new_tokens, **sampling)
        num_shown = 0
        for (tokens,), (is_whole,) in self._chunks(rows, arrays, stops, STREAM_CHUNK):
            text = streamable_prefix(
                self.tokenizer.decode(tokens), stops, is_whole=is_whole
            )
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
        if stops and self.tokenizer is None:
            raise ValueError(f"`stop` needs a tokenizer. Received: stop={stop!r}")
        for text in stops:
            if not text:
                raise ValueError(f"`stop` must not be empty. Received: stop={stop!r}")
            self.tokenizer.encode(text)  # Refuses a text that can never be generated.
        return stops

    def _parameters(self, rows, seeds, **values):
        """Limits, seeds and sampling parameters: an array of each, a value per row."""
        # Exports limit the tokens of a request. Python does not.
        specs = {
            **SAMPLING,
            "max_new_tokens": dataclasses.replace(MAX_NEW_TOKENS, high=None),
            **self._beams,
            "seeds": SEEDS,
        }
        unknown = sorted(values.keys() - specs.keys())
        if unknown:
            raise ValueError(
                f"Sampling parameters are {', '.join(SAMPLING)}. "
                f"Received: {', '.join(unknown)}."
            )
        seeds = SEEDS.check("seeds", np.atleast_1d(np.asarray(seeds)))
        if len(seeds) == 1:
            seeds = seeds + np.arange(len(rows))
        arrays = {}
        given = defaults(SamplingParameters) | values | {"seeds": seeds}
        for name, value in given.items():
            value = np.full(len(rows), value) if np.ndim(value) == 0 else value
            arrays[name] = specs[name].cast(specs[name].check(name, value, len(rows)))
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

    def _chunks(self, rows, arrays, stops, chunk=None):
        """Yields the tokens of each row so far, and which rows have ended."""
        prefill = self._traced("prefill")
        decode = self._traced("decode", self.jit_compile)
        num_rows = len(rows)
        if self.jit_compile:
            # XLA compiles for each number of rows: padding leaves few numbers.
            spare = (0, 2 ** math.ceil(math.log2(num_rows)) - num_rows)
            rows = rows + rows[:1] * spare[1]
            arrays = {name: np.pad(values, spare) for name, values in arrays.items()}
        request = {name: tf.constant(values) for name, values in arrays.items()}
        max_tokens, num_generated = arrays["max_new_tokens"], 0
        state = prefill(tokens=tf.constant(padded(rows)))
        tokens = np.zeros((num_rows, 0), np.int32)
        chunk = chunk or (STREAM_CHUNK if stops else CHUNK)
        while num_generated < max(max_tokens):
            outputs = decode(
                **request | {"max_new_tokens": tf.constant(max_tokens)} | state,
                num_generated=tf.fill([len(rows)], num_generated),
                chunk_size=tf.fill([len(rows)], chunk),
            )
            state = {name: outputs[name] for name in state}
            size = min(chunk, max(max_tokens) - num_generated)
            new = outputs["tokens"].numpy()[:num_rows, :size]
            tokens = np.concatenate([tokens, new], axis=1)
            num_generated += int(size)
            found = [row[row >= 0] for row in tokens]
            ended = ~outputs["active"].numpy()
            if stops:
                texts = [self.tokenizer.decode(row) for row in found]
                ended[:num_rows] |= [
                    truncate_at_stop(one, stops) != one for one in texts
                ]
            max_tokens = np.where(ended, 0, max_tokens)
            yield found, ended[:num_rows]

    def _traced(self, name, jit_compile=False):
        signature = self.signature(name, "tokens")
        specs = signature.tensor_specs()
        return self.graph(name, signature.function, jit_compile=jit_compile, **specs)

    # -- signatures -----------------------------------------------------------

    def generation_signatures(self) -> list[Signature]:
        """Returns `generate`, `beam_search`, and the halves `prefill` and `decode`.

        Prompts are text in SavedModel where the tokenizer runs in a graph, and else
        tokens. Sampling parameters are inputs, one value for each row. With "learned"
        positions a text ends where the context does.

        `prefill` turns prompts into a state; `decode` takes it and returns the next
        `chunk_size` tokens, -1 after the last, whether there are more to generate, and
        the next state, zeros at the end: so a server streams many texts at once.
        """
        tokens = self.token_inputs(None if self.is_endless else self.context - 1)
        request = {"seeds": SEEDS, "max_new_tokens": MAX_NEW_TOKENS, **SAMPLING}
        search = {"max_new_tokens": MAX_NEW_TOKENS, **self._beams}
        state = {
            **self.cache_specs(),
            "logits": StateSpec((self.vocab_size,)),
            "positions": StateSpec(dtype="int32"),
            "seen_tokens": StateSpec((self.vocab_size,), "bool"),
        }
        progress = {
            "num_generated": InputSpec(dtype="int32", low=0),
            "chunk_size": InputSpec(dtype="int32", low=1, high=CHUNK),
        }
        kinds = dict.fromkeys(state, "state")

        facts = self.context, self.vocab_size, self._prefill

        def signature(name, function, inputs, outputs, **options):
            return Signature(
                name,
                lambda **inputs: function(**inputs)[0],
                inputs,
                outputs,
                layers=self.transformer_layers(),
                examples=(functools.partial(example_request, inputs, *facts),),
                files=self.tokenizer_files(),
                max_rows=ROWS_AT_A_TIME,
                margins=lambda **inputs: function(**inputs)[1],
                **options,
            )

        half = {"runtimes": ("saved_model",), "tolerance": 1e-4, "verified_rows": 8}
        generated = {"generated": "tokens"}
        of_prompts = [
            signature("generate", self._sample, {**tokens, **request}, generated),
            signature("beam_search", self._search, {**tokens, **search}, generated),
            signature("prefill", self._prefill, tokens, kinds, role="prefill", **half),
        ]
        decode = signature(
            "decode",
            self._decode,
            {**state, **progress, **request},
            {"tokens": "tokens", "active": "state", **kinds},
            role="decode",
            **half,
        )
        return [*self.text_forms("prompts", of_prompts), decode]

    @property
    def _beams(self):
        most = min(self.vocab_size, BEAMS["num_beams"].high)
        return BEAMS | {"num_beams": dataclasses.replace(BEAMS["num_beams"], high=most)}

    def _sample(self, tokens, seeds, max_new_tokens, **sampling):
        state = self.prefill(tokens)
        num_generated = tf.zeros_like(max_new_tokens)
        max_tokens = self._max_tokens(max_new_tokens, num_generated, state.positions)
        generated, margins, *_ = decoding.sample(
            self.decode_step,
            state,
            seeds=seeds,
            num_generated=num_generated,
            max_tokens=max_tokens,
            sampling=SamplingParameters(**sampling),
            end_token=self.end_id,
            width=tf.maximum(tf.reduce_max(max_tokens), 0),  # There may be no rows.
        )
        return {"generated": generated}, margins

    def _search(self, tokens, max_new_tokens, num_beams, length_penalty):
        state = self.prefill(tokens)
        results = decoding.beam_search(
            self.decode_step,
            state,
            max_tokens=self._max_tokens(max_new_tokens, 0, state.positions),
            num_beams=num_beams,
            length_penalty=length_penalty,
            end_token=self.end_id,
        )
        return {"generated": results.tokens[:, 0]}, results.margins

    def _prefill(self, tokens):
        no_ties = tf.fill([tf.shape(tokens)[0], 1], math.inf)
        return self._packed(self.prefill(tokens)), no_ties

    def _decode(self, num_generated, chunk_size, seeds, max_new_tokens, **inputs):
        cache = self.unpacked_cache({k: inputs.pop(k) for k in self.cache_specs()})
        others = (inputs.pop(name) for name in DecodingState._fields[1:])
        state = DecodingState(cache, *others)
        max_tokens = self._max_tokens(max_new_tokens, num_generated, state.positions)
        end = num_generated + chunk_size
        tokens, margins, ended, state = decoding.sample(
            self.decode_step,
            state,
            seeds=seeds,
            num_generated=num_generated,
            max_tokens=tf.minimum(max_tokens, end),
            sampling=SamplingParameters(**inputs),
            end_token=self.end_id,
            width=CHUNK,
        )
        active = (end < max_tokens) & ~ended
        return {
            "tokens": tokens,
            "active": active,
            **self._packed(state, active),
        }, margins

    def _max_tokens(self, max_new_tokens, num_generated, positions):
        """Tokens to generate for each row in all, int32 [batch]."""
        if self.is_endless:
            return max_new_tokens
        return tf.minimum(max_new_tokens, num_generated + self.context - positions)

    # -- the state ------------------------------------------------------------

    def cache_specs(self) -> dict[str, StateSpec]:
        """Specs of the tensors that hold the cache between two calls, by name.

        By default keys and values of all blocks are one tensor. A model whose cache
        holds more overrides this, `packed_cache` and `unpacked_cache`.
        """
        shape = (2 * self.num_layers, self.num_heads, self.context)
        dim = self.hidden_dim // self.num_heads
        return {"cache": StateSpec((*shape, dim), self.compute_dtype)}

    def packed_cache(self, cache: Any) -> dict[str, tf.Tensor]:
        """The tensors of `cache_specs` of a cache."""
        return {"cache": tf.stack(cache, axis=1)}

    def unpacked_cache(self, tensors: dict[str, tf.Tensor]) -> Any:
        """The cache of the tensors of `cache_specs`."""
        return tuple(tf.unstack(tensors["cache"], axis=1))

    def _packed(self, state, active=None):
        """A state as tensors by name; zeros for rows that are not active."""
        others = {name: getattr(state, name) for name in DecodingState._fields[1:]}
        packed = self.packed_cache(state.cache) | others
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
