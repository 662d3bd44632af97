"""ASGI application: TensorFlow Serving's REST API, OpenAI's completions, and a page."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kgen.serving.batching import BadRequest, Batcher, Busy
from kgen.serving.completions import Chunk, CompletionEngine, encode_prompts
from kgen.serving.openai_api import (
    ResponseWriter,
    describe_model,
    read_completion,
    write_error,
)
from kgen.serving.tf_serving_api import (
    read_request,
    write_metadata,
    write_predictions,
    write_status,
)
from kgen.serving.versions import ServedModel, Version

# The page loads nothing from elsewhere.
POLICY = "default-src 'self' 'unsafe-inline'; img-src data:"
STATUS_CODES = {BadRequest: 400, ClientDisconnect: 400, Busy: 503, Exception: 500}


def make_application(
    models: Sequence[ServedModel],
    *,
    refresh_seconds: float = 2.0,
    report: Callable[[str], Any] = lambda text: None,
    **limits: Any,
) -> Starlette:
    """Makes the application that answers for some models.

    Args:
        models: The models to serve.
        refresh_seconds: Time between two looks for new versions.
        report: Takes a line for the log.
        limits: The limits of `Handlers`.
    """
    handlers = Handlers(models, **limits)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watcher = asyncio.create_task(handlers.follow(refresh_seconds, report))
        yield
        watcher.cancel()
        handlers.batcher.close()

    routes = [
        Route("/", handlers.page),
        Route("/health", handlers.health),
        Route("/v1/models", handlers.models),
        Route("/v1/completions", handlers.completions, methods=["POST"]),
    ]
    for suffix, handler, method in (
        (":predict", handlers.predict, "POST"),
        ("/metadata", handlers.metadata, "GET"),
        ("", handlers.status, "GET"),
    ):
        routes += [
            Route(f"/v1/models/{{name}}{place}{suffix}", handler, methods=[method])
            for place in ("/versions/{version}", "/labels/{label}", "")
        ]
    errors = (HTTPException, *STATUS_CODES)
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys(errors, answer_error),
    )


class Handlers:
    """Handlers of the routes, by name.

    Args:
        models: The models to serve.
        max_body_bytes: Largest body of a request, packed and unpacked.
        max_rows: Largest number of rows of a request.
        timeout_seconds: How long a body may take to arrive, and an answer to be made; a
            streamed answer may take ten times as long.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        max_body_bytes: int = 16 * 2**20,
        max_rows: int = 1024,
        timeout_seconds: float = 60.0,
    ):
        self.batcher = Batcher()
        self._models = {model.name: model for model in models}
        self._engine = CompletionEngine(self.batcher)
        self._max_body_bytes = max_body_bytes
        self._max_rows = max_rows
        self._seconds = timeout_seconds
        page = Path(__file__).with_name("page.html")
        self._page = page.read_text(encoding="utf-8")

    async def page(self, request: Request) -> Response:
        """A page on which the models can be tried."""
        headers = {"Content-Security-Policy": POLICY}
        return Response(self._page, media_type="text/html", headers=headers)

    async def health(self, request: Request) -> Response:
        """The answer to a health check."""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """OpenAI's list of models, and what the page needs to know of each."""
        newest = [(model, model.newest) for model in self._models.values()]
        found = [
            {
                "name": model.name,
                "version": version.number,
                "about": version.about,
                "has_completions": version.has_completions,
                "signature_def": version.definitions,
            }
            for model, version in newest
        ]
        data = [
            describe_model(model.name, version)
            for model, version in newest
            if version.has_completions
        ]
        return JSONResponse({"object": "list", "data": data, "models": found})

    async def status(self, request: Request) -> Response:
        """TensorFlow Serving's status of a model, and OpenAI's fields of it."""
        model, version = self._find(request)
        if {"version", "label"} & request.path_params.keys():
            return JSONResponse(write_status([version.number]))
        status = write_status(sorted(model.loaded.versions, reverse=True))
        if version.has_completions:
            status |= describe_model(model.name, version)
        return JSONResponse(status)

    async def metadata(self, request: Request) -> Response:
        """TensorFlow Serving's description of the inputs and outputs."""
        model, version = self._find(request)
        return _json(write_metadata(model.name, version))

    async def predict(self, request: Request) -> Response:
        """TensorFlow Serving's predictions."""
        _, version = self._find(request)
        body = await self._body(request)
        endpoint, inputs, by_row = await run_in_threadpool(read_request, body, version)
        num_rows = len(next(iter(inputs.values())))
        if num_rows > self._max_rows:
            raise HTTPException(
                413,
                f"A request has at most {self._max_rows} rows. Received: {num_rows}",
            )
        async with self._in_time():
            outputs = await self.batcher(endpoint, inputs)
        return _json(await run_in_threadpool(write_predictions, outputs, by_row))

    async def completions(self, request: Request) -> Response:
        """OpenAI's completions, whole or streamed."""
        body = await self._body(request)
        asked, options = await run_in_threadpool(read_completion, body)
        model = self._models.get(options.model)
        version = model.newest if model else None
        if version is None or not version.has_completions:
            raise HTTPException(
                404, f"There is no model {options.model!r} that completes text."
            )
        prompts = await run_in_threadpool(encode_prompts, version, asked)
        num_tokens = sum(prompt.num_tokens for prompt in prompts)
        writer = ResponseWriter(options, version.number, num_tokens)
        chunks = self._engine.chunks(version, asked, prompts)
        found: list[Chunk] = []
        async with self._in_time():
            if options.stream:  # The first chunk says whether the model takes it.
                found.append(await anext(chunks))
            else:
                async with contextlib.aclosing(chunks):
                    async for chunk in chunks:
                        found.append(chunk)
                        if await request.is_disconnected():
                            raise ClientDisconnect
        if not options.stream:
            return _json(writer.whole(found))

        async def events() -> AsyncIterator[bytes]:
            yield writer.event(found[0])
            async for chunk in chunks:
                found.append(chunk)
                yield writer.event(chunk)
            yield writer.end(found)

        return _EventStream(events(), 10 * self._seconds)

    async def follow(self, seconds: float, report: Callable[[str], Any]) -> None:
        """Loads new versions as they appear, for ever."""
        while True:
            await asyncio.sleep(seconds)
            for model in self._models.values():
                failed = dict(model.failed)
                number = await run_in_threadpool(model.refresh)
                if number is not None:
                    report(f"{model.name}: version {number} answers now")
                for one, reason in model.failed.items() - failed.items():
                    report(f"{model.name}: version {one} is not loaded: {reason}")

    def _find(self, request: Request) -> tuple[ServedModel, Version]:
        """The model and the version that a path names."""
        path = request.path_params
        name, label, version = path["name"], path.get("label"), path.get("version")
        model = self._models.get(name)
        if model is None:
            raise HTTPException(404, f"Servable not found for request: Latest({name})")
        number = model.loaded.newest
        if label is not None:
            if label not in model.labels:
                raise HTTPException(
                    404, f"Unrecognized servable version label: {label}"
                )
            number = model.labels[label]
        if version is not None:
            number = int(version) if len(version) < 20 and version.isdecimal() else -1
        if number not in model.loaded.versions:
            raise HTTPException(
                404, f"Servable not found for request: Specific({name}, {version})"
            )
        return model, model.loaded.versions[number]

    async def _body(self, request: Request) -> bytes:
        """The unpacked body, if it is small enough and arrives in time."""
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise HTTPException(
                415,
                "`Content-Encoding` must be gzip, or left out. Received: "
                f"{encoding[:100]}",
                {"Accept-Encoding": "gzip"},
            )
        most = self._max_body_bytes
        declared = request.headers.get("content-length", "")
        too_long = HTTPException(413, f"A request has at most {most} bytes.")
        if declared.isdecimal() and (len(declared) > 15 or int(declared) > most):
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_long
        except TimeoutError as error:
            message = f"The body did not arrive within {self._seconds:g} s."
            raise HTTPException(408, message) from error
        if encoding == "gzip":
            return await run_in_threadpool(_unpacked, bytes(body), most)
        return bytes(body)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._seconds):
                yield
        except TimeoutError as error:
            raise Busy(f"No answer within {self._seconds:g} s.") from error


class _EventStream(StreamingResponse):
    """Events, to a client that takes them in time."""

    def __init__(self, events: AsyncIterator[bytes], seconds: float):
        super().__init__(events, media_type="text/event-stream")
        self._seconds = seconds

    async def stream_response(self, send: Any) -> None:
        async with asyncio.timeout(self._seconds):
            await super().stream_response(send)


async def answer_error(request: Request, error: Exception) -> Response:
    """An error: in TensorFlow Serving's form for its paths, in OpenAI's under /v1/."""
    headers = None
    if isinstance(error, HTTPException):
        code, text, headers = error.status_code, error.detail, error.headers
    else:
        code = next(n for kind, n in STATUS_CODES.items() if isinstance(error, kind))
        text = f"{type(error).__name__}: {error}" if code == 500 else str(error)
    if code == 503:
        headers = {"Retry-After": "1"}
    path = request.url.path
    if text in ("Not Found", "Method Not Allowed"):
        text = f"{text}: {request.method} {path[:200]}"
    body = orjson.dumps({"error": text})
    if path.startswith("/v1/") and not path.startswith("/v1/models/"):
        body = write_error(code, text)
    return Response(body, code, headers, media_type="application/json")


def _unpacked(body: bytes, most: int) -> bytes:
    """The content of a gzip body.

    Raises:
        BadRequest: It is not one whole gzip stream.
        HTTPException: It unpacks to more bytes than a request may have.
    """
    stream = zlib.decompressobj(wbits=31)
    try:
        content = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise BadRequest(f"The body must be gzip. Received: {error}") from error
    if len(content) > most:
        raise HTTPException(413, f"A request has at most {most} bytes, unpacked.")
    if not stream.eof or stream.unused_data:
        raise BadRequest(
            "The body must be one gzip stream, complete and without anything after it."
        )
    return content


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
