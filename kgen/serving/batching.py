"""Batching: requests that wait for the same endpoint run in one call."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.serving.versions import Arrays, Endpoint


class Busy(Exception):
    """The server is overloaded; the same request may succeed later."""


class BadRequest(Exception):
    """An invalid body, or values that the model refuses; the message says why."""


@dataclasses.dataclass(frozen=True)
class _Request:
    endpoint: Endpoint
    inputs: Arrays
    num_rows: int
    answer: asyncio.Future


class Batcher:
    """Runs endpoints in threads; requests that arrive meanwhile are queued and merged.

    A single request runs at once: none waits for others to arrive. The result of a row
    does not depend on the other rows of its batch.

    Args:
        num_threads: Calls at the same time; TensorFlow uses all cores in each.
        max_rows: Rows of a merged call.
        max_waiting_rows: Rows in all queues, before requests are turned away.
    """

    def __init__(
        self, num_threads: int = 2, max_rows: int = 64, max_waiting_rows: int = 4096
    ):
        self.max_rows = max_rows
        self.max_waiting_rows = max_waiting_rows
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="model")
        self._num_threads = num_threads
        self._running: list[Endpoint] = []
        self._num_waiting = 0
        self._queues: dict[Any, collections.deque[_Request]] = {}
        self._tasks: set[asyncio.Task] = set()

    async def __call__(self, endpoint: Endpoint, inputs: Arrays) -> Arrays:
        """The outputs for some rows.

        Raises:
            Busy: Too many rows wait.
            BadRequest: The model does not take these values.
        """
        num_rows = len(next(iter(inputs.values())))
        if num_rows > self.max_rows:  # This bounds the memory of a call.
            starts = range(0, num_rows, self.max_rows)
            parts = [
                {k: v[start : start + self.max_rows] for k, v in inputs.items()}
                for start in starts
            ]
            answers = await asyncio.gather(*(self(endpoint, part) for part in parts))
            return {k: _joined([one[k] for one in answers]) for k in answers[0]}
        if self._num_waiting + num_rows > self.max_waiting_rows:
            raise Busy(f"{self._num_waiting} rows wait already. Try again later.")
        shapes = ((name, array.shape[1:]) for name, array in inputs.items())
        key = (id(endpoint), *sorted(shapes))
        queue = self._queues.setdefault(key, collections.deque())
        answer = asyncio.get_running_loop().create_future()
        queue.append(_Request(endpoint, inputs, num_rows, answer))
        self._num_waiting += num_rows
        self._start()
        return await answer

    def close(self) -> None:
        """Ends the threads after their current calls."""
        self._threads.shutdown()

    def _start(self) -> None:
        """Gives free threads the requests that have waited longest."""
        for key in list(self._queues):
            if len(self._running) == self._num_threads:
                return
            endpoint = self._queues[key][0].endpoint
            if self._running.count(endpoint) >= endpoint.max_concurrency:
                continue
            queue = self._queues.pop(key)
            requests = self._take(queue)
            if queue:
                self._queues[key] = queue  # At the end: others have their turn first.
            if requests:
                self._running.append(endpoint)
                task = asyncio.get_running_loop().create_task(self._run(requests))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _take(self, queue: collections.deque[_Request]) -> list[_Request]:
        """The requests of one call: at least one, within `max_rows`."""
        taken: list[_Request] = []
        num_rows = 0
        while queue and (not taken or num_rows + queue[0].num_rows <= self.max_rows):
            request = queue.popleft()
            self._num_waiting -= request.num_rows
            if not request.answer.done():  # The client is still there.
                taken.append(request)
                num_rows += request.num_rows
        return taken

    async def _run(self, requests: list[_Request]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._threads, _answers, requests)
            for request, answer in zip(requests, answers, strict=True):
                if request.answer.done():
                    continue
                if isinstance(answer, Exception):
                    request.answer.set_exception(answer)
                else:
                    request.answer.set_result(answer)
            # A completion asks for its next tokens at once: they join the next call.
            await asyncio.sleep(0)
        finally:
            self._running.remove(requests[0].endpoint)
            self._start()


def _answers(requests: list[_Request]) -> list[Arrays | Exception]:
    """The outputs of each request, or its error."""
    names = requests[0].inputs
    joint = {name: np.concatenate([r.inputs[name] for r in requests]) for name in names}
    ends = np.cumsum([request.num_rows for request in requests])[:-1]
    try:
        outputs = requests[0].endpoint.call(joint)
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
    except Exception as error:
        if len(requests) > 1:  # One of them is invalid: the others run without it.
            return [_answers([request])[0] for request in requests]
        return [_reason(error)]
    return [
        {name: part[index] for name, part in parts.items()}
        for index in range(len(requests))
    ]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates rows; shorter rows of tokens are padded with -1."""
    if parts[0].ndim == 2:
        width = max(part.shape[1] for part in parts)
        parts = [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1)
            for part in parts
        ]
    return np.concatenate(parts)


def _reason(error: Exception) -> Exception:
    """The message of a model's own check as a BadRequest; any other error as it is."""
    # A message that holds the bytes of an image is not valid text.
    if isinstance(error, tf.errors.InvalidArgumentError | UnicodeDecodeError):
        text = str(error) if isinstance(error, tf.errors.OpError) else "damaged bytes"
        _, found, message = text.partition("assertion failed: [")
        if not found:
            return BadRequest(_last_line(text))
        parts = message.partition("\n\t")[0].rpartition("]")[0]
        return BadRequest(parts.replace("] [", " ")[:500])
    return error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.split("\n\t")[0].splitlines()]
    return [line for line in lines if line][-1]
