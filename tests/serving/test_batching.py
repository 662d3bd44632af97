"""Batches of requests."""

import asyncio
import threading

import numpy as np
import pytest
import tensorflow as tf

from kgen.serving.batching import BadRequest, Batcher, Busy
from kgen.serving.versions import Endpoint


class Recorder:
    """An endpoint that doubles: records its batches, and waits for `may_go`."""

    def __init__(self):
        self.sizes = []
        self.may_go = threading.Event()
        self.endpoint = Endpoint(self.call, {})

    def call(self, arrays):
        assert self.may_go.wait(10)
        values = arrays["values"]
        self.sizes.append(len(values))
        if (values < 0).any():
            with tf.Graph().as_default():
                pass
            tf.debugging.Assert(False, ["`values` must be 0 or more."])
        if (values > 1000).any():
            raise MemoryError("too large")
        return {"doubled": 2 * values}


def values(*numbers):
    return {"values": np.array(numbers, np.float32)}


def gather(recorder, requests, **options):
    """The answers to requests that all arrive while the first one runs."""

    async def run():
        batcher = Batcher(num_threads=1, **options)
        tasks = [
            asyncio.create_task(batcher(recorder.endpoint, inputs))
            for inputs in requests
        ]
        await asyncio.sleep(0.1)
        recorder.may_go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()
        return answers

    return asyncio.run(run())


def test_waiting_requests_are_merged_and_their_answers_split():
    recorder = Recorder()
    requests = [values(1), values(2, 3), values(4), values(5, 6, 7)]
    answers = gather(recorder, requests)
    assert recorder.sizes == [1, 6]
    for inputs, outputs in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(outputs["doubled"], 2 * inputs["values"])


def test_a_call_has_at_most_max_rows():
    recorder = Recorder()
    requests = [values(0), values(*range(7)), values(1, 2), values(3), values(4, 5)]
    answers = gather(recorder, requests, max_rows=4)
    assert max(recorder.sizes) <= 4 and sum(recorder.sizes) == 13
    assert answers[1]["doubled"].tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_rows_of_tokens_are_as_long_as_the_longest():
    """A decoder returns as many columns as the longest row of its call needs."""

    def write(arrays):
        longest = arrays["values"].max()
        column = np.arange(longest)[None]
        return {"tokens": np.where(column < arrays["values"][:, None], column, -1)}

    async def run():
        batcher = Batcher(max_rows=2)
        return await batcher(Endpoint(write, {}), values(1, 2, 0, 3))

    answer = asyncio.run(run())
    assert answer["tokens"].tolist() == [
        *([0, -1, -1], [0, 1, -1], [-1, -1, -1], [0, 1, 2]),
    ]


def test_other_shapes_are_separate_calls():
    recorder = Recorder()
    wide = {"values": np.zeros((2, 3), np.float32)}
    answers = gather(recorder, [values(0), values(1), wide, values(2)])
    assert recorder.sizes == [1, 2, 2]
    assert answers[2]["doubled"].shape == (2, 3)


def test_only_the_request_with_an_invalid_row_fails():
    recorder = Recorder()
    good, first, bad, last = gather(
        recorder, [values(0), values(1), values(-1), values(2)]
    )
    assert isinstance(bad, BadRequest) and "must be 0 or more" in str(bad)
    assert [x["doubled"].tolist() for x in (good, first, last)] == [[0], [2], [4]]


def test_an_error_of_another_kind_stays_what_it_is():
    _, error = gather(Recorder(), [values(0), values(2000)])
    assert isinstance(error, MemoryError)


def test_too_many_rows_are_turned_away():
    recorder = Recorder()
    answers = gather(recorder, [values(0), *[values(1, 2)] * 5], max_waiting_rows=6)
    assert [isinstance(one, Busy) for one in answers] == [False] * 4 + [True] * 2


def test_cancelled_requests_are_left_out():
    recorder = Recorder()

    async def run():
        batcher = Batcher(num_threads=1)
        tasks = [
            asyncio.create_task(batcher(recorder.endpoint, values(number)))
            for number in range(3)
        ]
        await asyncio.sleep(0.1)
        tasks[1].cancel()
        await asyncio.sleep(0.1)
        recorder.may_go.set()
        await asyncio.wait(tasks)
        batcher.close()
        return tasks

    first, cancelled, last = asyncio.run(run())
    assert recorder.sizes == [1, 1]
    assert cancelled.cancelled()
    assert last.result()["doubled"].tolist() == [4]
    with pytest.raises(asyncio.CancelledError):
        cancelled.result()
