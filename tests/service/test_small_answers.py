"""Small answers: head and body go out in one piece, and a head without a body goes out too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from quiver_service.context import RequestContext, attach
from quiver_service.protocol import GuardedProtocol, _ClosingTransport
from quiver_service.responses import BUFFERED_BYTES, SegmentsResponse


class Answering:
    """An app that answers everything with the same segments."""

    def __init__(self, segments: list[bytes]) -> None:
        self.segments = segments

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        attach(scope, RequestContext("id", scope["method"], "/", {}, body_done=True))
        await SegmentsResponse(self.segments, "text/plain", 5)(scope, receive, send)


class Recording:
    """A transport that notes how many bytes each write had."""

    def __init__(self, transport: Any, sizes: list[int]) -> None:
        self._transport = transport
        self._sizes = sizes

    def write(self, data: Any) -> None:
        self._sizes.append(len(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of all writes."""
    found: list[int] = []
    original = _ClosingTransport.__init__

    def recorded(self: _ClosingTransport, transport: Any, close: Any) -> None:
        original(self, Recording(transport, found), close)  # type: ignore[arg-type]

    monkeypatch.setattr(_ClosingTransport, "__init__", recorded)
    return found


@contextlib.asynccontextmanager
async def connected(
    segments: list[bytes],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = Config(Answering(segments), log_config=None, http=GuardedProtocol)
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: GuardedProtocol(header_seconds=5, config=config, server_state=state, app_state={}),
        "127.0.0.1",
        0,
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()
        await server.wait_closed()


async def exchanged(segments: list[bytes], requests: bytes, answers: int) -> list[bytes]:
    """Bodies of the answers to requests that are sent together."""
    async with asyncio.timeout(5), connected(segments) as (reader, writer):
        writer.write(requests)
        bodies = []
        for _ in range(answers):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split()[0])
            bodies.append(b"" if requests.startswith(b"HEAD") else await reader.readexactly(length))
        return bodies


GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("segments", [[b"abc"], [b"ab", b"", b"c"], [b""], [bytes(BUFFERED_BYTES)]])
@pytest.mark.parametrize("requests", [[GET], [LAST], [GET, GET, LAST]])
def test_an_answer_is_one_write(sizes: list[int], segments: list[bytes], requests: list[bytes]):
    bodies = uvloop.run(exchanged(segments, b"".join(requests), len(requests)))

    assert bodies == [b"".join(segments)] * len(requests)
    assert len(sizes) == len(requests)


def test_two_writes_are_noticed(sizes: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_ClosingTransport, "hold", lambda _: None)

    uvloop.run(exchanged([b"abc"], GET, 1))

    assert len(sizes) == 2


def test_a_large_answer_is_not_joined(sizes: list[int]):
    body = bytes(BUFFERED_BYTES + 1)

    assert uvloop.run(exchanged([body], GET, 1)) == [body]
    assert len(body) in sizes


@pytest.mark.parametrize("end", [b"", b"connection: close\r\n"])
def test_a_head_that_no_body_follows_is_sent(sizes: list[int], end: bytes):
    head = b"HEAD / HTTP/1.1\r\nhost: a\r\n" + end + b"\r\n"

    assert uvloop.run(exchanged([b"abc"], head, 1)) == [b""]
    assert len(sizes) == 1


def test_a_head_that_is_never_let_go_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_ClosingTransport, "flush", lambda _: None)

    with pytest.raises(TimeoutError):
        uvloop.run(asyncio.wait_for(exchanged([b"abc"], b"HEAD" + GET[3:], 1), 0.3))
