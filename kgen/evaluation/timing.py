"""Speeds of models, from the wall-clock time of warm calls."""

from __future__ import annotations

import math
import platform
import time
import timeit
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from kgen.evaluation.records import Record

NUM_RUNS = 5  # odd: the median is one of the runs
RUN_SECONDS = 0.2  # shorter runs mostly measure the machine's other processes


def call_seconds(calls: Iterable[Callable[[], Any]]) -> np.ndarray:
    """Return the wall-clock seconds of each call."""
    clock = time.perf_counter
    return np.array([timeit.timeit(call, number=1, timer=clock) for call in calls])


def rate_record(
    call: Callable[[], Any],
    amount: int,
    *,
    unit: str,
    protocol: str,
    num_runs: int = NUM_RUNS,
    **fields: Any,
) -> Record:
    """Measure the rate of a call: the median of warm runs.

    The first call, which compiles graphs, is not counted; the second determines the
    number of calls in a run of at least `RUN_SECONDS`.

    Args:
        call: A function without arguments.
        amount: Items that it processes.
        unit: "images/s", for example.
        protocol: The work of a call.
        num_runs: Timed runs.
        **fields: Other attributes of the record.

    Returns:
        A record whose interval is the slowest and the fastest run.
    """
    call()
    num_calls = math.ceil(RUN_SECONDS / call_seconds([call])[0])
    amount *= num_calls
    seconds = timeit.repeat(
        call, number=num_calls, repeat=num_runs, timer=time.perf_counter
    )
    rates = amount / np.array(seconds)
    return Record(
        value=float(np.median(rates)),
        unit=unit,
        protocol=f"{protocol}, warm, median of {num_runs} runs of {amount:,} "
        f"{unit.removesuffix('/s')} each on {device()}; interval: the slowest and the "
        "fastest run",
        n=num_runs * amount,
        higher_is_better=True,
        interval=(float(rates.min()), float(rates.max())),
        **fields,
    )


def sampling_speed(model: Any, *, batch_size: int = 256, seed: int = 0) -> Record:
    """Measure images per second of `model.generate`.

    Args:
        model: Has `generate(seeds, labels)`, and `num_classes` if it takes labels.
        batch_size: Images in a call.
        seed: First seed of each call.
    """
    seeds = range(seed, seed + batch_size)
    num_classes = getattr(model, "num_classes", None)
    labels = None if not num_classes else [row % num_classes for row in seeds]
    return rate_record(
        lambda: model.generate(seeds, labels),
        batch_size,
        metric="sampling_speed",
        unit="images/s",
        protocol=f"generate, batches of {batch_size}",
        seed=seed,
        headline=True,
    )


def device() -> str:
    """Return the name of the first accelerator, or the processor and its threads."""
    for kind in ("TPU", "GPU"):
        for device in tf.config.list_physical_devices(kind):
            details = tf.config.experimental.get_device_details(device)
            return details.get("device_name", kind)
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    text = f"CPU ({platform.machine()}"
    return f"{text}, {threads} threads)" if threads else f"{text}, default threads)"
