"""Stopping a blocking call from another thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from quiver_client.errors import QuiverClientError


class CallCancelled(QuiverClientError):
    """The call was given up by its caller, who is no longer there to see this."""

    default_code = "cancelled"


class Cancellation:
    """Cancels one call: wakes it from a socket operation or from a pause."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None

    def cancel(self) -> None:
        """Give up the call; safe from any thread, at any time, more than once."""
        self._cancelled.set()
        with self._lock:
            if self._sock is not None:
                _shut(self._sock)

    def check(self) -> None:
        """Raise `CallCancelled` if `cancel` was called."""
        if self._cancelled.is_set():
            raise CallCancelled("the call was cancelled")

    def pause(self, seconds: float) -> None:
        """Sleep, or raise `CallCancelled` as soon as the call is given up."""
        self._cancelled.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def guarding(self, sock: socket.socket) -> Iterator[None]:
        """Let `cancel` break any operation on `sock` in this block."""
        with self._lock:
            self._sock = sock
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._sock = None


def _shut(sock: socket.socket) -> None:
    # shutdown, not close: it wakes the thread that waits, and leaves it the descriptor.
    # The plain socket's method: that of an SSLSocket would drop its state under the reader.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
