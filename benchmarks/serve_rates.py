"""`kgen serve` against the same SavedModel in-process: images and requests per second.

Every request asks `generate_png` for some images of new seeds. In turn: a process that
calls the SavedModel on batches of 64 seeds, one after the other, and the server, asked
by 1, 8 and 64 clients that keep their connection and wait for each answer. Clients and
server share the machine.

    python benchmarks/serve_rates.py saved_models/gan-mnist --images 16
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

BATCH = 64
TARGET = 0.8  # of the in-process rate, at 64 clients


def in_process(version, seconds, labelled):
    """Prints the images per second of calls on batches of 64."""
    import tensorflow as tf

    loaded = tf.saved_model.load(version)
    generate = loaded.signatures["generate_png"]

    def call(first):
        inputs = {"seeds": tf.range(first, first + BATCH, dtype=tf.int64)}
        if labelled:
            inputs["labels"] = tf.zeros([BATCH], tf.int32)
        return generate(**inputs)["images_bytes"].numpy()

    call(0)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += len(call(count))
    sys.stdout.write(f"{count / (time.perf_counter() - start)}\n")


async def client(port, name, images, labelled, until, first, taken):
    """Asks again and again; notes how long each answer took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        inputs = {"seeds": list(range(first, first + images))}
        if labelled:
            inputs["labels"] = [0] * images
        body = json.dumps({"signature_name": "generate_png", "inputs": inputs}).encode()
        head = (
            f"POST /v1/models/{name}:predict HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        start = time.perf_counter()
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if not answer.startswith("http/1.1 200"):
            raise RuntimeError(answer)
        length = int(answer.partition("content-length:")[2].split()[0])
        await reader.readexactly(length)
        taken.append(time.perf_counter() - start)
        first += images
    writer.close()


async def ask(port, name, images, labelled, num_clients, seconds):
    """Seconds of each answer to some clients, and how long all of it took."""
    taken, start = [], time.perf_counter()
    clients = [
        client(port, name, images, labelled, start + seconds, 10**6 * one, taken)
        for one in range(num_clients)
    ]
    await asyncio.gather(*clients)
    return taken, time.perf_counter() - start


@contextlib.contextmanager
def served(run):
    """The port of a server on a run."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = "from kgen_cli.main import main; main()"
    words = ["serve", str(run), "--embedded", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *words], stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), 1),
            ):
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def main():
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=16, help="of each request")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    record = json.loads((options.run / "recipe.json").read_text())
    labelled = bool(record.get("class_names"))
    versions = [p.parent for p in options.run.glob("*/saved_model.pb")]
    version = max(versions, key=lambda path: int(path.name))
    if options.in_process:
        in_process(str(version), options.seconds, labelled)
        return
    name = options.run.resolve().name
    found = {"in-process": [], **{n: [] for n in (1, 8, 64)}}
    latencies = {n: [] for n in (1, 8, 64)}
    for round_ in range(options.rounds):
        words = [str(options.run), "--seconds", str(options.seconds), "--in-process"]
        result = subprocess.run(
            [sys.executable, __file__, *words],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found["in-process"].append(float(result.stdout))
        with served(options.run) as port:
            asyncio.run(ask(port, name, options.images, labelled, 8, 2))  # warm
            for clients in (1, 8, 64):
                taken, wall = asyncio.run(
                    ask(port, name, options.images, labelled, clients, options.seconds)
                )
                found[clients].append(len(taken) * options.images / wall)
                latencies[clients] += taken
        print(round_ + 1, {key: round(rates[-1]) for key, rates in found.items()})
    print(f"images per second, median of {options.rounds} rounds:")
    base = statistics.median(found["in-process"])
    print(f"  in-process, batches of {BATCH}: {base:,.0f}")
    for clients in (1, 8, 64):
        rate = statistics.median(found[clients])
        taken = sorted(latencies[clients])
        p50, p99 = (1000 * taken[int(q * (len(taken) - 1))] for q in (0.5, 0.99))
        print(
            f"  {clients:2} clients, {options.images} images a request: {rate:,.0f} "
            f"({rate / base:.2f}), {rate / options.images:,.0f} requests a second, "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, n={len(taken)}"
        )
    print(f"target at 64 clients: {TARGET} of in-process")


if __name__ == "__main__":
    main()
