"""Answers as segments: each goes to the socket on its own, none is joined or copied."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from quiver_kernels.framing import Segment
from quiver_service.buffers import Buffer
from quiver_service.context import context_of
from quiver_service.errors import ClientGone
from quiver_service.pour import Pour

PIECE_BYTES = 1 << 20
# A TLS transport says that it is free when one piece is encrypted but not yet with the kernel:
# small pieces bound what a client that reads nothing makes it keep beside the byte budget.
ENCRYPTED_PIECE_BYTES = 128 << 10
# Answers up to this are left to the transport, head and body in one piece.
BUFFERED_BYTES = 64 << 10
CONNECTION_EXTENSION = "quiver.connection"


class ConnectionControl(Protocol):
    """What a request may ask of its connection; the server leaves it with the request."""

    @property
    def uploaded(self) -> bool:
        """Whether the whole body has come."""
        ...

    @property
    def paused(self) -> bool:
        """Whether a `send` would wait for the client to take what was sent before."""
        ...

    def abort(self) -> None:
        """Cut it."""
        ...

    def pour(self, buffer: Buffer, note: Callable[[int], None]) -> Pour | None:
        """Read the rest of the body straight into `buffer`; None if that cannot be, see `pour`."""
        ...

    def buffer(self, wanted: bool) -> None:
        """Whether a `send` may return before the kernel has all."""
        ...

    def hold(self) -> None:
        """Keep what is written next until something else is, or until `flush`."""
        ...

    def flush(self) -> None:
        """Let go what is held."""
        ...


class SegmentsResponse(Response):
    """An answer of known length, sent in small pieces, each within a time limit.

    Parameters
    ----------
    segments
        Their concatenation is the body; views are flat bytes.
    media_type
        Content type.
    idle_seconds
        Longest time the client may take for one piece; then the connection is cut.
    status, headers
        Of the answer.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        media_type: str,
        idle_seconds: float,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # Not Response.__init__: it would render and keep one joined body.
        self.status_code = status
        self.background = None
        self.body = b""
        self._segments = list(segments)
        self._idle_seconds = idle_seconds
        self.length = sum(len(segment) for segment in self._segments)
        self.raw_headers = [
            (b"content-type", media_type.encode("latin-1")),
            (b"content-length", str(self.length).encode("ascii")),
            *(
                (name.lower().encode("latin-1"), value.encode("latin-1"))
                for name, value in (headers or {}).items()
            ),
        ]

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,  # noqa: ARG002
        send: Send,
    ) -> None:
        """Send the head, then the pieces.

        Raises
        ------
        ClientGone
            A piece was not taken in time; the connection has been cut.
        """
        begun = time.perf_counter()
        connection = connection_of(scope)
        unbuffered = connection is not None and self.length > BUFFERED_BYTES
        try:
            if connection is not None and self.length <= BUFFERED_BYTES and not connection.paused:
                connection.hold()
                try:
                    await self._send_small(send)
                finally:
                    # Nothing came after the head, if the request was a HEAD.
                    connection.flush()
                return
            if connection is not None and unbuffered:
                connection.buffer(False)
            encrypted = scope.get("scheme") == "https"
            await self._send_all(send, ENCRYPTED_PIECE_BYTES if encrypted else PIECE_BYTES)
        except TimeoutError:
            if connection is not None:
                connection.abort()
                # The server notes the cut in its next step; until then it would complain.
                await asyncio.sleep(0)
            raise ClientGone("slow_client") from None
        finally:
            if connection is not None and unbuffered:
                connection.buffer(True)
            self._segments.clear()
            context_of(scope).add_phase("send", time.perf_counter() - begun)

    async def _send_small(self, send: Send) -> None:
        """Send head and body, which a connection that is not paused takes at once."""
        await send(self._start())
        body = self._segments[0] if len(self._segments) == 1 else b"".join(self._segments)
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _start(self) -> Message:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }

    async def _send_all(self, send: Send, piece_bytes: int) -> None:
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout(self._idle_seconds) as timer:
            if self.length <= piece_bytes:
                await self._send_small(send)
                return
            await send(self._start())
            for piece in _pieces(self._segments, piece_bytes):
                timer.reschedule(clock() + self._idle_seconds)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            # The server takes this one only when the pieces before are with the kernel.
            timer.reschedule(clock() + self._idle_seconds)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def connection_of(scope: Scope) -> ConnectionControl | None:
    """The connection of a request; None where another server serves it."""
    connection: ConnectionControl | None = (scope.get("extensions") or {}).get(CONNECTION_EXTENSION)
    return connection


def _pieces(segments: Sequence[Segment], piece_bytes: int) -> Iterator[Segment]:
    for segment in segments:
        for start in range(0, len(segment), piece_bytes):
            yield segment[start : start + piece_bytes]
