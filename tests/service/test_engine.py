"""The engine without any transport."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator

import numpy as np
import pytest

from quiver_kernels.errors import BackendUnavailable
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.stopping import checkpoint
from quiver_kernels.wire import AggregateRequest, LevelsRequest, QuantizeRequest
from quiver_service.budget import ByteBudget
from quiver_service.deadline import Deadline
from quiver_service.devices import Devices
from quiver_service.engine import Engine
from quiver_service.errors import ClientGone, ServiceError
from quiver_service.footprint import of_quantize
from service_fakes import FakeBackend, FakeBackends, fake_engine

X = np.arange(16, dtype=np.float32)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = fake_engine()
    made.start()
    yield made
    made.close(1.0)


def request(**options: object) -> QuantizeRequest:
    return QuantizeRequest(X, None, QuantizeOptions.create(**options))  # type: ignore[arg-type]


def in_seconds(seconds: float) -> Deadline:
    return Deadline.of_service(seconds, asyncio.get_running_loop().time())


def test_a_seed_is_drawn_and_returned(engine: Engine):
    first, second = engine.quantize(request()), engine.quantize(request())

    assert first.seed != second.seed
    assert engine.quantize(request(seed=7)).seed == 7


def test_the_operations_agree(engine: Engine):
    q = engine.quantize(request(bits=4))

    assert np.array_equal(engine.dequantize(q), X)
    levels = engine.levels(LevelsRequest(X, None, QuantizeOptions.create(bits=4)))
    assert np.array_equal(levels.levels, q.levels)
    mean = engine.aggregate(AggregateRequest((q, q), (1.0, 3.0), None))
    assert np.array_equal(mean, X)


def test_a_mean_can_be_quantized_again(engine: Engine):
    q = engine.quantize(request(bits=4))

    again = engine.aggregate(AggregateRequest((q, q), None, QuantizeOptions.create(bits=3, seed=5)))

    assert isinstance(again, QuantizedVector)
    assert (again.bits, again.seed, again.shape) == (3, 5, (16,))


def test_a_missing_device_is_named(engine: Engine):
    with pytest.raises(BackendUnavailable, match="gpu"):
        engine.quantize(request(device="gpu"))


def test_huge_tables_are_refused_before_they_are_made():
    engine = fake_engine(max_output_bytes=10_000)
    big = QuantizeRequest(np.zeros(1000, np.float32), None, QuantizeOptions.create(block_size=1))

    with pytest.raises(ServiceError) as refused:
        engine.quantize(big)

    assert refused.value.code == "too_large"
    assert refused.value.field == "block_size"
    assert refused.value.limit == 10_000
    assert refused.value.got == of_quantize(big).output == 1000 * (16 * 4 + 1)


def test_a_long_decoded_vector_is_refused_before_it_is_made(engine: Engine):
    q = engine.quantize(request(bits=1))
    small = fake_engine(max_output_bytes=63)

    with pytest.raises(ServiceError) as refused:
        small.dequantize(q)

    assert (refused.value.code, refused.value.got) == ("too_large", 64)


def test_sorting_methods_need_more_memory():
    x = np.zeros(1 << 20, np.float32)
    exact, approx = (
        of_quantize(QuantizeRequest(x, None, QuantizeOptions.create(method=method)))
        for method in ("exact", "approx")
    )

    assert exact.output == approx.output
    assert exact.working > 10 * approx.working


def test_warm_up_fails_without_any_device():
    class Nothing(FakeBackends):
        def pick(self, device: str) -> FakeBackend:
            raise BackendUnavailable("no Numba")

        def available(self) -> dict[str, bool]:
            return {"cpu": False, "gpu": False}

    with pytest.raises(BackendUnavailable):
        Engine(fake_engine().pool, 1, Devices(Nothing())).warm_up()


async def test_calls_run_in_the_pool(engine: Engine):
    name = await engine.run(lambda: threading.current_thread().name)

    assert name.startswith("quiver-worker")


async def test_the_deadline_counts_waiting_and_running(engine: Engine):
    with pytest.raises(ServiceError) as refused:
        await engine.run(lambda: time.sleep(0.3), deadline=in_seconds(0.02))

    assert refused.value.code == "deadline"


async def test_a_timeout_of_the_call_itself_is_no_deadline(engine: Engine):
    def fail() -> None:
        raise TimeoutError("inside")

    with pytest.raises(TimeoutError, match="inside"):
        await engine.run(fail, deadline=in_seconds(5))


async def test_memory_is_held_until_the_thread_has_stopped(engine: Engine):
    budget, release = ByteBudget(1 << 20), threading.Event()
    lease = budget.reserve(10)
    task = asyncio.create_task(engine.run(lambda: release.wait(10), lease=lease))
    await asyncio.sleep(0.05)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    lease.release()

    assert budget.used > 0
    release.set()
    deadline = time.monotonic() + 5
    while budget.used and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert budget.used == 0


async def test_a_cancelled_call_that_waits_is_dropped():
    engine = fake_engine(threads=1)
    engine.start()
    budget, release, ran = ByteBudget(1 << 20), threading.Event(), threading.Event()
    busy = asyncio.create_task(engine.run(lambda: release.wait(10)))
    await asyncio.sleep(0.02)
    lease = budget.reserve(10)
    waiting = asyncio.create_task(engine.run(ran.set, lease=lease))
    await asyncio.sleep(0.02)

    waiting.cancel()
    await asyncio.sleep(0)
    lease.release()
    await asyncio.sleep(0.02)

    assert budget.used == 0
    release.set()
    await busy
    assert not ran.is_set()
    assert engine.close(1.0)


async def test_an_error_holds_no_memory(engine: Engine):
    array = np.zeros(10)
    alive = weakref.ref(array)

    def fail(held: np.ndarray = array) -> None:
        raise ValueError(f"{held.size}")

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ValueError, match="10"):
            await engine.run(fail)
        del array, fail
        await engine.run(lambda: None)
        await engine.run(lambda: None)
        assert alive() is None
    finally:
        gc.enable()


async def test_a_computation_stops_when_its_deadline_passes(engine: Engine):
    stopped = threading.Event()

    def work() -> None:
        try:
            while True:
                checkpoint()
                time.sleep(0.001)
        finally:
            stopped.set()

    with pytest.raises(ServiceError) as refused:
        await engine.run(work, deadline=in_seconds(0.05))

    assert refused.value.code == "deadline"
    assert refused.value.setting == "QUIVER_DEADLINE_SECONDS"
    assert await asyncio.to_thread(stopped.wait, 5)


async def test_a_computation_stops_when_its_client_leaves(engine: Engine):
    stopped = threading.Event()

    def work() -> None:
        try:
            while True:
                checkpoint()
                time.sleep(0.001)
        finally:
            stopped.set()

    gone = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(engine.run(work, gone=gone))
    await asyncio.sleep(0.05)
    gone.set_result(None)

    with pytest.raises(ClientGone):
        await running
    assert await asyncio.to_thread(stopped.wait, 5)


async def test_memory_that_runs_out_is_busy(engine: Engine):
    def fail() -> None:
        raise MemoryError

    with pytest.raises(ServiceError) as refused:
        await engine.run(fail)

    assert refused.value.code == "busy"
