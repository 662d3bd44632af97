"""Connections that do not wait for ever, and do not take more memory than they may."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1, of which a request's head has to come in time, and is no book.

    The application sees a request when its head is there: only here can a client be
    bounded that never gets so far. Such a connection is closed.
    """

    head_seconds = 30.0
    most_head = 2**16  # bytes

    _timer: asyncio.TimerHandle | None = None
    _num_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing more."""
        self._end_of_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what comes before the end of a head."""
        super().data_received(data)
        self._num_bytes += len(data)
        if self._timer is not None and self._num_bytes > self.most_head:
            self.transport.close()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """It is there."""
        self._end_of_head()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._end_of_head()
        self._num_bytes = 0
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.head_seconds, self.transport.close)

    def _end_of_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
