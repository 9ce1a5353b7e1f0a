"""A large body from the socket straight into its buffer.

HTTP's parser hands a body on in pieces, and each is copied three times before it is where it
belongs. Of a body whose length is known nothing needs to be parsed: until its last byte has come,
the transport reads into the buffer itself, and the parser begins again behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from quiver_service.buffers import Buffer
from quiver_service.errors import ClientGone, ServiceError

if TYPE_CHECKING:
    from quiver_service.protocol import GuardedProtocol

READ_BYTES = 1 << 20
# A loop in C reads on from a socket while there is something, many times over. After so much others
# have their turn.
TURN_BYTES = 2 << 20


class Pour(asyncio.BufferedProtocol):
    """What a connection's transport reads into until the body is complete.

    Parameters
    ----------
    protocol
        Of the connection; has its transport back at the end, however that comes.
    buffer
        The whole body's.
    filled
        Bytes of it that had come before.
    note
        Told, whenever bytes have come, how many are there; what it raises ends the upload.
    """

    def __init__(
        self,
        protocol: GuardedProtocol,
        buffer: Buffer,
        filled: int,
        note: Callable[[int], None],
    ) -> None:
        self._protocol = protocol
        self._buffer = buffer
        self._length = buffer.length
        self._note = note
        self.filled = filled
        self._turn_ends = filled + TURN_BYTES
        self._ended: asyncio.Future[None] = protocol.loop.create_future()

    async def wait(self) -> None:
        """Return when the body is complete.

        Raises
        ------
        ClientGone
            The connection was lost first.
        ServiceError
            What `note` raised.
        """
        try:
            await self._ended
        finally:
            self._protocol.stop_pouring(self, complete=self.filled == self._length)
            # uvloop's transport keeps the last protocol that it read into as long as it lives.
            self._buffer = Buffer(memoryview(b""))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes belong; never beyond the body, behind which is another request."""
        return self._buffer.view[self.filled : self.filled + READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Count what has come."""
        self.filled += nbytes
        if self._ended.done():
            return
        try:
            self._note(self.filled)
        except ServiceError as refused:
            self._ended.set_exception(refused)
            self._protocol.flow.pause_reading()
            return
        if self.filled == self._length:
            self._ended.set_result(None)
            self._protocol.stop_pouring(self, complete=True)
        elif self.filled >= self._turn_ends:
            self._turn_ends = self.filled + TURN_BYTES
            self._protocol.flow.pause_reading()
            self._protocol.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._ended.done():
            self._protocol.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        if not self._ended.done():
            self._ended.set_exception(ClientGone("client_disconnect"))
        self._protocol.connection_lost(exc)
