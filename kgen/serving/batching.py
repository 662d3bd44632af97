"""Requests that wait for the same endpoint, answered together."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.serving.models import Arrays, Endpoint


class Busy(Exception):
    """The server has more to do than it can; the same request may succeed later."""


class Refused(Exception):
    """The model does not take these values; the message says what it wants."""


@dataclasses.dataclass(frozen=True)
class _Request:
    endpoint: Endpoint
    inputs: Arrays
    num_rows: int
    answer: asyncio.Future


class Batcher:
    """Runs endpoints in threads; what comes while all are at work waits, and is joined.

    Nothing waits for others to come: a single request runs at once. Rows do not depend
    on each other, so it makes no difference to them with which others they are.

    Args:
        num_threads: Calls at the same time; TensorFlow uses all cores in each.
        most_rows: Rows of a joint call.
        most_waiting: Rows that may wait, before requests are turned away.
    """

    def __init__(
        self, num_threads: int = 2, most_rows: int = 64, most_waiting: int = 4096
    ):
        self.most_rows = most_rows
        self.most_waiting = most_waiting
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
            Refused: The model does not take these values.
        """
        num_rows = len(next(iter(inputs.values())))
        if num_rows > self.most_rows:  # What a call takes of the memory has a bound.
            starts = range(0, num_rows, self.most_rows)
            parts = [
                {k: v[start : start + self.most_rows] for k, v in inputs.items()}
                for start in starts
            ]
            answers = await asyncio.gather(*(self(endpoint, part) for part in parts))
            return {k: _joined([one[k] for one in answers]) for k in answers[0]}
        if self._num_waiting + num_rows > self.most_waiting:
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
        """Ends the threads, once they have done what they are at."""
        self._threads.shutdown()

    def _start(self) -> None:
        """Gives free threads what has waited longest."""
        for key in list(self._queues):
            if len(self._running) == self._num_threads:
                return
            endpoint = self._queues[key][0].endpoint
            if endpoint.alone and endpoint in self._running:
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
        """What goes into one call: at least one request, and no row too many."""
        taken: list[_Request] = []
        num_rows = 0
        while queue and (not taken or num_rows + queue[0].num_rows <= self.most_rows):
            request = queue.popleft()
            self._num_waiting -= request.num_rows
            if not request.answer.done():  # Who asked has not gone away.
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
            # A text asks for its next tokens at once: let them be in the next call.
            await asyncio.sleep(0)
        finally:
            self._running.remove(requests[0].endpoint)
            self._start()


def _answers(requests: list[_Request]) -> list[Arrays | Exception]:
    """The outputs of each request, or what is wrong with it."""
    names = requests[0].inputs
    joint = {name: np.concatenate([r.inputs[name] for r in requests]) for name in names}
    ends = np.cumsum([request.num_rows for request in requests])[:-1]
    try:
        outputs = requests[0].endpoint.call(joint)
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
    except Exception as error:
        if len(requests) > 1:  # One of them is wrong, the others need not suffer.
            return [_answers([request])[0] for request in requests]
        return [_reason(error)]
    return [
        {name: part[index] for name, part in parts.items()}
        for index in range(len(requests))
    ]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Rows one after the other; those of tokens are as long as the longest."""
    if parts[0].ndim == 2:
        width = max(part.shape[1] for part in parts)
        parts = [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1)
            if part.shape[1] < width
            else part
            for part in parts
        ]
    return np.concatenate(parts)


def _reason(error: Exception) -> Exception:
    """An error of the model's own checks as one sentence; any other as it is."""
    # A message with bytes of an image in it is not even text.
    if isinstance(error, tf.errors.InvalidArgumentError | UnicodeDecodeError):
        text = str(error) if isinstance(error, tf.errors.OpError) else "damaged bytes"
        _, found, message = text.partition("assertion failed: [")
        if not found:
            return Refused(_last_line(text))
        parts = message.partition("\n\t")[0].rpartition("]")[0]
        return Refused(parts.replace("] [", " ")[:500])
    return error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.split("\n\t")[0].splitlines()]
    return [line for line in lines if line][-1]
