"""uvicorn's HTTP protocol with what it leaves out.

Limits on the time and the size of a head, a way to cut a connection, problem documents for
bytes that are not HTTP, and a lingering close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quiver_service.buffers import Buffer
from quiver_service.errors import ServiceError, problem_of
from quiver_service.middleware import fresh_id
from quiver_service.negotiation import PROBLEM_JSON
from quiver_service.pour import Pour
from quiver_service.responses import BUFFERED_BYTES, CONNECTION_EXTENSION

LINGER_SECONDS = 2.0
FAREWELL_SECONDS = 1.0
MAX_HEAD_BYTES = 64 << 10
MAX_HEAD_FIELDS = 256


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    A connection that sends no complete head within `header_seconds` is closed, and one whose
    head has more than `MAX_HEAD_BYTES` or `MAX_HEAD_FIELDS` is refused; large answers count
    as sent when the kernel has them; malformed HTTP gets a problem document. After an answer that
    came before the body was read, what still arrives is dropped for a moment: closing at once
    would make the kernel reset the connection, and a client that reads only after it has sent
    would lose the answer.

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
        self.encrypted = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._head_open = False
        self._lingering = False
        # Bytes that the head being received may still have, and how many heads came before it.
        self._head_left = MAX_HEAD_BYTES
        self._heads = 0
        self._raw: asyncio.Transport | None = None
        self._pour: Pour | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first head."""
        super().connection_made(transport)
        self.encrypted = transport.get_extra_info("sslcontext") is not None
        self._raw = transport
        closing = _ClosingTransport(transport, self._close)
        closing.set_write_buffer_limits(high=BUFFERED_BYTES)
        self.transport = cast("asyncio.Transport", closing)
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request, or drop what comes after the answer."""
        # While a head is open, no more is looked at than it may have.
        while self._header_timer is not None and len(data) > self._head_left:
            piece, data = data[: self._head_left], data[self._head_left :]
            if not self._feed(piece):
                return
        self._feed(data)

    def _feed(self, data: bytes) -> bool:
        """Parse some bytes; False if the rest is not wanted."""
        if self._lingering or self.transport.is_closing():
            return False
        heads = self._heads
        super().data_received(data)
        # Most heads come whole, and need no timer.
        if self._head_open:
            self._start_header_timer()
        if self._heads != heads or self._header_timer is None:
            self._head_left = MAX_HEAD_BYTES
            return True
        self._head_left -= len(data)
        if self._head_left <= 0:
            self._refuse_head(f"the head of the request has {MAX_HEAD_BYTES} bytes or more")
        elif len(self.headers or ()) > MAX_HEAD_FIELDS:
            self._refuse_head(f"the head of the request has more than {MAX_HEAD_FIELDS} fields")
        return self._head_left > 0

    def _refuse_head(self, detail: str) -> None:
        if not self.transport.is_closing():
            self._answer(ServiceError("head_too_large", detail))

    def pour(self, buffer: Buffer, note: Callable[[int], None]) -> Pour | None:
        """Let the rest of the body that is being received go straight into `buffer`.

        What has come of it is put there first. None if the body is not the one that the transport
        would read next: it is complete, or its connection is lost.
        """
        cycle: Any = self.cycle
        if self._raw is None or self.pipeline or not cycle.more_body or cycle.disconnected:
            return None
        came = cycle.body
        if len(came) >= buffer.length or self.transport.is_closing():
            return None
        buffer.view[: len(came)] = came
        cycle.body = bytearray()
        cycle.message_event.clear()
        if cycle.waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        self._pour = Pour(self, buffer, len(came), note)
        self._deliver_to(self._pour)
        return self._pour

    def stop_pouring(self, pour: Pour, *, complete: bool) -> None:
        """Read from the transport again, if `pour` still does; a complete body is not parsed."""
        if self._pour is not pour:
            return
        self._pour = None
        self._deliver_to(self)
        if complete and self.parser is not None:
            # The old one waits for a body that it will not see.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.cycle.more_body = False

    def _deliver_to(self, protocol: asyncio.BaseProtocol) -> None:
        if self._raw is None or self._raw.is_closing():
            return
        # A transport may look how a protocol wants to be given bytes only when reading starts.
        self.flow.pause_reading()
        self._raw.set_protocol(protocol)
        self.flow.resume_reading()

    def on_message_begin(self) -> None:
        """Give the request a way to cut its connection."""
        super().on_message_begin()
        control: Any = _Control(self)
        self.scope["extensions"] = {CONNECTION_EXTENSION: control}
        self._head_open = True

    def on_headers_complete(self) -> None:
        """Stop waiting for the head."""
        self._head_open = False
        self._stop_header_timer()
        self._heads += 1
        super().on_headers_complete()

    def shutdown(self) -> None:
        """Close an idle connection; a new one has a moment for the request that it came with."""
        cycle: Any = self.cycle  # None before the first request
        if cycle is None:
            self._stop_header_timer()
            self._header_timer = self.loop.call_later(FAREWELL_SECONDS, self._head_too_slow)
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting for the head."""
        self._stop_header_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        self._answer(ServiceError("malformed_request", msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: any client may ask for another protocol, and is answered in this one."""

    def _answer(self, error: ServiceError) -> None:
        """Answer what never became a request, and close."""
        problem = problem_of(error, fresh_id(), 0)
        body = msgspec.json.encode(problem.document)
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
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


class _Control:
    """See `responses.ConnectionControl`."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        self._protocol = protocol

    @property
    def uploaded(self) -> bool:
        return not self._protocol.cycle.more_body

    @property
    def paused(self) -> bool:
        return self._protocol.flow.write_paused

    def abort(self) -> None:
        self._protocol.transport.abort()

    def pour(self, buffer: Buffer, note: Callable[[int], None]) -> Pour | None:
        return self._protocol.pour(buffer, note)

    def hold(self) -> None:
        cast("_ClosingTransport", self._protocol.transport).hold()

    def flush(self) -> None:
        cast("_ClosingTransport", self._protocol.transport).flush()

    def buffer(self, wanted: bool) -> None:
        """Whether something may linger in the write buffer.

        Otherwise a `send` returns when the kernel has all, which is what bounds slow readers and
        tells when memory is free.
        """
        transport = self._protocol.transport
        if transport.is_closing():
            return
        if wanted:
            transport.set_write_buffer_limits(high=BUFFERED_BYTES)
            return
        # A TLS transport compares with >=, and would pause writing at 0 for good.
        transport.set_write_buffer_limits(high=1 if self._protocol.encrypted else 0, low=0)


class _ClosingTransport:
    """A transport whose `close` is ours; all else is its own."""

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[asyncio.Transport], None]
    ) -> None:
        self._transport = transport
        self._close = close
        self._closing = False
        self._held: list[bytes] | None = None

    def hold(self) -> None:
        """Keep the next `write` until the one after it, or `flush`."""
        self._held = []

    def flush(self) -> None:
        """Send what is held, at once."""
        held, self._held = self._held, None
        if held and not self.is_closing():
            self._transport.write(b"".join(held))

    def write(self, data: bytes) -> None:
        """Send `data`; after `close` nothing, for more requests may have come at once."""
        if self._held is not None:
            self._held.append(data)
            if len(self._held) > 1:
                self.flush()
        elif not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._closing = True
        self._close(self._transport)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
