"""The end of a listening socket: nobody who came in is turned away."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys

# A connection whose handshake has begun is there after this time, or its client is very far away.
HANDSHAKE_SECONDS = 0.25
_SO_ATTACH_FILTER = 26
# Byte 13 of a TCP header holds its flags, 2 is SYN: `code, if true, if false, value`.
_LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06
_NO_SYN = (
    (_LOAD_BYTE, 0, 0, 13),
    (_AND, 0, 0, 2),
    (_JUMP_IF_EQUAL, 0, 1, 0),
    (_RETURN, 0, 0, 0xFFFFFFFF),
    (_RETURN, 0, 0, 0),
)


def turn_away(listener: socket.socket) -> bool:
    """Let nobody begin a connection to `listener` any more; False where the system cannot.

    A listening socket that closes resets the connections that wait in its queue or are in their
    handshake, and a client whose request was on its way cannot know what became of it. So first
    new handshakes are dropped, by a packet filter on the socket: their senders try again a second
    later, and find no listener. Those that have begun go on for `HANDSHAKE_SECONDS`.
    """
    if sys.platform != "linux":
        return False
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _NO_SYN))
    fields = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fields)
    except OSError:
        return False
    return True


def close_door(listener: socket.socket) -> list[socket.socket]:
    """Close `listener`, on which nobody else accepts any more; the connections that waited."""
    waiting: list[socket.socket] = []
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            waiting.append(listener.accept()[0])
    listener.close()
    return waiting
