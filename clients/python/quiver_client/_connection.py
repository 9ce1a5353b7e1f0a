"""One connection to the service: sends a request, reads its response.

The standard library parses responses (`http.client.HTTPResponse`). Sending is done here,
because an upload must notice an answer that comes before its end: a service that is busy
answers on the headers alone and closes, and whoever only sends sees a broken pipe.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import io
import selectors
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from quiver_client._deadline import Deadline
from quiver_client._messages import Request, Response, Segment
from quiver_client.errors import BadAnswer, ConnectionFailed, TimedOut

SMALL_BODY = 64 * 1024
PIECE = 1 << 20
CONTINUE_SECONDS = 1.0
MAX_ERROR_BODY = 64 * 1024
_PEEK = 64 * 1024
_CONTINUE = b"HTTP/1.1 100"
# What a socket that does not block says instead of waiting.
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class StaleConnection(Exception):
    """A kept connection turned out to be closed before any byte of an answer came."""


class Heard(enum.Enum):
    """What the server has said while the request is still being sent."""

    NOTHING = enum.auto()
    CONTINUE = enum.auto()
    ANSWER = enum.auto()


class Connection:
    """A connected socket and its state between two requests."""

    def __init__(self, sock: socket.socket, *, tls: bool, max_answer: int) -> None:
        self.sock = sock
        self._tls = tls
        self._max_answer = max_answer
        self._used = False
        self._heard_head = False
        self._early = bytearray()
        self.reusable = True
        self.ignores_expect = False

    def close(self) -> None:
        """Close the socket."""
        self.reusable = False
        self.sock.close()

    def is_quiet(self) -> bool:
        """Whether an idle connection is still open: neither closed nor talking out of turn."""
        if self._early:
            return False
        try:
            self.sock.setblocking(False)
            # The plain socket's method: that of an SSLSocket cannot peek.
            socket.socket.recv(self.sock, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def exchange(self, request: Request, host: str, deadline: Deadline, expect: bool) -> Response:
        """Send `request` and read the whole response.

        Parameters
        ----------
        request
            What to send.
        host
            Value of the Host header.
        deadline
            Bounds every socket operation.
        expect
            Ask for leave (``Expect: 100-continue``) before the body is sent.

        Raises
        ------
        StaleConnection
            The connection was used before and nothing came back: safe to send again.
        ConnectionFailed, TimedOut, BadAnswer
            No complete response.
        """
        head = _head(request, host, expect)
        try:
            complete = self._send(head, request, deadline, expect)
            if not complete:
                self.reusable = False
            return self._receive(request.method, deadline)
        except TimeoutError:
            deadline.require()
            raise TimedOut(f"no answer within the timeout of {deadline.allowed:g} s") from None
        except OSError as error:
            raise self._lost(error) from None
        except http.client.IncompleteRead as error:
            raise ConnectionFailed(f"the answer is cut short: {error}") from None
        except (http.client.HTTPException, ValueError) as error:
            # ValueError: the standard library's complaint about a Content-Length or status.
            raise BadAnswer(f"the answer is not HTTP: {type(error).__name__} {error}") from None
        finally:
            self._used = True

    def _lost(self, error: OSError) -> Exception:
        if self._used and not self._heard_head:
            return StaleConnection()
        return ConnectionFailed(f"the connection was lost: {error}")

    # -- sending -------------------------------------------------------------------------

    def _send(self, head: bytes, request: Request, deadline: Deadline, expect: bool) -> bool:
        """Send as much as the server takes; False if it stopped listening before the end."""
        self._heard_head = False
        try:
            if request.length <= SMALL_BODY:
                self.sock.settimeout(deadline.require())
                self.sock.sendall(b"".join((head, *request.body)))
                return True
            self.sock.settimeout(deadline.require())
            self.sock.sendall(head)
            return self._send_listening(request, deadline, expect)
        except TimeoutError:
            raise
        except OSError:
            # The server may have answered and closed; what it said is still to be read.
            return False

    def _send_listening(self, request: Request, deadline: Deadline, expect: bool) -> bool:
        """Send, and stop as soon as a final answer begins to arrive."""
        self.sock.setblocking(False)
        if expect and not self._has_leave(deadline):
            return False
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        with _selector(self.sock, both) as selector:
            for piece in _pieces(request.body):
                rest = piece
                while rest:
                    events = _ready(selector, deadline.require())
                    if events & selectors.EVENT_READ and self._hear() is Heard.ANSWER:
                        return False
                    if events & selectors.EVENT_WRITE:
                        rest = self._send_some(rest)
        return True

    def _send_some(self, rest: memoryview) -> memoryview:
        """Send until the socket is full; what is left. TLS takes 16 KiB at a time."""
        with contextlib.suppress(*_NOT_NOW):
            while rest:
                rest = rest[self.sock.send(rest) :]
        return rest

    def _has_leave(self, deadline: Deadline) -> bool:
        """Wait for 100 Continue; a server that says nothing is sent the body all the same."""
        patience = time.monotonic() + CONTINUE_SECONDS
        with _selector(self.sock, selectors.EVENT_READ) as selector:
            while (left := patience - time.monotonic()) > 0:
                if not selector.select(min(left, deadline.require())):
                    continue
                heard = self._hear()
                if heard is not Heard.NOTHING:
                    return heard is Heard.CONTINUE
        self.ignores_expect = True
        return True

    def _hear(self) -> Heard:
        """Look at what has arrived, and take an interim answer off it."""
        try:
            seen = self._arrived()
        except _NOT_NOW:
            return Heard.NOTHING
        if not seen.startswith(_CONTINUE):
            partial = bool(seen) and _CONTINUE.startswith(seen)
            return Heard.NOTHING if partial else Heard.ANSWER
        end = seen.find(b"\r\n\r\n")
        if end < 0:
            return Heard.NOTHING
        if self._tls:
            del self._early[: end + 4]
        else:
            self.sock.recv(end + 4)
        return Heard.CONTINUE

    def _arrived(self) -> bytes:
        """What has arrived and was not taken yet; empty when the server has closed."""
        if not self._tls:
            return self.sock.recv(_PEEK, socket.MSG_PEEK)
        # What TLS has decrypted cannot be put back: it is kept for `_receive`.
        found = self.sock.recv(_PEEK)
        self._early += found
        return bytes(self._early) if found else b""

    # -- receiving -----------------------------------------------------------------------

    def _receive(self, method: str, deadline: Deadline) -> Response:
        source = _DeadlineSocket(self.sock, deadline, self._early)
        # HTTPResponse asks a socket for nothing but makefile.
        with http.client.HTTPResponse(cast(socket.socket, source), method=method) as response:
            response.begin()
            self._heard_head = True
            body = self._body(response)
            if response.will_close or not response.isclosed():
                self.reusable = False
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, headers, body)

    def _body(self, response: http.client.HTTPResponse) -> memoryview:
        if response.status >= 400:
            return self._error_body(response)
        if response.length is None:
            return self._body_of_unknown_length(response)
        if response.length > self._max_answer:
            raise BadAnswer(
                f"the answer has {response.length} bytes; {self._max_answer} is the most"
            )
        buffer = end_aligned(response.length)
        at = 0
        while at < len(buffer):
            got = response.readinto(buffer[at:])
            if not got:
                raise ConnectionFailed(f"the answer is cut short: {at} of {len(buffer)} bytes came")
            at += got
        if not len(buffer):
            response.read()
        return buffer

    def _body_of_unknown_length(self, response: http.client.HTTPResponse) -> memoryview:
        pieces: list[bytes] = []
        total = 0
        while piece := response.read(PIECE):
            pieces.append(piece)
            total += len(piece)
            if total > self._max_answer:
                raise BadAnswer(f"the answer has more than {self._max_answer} bytes")
        buffer = end_aligned(total)
        at = 0
        for piece in pieces:
            buffer[at : at + len(piece)] = piece
            at += len(piece)
        return buffer

    def _error_body(self, response: http.client.HTTPResponse) -> memoryview:
        """As much of an error's text as came; the status alone is worth having."""
        found = b""
        try:
            while len(found) < MAX_ERROR_BODY and (piece := response.read(MAX_ERROR_BODY)):
                found += piece
        except (OSError, http.client.HTTPException):
            self.reusable = False
        return memoryview(found)


class _DeadlineSocket:
    """What `HTTPResponse` reads from: every read waits no longer than the deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline, early: bytearray) -> None:
        self._raw = _DeadlineReader(sock, deadline, early)

    def makefile(self, mode: str) -> io.BufferedReader:
        """The one method that `HTTPResponse` calls."""
        del mode
        return io.BufferedReader(self._raw)


class _DeadlineReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline, early: bytearray) -> None:
        self._sock = sock
        self._deadline = deadline
        self._early = early

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._early:
            taken = self._early[: len(buffer)]
            del self._early[: len(taken)]
            buffer[: len(taken)] = taken
            return len(taken)
        self._sock.settimeout(self._deadline.require())
        return self._sock.recv_into(buffer)


def end_aligned(size: int) -> memoryview:
    """An uninitialised, writable buffer of `size` bytes whose end is a multiple of 64.

    The data of a tensor message is its last value, so its elements come to lie aligned.
    """
    raw = np.empty(size + 64, np.uint8)
    address: int = raw.__array_interface__["data"][0]
    start = -(address + size) % 64
    return raw[start : start + size].data


def _head(request: Request, host: str, expect: bool) -> bytes:
    lines = [f"{request.method} {request.path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    if request.method != "GET":
        lines.append(f"Content-Length: {request.length}")
    if expect:
        lines.append("Expect: 100-continue")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _pieces(body: tuple[Segment, ...]) -> Iterator[memoryview]:
    for segment in body:
        view = memoryview(segment).cast("B")
        for at in range(0, len(view), PIECE):
            yield view[at : at + PIECE]


@contextlib.contextmanager
def _selector(sock: socket.socket, events: int) -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as selector:
        selector.register(sock, events)
        yield selector


def _ready(selector: selectors.BaseSelector, seconds: float) -> int:
    found = 0
    for _, events in selector.select(seconds):
        found |= events
    return found
