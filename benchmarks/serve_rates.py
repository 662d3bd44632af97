"""`kgen serve` against the same SavedModel in-process: images or tokens per second.

Every request asks `generate_png` for images of new seeds, or a language model for a
completion. Two sides alternate: a process that calls the SavedModel (`generate_png` or
`generate`) on batches of 64 rows, and the server under 1, 8 and 64 clients, each with
one connection and one request at a time. Clients and server share the machine.

    python benchmarks/serve_rates.py saved_models/gan-mnist --each 16
    python benchmarks/serve_rates.py saved_models/gpt-shakespeare --each 128
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
PROMPT = "ROMEO:"
TARGET = 0.8  # of the in-process rate, at 64 clients


def in_process(version, seconds, kind, each):
    """Prints the images or tokens per second of calls on batches of 64."""
    import tensorflow as tf

    loaded = tf.saved_model.load(version)

    def call(first):
        inputs = {"seeds": tf.range(first, first + BATCH, dtype=tf.int64)}
        if kind == "labelled images":
            inputs["labels"] = tf.zeros([BATCH], tf.int32)
        if kind != "tokens":
            loaded.signatures["generate_png"](**inputs)["images_bytes"].numpy()
            return BATCH
        inputs["prompts"] = tf.fill([BATCH], PROMPT)
        inputs["max_new_tokens"] = tf.fill([BATCH], each)
        inputs["top_k"] = tf.fill([BATCH], 0)
        for name in ("temperature", "top_p", "repetition_penalty"):
            inputs[name] = tf.ones([BATCH])
        inputs["min_p"] = tf.zeros([BATCH])
        loaded.signatures["generate"](**inputs)["text"].numpy()
        return BATCH * each

    call(0)
    count, calls, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += call(calls * BATCH)
        calls += 1
    sys.stdout.write(f"{count / (time.perf_counter() - start)}\n")


def request(name, kind, each, first):
    """Returns the path and the body of a request."""
    if kind == "tokens":
        body = {"model": name, "prompt": PROMPT, "max_tokens": each, "seed": first}
        return "/v1/completions", body
    inputs = {"seeds": list(range(first, first + each))}
    if kind == "labelled images":
        inputs["labels"] = [0] * each
    body = {"signature_name": "generate_png", "inputs": inputs}
    return f"/v1/models/{name}:predict", body


async def client(port, name, kind, each, until, first, taken):
    """Sends requests until a time, and appends each latency to `taken`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        path, asked = request(name, kind, each, first)
        body = json.dumps(asked).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\n"
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
        first += each
    writer.close()


async def ask(port, name, kind, each, num_clients, seconds):
    """Runs several clients; returns all latencies and the total time, in seconds."""
    taken, start = [], time.perf_counter()
    clients = [
        client(port, name, kind, each, start + seconds, 10**6 * one, taken)
        for one in range(num_clients)
    ]
    await asyncio.gather(*clients)
    return taken, time.perf_counter() - start


@contextlib.contextmanager
def served(run):
    """Yields the port of a server of a run."""
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
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--each", type=int, default=16, help="images or tokens per request"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    record = json.loads((options.run / "recipe.json").read_text())
    versions = [p.parent for p in options.run.glob("*/saved_model.pb")]
    version = max(versions, key=lambda path: int(path.name))
    about = json.loads((version / "assets.extra" / "kgen.json").read_text())
    kind = "labelled images" if record.get("class_names") else "images"
    is_text = {"prefill", "decode"} <= about["signatures"].keys()
    kind = "tokens" if is_text else kind
    each = options.each
    if options.in_process:
        in_process(str(version), options.seconds, kind, each)
        return
    name = options.run.resolve().name
    found = {"in-process": [], **{n: [] for n in (1, 8, 64)}}
    latencies = {n: [] for n in (1, 8, 64)}
    for round_ in range(options.rounds):
        words = [str(options.run), "--seconds", str(options.seconds), "--in-process"]
        words += ["--each", str(each)]
        result = subprocess.run(
            [sys.executable, __file__, *words],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found["in-process"].append(float(result.stdout))
        with served(options.run) as port:
            asyncio.run(ask(port, name, kind, each, 8, 2))  # warm
            for clients in (1, 8, 64):
                taken, wall = asyncio.run(
                    ask(port, name, kind, each, clients, options.seconds)
                )
                found[clients].append(len(taken) * each / wall)
                latencies[clients] += taken
        print(round_ + 1, {key: round(rates[-1]) for key, rates in found.items()})
    what = kind.split()[-1]
    print(f"{what} per second, median of {options.rounds} rounds:")
    base = statistics.median(found["in-process"])
    print(f"  in-process, batches of {BATCH}: {base:,.0f}")
    for clients in (1, 8, 64):
        rate = statistics.median(found[clients])
        taken = sorted(latencies[clients])
        p50, p99 = (1000 * taken[int(q * (len(taken) - 1))] for q in (0.5, 0.99))
        print(
            f"  {clients:2} clients, {each} {what} per request: {rate:,.0f} "
            f"({rate / base:.2f}), {rate / each:,.0f} requests per second, "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, n={len(taken)}"
        )
    print(f"target at 64 clients: {TARGET} of in-process")


if __name__ == "__main__":
    main()
