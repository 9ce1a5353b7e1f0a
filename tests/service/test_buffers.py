"""Warm buffers: never lent twice, never beyond the budget, never for long."""

from __future__ import annotations

import asyncio
import gc
import itertools
import mmap
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quiver_service import body as reading
from quiver_service import buffers as lending
from quiver_service.body import UploadLimits, read_body
from quiver_service.budget import ByteBudget
from quiver_service.buffers import MAPPED_BYTES, Buffer, Buffers
from quiver_service.errors import ClientGone, ServiceError
from quiver_service.services import Services
from quiver_service.settings import Settings

MIB = 1 << 20
LENGTH = MAPPED_BYTES + 100


def address(data: Any) -> int:
    """Where some bytes are."""
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


@pytest.fixture
def budget() -> ByteBudget:
    return ByteBudget(1 << 30)


@pytest.fixture
def memory(budget: ByteBudget) -> Iterator[Buffers]:
    memory = Buffers(256 * MIB, budget)
    yield memory
    memory.close()


async def test_a_buffer_that_nobody_uses_is_lent_again(memory: Buffers):
    first = memory.borrow(LENGTH)
    assert len(first.view) == LENGTH
    assert not first.view.readonly
    place = address(first.view)
    assert (memory.lent, memory.idle_bytes) == (1, 0)

    del first
    assert memory.lent == 0
    assert LENGTH <= memory.idle_bytes < LENGTH + 2 * MIB
    again = memory.borrow(LENGTH + 1)

    assert address(again.view) == place
    assert len(again.view) == LENGTH + 1
    assert (memory.lent, memory.idle_bytes) == (1, 0)


async def test_bodies_of_another_size_and_short_ones_get_memory_of_their_own(memory: Buffers):
    buffer = memory.borrow(LENGTH)
    del buffer

    for length in (0, 1000, MAPPED_BYTES - 1, MAPPED_BYTES // 8 * 9 + 3 * MIB, 4 * LENGTH):
        other = memory.borrow(length)
        assert len(other.view) == length
        assert memory.idle_bytes > 0, length
        del other


# What may still refer to a body: made from it, nothing else held.
HOLDERS: dict[str, Callable[[memoryview], Any]] = {
    "the view": lambda view: view,
    "its slice": lambda view: view[5:10],
    "another type": lambda view: view[: len(view) // 8 * 8].cast("d"),
    "what exports it": lambda view: view.obj,
    "an array": lambda view: np.frombuffer(view, np.uint8),
    "an array of other values": lambda view: np.frombuffer(view, np.float32, 100, 16),
    "a view of a view of an array": lambda view: np.frombuffer(view, np.uint8)[2:][::2][1:].T,
    "what NumPy makes of it": lambda view: np.asarray(view)[1:],
    "a view of what exports it": lambda view: view.obj[3:][::3],
    "a reshaped view of what exports it": lambda view: view.obj[:100].reshape(10, 10)[2],
    "a read-only view": lambda view: view.toreadonly(),
}


@pytest.mark.parametrize("holder", HOLDERS)
async def test_a_buffer_is_not_lent_while_anything_refers_to_it(memory: Buffers, holder: str):
    buffer = memory.borrow(LENGTH)
    place = address(buffer.view)
    held = HOLDERS[holder](buffer.view)
    del buffer
    gc.collect()

    other = memory.borrow(LENGTH)
    assert address(other.view) != place
    assert memory.lent == 2

    del held
    third = memory.borrow(LENGTH)
    assert address(third.view) == place
    del other, third


async def test_a_view_that_does_not_hold_the_loan_is_noticed(
    memory: Buffers, monkeypatch: pytest.MonkeyPatch
):
    """NumPy looks through arrays: views of a view of an array refer to the first of them."""
    whole: list[NDArray[np.uint8]] = []
    frombuffer = np.frombuffer

    def naive(mapping: Any, dtype: Any, count: int) -> NDArray[np.uint8]:
        whole.append(frombuffer(mapping, dtype))
        return whole[-1][:count]

    with monkeypatch.context() as patch:
        patch.setattr(lending.np, "frombuffer", naive)
        buffer = memory.borrow(LENGTH)
    held = HOLDERS["a view of what exports it"](buffer.view)
    place = address(buffer.view)
    del buffer

    assert address(memory.borrow(LENGTH).view) == place
    del held


async def test_an_error_holds_the_buffer_until_it_is_gone(memory: Buffers):
    def fail() -> None:
        held = np.frombuffer(memory.borrow(LENGTH).view, np.uint8)
        raise ValueError(len(held))

    with pytest.raises(ValueError, match=str(LENGTH)) as failed:
        fail()
    assert (memory.lent, memory.idle_bytes) == (1, 0)

    failed.value.__traceback__ = None
    del failed
    gc.collect()
    assert memory.lent == 0


async def test_a_cycle_holds_the_buffer_until_it_is_collected(memory: Buffers):
    cycle: list[Any] = [memory.borrow(LENGTH).view]
    cycle.append(cycle)
    del cycle
    assert memory.lent == 1

    gc.collect()
    assert memory.lent == 0
    assert memory.idle_bytes > 0


def crowded(memory: Buffers, seconds: float) -> list[str]:
    """Many threads write to buffers and look whether others do; what they found."""
    faults: list[str] = []
    end = time.monotonic() + seconds
    gate = threading.Lock()

    def hold(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end and not faults:
            with gate:
                view = np.frombuffer(memory.borrow(LENGTH).view, np.uint8)[1:][:: LENGTH // 16]
            view[:] = number
            time.sleep(draw.uniform(0, 0.002))
            if (view != number).any():
                faults.append(f"{number} read {view}")
            if draw.random() < 0.2:
                # Left to the collector.
                cycle: list[Any] = [view]
                cycle.append(cycle)
            del view

    threads = [threading.Thread(target=hold, args=(1 + i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return faults


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first timer, which is the test's loop's, lasts longer than the test."""
    monkeypatch.setattr(lending, "IDLE_SECONDS", 60)


async def test_a_crowd_never_shares_a_buffer(memory: Buffers, patient: None):
    memory.borrow(LENGTH)
    gc.set_threshold(20)
    try:
        assert not await asyncio.to_thread(crowded, memory, 0.5)
    finally:
        gc.set_threshold(700, 10, 10)
    gc.collect()
    assert memory.lent == 0


async def test_a_buffer_lent_twice_is_noticed(
    memory: Buffers, patient: None, monkeypatch: pytest.MonkeyPatch
):
    shared = mmap.mmap(-1, MAPPED_BYTES + 2 * MIB)
    monkeypatch.setattr(memory, "_kept", lambda _: shared)
    memory.borrow(LENGTH)

    assert await asyncio.to_thread(crowded, memory, 5)


# -- bounds ------------------------------------------------------------------------------


async def test_what_is_kept_is_bounded(budget: ByteBudget):
    memory = Buffers(40 * MIB, budget)
    buffers = [memory.borrow(LENGTH) for _ in range(5)]
    places = [address(buffer.view) for buffer in buffers]
    while buffers:
        del buffers[0]

    assert LENGTH < memory.idle_bytes <= 40 * MIB
    # The last ones are kept, and the last of these comes first.
    assert address(memory.borrow(LENGTH).view) == places[-1]
    memory.close()


async def test_nothing_is_kept_where_that_is_not_wanted(budget: ByteBudget):
    memory = Buffers(0, budget)
    buffer = memory.borrow(LENGTH)
    assert buffer.mapping is None
    del buffer

    assert (memory.lent, memory.idle_bytes) == (0, 0)


async def test_memory_that_a_request_needs_is_freed_first():
    budget = ByteBudget(100 * MIB)
    memory = Buffers(256 * MIB, budget)
    buffers = [memory.borrow(LENGTH) for _ in range(3)]
    del buffers
    kept = memory.idle_bytes
    assert kept == 3 * 18 * MIB

    lease = budget.reserve(10 * MIB)
    lease.resize(40 * MIB)
    assert memory.idle_bytes == kept
    lease.resize(60 * MIB)
    assert memory.idle_bytes == 2 * 18 * MIB
    lease.resize(90 * MIB)
    assert memory.idle_bytes == 0
    memory.close()


async def test_a_new_body_gets_a_warm_buffer_and_the_others_make_room():
    budget = ByteBudget(60 * MIB)
    memory = Buffers(256 * MIB, budget)
    buffers = [memory.borrow(LENGTH) for _ in range(3)]
    place = address(buffers[-1].view)
    while buffers:
        del buffers[0]
    assert memory.idle_bytes == 3 * 18 * MIB

    lease = budget.reserve(LENGTH)
    buffer = memory.borrow(LENGTH)

    assert address(buffer.view) == place
    assert memory.idle_bytes == 2 * 18 * MIB
    lease.resize(50 * MIB)
    assert memory.idle_bytes == 0
    memory.close()


async def test_small_bodies_make_room_too():
    budget = ByteBudget(20 * MIB)
    memory = Buffers(256 * MIB, budget)
    buffer = memory.borrow(LENGTH)
    del buffer
    lease = budget.reserve(3 * MIB)
    memory.borrow(3 * MIB)

    assert memory.idle_bytes == 0
    lease.release()


async def test_a_buffer_that_comes_back_to_a_full_budget_is_freed():
    budget = ByteBudget(40 * MIB)
    memory = Buffers(256 * MIB, budget)
    buffer = memory.borrow(LENGTH)
    lease = budget.reserve(30 * MIB)
    del buffer

    assert (memory.lent, memory.idle_bytes) == (0, 0)
    lease.release()


def test_whatever_happens_idle_and_lent_bytes_stay_within_the_budget():
    async def run(seed: int) -> None:
        budget, draw = ByteBudget(200 * MIB), random.Random(seed)
        memory = Buffers(128 * MIB, budget)
        live: list[tuple[Any, Any]] = []
        for _ in range(150):
            with_lease = draw.random()
            if with_lease < 0.4:
                length = draw.choice((LENGTH, 30 * MIB, 50 * MIB, 1000))
                try:
                    lease = budget.reserve(length)
                except ServiceError:
                    continue
                live.append((lease, memory.borrow(length)))
            elif live and with_lease < 0.7:
                try:
                    draw.choice(live)[0].resize(draw.randrange(80 * MIB))
                except ServiceError:
                    continue
            elif live:
                lease, buffer = live.pop(draw.randrange(len(live)))
                del buffer
                lease.release()
            assert memory.idle_bytes + budget.used <= budget.capacity
            assert memory.idle_bytes <= 128 * MIB
        live.clear()
        memory.close()
        assert memory.idle_bytes == memory.lent == 0

    for seed in range(20):
        asyncio.run(run(seed))


# -- time --------------------------------------------------------------------------------


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_idle_buffer_is_freed_soon(memory: Buffers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lending, "IDLE_SECONDS", 0.1)
    held = memory.borrow(LENGTH)
    buffer = memory.borrow(LENGTH)
    del buffer
    assert memory.idle_bytes > 0
    await until(lambda: memory.idle_bytes == 0)

    # One that comes back later is not forgotten, nor one in another thread.
    looks: list[int] = []
    look_later = memory._look_later
    monkeypatch.setattr(memory, "_look_later", lambda: (looks.append(1), look_later()))
    await until(lambda: len(looks) >= 2)
    await asyncio.to_thread(lambda views: views.clear(), [held.view])
    del held
    assert memory.idle_bytes > 0
    await until(lambda: memory.idle_bytes == 0)
    await until(lambda: memory._timer is None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_memory_goes_with_the_buffer(memory: Buffers):
    length = 64 * MIB
    before = resident()
    buffer = memory.borrow(length)
    buffer.view[:] = bytes(length)
    assert resident() - before > 60 * MIB
    del buffer
    assert resident() - before > 60 * MIB

    memory.close()
    assert resident() - before < 8 * MIB


async def test_at_the_end_nothing_is_kept_nor_comes_back(memory: Buffers):
    held, buffer = memory.borrow(LENGTH), memory.borrow(LENGTH)
    del buffer
    memory.close()
    assert memory.idle_bytes == 0

    del held
    assert (memory.lent, memory.idle_bytes) == (0, 0)


def test_the_service_bounds_it_as_its_settings_say():
    services = Services.create(Settings(warm_bytes=12345))

    assert services.buffers._capacity == 12345


# -- bodies ------------------------------------------------------------------------------

SLOW = UploadLimits(idle_seconds=5, grace_seconds=30, min_bytes_per_second=1e9)
SECRET = b"secret"


async def warm(memory: Buffers, length: int) -> None:
    """Leave a buffer that is full of another client's bytes."""
    buffer = memory.borrow(length)
    buffer.view[:] = (SECRET * (length // len(SECRET) + 1))[:length]


@pytest.mark.parametrize("sent", [0, 1, 1000, LENGTH - 1])
async def test_of_a_short_upload_nothing_is_ever_read(
    memory: Buffers, budget: ByteBudget, sent: int
):
    await warm(memory, LENGTH)
    messages = iter(
        [
            {"type": "http.request", "body": bytes(sent), "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    buffer = memory.borrow(LENGTH)
    assert bytes(buffer.view[-3:]) in SECRET * 2  # the plant: it is there to be read
    with pytest.raises(ClientGone):
        await read_body(receive, buffer, SLOW, budget.reserve(LENGTH))


async def test_a_whole_upload_leaves_nothing_of_the_body_before(
    memory: Buffers, budget: ByteBudget
):
    await warm(memory, LENGTH)
    expected = random.Random(1).randbytes(LENGTH)
    pieces = [expected[i : i + MIB] for i in range(0, LENGTH, MIB)]
    messages = (
        {"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces)}
        for i, piece in enumerate(pieces)
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    body = await read_body(receive, memory.borrow(LENGTH), SLOW, budget.reserve(LENGTH))

    assert body == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("cools", [True, False])
async def test_a_slow_upload_holds_no_memory_that_it_does_not_book(
    memory: Buffers, budget: ByteBudget, monkeypatch: pytest.MonkeyPatch, cools: bool
):
    monkeypatch.setattr(reading, "SLOW_SECONDS", 0.05)
    if not cools:
        monkeypatch.setattr(Buffer, "cool", lambda *_: None)
    length = 64 * MIB
    await warm(memory, length)
    before = resident()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    first = SECRET[::-1] * 1000
    chunks.put_nowait(first)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await chunks.get(), "more_body": chunks.qsize() > 0}

    async def receive_more() -> dict[str, Any]:
        return {**await receive(), "more_body": next(left) > 0}

    left = itertools.chain([1, 0])
    lease = budget.reserve(length)
    upload = asyncio.create_task(read_body(receive_more, memory.borrow(length), SLOW, lease))
    await until(lambda: lease.amount < 2 * MIB)
    taken = before - resident()
    chunks.put_nowait(bytes(length - len(first)))
    body = await upload

    assert (taken > 60 * MIB) is cools
    assert bytes(body[: len(first)]) == first
    assert not any(body[len(first) :])
