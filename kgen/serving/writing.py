"""Text as it is written, by the endpoints `read` and `write` of a language model."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np

from kgen.data.stop_sequences import streamable_prefix, truncate_at_stop
from kgen.data.tokenizers import Tokenizer
from kgen.serving.batching import Batcher, Busy
from kgen.serving.models import Arrays, Version
from kgen.serving.rest import BadRequest

STATE = ("cache", "logits", "positions", "seen_tokens")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Completions to write.

    Attributes:
        prompts: Texts, or lists of tokens; none is empty.
        num_choices: How many for each of them.
        max_tokens: Of each.
        stops: Texts before which each ends.
        seed: That of the first; the next ones have the next.
        settings: `temperature` and the others of `kgen.nn.sampling.next_tokens`.
        echo: Whether the prompt comes before each.
    """

    prompts: list[Any]
    num_choices: int
    max_tokens: int
    stops: tuple[str, ...]
    seed: int
    settings: dict[str, float]
    echo: bool


@dataclasses.dataclass(frozen=True)
class Piece:
    """What comes next of a completion.

    Attributes:
        index: Which one it is.
        text: What comes next of it.
        num_tokens: How many tokens have been written for that.
        finish_reason: Why it ends here, "stop" or "length"; None if it goes on.
    """

    index: int
    text: str
    num_tokens: int = 0
    finish_reason: str | None = None


class Writer:
    """Writes completions: many at once, whatever they are and when they began.

    Each is a row by itself, and a few tokens of it are a request to the batcher, which
    runs those of all rows together that wait at the time.

    Args:
        batcher: What runs endpoints.
        most: Completions at the same time: of each there is in memory what a model
            keeps of what it has read.
    """

    def __init__(self, batcher: Batcher, most: int = 256):
        self.num_writing = 0
        self._batcher = batcher
        self._most = most

    async def pieces(
        self, version: Version, wanted: Wanted, prompts: Sequence[Prompt]
    ) -> AsyncGenerator[Piece, None]:
        """Yields what is written, until all completions have ended.

        Args:
            version: That of the model.
            wanted: What to write.
            prompts: What `read_prompts` makes of it.

        Raises:
            Busy: There is too much to write already.
            Refused: The model does not take these values.
        """
        num_rows = len(wanted.prompts) * wanted.num_choices
        if self.num_writing + num_rows > self._most:
            raise Busy(f"{self.num_writing} completions are being written by now.")
        found: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        read = version.endpoints["prefill"]
        states = [
            asyncio.ensure_future(self._batcher(read, prompt.given))
            for prompt in prompts
        ]
        rows = []
        for index in range(num_rows):
            which = index // wanted.num_choices
            begin = prompts[which].text if wanted.echo else ""
            row = self._write(version, wanted, index, states[which], begin, found)
            rows.append(asyncio.ensure_future(row))
            rows[-1].add_done_callback(self._one_less)
            self.num_writing += 1
        num_open = num_rows
        try:
            while num_open:
                piece = await found.get()
                if isinstance(piece, Exception):
                    raise piece
                num_open -= piece.finish_reason is not None
                yield piece
        finally:
            for task in (*rows, *states):
                task.cancel()

    def _one_less(self, _: Any) -> None:
        self.num_writing -= 1

    async def _write(self, version, wanted, index, state, begin, found) -> None:
        """Puts the pieces of a row where they are waited for, or what went wrong."""
        try:
            async for piece in self._row(version, wanted, index, await state):
                found.put_nowait(dataclasses.replace(piece, text=begin + piece.text))
                begin = ""
        except Exception as error:
            found.put_nowait(error)

    async def _row(
        self, version: Version, wanted: Wanted, index: int, state: Arrays
    ) -> AsyncGenerator[Piece, None]:
        endpoint, tokenizer = version.endpoints["decode"], version.tokenizer
        values = wanted.settings | {
            "seeds": wanted.seed + index,
            "max_new_tokens": wanted.max_tokens,
        }
        tokens, shown = np.zeros(0, np.int32), 0
        finish_reason = None
        while finish_reason is None:
            given = values | {"num_generated": len(tokens)}
            columns = {
                name: np.array([value], endpoint.inputs[name].dtype.as_numpy_dtype)
                for name, value in given.items()
            }
            outputs = await self._batcher(
                endpoint, {name: state[name] for name in STATE} | columns
            )
            # Copies: of many rows together each would keep all the others in memory.
            state = {name: np.array(outputs[name]) for name in STATE}
            [new], [active] = outputs["tokens"], outputs["active"]
            num_before, new = len(tokens), new[new >= 0]
            tokens = np.concatenate([tokens, new])
            whole = tokenizer.decode(tokens)
            if truncate_at_stop(whole, wanted.stops) != whole:
                finish_reason = "stop"
                tokens = _first_with_a_stop(tokenizer, tokens, num_before, wanted.stops)
            elif not active:
                finish_reason = "length"
            text = streamable_prefix(whole, wanted.stops, is_whole=not active)
            num_new = len(tokens) - num_before
            yield Piece(index, text[shown:], num_new, finish_reason)
            shown = max(shown, len(text))


def _first_with_a_stop(tokenizer, tokens, num_before, stops) -> np.ndarray:
    """The tokens up to that with which there is a stop among them."""
    for number in range(num_before + 1, len(tokens)):
        text = tokenizer.decode(tokens[:number])
        if truncate_at_stop(text, stops) != text:
            return tokens[:number]
    return tokens


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as `read` takes it.

    Attributes:
        given: The input of `read`.
        text: What it says; of tokens, only where that is asked for.
        num_tokens: How many tokens it has.
    """

    given: Arrays
    text: str
    num_tokens: int


def read_prompts(version: Version, wanted: Wanted) -> list[Prompt]:
    """Makes tokens of texts, or texts of tokens, as the model takes them.

    Raises:
        BadRequest: A prompt is not one of the tokenizer's.
    """
    takes_text = "prompts" in version.endpoints["prefill"].inputs
    tokenizer, made = version.tokenizer, []
    try:
        for prompt in wanted.prompts:
            is_text = isinstance(prompt, str)
            tokens = (
                tokenizer.encode(prompt) if is_text else _checked(prompt, tokenizer)
            )
            text = prompt if is_text else ""
            if not is_text and (takes_text or wanted.echo):
                text = tokenizer.decode(tokens)
            given = {"tokens": tokens[None]}
            if takes_text:
                given = {"prompts": np.array([text.encode()], object)}
                if not is_text and tokenizer.encode(text).tolist() != prompt:
                    raise BadRequest("The tokens of a prompt must be those of a text.")
            made.append(Prompt(given, text, len(tokens)))
    except ValueError as error:
        raise BadRequest(str(error)) from error
    return made


def _checked(tokens: list[int], tokenizer: Tokenizer) -> np.ndarray:
    highest = tokenizer.vocab_size - 1
    if not 0 <= min(tokens) <= max(tokens) <= highest:
        raise BadRequest(
            f"The tokens of a prompt must be from 0 to {highest}. Received: "
            f"{min(tokens)} to {max(tokens)}."
        )
    return np.array(tokens, np.int32)
