"""Bodies read straight into their buffers: the same bytes, however they are cut."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import weakref
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.server import ServerState

from quiver_service import body as reading
from quiver_service import pour as pouring
from quiver_service.body import MARGIN_BYTES, UploadLimits, read_body
from quiver_service.budget import ByteBudget, Lease
from quiver_service.buffers import Buffer, Buffers
from quiver_service.errors import ClientGone, ServiceError
from quiver_service.protocol import GuardedProtocol
from quiver_service.responses import connection_of

LIMITS = UploadLimits(idle_seconds=5, grace_seconds=5, min_bytes_per_second=1)
SHORTEST = 16  # poured in these tests

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


def on_the_services_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on uvloop: it hands bytes over in its own way."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        uvloop.run(test(*arguments, **named))

    del run.__wrapped__
    run.__signature__ = inspect.signature(test)
    return run


class Recorder:
    """An app that reads bodies as the service does, and answers with their checksums."""

    def __init__(self, limits: UploadLimits = LIMITS, budget: ByteBudget | None = None) -> None:
        self.limits = limits
        self.budget = budget or ByteBudget(1 << 30)
        self.memory = Buffers(1 << 30, self.budget)
        self.failures: list[Exception] = []
        self.buffers: list[weakref.ref[Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        length = int(dict(scope["headers"])[b"content-length"])
        lease: Lease = self.budget.reserve(length)
        status, answer = 200, b""
        try:
            connection = connection_of(scope)
            buffer = self.memory.borrow(length)
            body = await read_body(receive, buffer, self.limits, lease, None, connection)
            answer = b"%d %d" % (len(body), zlib.crc32(body))
            self.buffers.append(weakref.ref(body.obj))
            del body, buffer
        except (ServiceError, ClientGone) as failure:
            self.failures.append(failure)
            status = 408
        finally:
            lease.release()
        fields = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": answer})


@contextlib.asynccontextmanager
async def serving(app: Recorder) -> AsyncIterator[Callable[[], Awaitable[tuple[Reader, Writer]]]]:
    """Serve `app` on a free port; gives a function that connects."""
    config = Config(app, log_config=None, http=GuardedProtocol)
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: GuardedProtocol(header_seconds=5, config=config, server_state=state, app_state={}),
        "127.0.0.1",
        0,
    )
    port = server.sockets[0].getsockname()[1]
    writers: list[Writer] = []

    async def connect() -> tuple[Reader, Writer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        for writer in writers:
            writer.close()
        server.close()
        await server.wait_closed()


def request(body: bytes, *fields: str) -> bytes:
    lines = ["POST / HTTP/1.1", "host: a", f"content-length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


async def answer_of(reader: Reader) -> tuple[int, bytes]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = int(head.lower().split(b"content-length:")[1].split()[0])
    return int(head.split()[1]), await reader.readexactly(length)


def checksum(body: bytes) -> bytes:
    return b"%d %d" % (len(body), zlib.crc32(body))


@pytest.fixture
def poured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long the bodies were that were read so, with a low threshold."""
    lengths: list[int] = []
    original = pouring.Pour.wait

    async def counted(self: pouring.Pour) -> None:
        lengths.append(self._length)
        await original(self)

    monkeypatch.setattr(pouring.Pour, "wait", counted)
    monkeypatch.setattr(reading, "POURED_BYTES", SHORTEST)
    return lengths


BODIES = st.lists(st.integers(0, 600), min_size=1, max_size=4)


async def exchanged(lengths: list[int], cuts: list[int], *, pause: bool) -> None:
    """Requests one behind the other without waiting, in pieces; their answers in order."""
    bodies = [bytes((7 * i + j) % 251 for j in range(n)) for i, n in enumerate(lengths)]
    stream = b"".join(request(body) for body in bodies)
    borders = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    async with serving(Recorder()) as connect:
        reader, writer = await connect()
        for start, end in itertools.pairwise(borders):
            writer.write(stream[start:end])
            await writer.drain()
            if pause:
                await asyncio.sleep(0.001)
        for body in bodies:
            assert await answer_of(reader) == (200, checksum(body))


@settings(max_examples=60, deadline=None)
@given(BODIES, st.lists(st.integers(0, 1 << 16), max_size=6), st.booleans())
def test_however_requests_are_cut_each_has_its_own_body(
    lengths: list[int], cuts: list[int], pause: bool
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "POURED_BYTES", SHORTEST)
        uvloop.run(exchanged(lengths, cuts, pause=pause))


@on_the_services_loop
async def test_a_body_in_pieces_is_poured_and_a_small_one_is_not(poured: list[int]):
    async with serving(Recorder()) as connect:
        reader, writer = await connect()
        # The large one is more than the transport reads at once, before and behind its head.
        for length in (1000, SHORTEST - 1, 3 << 20, 500):
            body = bytes(length)
            head = request(body)[: -length or None]
            writer.write(head)
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(body)
            assert await answer_of(reader) == (200, checksum(body))

    assert poured == [1000, 3 << 20, 500]


@on_the_services_loop
async def test_a_parser_that_is_not_renewed_is_noticed(
    poured: list[int], monkeypatch: pytest.MonkeyPatch
):
    stop = GuardedProtocol.stop_pouring

    def forgetful(self: GuardedProtocol, pour: Any, *, complete: bool) -> None:
        parser = self.parser
        stop(self, pour, complete=complete)
        self.parser = parser

    monkeypatch.setattr(GuardedProtocol, "stop_pouring", forgetful)

    with pytest.raises((AssertionError, TimeoutError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(2):
            await exchanged([600, 600], [200], pause=True)


async def kept_buffers() -> int:
    """Buffers that still exist after their answers, while the connection does."""
    app = Recorder()
    async with serving(app) as connect:
        reader, writer = await connect()
        body = bytes(1000)
        writer.write(request(body)[: -len(body)])
        await asyncio.sleep(0.02)
        writer.write(body)
        await answer_of(reader)
        return sum(buffer() is not None for buffer in app.buffers)


def test_a_buffer_goes_with_its_request(poured: list[int]):
    assert uvloop.run(kept_buffers()) == 0
    assert poured == [1000]


def test_a_buffer_that_is_kept_is_noticed(poured: list[int], monkeypatch: pytest.MonkeyPatch):
    kept = []
    get_buffer = pouring.Pour.get_buffer

    def keeping(self: pouring.Pour, sizehint: int) -> memoryview:
        kept.append(get_buffer(self, sizehint))
        return kept[-1]

    monkeypatch.setattr(pouring.Pour, "get_buffer", keeping)

    assert uvloop.run(kept_buffers()) == 1


@on_the_services_loop
async def test_a_body_that_was_announced_is_asked_for(poured: list[int]):
    body = bytes(range(256)) * 4
    head = request(body, "expect: 100-continue")[: -len(body)]
    async with serving(Recorder()) as connect:
        reader, writer = await connect()
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert await answer_of(reader) == (200, checksum(body))

    assert poured == [1024]


@on_the_services_loop
async def test_a_client_that_leaves_is_noticed_and_gives_its_memory_back(poured: list[int]):
    app = Recorder()
    async with serving(app) as connect:
        _, writer = await connect()
        writer.write(request(bytes(1000))[:-100])
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)

    assert [type(failure) for failure in app.failures] == [ClientGone]
    assert app.budget.used == 0


@pytest.mark.parametrize("sent", [1000, 0])
@on_the_services_loop
async def test_a_pause_is_a_stall(poured: list[int], sent: int):
    app = Recorder(UploadLimits(idle_seconds=0.1, grace_seconds=5, min_bytes_per_second=1))
    async with serving(app) as connect:
        reader, writer = await connect()
        body = bytes(2000)
        writer.write(request(body)[: -len(body)] + body[:sent])
        assert (await answer_of(reader))[0] == 408

    assert [failure.code for failure in app.failures] == ["stalled_upload"]
    assert app.failures[0].got == sent


@on_the_services_loop
async def test_bytes_that_keep_coming_are_no_stall(poured: list[int]):
    app = Recorder(UploadLimits(idle_seconds=0.2, grace_seconds=5, min_bytes_per_second=1))
    async with serving(app) as connect:
        reader, writer = await connect()
        body = bytes(range(40))
        writer.write(request(body)[: -len(body)])
        for start in range(0, len(body), 4):
            writer.write(body[start : start + 4])
            await asyncio.sleep(0.05)
        assert await answer_of(reader) == (200, checksum(body))


@on_the_services_loop
async def test_a_slow_upload_whose_memory_others_took_is_refused(
    poured: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "SLOW_SECONDS", 0.05)
    app = Recorder(
        UploadLimits(idle_seconds=5, grace_seconds=30, min_bytes_per_second=1e9),
        ByteBudget(10 * MARGIN_BYTES),
    )
    async with serving(app) as connect:
        reader, writer = await connect()
        body = bytes(8 * MARGIN_BYTES)
        writer.write(request(body)[: -len(body)] + body[:200])
        await asyncio.sleep(0.2)
        others = app.budget.reserve(6 * MARGIN_BYTES)
        writer.write(body[: 4 * MARGIN_BYTES])
        assert (await answer_of(reader))[0] == 408
        others.release()

    assert [failure.code for failure in app.failures] == ["busy"]
    assert app.budget.used == 0


class Connected:
    """What a `Pour` needs of its protocol; notes when reading pauses and goes on."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.flow = self
        self.noted: list[str] = []

    def pause_reading(self) -> None:
        self.noted.append("pause")

    def resume_reading(self) -> None:
        self.noted.append("go on")

    def stop_pouring(self, pour: pouring.Pour, *, complete: bool) -> None:
        self.noted.append("complete" if complete else "stop")


async def test_others_have_their_turn_while_a_body_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pouring, "TURN_BYTES", 100)
    connected: Any = Connected()
    pour = pouring.Pour(connected, Buffer(memoryview(bytearray(1000))), 50, lambda _: None)
    # A loop in C reads on within one step, until reading pauses.
    for nbytes in (60, 39):
        pour.buffer_updated(nbytes)
    assert connected.noted == []
    pour.buffer_updated(1)
    assert connected.noted == ["pause"]
    await asyncio.sleep(0)
    assert connected.noted == ["pause", "go on"]
    pour.buffer_updated(500)
    assert connected.noted[2:] == ["pause"]
    await asyncio.sleep(0)
    pour.buffer_updated(350)
    await asyncio.sleep(0)
    assert connected.noted[3:] == ["go on", "complete"]


async def test_reading_does_not_go_on_after_an_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pouring, "TURN_BYTES", 100)
    connected: Any = Connected()
    pour = pouring.Pour(connected, Buffer(memoryview(bytearray(1000))), 0, lambda _: None)
    waiting = asyncio.create_task(pour.wait())
    await asyncio.sleep(0)
    pour.buffer_updated(200)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert connected.noted == ["pause", "stop"]
