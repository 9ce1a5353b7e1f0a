"""HTTP by hand: requests that stop anywhere, and what comes back."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

OCTETS = "application/octet-stream"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_LINGER = struct.pack("ii", 1, 0)

Answer = tuple[int, dict[str, str], bytes]


def head(path: str, length: int, media_type: str = OCTETS, *extra: str) -> bytes:
    """The head of a POST."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: quiver",
        f"Content-Type: {media_type}",
        f"Content-Length: {length}",
        *extra,
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


@contextlib.contextmanager
def connected(port: int, seconds: float = 60.0, receive_buffer: int = 0) -> Iterator[socket.socket]:
    """A connection to a local port; `receive_buffer` bytes of answer at most wait in it."""
    with socket.socket() as connection:
        connection.settimeout(seconds)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(("127.0.0.1", port))
        yield connection


def answer(connection: socket.socket) -> Answer:
    """Status, headers by lower-case name, and body."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, headers, response.read()


def post(port: int, path: str, body: bytes | memoryview, media_type: str = OCTETS) -> Answer:
    """One request on a connection of its own; the body is sent when the service asks for it."""
    with connected(port, 120.0) as connection:
        connection.sendall(head(path, len(body), media_type, "Expect: 100-continue"))
        begun = connection.recv(len(_CONTINUE), socket.MSG_PEEK | socket.MSG_WAITALL)
        if begun == _CONTINUE:
            connection.recv(len(_CONTINUE), socket.MSG_WAITALL)
            connection.sendall(body)
        return answer(connection)


def one_bit(port: int, values: int) -> bytes:
    """A quantized vector of zeros: decoded it is 32 times as large."""
    zeros = memoryview(bytes(4 * values))
    status, _, message = post(port, "/quantize?bits=1&method=uniform", zeros)
    if status != 200:
        raise AssertionError(f"status {status}: {message[:200]!r}")
    return message


def reset(connection: socket.socket) -> None:
    """Close at once, with a reset instead of a polite end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    connection.close()


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed the connection; what it has sent is read and dropped."""
    while select.select([connection], [], [], 0)[0]:
        try:
            if not connection.recv(1 << 16):
                return True
        except ConnectionError:
            return True
    return False


def eventually(true: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Whether `true` becomes true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
