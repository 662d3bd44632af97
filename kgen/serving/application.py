"""TensorFlow Serving's REST API, and OpenAI's completions, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kgen.serving.batching import Batcher, Busy, Refused
from kgen.serving.completions import Answer, read_completion, write_error
from kgen.serving.models import ServedModel, Version
from kgen.serving.rest import (
    BadRequest,
    definitions,
    read_request,
    write_answer,
    write_metadata,
)
from kgen.serving.writing import Piece, Writer, read_prompts

MEGABYTE = 2**20
# The page loads nothing from elsewhere.
POLICY = "default-src 'self' 'unsafe-inline'; img-src data:"


def make_application(
    models: Sequence[ServedModel],
    *,
    most_body: int = 16 * MEGABYTE,
    most_rows: int = 1024,
    seconds: float = 60.0,
    refresh_seconds: float = 2.0,
    report: Callable[[str], Any] = lambda text: None,
) -> Starlette:
    """Makes the application that answers for some models.

    Args:
        models: What to serve.
        most_body: Bytes that a request may have.
        most_rows: Rows that a request may have.
        seconds: How long a body may take to arrive, and an answer to be made; one that
            is streamed may take ten times as long.
        refresh_seconds: How often to look for new versions.
        report: Takes a line that says what happened.
    """
    by_name = {model.name: model for model in models}
    batcher = Batcher()
    writer = Writer(batcher)

    def newest_of(model: ServedModel) -> Version:
        loaded = model.loaded
        return loaded.versions[loaded.newest]

    def find(request: Request) -> tuple[ServedModel, Version]:
        name = request.path_params["name"]
        model = by_name.get(name)
        if model is None:
            raise HTTPException(404, f"Servable not found for request: Latest({name})")
        wanted = request.path_params.get("version")
        label = request.path_params.get("label")
        loaded = model.loaded
        number = loaded.newest
        if label is not None:
            if label not in model.labels:
                raise HTTPException(
                    404, f"Unrecognized servable version label: {label}"
                )
            number = model.labels[label]
        if wanted is not None:
            number = int(wanted) if len(wanted) < 20 and wanted.isdecimal() else -1
        if number not in loaded.versions:
            raise HTTPException(
                404, f"Servable not found for request: Specific({name}, {wanted})"
            )
        return model, loaded.versions[number]

    async def status(request: Request) -> Response:
        model, version = find(request)
        one = "version" in request.path_params or "label" in request.path_params
        every = sorted(model.loaded.versions, reverse=True)
        numbers = [version.number] if one else every
        states = [
            {
                "version": str(number),
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
            for number in numbers
        ]
        return JSONResponse({"model_version_status": states})

    async def metadata(request: Request) -> Response:
        model, version = find(request)
        return _json(write_metadata(model.name, version))

    async def predict(request: Request) -> Response:
        _, version = find(request)
        body = await _body(request, most_body, seconds)
        endpoint, inputs, by_row = await run_in_threadpool(read_request, body, version)
        num_rows = len(next(iter(inputs.values())))
        if num_rows > most_rows:
            raise HTTPException(
                413, f"A request has at most {most_rows} rows. Received: {num_rows}"
            )
        try:
            async with asyncio.timeout(seconds):
                outputs = await batcher(endpoint, inputs)
        except TimeoutError as error:
            raise Busy(f"No answer within {seconds:g} s.") from error
        return _json(await run_in_threadpool(write_answer, outputs, by_row))

    @_openai_errors
    async def completions(request: Request) -> Response:
        body = await _body(request, most_body, seconds)
        wanted, form = await run_in_threadpool(read_completion, body)
        model = by_name.get(form.model)
        version = newest_of(model) if model else None
        if version is None or not version.writes_text:
            raise HTTPException(404, f"There is no model {form.model!r} that writes.")
        prompts = await run_in_threadpool(read_prompts, version, wanted)
        num_tokens = sum(prompt.num_tokens for prompt in prompts)
        answer = Answer(form, version.number, num_tokens)
        pieces = writer.pieces(version, wanted, prompts)
        found: list[Piece] = []
        try:
            async with asyncio.timeout(seconds):
                if form.stream:  # The first piece says whether the model takes it.
                    found.append(await anext(pieces))
                else:
                    async with contextlib.aclosing(pieces):
                        async for piece in pieces:
                            found.append(piece)
                            if await request.is_disconnected():
                                raise ClientDisconnect
        except TimeoutError as error:
            raise Busy(f"No answer within {seconds:g} s.") from error
        if not form.stream:
            return _json(answer.whole(found))

        async def events() -> AsyncIterator[bytes]:
            yield answer.event(found[0])
            async for piece in pieces:
                found.append(piece)
                yield answer.event(piece)
            yield answer.end(found)

        return _Stream(events(), 10 * seconds)

    async def listing(request: Request) -> Response:
        newest = [(model, newest_of(model)) for model in models]
        found = [
            {
                "name": model.name,
                "version": version.number,
                "about": version.about,
                "writes_text": version.writes_text,
                "signature_def": definitions(version),
            }
            for model, version in newest
        ]
        as_openai = [
            {"id": model.name, "object": "model", "created": 0, "owned_by": "kgen"}
            for model, version in newest
            if version.writes_text
        ]
        return JSONResponse({"object": "list", "data": as_openai, "models": found})

    async def page(request: Request) -> Response:
        return Response(
            text, media_type="text/html", headers={"Content-Security-Policy": POLICY}
        )

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def watch() -> None:
        while True:
            await asyncio.sleep(refresh_seconds)
            for model in models:
                failed = dict(model.failed)
                number = await run_in_threadpool(model.refresh)
                if number is not None:
                    report(f"{model.name}: version {number} answers now")
                for one, reason in model.failed.items() - failed.items():
                    report(f"{model.name}: version {one} is not loaded: {reason}")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watcher = asyncio.create_task(watch())
        yield
        watcher.cancel()
        batcher.close()

    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/v1/models", listing),
        Route("/v1/completions", completions, methods=["POST"]),
    ]
    model = "/v1/models/{name}"
    for place in ("", "/versions/{version}", "/labels/{label}"):
        routes += [
            Route(f"{model}{place}:predict", predict, methods=["POST"]),
            Route(f"{model}{place}/metadata", metadata),
        ]
    routes += [
        Route(f"{model}{place}", status)
        for place in ("/versions/{version}", "/labels/{label}", "")
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            BadRequest: _failed(400),
            Refused: _failed(400),
            ClientDisconnect: _failed(400),
            Busy: _failed(503),
            HTTPException: _http_error,
            Exception: _failed(500),
        },
    )


class _Stream(StreamingResponse):
    """Events, to a client that takes them in time."""

    def __init__(self, events: AsyncIterator[bytes], seconds: float):
        super().__init__(events, media_type="text/event-stream")
        self._seconds = seconds

    async def stream_response(self, send: Any) -> None:
        async with asyncio.timeout(self._seconds):
            await super().stream_response(send)


def _openai_errors(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint, with errors as OpenAI's clients read them."""

    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException as error:
            code, text = error.status_code, error.detail
        except Busy as error:
            code, text = 503, str(error)
        except (BadRequest, Refused, ClientDisconnect, ImportError) as error:
            code, text = 400, str(error).replace("max_new_tokens", "max_tokens")
        return Response(write_error(code, text), code, media_type="application/json")

    return answer


async def _body(request: Request, most: int, seconds: float) -> bytes:
    """The body, if it is not too long and does not take too long."""
    declared = request.headers.get("content-length", "")
    too_long = HTTPException(413, f"A request has at most {most} bytes.")
    if declared.isdecimal() and (len(declared) > 15 or int(declared) > most):
        raise too_long
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_long
                parts.append(part)
    except TimeoutError as error:
        message = f"The body did not arrive within {seconds:g} s."
        raise HTTPException(408, message) from error
    return b"".join(parts)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _failed(code: int):
    async def answer(_: Request, error: Exception) -> Response:
        text = str(error) if code != 500 else f"{type(error).__name__}: {error}"
        headers = {"Retry-After": "1"} if code == 503 else None
        return JSONResponse({"error": text}, code, headers)

    return answer


async def _http_error(_: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
