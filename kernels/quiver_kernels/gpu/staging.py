"""Copies between host and GPU by way of pinned memory, in parts, beside the kernels.

Memory that the operating system may move cannot be copied by a GPU itself. A few pinned buffers
take turns: while one part is on its way, the next is brought into its buffer, and kernels may
already work on those before. Copies have a stream of their own; events order it and the kernels'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import parts

PART_BYTES = 16 << 20
"""Most that a buffer holds."""
BUFFERS = 3
_LEAST_BYTES = 1 << 16
_PINNED = 1

Bytes = NDArray[np.uint8]


class _Pinned:
    """One buffer, and the event after the last copy from it or to it."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self.event = cupy.cuda.Event(disable_timing=True)
        self._memory: Bytes = np.empty(0, np.uint8)
        self._used = False

    def take(self, nbytes: int) -> Bytes:
        """Its first bytes, as soon as the last copy is done."""
        if self._used:
            self.event.synchronize()
        if self._memory.size < nbytes:
            size = max(_LEAST_BYTES, 1 << (nbytes - 1).bit_length())
            self._memory = np.empty(0, np.uint8)
            self._memory = np.frombuffer(self._cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
        return self._memory[:nbytes]

    def copied(self, stream: Any) -> None:
        """A copy has been put into `stream`."""
        self.event.record(stream)
        self._used = True


class Staging:
    """The copies of one device. Its device is current whenever it is called.

    Parameters
    ----------
    cupy
        The module.
    kernels, copies
        Streams: where kernels run, and one for copies alone.
    part_bytes
        Most that is copied at once.
    """

    def __init__(self, cupy: Any, kernels: Any, copies: Any, part_bytes: int = PART_BYTES) -> None:
        self._cupy = cupy
        self._kernels = kernels
        self._copies = copies
        self.part_bytes = part_bytes
        self._buffers = tuple(_Pinned(cupy) for _ in range(BUFFERS))
        self._next = 0

    def mark(self) -> Any:
        """An event after all kernels so far."""
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(self._kernels)
        return event

    def begin(self) -> None:
        """Copies that follow wait for the kernels so far.

        Memory that they fill may have been given back by somebody whose kernels still run.
        """
        self._copies.wait_event(self.mark())

    def send(self, part: Bytes, target: Any, *, pinned: bool) -> None:
        """Copy at most `part_bytes` to `target`; kernels that follow wait for the copy.

        Parameters
        ----------
        part
            May change afterwards, unless it is pinned: then not before `settle`.
        target
            Array of bytes on the device, of the same size.
        pinned
            Whether `part` is pinned itself.
        """
        buffer = self._take()
        if not pinned:
            staged = buffer.take(part.size)
            _copy(part, staged)
            part = staged
        target.set(part, stream=self._copies)
        buffer.copied(self._copies)
        self._kernels.wait_event(buffer.event)

    def settle(self) -> None:
        """Wait for all copies."""
        self._copies.synchronize()

    def receive(self, wanted: Sequence[tuple[Any, Bytes, Any]]) -> None:
        """Fill memory of the host from the device; done when it returns.

        Parameters
        ----------
        wanted
            Arrays of bytes on the device, what they are copied to, and the events that the
            copies wait for.
        """
        moving: deque[tuple[_Pinned, Bytes]] = deque()
        for source, out, after in wanted:
            self._copies.wait_event(after)
            for start in range(0, out.size, self.part_bytes):
                if len(moving) == len(self._buffers):
                    _land(*moving.popleft())
                part = out[start : start + self.part_bytes]
                buffer = self._take()
                source[start : start + part.size].get(
                    stream=self._copies, out=buffer.take(part.size), blocking=False
                )
                buffer.copied(self._copies)
                moving.append((buffer, part))
        while moving:
            _land(*moving.popleft())

    def is_pinned(self, host: Bytes) -> bool:
        """Whether the GPU can copy from `host` itself."""
        return bool(self._cupy.cuda.runtime.pointerGetAttributes(host.ctypes.data).type == _PINNED)

    def _take(self) -> _Pinned:
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        return buffer


def _land(buffer: _Pinned, out: Bytes) -> None:
    """Bring what was copied to where it belongs."""
    _copy(buffer.take(out.size), out)


def _copy(source: Bytes, target: Bytes) -> None:
    """Copy on the host; idle threads help, since one may be slower than the bus."""

    def copy_piece(piece: slice) -> None:
        target[piece] = source[piece]

    run_parts(parts(source.size), copy_piece)
