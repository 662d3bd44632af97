"""How fast a model makes images."""

from __future__ import annotations

import math
import platform
import statistics
import time
from typing import Any

import tensorflow as tf

from kgen.evaluation.records import Record

NUM_RUNS = 5  # Odd: the median is a run that took place.
RUN_SECONDS = 0.2  # Shorter ones measure what else the machine does.


def sampling_speed(model: Any, *, batch_size: int = 256, seed: int = 0) -> Record:
    """Measures images per second of `model.generate`, warm.

    Two calls that are not counted compile the graph and say how many make a run.

    Args:
        model: Has `generate(seeds, labels)`, and `num_classes` if it takes labels.
        batch_size: Images in a call.
        seed: The first of the seeds that are asked for.

    Returns:
        A record whose interval is the slowest and the fastest run.
    """
    seeds = range(seed, seed + batch_size)
    num_classes = getattr(model, "num_classes", None)
    labels = None if not num_classes else [row % num_classes for row in seeds]

    def seconds_for(num_calls):
        start = time.perf_counter()
        for _ in range(num_calls):
            model.generate(seeds, labels)
        return time.perf_counter() - start

    seconds_for(1)
    num_calls = math.ceil(RUN_SECONDS / seconds_for(1))
    num_images = num_calls * batch_size
    rates = [num_images / seconds_for(num_calls) for _ in range(NUM_RUNS)]
    return Record(
        metric="sampling_speed",
        headline=True,
        value=statistics.median(rates),
        unit="images/s",
        protocol=(
            f"generate, warm, batches of {batch_size}, median of {NUM_RUNS} runs of "
            f"{num_images:,} images each on {device()}; interval: the "
            "slowest and the fastest run"
        ),
        n=NUM_RUNS * num_images,
        seed=seed,
        higher_is_better=True,
        interval=(min(rates), max(rates)),
    )


def device() -> str:
    """The first accelerator, or the processor and its threads."""
    for kind in ("TPU", "GPU"):
        for device in tf.config.list_physical_devices(kind):
            details = tf.config.experimental.get_device_details(device)
            return details.get("device_name", kind)
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    text = f"CPU ({platform.machine()}"
    return f"{text}, {threads} threads)" if threads else f"{text}, default threads)"
