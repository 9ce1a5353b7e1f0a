"""The end of a listening socket: nobody who came in is turned away."""

from __future__ import annotations

import contextlib
import select
import socket

_TRIES = 1000
_MOMENT_SECONDS = 0.001


def close_door(listener: socket.socket) -> list[socket.socket]:
    """Close `listener`, on which nobody else accepts any more; the connections that waited.

    A listening socket that closes resets the connections that its queue still holds, and a client
    whose request was on its way cannot know what became of it. So the queue is emptied and its
    length set to the least, one; then that place is taken by a connection of our own. What
    comes now is not let in: its sender tries again, and finds no listener.
    """
    waiting: list[socket.socket] = []
    listener.setblocking(False)
    listener.listen(0)
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting.append(listener.accept()[0])
        with socket.socket(listener.family) as plug:
            plug.setblocking(False)
            plug.connect_ex(listener.getsockname())
            if _is_connected(plug):
                listener.close()
                return waiting
    listener.close()
    return waiting


def _is_connected(plug: socket.socket) -> bool:
    select.select([], [plug], [], _MOMENT_SECONDS)
    try:
        plug.getpeername()
    except OSError:
        return False
    return True
