"""A server that follows a script, byte by byte, and a Unix socket to the real service."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quiver_client import Client, QuantizedVector, RetryPolicy
from quiver_kernels import wire
from quiver_kernels.packing import pack_codes


@dataclass
class Exchange:
    """One request as the scripted server sees it, and the socket to answer on."""

    sock: socket.socket
    method: str
    path: str
    headers: Mapping[str, str]
    received: bytearray

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", "0"))

    def read_body(self, *, leave: bool = True) -> bytes:
        if leave and "expect" in self.headers and not self.received:
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self.received) < self.length:
            chunk = self.sock.recv(1 << 20)
            if not chunk:
                break
            self.received += chunk
        return bytes(self.received)

    def reply(
        self,
        status: int,
        body: bytes = b"",
        *,
        media_type: str = wire.MEDIA_TYPE,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        fields = {
            "Content-Type": media_type,
            "Content-Length": str(len(body) if length is None else length),
            **(headers or {}),
        }
        head = f"HTTP/1.1 {status} Text\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        self.sock.sendall(head.encode() + b"\r\n" + body)


Step = Callable[[Exchange], bool | None]
"""Answers one request; a true result keeps the connection open for the next."""


@dataclass
class ScriptedServer:
    """Answers the n-th request with the n-th step, whatever connection it comes on."""

    listener: socket.socket
    url: str
    steps: queue.SimpleQueue[Step] = field(default_factory=queue.SimpleQueue)
    seen: list[Exchange] = field(default_factory=list)
    connections: int = 0
    _threads: list[threading.Thread] = field(default_factory=list)
    _open: list[socket.socket] = field(default_factory=list)

    def play(self, *steps: Step) -> None:
        for step in steps:
            self.steps.put(step)

    def start(self) -> None:
        self._spawn(self._accept)

    def stop(self) -> None:
        for sock in (self.listener, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            while (exchange := _read_head(sock)) is not None:
                self.seen.append(exchange)
                if not self.steps.get(timeout=5)(exchange):
                    return


def _read_head(sock: socket.socket) -> Exchange | None:
    got = bytearray()
    while b"\r\n\r\n" not in got:
        chunk = sock.recv(65536)
        if not chunk:
            return None
        got += chunk
    head, _, rest = bytes(got).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    return Exchange(sock, method, path, headers, bytearray(rest))


def quantized(body: bytes) -> QuantizedVector:
    """A valid, if poor, answer to a quantize request: nearest of equally spaced levels."""
    return poorly_quantized(wire.decode_quantize_request(body))


def poorly_quantized(request: Any) -> QuantizedVector:
    """The answer to one vector."""
    options = request.options
    x = np.asarray(request.vector, dtype=np.float32)
    levels = np.linspace(x.min(), x.max(), options.num_levels, dtype=np.float32)
    codes = np.abs(x.reshape(-1, 1) - levels).argmin(axis=1).astype(np.uint8)
    assert options.seed is not None
    return QuantizedVector(
        method=options.method,
        bits=options.bits,
        num_levels=options.num_levels,
        shape=x.shape,
        dtype="float32",
        block_size=None,
        seed=options.seed,
        levels=levels,
        codes=pack_codes(codes, options.bits),
        vnmse=0.0,
    )


class Steps:
    """Steps to play."""

    @staticmethod
    def ok(exchange: Exchange) -> bool:
        """Take the whole request and answer it well."""
        exchange.reply(200, quantized(exchange.read_body()).to_bytes())
        return True

    @staticmethod
    def many(exchange: Exchange, names: tuple[str, ...] | None = None) -> bool:
        """Take a request of many vectors and answer it well, or with other names."""
        batch = wire.decode_quantize_request(exchange.read_body())
        assert isinstance(batch, wire.BatchRequest)
        names = names or batch.names
        items = batch.items if names is None else batch.items[: len(names)]
        vectors = tuple(poorly_quantized(item.request) for item in items)
        exchange.reply(200, b"".join(wire.encode_batch(wire.QuantizedBatch(vectors, names))))
        return True

    @staticmethod
    def status(status: int, *, own: bool = True, **headers: str) -> Step:
        """Take the whole request and refuse it; a foreign refusal is a page of text."""

        def step(exchange: Exchange) -> bool:
            exchange.read_body()
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            if own:
                exchange.reply(
                    status,
                    msgspec.msgpack.encode(problem(status)),
                    headers=fields,
                )
            else:
                exchange.reply(
                    status, b"<h1>oops</h1>", media_type="text/html; charset=utf-8", headers=fields
                )
            return True

        return step

    @staticmethod
    def early(status: int, **headers: str) -> Step:
        """Refuse on the headers alone and close, with the upload unread."""

        def step(exchange: Exchange) -> None:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            body = msgspec.msgpack.encode(problem(status))
            exchange.reply(status, body, headers={"Connection": "close", **fields})

        return step

    @staticmethod
    def reset(exchange: Exchange) -> None:
        """Take a part of the request and reset the connection."""
        exchange.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    @staticmethod
    def hang_up(exchange: Exchange) -> None:
        """Take the request and close without a word."""
        exchange.read_body()

    @staticmethod
    def cut_short(exchange: Exchange) -> None:
        """Announce more than is sent."""
        body = quantized(exchange.read_body()).to_bytes()
        exchange.reply(200, body[:-3], length=len(body))


def problem(status: int, **more: Any) -> dict[str, Any]:
    """A problem document as the service writes them."""
    return {
        "type": "urn:quiver:problem:some_code",
        "status": status,
        "detail": "field is wrong; got 3",
        "code": "some_code",
        "request_id": "abc",
        **more,
    }


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    listener = socket.create_server(("127.0.0.1", 0))
    scripted = ScriptedServer(listener, f"http://127.0.0.1:{listener.getsockname()[1]}")
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
def unix_server(tmp_path: Path) -> Iterator[ScriptedServer]:
    path = tmp_path / "q.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    scripted = ScriptedServer(listener, f"http+unix://{path}")
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
def quick() -> RetryPolicy:
    """Pauses too short to notice."""
    return RetryPolicy(base=0.001, cap=0.002)


@pytest.fixture
def client(server: ScriptedServer, quick: RetryPolicy) -> Iterator[Client]:
    with Client(server.url, retry=quick, timeout=10) as found:
        yield found


@pytest.fixture(scope="session")
def live_unix_url(live_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Unix socket that leads to the same service."""
    path = tmp_path_factory.mktemp("live") / "q.sock"
    port = int(live_server.rpartition(":")[2])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=_relay, args=(listener, port), daemon=True).start()
        yield f"http+unix://{path}"
        listener.shutdown(socket.SHUT_RDWR)


def _relay(listener: socket.socket, port: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError), source:
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
