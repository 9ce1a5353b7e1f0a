"""A first look at a large vector while its body arrives: no bit changes, nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from uvicorn import Config
from uvicorn.server import ServerState

import service_fakes
from quiver_kernels import dispatch, wire
from quiver_kernels.cpu import chunking
from quiver_kernels.cpu.backend import CpuBackend
from quiver_kernels.cpu.survey import Survey
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.prefix import Prefix, read_prefix
from quiver_kernels.quantized import QuantizedVector
from quiver_service import early
from quiver_service.app import create_app
from quiver_service.budget import ByteBudget
from quiver_service.buffers import ALIGNMENT, Buffer, Buffers
from quiver_service.early import EarlyLook
from quiver_service.engine import Engine
from quiver_service.lifecycle import Phase
from quiver_service.pool import WorkerPool
from quiver_service.protocol import GuardedProtocol

SIZE = 40_000
CHUNK = 1000


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK", CHUNK)
    monkeypatch.setattr(early, "EARLY_BYTES", 1000)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(WorkerPool(threads=1, queue_size=2), 1 << 30)
    made.start()
    yield made
    made.close(5)


def body_of(x: np.ndarray[Any, Any], **options: Any) -> bytes:
    segments = wire.encode_quantize_request(x, QuantizeOptions.create(seed=3, **options))
    return b"".join(segments)


def vector(dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.random.default_rng(4).normal(size=SIZE).astype(dtype)


def buffer_for(body: bytes) -> Buffer:
    return Buffer(np.empty(len(body) + ALIGNMENT, np.uint8).data, len(body))


def look_at(engine: Engine, buffer: Buffer) -> EarlyLook:
    length = buffer.length
    return EarlyLook(engine, buffer, lambda begun: read_prefix(begun, length))


def fill(buffer: Buffer, body: bytes, look: EarlyLook, step: int = 777) -> None:
    """Send a body in pieces."""
    for start in range(0, len(body), step):
        piece = body[start : start + step]
        buffer.view[start : start + len(piece)] = piece
        look.note(start + len(piece))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("method", ["exact", "approx", "uniform"])
def test_the_answer_is_the_same_and_was_begun_early(
    engine: Engine, method: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = vector(dtype)
    body = body_of(x, bits=4, method=method)
    buffer = buffer_for(body)
    steps: list[str] = []
    whole = Survey.step

    def noted(survey: Survey) -> bool:
        steps.append(threading.current_thread().name)
        return whole(survey)

    monkeypatch.setattr(Survey, "step", noted)
    with look_at(engine, buffer) as look:
        fill(buffer, body, look)
        give_up = time.monotonic() + 10
        while not steps and time.monotonic() < give_up:
            look.note(len(body))
    survey = look.take()
    assert isinstance(survey, Survey)
    assert look.take() is None
    assert engine.pool._lent == type(engine.pool._lent)()
    request = wire.decode_quantize_request(buffer.view)
    assert isinstance(request, wire.QuantizeRequest)
    assert request.vector.flags.aligned
    with survey.offered():
        found = engine.quantize(request)
    alone = dispatch.load("cpu").quantize(x, request.options, None)
    assert survey._begun
    assert set(steps) == {"quiver-worker-0"}
    assert found.codes.tobytes() == alone.codes.tobytes()
    assert np.array_equal(found.levels, alone.levels)


def test_short_bodies_and_those_without_a_prefix_are_left_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = body_of(vector(), bits=4)
    asked: list[int] = []

    def nothing(begun: memoryview) -> Prefix | None:
        asked.append(len(begun))
        return None

    buffer = buffer_for(body)
    with EarlyLook(engine, buffer, nothing) as look:
        fill(buffer, body, look, 10_000)
    assert asked == [10_000, 20_000, 30_000, 40_000, 50_000, 60_000, 70_000]
    assert look.take() is None
    monkeypatch.setattr(early, "EARLY_BYTES", len(body) + 1)
    with EarlyLook(engine, buffer, nothing) as look:
        fill(buffer, body, look)
    assert len(asked) == 7


@pytest.mark.parametrize("device", ["gpu", "auto"])
def test_what_a_gpu_may_compute_is_left_alone(
    engine: Engine, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "auto":
        monkeypatch.setattr(engine.devices, "_device", "gpu")
    body = body_of(vector(), bits=4, device=device)
    buffer = buffer_for(body)
    with look_at(engine, buffer) as look:
        fill(buffer, body, look)
    assert look.take() is None


def test_an_upload_that_fails_leaves_nothing(engine: Engine) -> None:
    body = body_of(vector(), bits=4)
    buffer = buffer_for(body)
    held = weakref.ref(buffer.view.obj)
    look = look_at(engine, buffer)

    def upload(room: Buffer) -> None:
        with look:
            fill(room, body[:50_000], look)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        upload(buffer)
    assert not engine.pool._lent
    assert look.take() is None
    del buffer
    # A thread may be at a step.
    engine.pool.submit(lambda: None).result(5)
    gc.collect()
    assert held() is None
    look.note(len(body))


def test_busy_threads_are_not_waited_for(engine: Engine) -> None:
    gate = threading.Event()
    job = engine.pool.submit(lambda: gate.wait(10))
    body = body_of(vector(), bits=4)
    buffer = buffer_for(body)
    with look_at(engine, buffer) as look:
        fill(buffer, body, look)
    survey = look.take()
    assert isinstance(survey, Survey)
    assert survey._taken == 0
    gate.set()
    job.result(5)
    request = wire.decode_quantize_request(buffer.view)
    assert isinstance(request, wire.QuantizeRequest)
    with survey.offered():
        found = engine.quantize(request)
    alone = dispatch.load("cpu").quantize(vector(), request.options, None)
    assert found.codes.tobytes() == alone.codes.tobytes()


# -- buffers -----------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 63, 64, 65, 1000])
def test_a_body_is_moved_so_that_its_values_are_aligned(place: int) -> None:
    data = np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes()
    buffer = buffer_for(data)
    buffer.view[:3000] = data[:3000]
    buffer.align(place, 3000)
    buffer.view[3000:] = data[3000:]
    assert bytes(buffer.view) == data
    address = np.frombuffer(buffer.view, np.uint8).__array_interface__["data"][0]
    assert (address + place) % ALIGNMENT == 0


def test_without_room_a_body_stays() -> None:
    buffer = Buffer(memoryview(bytearray(b"abcdef")))
    for place in range(64):
        buffer.align(place, 6)
        assert bytes(buffer.view) == b"abcdef"


async def test_lent_buffers_have_room_to_be_moved() -> None:
    memory = Buffers(1 << 30, ByteBudget(1 << 30))
    for length in (1000, (16 << 20) + 1, 40 << 20):
        buffer = memory.borrow(length)
        buffer.view[:4] = b"abcd"
        buffer.align(1, 4)
        assert (len(buffer.view), bytes(buffer.view[:4])) == (length, b"abcd")
    memory.close()


# -- the whole way -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[Any, int]]:
    """The app with its real backend on a free port."""
    app = create_app(service_fakes.settings(threads=1))
    async with app.router.lifespan_context(app) as state:
        config = Config(app, log_config=None, http=GuardedProtocol)
        server = await asyncio.get_running_loop().create_server(
            lambda: GuardedProtocol(
                header_seconds=5, config=config, server_state=ServerState(), app_state=state or {}
            ),
            "127.0.0.1",
            0,
        )
        yield app, server.sockets[0].getsockname()[1]
        server.close()


async def exchange(
    port: int, body: bytes, query: str, media: str, looked_at: Callable[[], object]
) -> bytes:
    """Send a body in pieces, the last one when it has been looked at; the answer's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /quantize{query} HTTP/1.1\r\nhost: a\r\ncontent-type: {media}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode())
    for start in range(0, len(body) - 100, 100_000):
        writer.write(body[start : min(start + 100_000, len(body) - 100)])
        await writer.drain()
    await until(looked_at)
    writer.write(body[-100:])
    fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    length = next(int(x.split(b":")[1]) for x in fields if x.startswith(b"content-length"))
    answer = await reader.readexactly(length)
    writer.close()
    assert fields[0].endswith(b"200 ok"), answer
    return answer


async def test_a_request_over_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    early_steps: list[int] = []
    begun: list[Survey] = []
    whole = dispatch.begin_survey

    def noted(flat: Any, options: QuantizeOptions) -> Any:
        survey = whole(flat, options)
        assert isinstance(survey, Survey)
        begun.append(survey)
        return survey

    finish = Survey.finish

    def finished(survey: Survey) -> Any:
        early_steps.append(survey._taken)
        return finish(survey)

    # What is slow on the first request is none of this test's business.
    monkeypatch.setattr(CpuBackend, "warm_up", lambda _: None)
    monkeypatch.setattr(dispatch, "warm_up_schemes", lambda: None)
    monkeypatch.setattr(dispatch, "begin_survey", noted)
    monkeypatch.setattr(Survey, "finish", finished)
    x = np.random.default_rng(4).normal(size=400_000).astype(np.float32)
    alone = dispatch.load("cpu").quantize(x, QuantizeOptions.create(bits=4, seed=3), None)
    early_steps.clear()
    async with served() as (app, port):
        await until(lambda: app.state.services.lifecycle.phase is Phase.READY)
        for body, query, media in (
            (body_of(x, bits=4), "", wire.MEDIA_TYPE),
            (x.tobytes(), "?bits=4&seed=3", "application/octet-stream"),
        ):
            asked = len(begun)
            answer = await exchange(
                port, body, query, media, lambda asked=asked: begun[asked:] and begun[asked]._taken
            )
            q = QuantizedVector.from_bytes(answer)
            assert q.codes.tobytes() == alone.codes.tobytes()
        assert len(begun) == 2
        assert all(0 < taken <= 400 for taken in early_steps)
        held = [weakref.ref(survey) for survey in begun]
        begun.clear()
        await until(lambda: not any(ref() is not None for ref in held))
