"""uvicorn's HTTP protocol with what it leaves out.

A limit on the time of a head, a way to cut a connection, problem documents for bytes that
are not HTTP, and a lingering close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quiver_service.errors import ServiceError, problem_of
from quiver_service.middleware import fresh_id
from quiver_service.negotiation import PROBLEM_JSON
from quiver_service.responses import ABORT_EXTENSION

LINGER_SECONDS = 2.0


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    A connection that sends no complete head within `header_seconds` is closed; answers
    count as sent when the kernel has them; malformed HTTP gets a problem document. After an
    answer that came before the body was read, what still arrives is dropped for a moment:
    closing at once would make the kernel reset the connection, and a client that reads only
    after it has sent would lose the answer.

    Parameters
    ----------
    header_seconds
        Longest time for the head of a request.
    arguments
        uvicorn's own.
    """

    def __init__(self, *, header_seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._header_seconds = header_seconds
        self._header_timer: asyncio.TimerHandle | None = None
        self._lingering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first head."""
        super().connection_made(transport)
        # Nothing may linger in a write buffer: a `send` then returns when the kernel has all,
        # which is what bounds slow readers and tells when memory is free.
        # (A TLS transport compares with >=, and would pause writing at 0 for good.)
        encrypted = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=1 if encrypted else 0, low=0)
        closing = _ClosingTransport(transport, self._close)
        self.transport = cast("asyncio.Transport", closing)
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request, or drop what comes after the answer."""
        if not self._lingering:
            super().data_received(data)

    def on_message_begin(self) -> None:
        """Give the request a way to cut its connection."""
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_EXTENSION: self.transport.abort}  # type: ignore[dict-item]
        self._start_header_timer()

    def on_headers_complete(self) -> None:
        """Stop waiting for the head."""
        self._stop_header_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting for the head."""
        self._stop_header_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        problem = problem_of(ServiceError("malformed_request", msg), fresh_id(), 0)
        body = msgspec.json.encode(problem.document)
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {PROBLEM_JSON}\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {problem.document['request_id']}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _close(self, transport: asyncio.Transport) -> None:
        cycle: Any = self.cycle  # None before the first request
        body_unread = cycle is not None and cycle.more_body
        if self._lingering or not body_unread:
            transport.close()
            return
        self._lingering = True
        # TLS has no half-close; the length of the answer says where it ends.
        if transport.can_write_eof():
            transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, transport.close)

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self._header_seconds, self._head_too_slow)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _head_too_slow(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()


class _ClosingTransport:
    """A transport whose `close` is ours; all else is its own."""

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[asyncio.Transport], None]
    ) -> None:
        self._transport = transport
        self._close = close
        self._closing = False

    def close(self) -> None:
        self._closing = True
        self._close(self._transport)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
