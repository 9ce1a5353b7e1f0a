"""Answers as segments: each goes to the socket on its own, none is joined or copied."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quiver_kernels.framing import Segment
from quiver_service.context import context_of
from quiver_service.errors import ClientGone

PIECE_BYTES = 1 << 20
# A TLS transport says that it is free when one piece is encrypted but not yet with the kernel:
# small pieces bound what a client that reads nothing makes it keep beside the byte budget.
ENCRYPTED_PIECE_BYTES = 128 << 10
ABORT_EXTENSION = "quiver.abort"


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
        try:
            encrypted = scope.get("scheme") == "https"
            await self._send_all(send, ENCRYPTED_PIECE_BYTES if encrypted else PIECE_BYTES)
        except TimeoutError:
            abort: Callable[[], None] | None = (scope.get("extensions") or {}).get(ABORT_EXTENSION)
            if abort is not None:
                abort()
                # The server notes the cut in its next step; until then it would complain.
                await asyncio.sleep(0)
            raise ClientGone("slow_client") from None
        finally:
            self._segments.clear()
            context_of(scope).add_phase("send", time.perf_counter() - begun)

    async def _send_all(self, send: Send, piece_bytes: int) -> None:
        clock = asyncio.get_running_loop().time
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        async with asyncio.timeout(self._idle_seconds) as timer:
            await send(start)
            if self.length <= piece_bytes:
                body = self._segments[0] if len(self._segments) == 1 else b"".join(self._segments)
                await send({"type": "http.response.body", "body": body, "more_body": False})
                return
            for piece in _pieces(self._segments, piece_bytes):
                timer.reschedule(clock() + self._idle_seconds)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            # The server takes this one only when the pieces before are with the kernel.
            timer.reschedule(clock() + self._idle_seconds)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _pieces(segments: Sequence[Segment], piece_bytes: int) -> Iterator[Segment]:
    for segment in segments:
        for start in range(0, len(segment), piece_bytes):
            yield segment[start : start + piece_bytes]
