"""OpenAI's completions API: bodies of requests, answers, events and errors."""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

import orjson

from kgen.nn.decoding_parameters import SamplingParameters, defaults
from kgen.serving.batching import BadRequest
from kgen.serving.completions import Chunk, CompletionRequest
from kgen.serving.tf_serving_api import read_object
from kgen.serving.versions import Version

# Parameters of OpenAI's API that are not supported, and their neutral values.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None,),
    "presence_penalty": (None, 0),
    "suffix": (None, ""),
}
SAMPLING = defaults(SamplingParameters)
KNOWN = {"model", "prompt", "max_tokens", "n", "seed", "stop", "stream", "echo"}
KNOWN |= {"stream_options", "user", *SAMPLING, *UNSUPPORTED}
MAX_CHOICES = 64
# Types of the values that a default of a type stands for.
TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    float: ((float, int), "a number"),
    int: ((int,), "a whole number"),
}


@dataclasses.dataclass(frozen=True)
class ResponseOptions:
    """The form of the answer to a request.

    Attributes:
        model: The name of the model.
        stream: Whether chunks are streamed as server-sent events.
        with_usage: Whether an event with the number of tokens follows the last chunk.
    """

    model: str
    stream: bool
    with_usage: bool


def read_completion(body: bytes) -> tuple[CompletionRequest, ResponseOptions]:
    """Reads the body of a request.

    Raises:
        BadRequest: The body is invalid, or sets a parameter that is not supported.
    """
    request = read_object(body, '{"model": ..., "prompt": ...}')
    unknown = sorted(request.keys() - KNOWN)
    if unknown:
        raise BadRequest(f"Unrecognized arguments: {', '.join(unknown)[:200]}")
    for name, neutral in UNSUPPORTED.items():
        if request.get(name) not in neutral:
            raise BadRequest(f"`{name}` is not supported here: leave it out.")
    given = {name: value for name, value in request.items() if value is not None}
    if not isinstance(given.get("model"), str):
        raise BadRequest("`model` must be the name of a model.")
    prompts = _prompts(given.get("prompt"))
    num_choices = _value(given, "n", 1, 1, MAX_CHOICES)
    if len(prompts) * num_choices > MAX_CHOICES:
        raise BadRequest(
            f"A request has at most {MAX_CHOICES} completions. Received: "
            f"{len(prompts)} prompts with {num_choices} each."
        )
    options = given.get("stream_options", {})
    if not isinstance(options, dict):
        raise BadRequest("`stream_options` must be an object.")
    asked = CompletionRequest(
        prompts=prompts,
        num_choices=num_choices,
        # The model checks the ranges of these.
        max_tokens=_value(given, "max_tokens", 16),
        stops=_stops(given.get("stop", [])),
        seed=_value(given, "seed", secrets.randbelow(2**31), -(2**62), 2**62),
        sampling={
            name: _value(given, name, default) for name, default in SAMPLING.items()
        },
        echo=_value(given, "echo", False),
    )
    with_usage = _value(options, "include_usage", False)
    stream = _value(given, "stream", False)
    return asked, ResponseOptions(given["model"], stream, with_usage)


def _prompts(prompt: Any) -> list[Any]:
    """A list of texts, or of lists of tokens."""
    prompts = [prompt] if _is_prompt(prompt) else prompt
    is_list = isinstance(prompts, list) and bool(prompts)
    if not is_list or not all(map(_is_prompt, prompts)):
        raise BadRequest(
            "`prompt` must be a text, a list of texts, a list of tokens, or a list of "
            "such lists; none is empty."
        )
    if not all(prompts):
        raise BadRequest("`prompt` must hold a character at least, such as a new line.")
    return prompts


def _is_prompt(value: Any) -> bool:
    """Whether this is a text, or a list of tokens that is not empty."""
    if isinstance(value, list):
        return bool(value) and all(type(one) is int for one in value)
    return isinstance(value, str)


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    fits = isinstance(stops, list) and len(stops) <= 4
    if not fits or not all(isinstance(one, str) and one for one in stops):
        raise BadRequest("`stop` must be a text, or up to four; none is empty.")
    return tuple(stops)


def _value(
    given: dict[str, Any],
    name: str,
    default: Any,
    low: float = -math.inf,
    high: float = math.inf,
) -> Any:
    """A value of the type of its default, in a range."""
    value = given.get(name, default)
    types, noun = TYPES[type(default)]
    if type(value) not in types:
        raise BadRequest(f"`{name}` must be {noun}. Received: {str(value)[:100]}")
    if not low <= value <= high:
        raise BadRequest(f"`{name}` must be from {low} to {high}. Received: {value}")
    return value


class ResponseWriter:
    """Writes the bodies and events of an answer.

    Args:
        options: The form of the answer.
        version: The number of the model's version.
        num_prompt_tokens: The tokens of all prompts.
    """

    def __init__(self, options: ResponseOptions, version: int, num_prompt_tokens: int):
        self._options = options
        self._num_prompt_tokens = num_prompt_tokens
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": options.model,
            "system_fingerprint": f"{options.model}-{version}",
        }

    def whole(self, chunks: Sequence[Chunk]) -> bytes:
        """The body of all completions."""
        choices: dict[int, dict[str, Any]] = {}
        for chunk in chunks:
            new = _choice(chunk)
            before = choices.get(chunk.index, {"text": ""})
            choices[chunk.index] = new | {"text": before["text"] + chunk.text}
        in_order = [choices[index] for index in sorted(choices)]
        body = {"choices": in_order, "usage": self._usage(chunks)}
        return orjson.dumps(self._head | body)

    def event(self, chunk: Chunk) -> bytes:
        """The server-sent event of a chunk."""
        return self._event({"choices": [_choice(chunk)], "usage": None})

    def end(self, chunks: Sequence[Chunk]) -> bytes:
        """The last events."""
        used = {"choices": [], "usage": self._usage(chunks)}
        usage = self._event(used) if self._options.with_usage else b""
        return usage + b"data: [DONE]\n\n"

    def _event(self, values: dict[str, Any]) -> bytes:
        if not self._options.with_usage:
            values.pop("usage")
        return b"data: " + orjson.dumps(self._head | values) + b"\n\n"

    def _usage(self, chunks: Sequence[Chunk]) -> dict[str, int]:
        num_generated = sum(chunk.num_tokens for chunk in chunks)
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": num_generated,
            "total_tokens": self._num_prompt_tokens + num_generated,
        }


def _choice(chunk: Chunk) -> dict[str, Any]:
    return {
        "index": chunk.index,
        "text": chunk.text,
        "logprobs": None,
        "finish_reason": chunk.finish_reason,
    }


def describe_model(name: str, version: Version) -> dict[str, Any]:
    """OpenAI's fields of a model."""
    return {
        "id": name,
        "object": "model",
        "created": version.created,
        "owned_by": "kgen",
    }


def write_error(code: int, message: str) -> bytes:
    """The body of an error, with the API's name of the number of tokens."""
    message = message.replace("max_new_tokens", "max_tokens")
    kind = "invalid_request_error" if code < 500 else "server_error"
    kinds = {"message": message, "type": kind, "param": None, "code": None}
    return orjson.dumps({"error": kinds})
