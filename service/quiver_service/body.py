"""Reading a request body into one buffer, without trusting its sender."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from quiver_service.budget import Lease
from quiver_service.buffers import Buffer
from quiver_service.deadline import Deadline
from quiver_service.errors import ClientGone, ServiceError
from quiver_service.responses import ConnectionControl

SLOW_SECONDS = 1.0
MARGIN_BYTES = 1 << 20
# From this length on, a body goes from the socket straight into its buffer.
POURED_BYTES = 1 << 18

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """How slowly a body may arrive: longest pause, time it always has, least average rate."""

    idle_seconds: float
    grace_seconds: float
    min_bytes_per_second: float

    def total_seconds(self, length: int) -> float:
        """Longest time for a whole body of `length` bytes."""
        return max(self.grace_seconds, length / self.min_bytes_per_second)


async def read_whole(receive: Receive, buffer: Buffer) -> memoryview:
    """Read a body that has come already; errors as for `read_body`."""
    if await _read_messages(receive, buffer) != buffer.length:
        raise ClientGone("client_disconnect")
    return buffer.view


async def read_body(
    receive: Receive,
    buffer: Buffer,
    limits: UploadLimits,
    lease: Lease,
    deadline: Deadline | None = None,
    connection: ConnectionControl | None = None,
    poured: Callable[[int], None] | None = None,
    came: Callable[[int], None] | None = None,
) -> memoryview:
    """Fill `buffer` with a body of exactly its length; one copy at most, no joining.

    Parameters
    ----------
    receive
        Gives the body's chunks.
    buffer
        Where they belong; as long as was declared.
    limits
        How slowly it may come.
    lease
        Books the whole body; less while the upload is slow, see `_Booking`.
    deadline
        When the client wants no answer any more.
    connection
        Reads a large body without a copy.
    poured
        Told how many bytes are there, whenever some came past `receive`.
    came
        Told the same, whichever way they came; may move what is there, see `Buffer.align`.

    Returns
    -------
    memoryview
        That of `buffer`, which has its last place now.

    Raises
    ------
    ServiceError
        ``stalled_upload``: a pause or the whole upload took too long; ``malformed_request``:
        more bytes came than were declared; ``deadline``; ``busy``: a slow upload went on when
        its memory had been lent to others.
    ClientGone
        The client left before the body was complete.
    """
    length = buffer.length
    clock = asyncio.get_running_loop().time
    last_moment = clock() + limits.total_seconds(length)
    if deadline is not None:
        last_moment = min(last_moment, deadline.at)
    filled = 0
    booking = _Booking(lease, buffer, limits.min_bytes_per_second)
    try:
        async with asyncio.timeout_at(min(clock() + limits.idle_seconds, last_moment)) as timer:

            def note(now_filled: int) -> None:
                nonlocal filled
                filled = now_filled
                booking.fill(filled)
                if came is not None:
                    came(filled)
                if not timer.expired():
                    timer.reschedule(min(clock() + limits.idle_seconds, last_moment))

            def note_poured(now_filled: int) -> None:
                note(now_filled)
                if poured is not None:
                    poured(now_filled)

            pour = None
            if connection is not None and length >= POURED_BYTES:
                pour = connection.pour(buffer, note_poured)
            if pour is not None:
                filled = pour.filled
                await pour.wait()
            else:
                await _read_messages(receive, buffer, note)
    except TimeoutError:
        if deadline is not None and clock() >= deadline.at:
            raise deadline.passed() from None
        raise ServiceError(
            "stalled_upload",
            f"upload stalled after {filled} of {length} bytes: no pause may exceed "
            f"{limits.idle_seconds:g} s and the whole body {limits.total_seconds(length):g} s",
            limit=limits.idle_seconds,
            got=filled,
            setting="QUIVER_BODY_IDLE_SECONDS",
        ) from None
    finally:
        booking.end()
    if filled != length:
        raise ClientGone("client_disconnect")
    return buffer.view


async def _read_messages(
    receive: Receive, buffer: Buffer, note: Callable[[int], None] | None = None
) -> int:
    """Bytes that came; `note` is told after every piece."""
    filled, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("client_disconnect")
        more = message.get("more_body", False)
        if chunk := message.get("body", b""):
            filled = _append(buffer.view, filled, chunk)
            if note is not None:
                note(filled)
    return filled


class _Booking:
    """Lends to others what a slow upload has declared and does not send.

    Memory of the buffer is only taken as it fills, or given back then. So an upload that is behind
    the least rate after a second books what has come and a little more from then on; when it goes
    on, it books again, and is refused if others hold too much by then.
    """

    def __init__(self, lease: Lease, buffer: Buffer, bytes_per_second: float) -> None:
        length = buffer.length
        self._lease = lease
        self._buffer = buffer
        self._length = length
        self._rate = bytes_per_second
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._filled = 0
        self._booked = length
        self._timer: asyncio.TimerHandle | None = None
        if length > MARGIN_BYTES:
            self._timer = self._loop.call_later(SLOW_SECONDS, self._look)

    def fill(self, filled: int) -> None:
        """Note that `filled` bytes have come."""
        self._filled = filled
        if filled > self._booked:
            self._book()

    def end(self) -> None:
        """Stop looking, and let go of the buffer: `note` may be kept, see `Pour.wait`."""
        self._buffer = Buffer(memoryview(b""))
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        if self._filled < self._rate * (self._loop.time() - self._begun):
            # A warm buffer still has the memory of the body before.
            self._buffer.cool(self._filled)
            self._book()
        self._timer = self._loop.call_later(SLOW_SECONDS, self._look)

    def _book(self) -> None:
        booked = min(self._length, self._filled + MARGIN_BYTES)
        if booked != self._booked:
            self._lease.resize(booked)
            self._booked = booked


def _append(view: memoryview, filled: int, chunk: bytes) -> int:
    end = filled + len(chunk)
    if end > len(view):
        raise ServiceError(
            "malformed_request",
            f"more than the declared Content-Length of {len(view)} bytes arrived",
            field="Content-Length",
            limit=len(view),
            got=end,
        )
    view[filled:end] = chunk
    return end
