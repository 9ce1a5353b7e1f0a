"""What goes over the sockets between workers and the parameter server.

A frame is one byte of kind, four bytes of length (big-endian) and a payload. Models, messages
and updates are tree messages (`quiver_kernels.tree`); the three small ones are MessagePack
lists. Lengths are bounded before memory is spent, and nothing is ever unpickled.

=========  ================  ===============================================================
kind       direction         payload
=========  ================  ===============================================================
HELLO      worker -> server  `Hello`: who it is
WELCOME    server -> worker  `Welcome`: the last round in which a message of it was counted
MODEL      server -> worker  the model in float32, for who has just said hello
MESSAGE    worker -> server  a worker's part of a round, compressed
RECEIPT    server -> worker  `Receipt`: what became of that message
UPDATE     server -> worker  the update that ends a round, compressed
STOP       server -> worker  nothing: the training is over
=========  ================  ===============================================================

The tag of a MODEL, a MESSAGE and an UPDATE holds the round and the version of the model: version
v is the model after v updates, and round r computes with version r.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import msgspec

MAX_PAYLOAD = 1 << 26
SEND_SECONDS = 10
NEVER = -1  # `Welcome.counted` of a worker without a counted message

_PREFIX = struct.Struct(">BI")
_T = TypeVar("_T", bound=msgspec.Struct)


class Kind(IntEnum):
    """What a frame is; see the table above."""

    HELLO = 1
    WELCOME = 2
    MODEL = 3
    MESSAGE = 4
    RECEIPT = 5
    UPDATE = 6
    STOP = 7


class Hello(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A worker's first words: its number, from 0."""

    worker: int


class Welcome(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The last round in which a message of this worker was counted, or `NEVER`."""

    counted: int


class Receipt(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What became of the message of a round.

    Attributes
    ----------
    round_id
        As the message's tag said; `NEVER` if it could not be read.
    counted
        Whether the message is, or was already, part of that round's mean. A worker keeps what
        was not counted for its next message.
    reason
        A word on it: ``accepted``, ``duplicate``, ``late``, ... (`quiver_client.ps.Verdict`).
    """

    round_id: int
    counted: bool
    reason: str


class ProtocolError(Exception):
    """The other side sent what this protocol does not know."""


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    kind: Kind
    payload: bytes

    @property
    def nbytes(self) -> int:
        """Bytes on the socket, prefix and all."""
        return _PREFIX.size + len(self.payload)


class Channel:
    """Frames on one connected socket.

    Attributes
    ----------
    sent, received
        Bytes that crossed the socket, all frames together.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Who does not read must not stop the others: sending fails after a while.
        limit = struct.pack("ll", SEND_SECONDS, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._socket = connection
        self.sent = 0
        self.received = 0

    def send(self, kind: Kind, payload: bytes = b"") -> int:
        """Send a frame; the bytes it took. OSError if the other side is gone."""
        if len(payload) > MAX_PAYLOAD:
            raise ProtocolError(f"a payload has at most {MAX_PAYLOAD} bytes; got {len(payload)}")
        self._socket.sendall(_PREFIX.pack(kind, len(payload)) + payload)
        self.sent += _PREFIX.size + len(payload)
        return _PREFIX.size + len(payload)

    def receive(self) -> Frame:
        """Wait for the next frame. EOFError if the other side has closed."""
        kind, length = _PREFIX.unpack(self._exactly(_PREFIX.size))
        if length > MAX_PAYLOAD:
            raise ProtocolError(f"a payload has at most {MAX_PAYLOAD} bytes; announced: {length}")
        try:
            known = Kind(kind)
        except ValueError:
            raise ProtocolError(f"kind {kind} is none of 1..{len(Kind)}") from None
        frame = Frame(known, self._exactly(length))
        self.received += frame.nbytes
        return frame

    def close(self) -> None:
        """Close it, also under a thread that waits in `receive`."""
        with contextlib.suppress(OSError):  # The other side was first.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            count = self._socket.recv_into(view)
            if count == 0:
                raise EOFError("the other side closed the connection")
            view = view[count:]
        return bytes(buffer)


def pack(message: msgspec.Struct) -> bytes:
    """One of the three small messages as a payload."""
    return msgspec.msgpack.encode(message)


def unpack(payload: bytes, kind: type[_T]) -> _T:
    """The small message of a payload; `ProtocolError` if it is none."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from error
