"""Clients whose request headers are late, or never end."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from free_ports import free_port
from kgen.serving import BoundedProtocol

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


class Impatient(BoundedProtocol):
    header_seconds = 0.5
    max_header_bytes = 2000


@pytest.fixture(scope="module")
def port():
    async def answer(request):
        return PlainTextResponse("here")

    port = free_port()
    application = Starlette(routes=[Route("/", answer)])
    config = uvicorn.Config(application, port=port, http=Impatient, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(port):
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        yield client


def is_closed(client):
    """Whether the other side closes it, within ten seconds."""
    with contextlib.suppress(ConnectionError):
        while client.recv(1000):
            pass
    return True


def test_requests_are_answered(client):
    for _ in range(2):
        client.sendall(GET)
        assert b"here" in client.recv(1000)


@pytest.mark.parametrize("begin", [b"", b"GET / HT", GET[:-2]])
def test_late_headers_close_the_connection(client, begin):
    client.sendall(begin)
    start = time.monotonic()
    assert is_closed(client)
    assert 0.4 < time.monotonic() - start < 5


def test_each_request_has_its_own_timeout(client):
    client.sendall(GET)
    assert b"here" in client.recv(1000)
    client.sendall(GET[:9])
    start = time.monotonic()
    assert is_closed(client)
    assert 0.4 < time.monotonic() - start < 5


def test_endless_headers_close_the_connection(client):
    client.sendall(GET[:-2])
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 10**6:
            client.sendall(b"x: " + b"y" * 500 + b"\r\n")
            sent += 505
            time.sleep(0.001)
    assert sent < 10**5
