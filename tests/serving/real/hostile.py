"""Good and hostile requests to a server: python hostile.py PORT NUMBER SEED.

The server has an image model `vae` and a language model `gpt`. Prints how many requests
of each kind there were, and what came of them, as JSON.
"""

import asyncio
import collections
import contextlib
import json
import random
import sys

VAE = "/v1/models/vae:predict"
COMPLETIONS = "/v1/completions"
# What each kind may lead to; None: no answer, because the client goes or is no client.
MAY_BE = {
    "good images": {200},
    "good text": {200},
    "good stream": {200},
    "random bytes": {400},
    "wrong shapes": {400},
    "huge integers": {400},
    "not a number": {400},
    "deep JSON": {400},
    "wrong names": {400},
    "wrong settings": {400},
    "nowhere": {404, 405},
    "too long": {413},
    "no HTTP": {400, None},
    "slow head, cut": {None},
    "slow body": {200},
    "cut body": {None},
    "cut before the answer": {None},
    "cut stream": {200},
}


def post(path, body, length=None):
    """The bytes of a request."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode() + body


def images(seeds):
    return {"signature_name": "generate_png", "inputs": {"seeds": seeds}}


def text(**values):
    return {"model": "gpt", "prompt": "to be", "max_tokens": 12} | values


def request(kind, rng):
    """The bytes of a request of a kind."""
    seeds = [rng.randrange(-(2**63), 2**63) for _ in range(rng.randrange(1, 5))]
    values = {
        "good images": lambda: post(VAE, images(seeds)),
        "good text": lambda: post(COMPLETIONS, text(n=rng.randrange(1, 4))),
        "good stream": lambda: post(COMPLETIONS, text(stream=True)),
        "random bytes": lambda: post(VAE, rng.randbytes(rng.randrange(1, 3000))),
        "wrong shapes": lambda: post(VAE, images([seeds] * rng.randrange(1, 50))),
        "huge integers": lambda: post(VAE, images([10 ** rng.randrange(19, 4000)])),
        "not a number": lambda: post(
            VAE, b'{"inputs": {"seeds": [%s]}}' % rng.choice([b"NaN", b"-Infinity"])
        ),
        "deep JSON": lambda: post(
            rng.choice([VAE, COMPLETIONS]),
            rng.choice([b"[", b'{"a":']) * rng.randrange(1000, 100_000),
        ),
        "wrong names": lambda: post(VAE, {"inputs": {"x" * 10_000: seeds}}),
        "wrong settings": lambda: post(
            COMPLETIONS,
            text(**rng.choice([{"top_p": 0}, {"n": 10**9}, {"max_tokens": 10**9}])),
        ),
        "nowhere": lambda: post(rng.choice(["/", "/v2", "/v1/models/x:predict"]), b""),
        "too long": lambda: post(VAE, b"", length=2**40),
        "no HTTP": lambda: rng.randbytes(rng.randrange(1, 3000)) + b"\r\n\r\n",
        "slow body": lambda: post(VAE, images(seeds)),
        "cut body": lambda: post(VAE, images(seeds), length=10_000),
        "cut before the answer": lambda: post(VAE, images(seeds * 20)),
        "slow head, cut": lambda: b"GET / HTTP/1.1\r\nHost: he",
        "cut stream": lambda: post(COMPLETIONS, text(stream=True, max_tokens=4000)),
    }
    return values[kind]()


async def outcome(port, kind, rng):
    """The status of the answer; None where there is none."""
    data = request(kind, rng)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if kind.startswith("slow"):
            for start in range(0, len(data), max(len(data) // 10, 1)):
                writer.write(data[start : start + max(len(data) // 10, 1)])
                await writer.drain()
                await asyncio.sleep(0.05)
        else:
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        if kind in ("cut body", "cut before the answer", "slow head, cut"):
            return None
        if kind == "cut stream":
            line = await reader.read(600)
            return int(line.split()[1])
        if kind == "no HTTP":
            writer.write_eof()
        answer = await reader.read()
        return int(answer.split()[1]) if answer else None
    except ConnectionError:
        return None
    finally:
        writer.transport.abort()


async def main(port, number, seed):
    rng = random.Random(seed)
    found = collections.Counter()
    together = asyncio.Semaphore(32)
    kinds = list(MAY_BE)

    async def one(index):
        kind = kinds[index % len(kinds)]
        async with together:
            try:
                async with asyncio.timeout(120):
                    status = await outcome(port, kind, random.Random(f"{seed} {index}"))
            except TimeoutError:
                status = "hangs"
        found[kind, status] += 1

    order = list(range(number))
    rng.shuffle(order)
    await asyncio.gather(*(one(index) for index in order))
    wrong = {
        f"{kind}: {status}": count
        for (kind, status), count in found.items()
        if status not in MAY_BE[kind]
    }
    statuses = collections.Counter()
    for (_, status), count in found.items():
        statuses[str(status)] += count
    print(json.dumps({"wrong": wrong, "statuses": statuses}))


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
