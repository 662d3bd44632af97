"""HTTP connections with a timeout and a size limit for request headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 that closes connections whose headers are late or too long.

    Uvicorn has neither limit for the parser in C, and for h11 the size only. Without
    them, as many idle connections as `limit_concurrency` allows would block the server:
    the application sees a request only once its headers are complete.
    """

    header_seconds = 30.0
    max_header_bytes = 2**16

    _timer: asyncio.TimerHandle | None = None
    _num_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Starts the timeout of the first request."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timeout."""
        self._stop_timeout()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts the bytes of headers."""
        super().data_received(data)
        self._num_bytes += len(data)
        if self._timer is not None and self._num_bytes > self.max_header_bytes:
            self.transport.close()

    def on_message_begin(self) -> None:
        """Starts the timeout of the next request."""
        super().on_message_begin()
        self._await_headers()

    def on_headers_complete(self) -> None:
        """Stops the timeout."""
        self._stop_timeout()
        super().on_headers_complete()

    def _await_headers(self) -> None:
        self._stop_timeout()
        self._num_bytes = 0
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.header_seconds, self.transport.close)

    def _stop_timeout(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
