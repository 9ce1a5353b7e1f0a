"""Reading a request body into one buffer, without trusting its sender."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quiver_service.deadline import Deadline
from quiver_service.errors import ClientGone, ServiceError

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


async def read_body(
    receive: Receive, length: int, limits: UploadLimits, deadline: Deadline | None = None
) -> memoryview:
    """Read a body of exactly `length` bytes into fresh memory; one copy, no joining.

    Parameters
    ----------
    receive
        Gives the body's chunks.
    length
        As declared.
    limits
        How slowly it may come.
    deadline
        When the client wants no answer any more.

    Returns
    -------
    memoryview
        Flat, writable bytes.

    Raises
    ------
    ServiceError
        ``stalled_upload``: a pause or the whole upload took too long; ``malformed_request``:
        more bytes came than were declared; ``deadline``.
    ClientGone
        The client left before the body was complete.
    """
    # np.empty does not clear the memory and asks for huge pages.
    view = np.empty(length, dtype=np.uint8).data
    clock = asyncio.get_running_loop().time
    last_moment = clock() + limits.total_seconds(length)
    if deadline is not None:
        last_moment = min(last_moment, deadline.at)
    filled = 0
    try:
        async with asyncio.timeout_at(min(clock() + limits.idle_seconds, last_moment)) as timer:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("client_disconnect")
                chunk = message.get("body", b"")
                if chunk:
                    filled = _append(view, filled, chunk)
                if not message.get("more_body", False):
                    break
                if chunk:
                    timer.reschedule(min(clock() + limits.idle_seconds, last_moment))
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
    if filled != length:
        raise ClientGone("client_disconnect")
    return view


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
