"""OpenAI's completions, from a model that predicts the next letter."""

import asyncio
import json

import numpy as np
import pytest
import tensorflow as tf
from starlette.testclient import TestClient

from kgen.data import CharTokenizer
from kgen.nn.decoding_parameters import SamplingParameters, defaults
from kgen.serving import make_application
from kgen.serving.batching import Batcher
from kgen.serving.completions import (
    CompletionEngine,
    CompletionRequest,
    encode_prompts,
)
from kgen.serving.versions import Endpoint, Loaded, Version

LETTERS = "abcdefghijklmnopqrstuvwxyz"
STREAM_CHUNK = 4
STATE = {
    "cache": tf.TensorSpec([None, 1], tf.float32),
    "logits": tf.TensorSpec([None, 1], tf.float32),
    "positions": tf.TensorSpec([None], tf.int32),
    "seen_tokens": tf.TensorSpec([None, 1], tf.bool),
}
NUMBERS = {
    "seeds": tf.int64,
    "num_generated": tf.int32,
    "chunk_size": tf.int32,
    "max_new_tokens": tf.int32,
    "top_k": tf.int32,
    "temperature": tf.float32,
    "top_p": tf.float32,
    "min_p": tf.float32,
    "repetition_penalty": tf.float32,
}


def read(arrays):
    last = [LETTERS.index(prompt.decode()[-1]) for prompt in arrays["prompts"]]
    column = np.array(last, np.float32)[:, None]
    return {
        "cache": column,
        "logits": column,
        "positions": np.ones(len(last), np.int32),
        "seen_tokens": column > 0,
    }


def write(arrays):
    """Letters from the last one on, each `seed` steps further."""
    for name, low, high in (("temperature", 0, 2), ("max_new_tokens", 1, 4096)):
        if not ((arrays[name] >= low) & (arrays[name] <= high)).all():
            message = f"assertion failed: [`{name}` must be from {low} to {high}]"
            raise tf.errors.InvalidArgumentError(None, None, message)
    steps = np.maximum(arrays["seeds"], 1)[:, None] * np.arange(1, STREAM_CHUNK + 1)
    tokens = (arrays["cache"].astype(int) + steps) % 26
    left = (arrays["max_new_tokens"] - arrays["num_generated"])[:, None]
    state = {name: arrays[name] for name in STATE}
    return state | {
        "tokens": np.where(np.arange(STREAM_CHUNK) < left, tokens, -1).astype(np.int32),
        "active": left[:, 0] > STREAM_CHUNK,
        "cache": tokens[:, -1:].astype(np.float32),
    }


class Model:
    """A model in memory, as `ServedModel` has them."""

    name = "letters"
    labels: dict[str, int] = {}
    failed: dict[int, str] = {}

    def __init__(self):
        prompts = {"prompts": tf.TensorSpec([None], tf.string)}
        numbers = {name: tf.TensorSpec([None], kind) for name, kind in NUMBERS.items()}
        endpoints = {
            "prefill": Endpoint(read, prompts),
            "decode": Endpoint(write, STATE | numbers, max_concurrency=1),
        }
        tokenizer = CharTokenizer(LETTERS).to_json()
        signatures = {name: {"role": name} for name in ("prefill", "decode")}
        about = {"signatures": signatures}
        self.version = Version(1, endpoints, about, tokenizer_json=tokenizer, created=7)
        self.loaded = Loaded({1: self.version}, 1)

    @property
    def newest(self):
        return self.version

    def refresh(self):
        return None


@pytest.fixture
def client():
    with TestClient(make_application([Model()])) as client:
        yield client


def chunks_of(engine, version, request):
    return engine.chunks(version, request, encode_prompts(version, request))


def ask(client, **values):
    answer = client.post("/v1/completions", json={"model": "letters"} | values)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client, **values):
    body = {"model": "letters", "stream": True} | values
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[len("data: ") :]) for line in lines[:-1]]


def test_a_completion(client):
    answer = ask(client, prompt="ab", max_tokens=6, seed=1)
    assert answer["object"] == "text_completion" and answer["model"] == "letters"
    assert answer["choices"] == [
        {"index": 0, "text": "cdefgh", "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 6,
        "total_tokens": 8,
    }
    assert answer["id"] != ask(client, prompt="ab")["id"]


def test_sixteen_tokens_unless_asked_for_more(client):
    assert ask(client, prompt="a")["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"),
    [("ef", "bcd", 5), (["x", "g", "i"], "bcdef", 6), ("b", "", 1), ("ac", None, 30)],
)
def test_a_stop(client, stop, text, num_tokens):
    answer = ask(client, prompt="a", seed=1, max_tokens=30, stop=stop)
    [choice] = answer["choices"]
    if text is None:
        assert choice["finish_reason"] == "length" and len(choice["text"]) == 30
    else:
        assert (choice["text"], choice["finish_reason"]) == (text, "stop")
    assert answer["usage"]["completion_tokens"] == num_tokens


def test_prompts_choices_and_seeds(client):
    answer = ask(client, prompt=["a", "k"], n=2, max_tokens=2, seed=1, echo=True)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["abc", "ace", "knq", "kos"]  # steps of 1, 2, 3 and 4
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for prompt in ([0], [[0], [10]]):
        same = ask(client, prompt=prompt, n=2, max_tokens=2, seed=1, echo=True)
        assert [choice["text"] for choice in same["choices"]] == texts[
            : 2 * len(prompt)
        ]


def test_streamed_chunks_make_the_whole_answer(client):
    asked = {"prompt": ["a", "b"], "max_tokens": 11, "seed": 1, "stop": "ij"}
    whole = ask(client, **asked)
    found = events(client, **asked, stream_options={"include_usage": True})
    usage = found.pop()
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in found)
    for choice in whole["choices"]:
        mine = [
            e["choices"][0]
            for e in found
            if e["choices"][0]["index"] == choice["index"]
        ]
        assert len(mine) > 1
        assert "".join(one["text"] for one in mine) == choice["text"]
        reasons = [one["finish_reason"] for one in mine]
        assert reasons == [None] * (len(mine) - 1) + [choice["finish_reason"]]
    assert "usage" not in events(client, prompt="a")[0]


def test_models_have_the_fields_of_openai_and_of_tensorflow_serving(client):
    listed = client.get("/v1/models").json()
    model = {"id": "letters", "object": "model", "created": 7, "owned_by": "kgen"}
    assert (listed["object"], listed["data"]) == ("list", [model])
    retrieved = client.get("/v1/models/letters").json()
    [status] = retrieved.pop("model_version_status")
    assert retrieved == model and status["state"] == "AVAILABLE"
    one = client.get("/v1/models/letters/versions/1").json()
    assert [*one] == ["model_version_status"]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/engines", 404),
        ("GET", f"/v1/{'x' * 5000}", 404),
    ],
)
def test_errors_of_other_paths_have_the_form_of_openai(client, method, path, code):
    answer = client.request(method, path)
    assert answer.status_code == code
    error = answer.json()["error"]
    assert f"{method} {path[:200]}" in error["message"]
    assert error["type"] == "invalid_request_error" and {"param", "code"} <= {*error}
    assert code != 405 or answer.headers["allow"]


@pytest.mark.parametrize(
    ("values", "code", "message"),
    [
        ({"model": "other"}, 404, "no model 'other' that completes text"),
        ({"model": None}, 400, "`model` must be"),
        ({"prompt": ""}, 400, "`prompt` must hold a character"),
        ({"prompt": []}, 400, "`prompt` must be a text"),
        ({"prompt": None}, 400, "`prompt` must be a text"),
        ({"prompt": ["a", 1]}, 400, "`prompt` must be a text"),
        ({"prompt": [1.5]}, 400, "`prompt` must be a text"),
        ({"prompt": "A"}, 400, "Each character must be one of"),
        ({"prompt": [99]}, 400, "must be from 0 to 25. Received: 99 to 99"),
        ({"prompt": [-1]}, 400, "must be from 0 to 25. Received: -1 to -1"),
        ({"max_tokens": 5000}, 400, "`max_tokens` must be from 1 to 4096"),
        ({"max_tokens": 0}, 400, "`max_tokens` must be from 1"),
        ({"max_tokens": 2**40}, 400, "`max_tokens` must be int32"),
        ({"max_tokens": 1.5}, 400, "`max_tokens` must be a whole number"),
        ({"n": 65}, 400, "`n` must be from 1 to 64"),
        ({"prompt": ["a"] * 9, "n": 8}, 400, "at most 64 completions"),
        ({"temperature": "hot"}, 400, "`temperature` must be a number"),
        ({"temperature": True}, 400, "`temperature` must be a number"),
        ({"temperature": -1}, 400, "`temperature` must be from 0"),
        ({"temperature": 1e300}, 400, "`temperature` must be float32"),
        ({"seed": 2**63}, 400, "`seed` must be from"),
        ({"stop": ["a"] * 5}, 400, "`stop` must be"),
        ({"stop": ""}, 400, "`stop` must be"),
        ({"stream": 1}, 400, "`stream` must be true or false"),
        ({"stream_options": 1}, 400, "`stream_options` must be"),
        ({"logprobs": 3}, 400, "`logprobs` is not supported"),
        ({"suffix": "z"}, 400, "`suffix` is not supported"),
        ({"logit_bias": {"1": 5}}, 400, "`logit_bias` is not supported"),
        ({"color": 1}, 400, "Unrecognized arguments: color"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_invalid_requests(client, values, code, message, stream):
    body = {"model": "letters", "prompt": "a", "stream": stream} | values
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == code
    error = answer.json()["error"]
    assert message in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": NaN}', b"\xff" * 9])
def test_invalid_bodies(client, body):
    answer = client.post("/v1/completions", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_neutral_values_of_unsupported_parameters_are_accepted(client):
    ask(client, prompt="a", best_of=1, frequency_penalty=0, logit_bias={}, user="me")


def test_completions_under_way_are_limited_and_cancelled_ones_make_room():
    async def scenario():
        engine = CompletionEngine(Batcher(), max_rows=2)
        version = Model().version
        request = CompletionRequest(
            ["a"], 2, 40, (), 0, defaults(SamplingParameters), echo=False
        )
        chunks = chunks_of(engine, version, request)
        await anext(chunks)
        assert engine.num_rows == 2
        with pytest.raises(Exception, match="2 completions are being generated"):
            await anext(chunks_of(engine, version, request))
        await chunks.aclose()  # The client has gone.
        await asyncio.sleep(0.1)
        assert engine.num_rows == 0

    asyncio.run(scenario())


def test_decoding_steps_of_many_requests_share_calls():
    calls = []

    async def scenario():
        version = Model().version
        slow = version.endpoints["decode"]

        def call(arrays):
            calls.append(len(arrays["seeds"]))
            return write(arrays)

        object.__setattr__(slow, "call", call)
        engine = CompletionEngine(Batcher())

        async def one(prompt, most):
            request = CompletionRequest(
                [prompt], 1, most, (), 1, defaults(SamplingParameters), echo=False
            )
            return "".join([p.text async for p in chunks_of(engine, version, request)])

        asked = [(letter, 5 + place) for place, letter in enumerate("abcdefghij")]
        found = await asyncio.gather(*(one(*each) for each in asked))
        for (letter, most), text in zip(asked, found, strict=True):
            start = LETTERS.index(letter) + 1
            assert text == (LETTERS * 2)[start : start + most]

    asyncio.run(scenario())
    assert sum(calls) == 28  # Of four tokens each, for all rows together, ...
    assert len(calls) < 14  # ... in fewer calls.
