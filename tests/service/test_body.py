"""Bodies: one buffer, never more than declared, never for longer than allowed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from quiver_service.body import Receive, UploadLimits, read_body
from quiver_service.errors import ClientGone, ServiceError

LIMITS = UploadLimits(idle_seconds=5, grace_seconds=5, min_bytes_per_second=1e6)


def chunk(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


GONE = {"type": "http.disconnect"}


def sender(messages: Sequence[dict[str, Any]], pause: float = 0.0) -> Receive:
    """Sends `messages`, then nothing for ever."""
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.sleep(60)
        if pause:
            await asyncio.sleep(pause)
        return waiting.pop(0)

    return receive


@pytest.mark.parametrize(
    "pieces", [[b"abcdef"], [b"abc", b"def"], [b"a", b"", b"bcde", b"f", b""]], ids=len
)
async def test_chunks_land_in_one_buffer(pieces: list[bytes]):
    messages = [chunk(piece) for piece in pieces[:-1]] + [chunk(pieces[-1], more=False)]

    body = await read_body(sender(messages), 6, LIMITS)

    assert bytes(body) == b"abcdef"
    assert not body.readonly
    assert np.frombuffer(body, np.uint8).flags.writeable


async def test_an_empty_body_is_read():
    assert len(await read_body(sender([chunk(b"", more=False)]), 0, LIMITS)) == 0


async def test_more_than_declared_is_refused_at_once():
    with pytest.raises(ServiceError) as refused:
        await read_body(sender([chunk(b"abcd"), chunk(b"efgh")]), 6, LIMITS)

    assert (refused.value.code, refused.value.got) == ("malformed_request", 8)


@pytest.mark.parametrize("messages", [[chunk(b"abc"), GONE], [GONE], [chunk(b"abc", more=False)]])
async def test_a_short_body_is_a_client_that_left(messages: list[dict[str, Any]]):
    with pytest.raises(ClientGone):
        await read_body(sender(messages), 6, LIMITS)


async def test_a_pause_is_a_stall():
    limits = UploadLimits(idle_seconds=0.05, grace_seconds=5, min_bytes_per_second=1)
    begun = time.monotonic()

    with pytest.raises(ServiceError) as refused:
        await read_body(sender([chunk(b"abc")]), 6, limits)

    assert refused.value.code == "stalled_upload"
    assert "after 3 of 6 bytes" in refused.value.detail
    assert time.monotonic() - begun < 1


async def test_a_trickle_is_a_stall_although_it_never_pauses():
    limits = UploadLimits(idle_seconds=5, grace_seconds=0.1, min_bytes_per_second=1e9)

    with pytest.raises(ServiceError) as refused:
        await read_body(sender([chunk(b"a")] * 100, pause=0.01), 1000, limits)

    assert refused.value.code == "stalled_upload"


async def test_empty_chunks_are_no_progress():
    limits = UploadLimits(idle_seconds=0.05, grace_seconds=5, min_bytes_per_second=1)

    with pytest.raises(ServiceError) as refused:
        await read_body(sender([chunk(b"")] * 1000, pause=0.01), 6, limits)

    assert refused.value.code == "stalled_upload"


def test_long_bodies_have_longer():
    limits = UploadLimits(idle_seconds=1, grace_seconds=30, min_bytes_per_second=1e6)

    assert limits.total_seconds(1000) == 30
    assert limits.total_seconds(100_000_000) == 100
