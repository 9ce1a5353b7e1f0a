"""A first look at a large vector while the rest of its body is still on its way.

Receiving keeps one processor busy, and the client another for part of the time. What is left of
them goes to the first pass over the values: an idle thread of the pool looks at what is there. If
no thread is idle, nothing is lost: the request's own pass looks at all that nobody has looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from quiver_kernels.dispatch import Survey
from quiver_kernels.prefix import Prefix
from quiver_service.buffers import Buffer
from quiver_service.engine import Engine

# What a shorter body's first pass takes is not worth waking a thread for.
EARLY_BYTES = 8 << 20
# The head of a message is in its first bytes, or it is none of those that this is for.
_HEAD_BYTES = 64 << 10


class EarlyLook:
    """Has the first pass over one body's vector begin early, while the context lasts.

    Parameters
    ----------
    engine
        What will compute the request.
    buffer
        Room for the body.
    read_prefix
        What the part of the body that is there says of the vector; None: nothing, or not yet.
    """

    def __init__(
        self,
        engine: Engine,
        buffer: Buffer,
        read_prefix: Callable[[memoryview], Prefix | None],
    ) -> None:
        self._survey: Survey | None = None
        self._engine = engine
        self._buffer = buffer
        self._read_prefix = read_prefix
        self._prefix: Prefix | None = None
        self._hopeless = buffer.length < EARLY_BYTES

    def __enter__(self) -> EarlyLook:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # No thread shall hold the body longer than it must.
        self._buffer = Buffer(memoryview(b""))
        self._hopeless = True
        if self._survey is not None:
            self._engine.pool.withdraw(self._survey.step)
        if error is not None:
            self._survey = None

    def take(self) -> Survey | None:
        """What was begun; None: nothing. It is not kept here: whoever notes may live longer."""
        survey, self._survey = self._survey, None
        return survey

    def note(self, filled: int) -> None:
        """Note that the first `filled` bytes of the body are there."""
        if self._hopeless:
            return
        if self._survey is None:
            self._begin(filled)
        if self._survey is not None and self._prefix is not None:
            values = (filled - self._prefix.start) // self._prefix.dtype.itemsize
            # A thread that is at a step goes on with the next one by itself.
            if self._survey.arrived(values):
                self._engine.pool.offer(self._survey.step)

    def _begin(self, filled: int) -> None:
        self._prefix = self._read_prefix(self._buffer.view[:filled])
        if self._prefix is not None:
            # Values that are not aligned would be copied in every pass.
            self._buffer.align(self._prefix.start, filled)
            self._survey = self._engine.begin_survey(self._buffer.view, self._prefix)
        self._hopeless = self._survey is None and filled >= _HEAD_BYTES
