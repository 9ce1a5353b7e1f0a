"""Bodies: one buffer, never more than declared, never for longer than allowed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from quiver_service import body as reading
from quiver_service.body import MARGIN_BYTES, Receive, UploadLimits, read_body
from quiver_service.budget import ByteBudget
from quiver_service.buffers import Buffer
from quiver_service.errors import ClientGone, ServiceError

LIMITS = UploadLimits(idle_seconds=5, grace_seconds=5, min_bytes_per_second=1e6)


def chunk(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def read(
    receive: Receive, length: int, limits: UploadLimits = LIMITS
) -> Coroutine[Any, Any, memoryview]:
    """A body read on a budget of its own."""
    return read_body(receive, fresh(length), limits, ByteBudget(1 << 30).reserve(length))


def fresh(length: int) -> Buffer:
    return Buffer(memoryview(bytearray(length)))


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

    body = await read(sender(messages), 6)

    assert bytes(body) == b"abcdef"
    assert not body.readonly
    assert np.frombuffer(body, np.uint8).flags.writeable


async def test_an_empty_body_is_read():
    assert len(await read(sender([chunk(b"", more=False)]), 0)) == 0


async def test_more_than_declared_is_refused_at_once():
    with pytest.raises(ServiceError) as refused:
        await read(sender([chunk(b"abcd"), chunk(b"efgh")]), 6)

    assert (refused.value.code, refused.value.got) == ("malformed_request", 8)


@pytest.mark.parametrize("messages", [[chunk(b"abc"), GONE], [GONE], [chunk(b"abc", more=False)]])
async def test_a_short_body_is_a_client_that_left(messages: list[dict[str, Any]]):
    with pytest.raises(ClientGone):
        await read(sender(messages), 6)


async def test_a_pause_is_a_stall():
    limits = UploadLimits(idle_seconds=0.05, grace_seconds=5, min_bytes_per_second=1)
    begun = time.monotonic()

    with pytest.raises(ServiceError) as refused:
        await read(sender([chunk(b"abc")]), 6, limits)

    assert refused.value.code == "stalled_upload"
    assert "after 3 of 6 bytes" in refused.value.detail
    assert time.monotonic() - begun < 4


async def test_a_trickle_is_a_stall_although_it_never_pauses():
    limits = UploadLimits(idle_seconds=5, grace_seconds=0.1, min_bytes_per_second=1e9)

    with pytest.raises(ServiceError) as refused:
        await read(sender([chunk(b"a")] * 100, pause=0.01), 1000, limits)

    assert refused.value.code == "stalled_upload"


async def test_empty_chunks_are_no_progress():
    limits = UploadLimits(idle_seconds=0.05, grace_seconds=5, min_bytes_per_second=1)

    with pytest.raises(ServiceError) as refused:
        await read(sender([chunk(b"")] * 1000, pause=0.01), 6, limits)

    assert refused.value.code == "stalled_upload"


def test_long_bodies_have_longer():
    limits = UploadLimits(idle_seconds=1, grace_seconds=30, min_bytes_per_second=1e6)

    assert limits.total_seconds(1000) == 30
    assert limits.total_seconds(100_000_000) == 100


# -- slow uploads book what has come ----------------------------------------------------------

LENGTH = 8 * MARGIN_BYTES
SLOW = UploadLimits(idle_seconds=5, grace_seconds=30, min_bytes_per_second=1e9)


@pytest.fixture
def _soon_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SLOW_SECONDS", 0.02)


class Uploader:
    """Sends what it is told to."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, size: int, *, more: bool = True) -> None:
        self._messages.put_nowait(chunk(bytes(size), more=more))

    async def receive(self) -> dict[str, Any]:
        return await self._messages.get()


@pytest.mark.usefixtures("_soon_slow")
async def test_a_slow_upload_lends_to_others_what_it_does_not_send():
    budget, uploader = ByteBudget(10 * MARGIN_BYTES), Uploader()
    lease = budget.reserve(LENGTH)
    upload = asyncio.create_task(read_body(uploader.receive, fresh(LENGTH), SLOW, lease))
    uploader.send(MARGIN_BYTES)
    await asyncio.sleep(0.1)

    assert budget.used < 3 * MARGIN_BYTES
    other = budget.reserve(6 * MARGIN_BYTES)
    other.release()
    uploader.send(LENGTH - MARGIN_BYTES, more=False)

    assert len(await upload) == LENGTH
    assert lease.amount >= LENGTH
    lease.release()
    assert budget.used == 0


@pytest.mark.usefixtures("_soon_slow")
async def test_a_slow_upload_is_refused_when_others_have_taken_its_memory():
    budget, uploader = ByteBudget(10 * MARGIN_BYTES), Uploader()
    lease = budget.reserve(LENGTH)
    upload = asyncio.create_task(read_body(uploader.receive, fresh(LENGTH), SLOW, lease))
    await asyncio.sleep(0.1)
    budget.reserve(6 * MARGIN_BYTES)

    uploader.send(4 * MARGIN_BYTES)

    with pytest.raises(ServiceError) as refused:
        await upload
    assert refused.value.code == "busy"


@pytest.mark.usefixtures("_soon_slow")
async def test_an_upload_at_the_least_rate_books_all_of_it():
    """The control: what the first test sees comes from being slow."""
    budget, uploader = ByteBudget(10 * MARGIN_BYTES), Uploader()
    quick = UploadLimits(idle_seconds=5, grace_seconds=30, min_bytes_per_second=1)
    lease = budget.reserve(LENGTH)
    upload = asyncio.create_task(read_body(uploader.receive, fresh(LENGTH), quick, lease))
    uploader.send(MARGIN_BYTES)
    await asyncio.sleep(0.1)

    assert budget.used >= LENGTH
    upload.cancel()
