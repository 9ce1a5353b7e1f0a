"""Memory for request bodies: a large buffer is lent again while its pages are still there.

Fresh memory has its price for a large body: the system clears every page while it is received. So
the buffer of a large body is kept for a moment after its last use, for the next body of the same
size. What is kept so is never memory that anybody else asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import sys
import threading
import time
import weakref
from dataclasses import dataclass

import numpy as np

from quiver_service.budget import ByteBudget

# Shorter bodies come from the heap, or gain too little.
MAPPED_BYTES = 16 << 20
IDLE_SECONDS = 1.0
# Of values of any type, and of the vectors that a processor works on.
ALIGNMENT = 64
_HUGE_PAGE_BYTES = 2 << 20
_PAGE_MASK = mmap.PAGESIZE - 1


class Buffer:
    """Memory of one body.

    Parameters
    ----------
    room
        Flat, writable bytes, of any content. The memory is lent until the last object that refers
        to it has gone.
    length
        Bytes of the body; None: as many as there is room for.
    mapping
        Where `room` begins; None: in the heap.
    """

    def __init__(
        self, room: memoryview, length: int | None = None, mapping: mmap.mmap | None = None
    ) -> None:
        self.length = len(room) if length is None else length
        self.mapping = mapping
        self._room = room
        self._start = 0

    @property
    def view(self) -> memoryview:
        """The body's bytes."""
        return self._room[self._start : self._start + self.length]

    def align(self, place: int, filled: int) -> None:
        """Move the body, of which `filled` bytes are there, so that `place` in it is aligned.

        That is done by a few bytes, and left where there is no room for them. Views that were
        taken before are of the old place.
        """
        address = np.frombuffer(self._room, np.uint8).__array_interface__["data"][0]
        start = -(address + place) % ALIGNMENT
        if start + self.length <= len(self._room):
            self._room[start : start + filled] = self.view[:filled]
            self._start = start

    def cool(self, start: int) -> None:
        """Hold no memory from `start` on until something is written there again."""
        start = (start + self._start + _PAGE_MASK) & ~_PAGE_MASK
        if sys.platform != "win32" and self.mapping is not None and start < len(self.mapping):
            self.mapping.madvise(mmap.MADV_DONTNEED, start, len(self.mapping) - start)


@dataclass(frozen=True, slots=True)
class _Idle:
    mapping: mmap.mmap
    since: float


class Buffers:
    """Lends buffers, and keeps large ones for about a second when nobody uses them any more.

    What is idle never exceeds `capacity`, nor what `budget` has not lent. Buffers come back in any
    thread; all else belongs to one event loop.

    Parameters
    ----------
    capacity
        Most bytes that may be idle; 0 keeps nothing.
    budget
        Of all memory that requests may hold.
    """

    def __init__(self, capacity: int, budget: ByteBudget) -> None:
        self._capacity = capacity
        self._budget = budget
        self._idle: list[_Idle] = []
        self._lent = 0
        self._timer: asyncio.TimerHandle | None = None
        # A garbage collection may bring a buffer back in a thread that is in here.
        self._lock = threading.RLock()
        budget.when_grown(self._shrink)

    @property
    def idle_bytes(self) -> int:
        """Bytes that are kept and not lent."""
        return sum(len(kept.mapping) for kept in self._idle.copy())

    @property
    def lent(self) -> int:
        """Large buffers in use."""
        return self._lent

    def borrow(self, length: int) -> Buffer:
        """A buffer of `length` bytes, after its lease was made."""
        if length < MAPPED_BYTES or self._capacity == 0:
            self._shrink()
            # np.empty does not clear the memory, and asks for huge pages for large blocks.
            return Buffer(np.empty(length + ALIGNMENT, dtype=np.uint8).data, length)
        mapping = self._kept(_rounded(length))
        self._shrink()
        if mapping is None:
            mapping = _mapped(length)
        # Views of this array refer to it, not to what is behind it: NumPy follows bases only from
        # array to array. So it ends with the last of them.
        room = min(length + ALIGNMENT, len(mapping))
        lent = np.frombuffer(mapping, dtype=np.uint8, count=room)
        with self._lock:
            self._lent += 1
        weakref.finalize(lent, self._take_back, mapping).atexit = False
        if self._timer is None:
            self._look_later()
        return Buffer(lent.data, length, mapping)

    def close(self) -> None:
        """Keep nothing any more."""
        self._capacity = 0
        if self._timer is not None:
            self._timer.cancel()
        self._shrink()

    def _kept(self, size: int) -> mmap.mmap | None:
        """The buffer of `size` bytes that was used last."""
        with self._lock:
            for kept in reversed(self._idle):
                if len(kept.mapping) == size:
                    self._idle.remove(kept)
                    return kept.mapping
        return None

    def _take_back(self, mapping: mmap.mmap) -> None:
        with self._lock:
            self._lent -= 1
            self._idle.append(_Idle(mapping, time.monotonic()))
        self._shrink()

    def _shrink(self) -> None:
        """Free what exceeds the bounds, the longest unused first."""
        if not self._idle:
            return
        freed = []
        with self._lock:
            while self._idle and self.idle_bytes > self._bound():
                freed.append(self._idle.pop(0))
        # They end here, not under the lock: to unmap takes a while.
        del freed

    def _bound(self) -> int:
        return min(self._capacity, self._budget.capacity - self._budget.used)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._look)

    def _look(self) -> None:
        """Free what has been idle since the last look at least."""
        self._timer = None
        latest = time.monotonic() - IDLE_SECONDS
        with self._lock:
            old = [kept for kept in self._idle if kept.since <= latest]
            for kept in old:
                self._idle.remove(kept)
        del old[:]
        if self._idle or self._lent:
            self._look_later()


def _rounded(length: int) -> int:
    return -(-length // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES


def _mapped(length: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, _rounded(length))
    mapping = mmap.mmap(-1, _rounded(length), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Of the last page, only what is used shall be taken.
    whole = length // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
    # Kernels without huge pages refuse; other systems do not know them.
    with contextlib.suppress(OSError, AttributeError):
        mapping.madvise(mmap.MADV_HUGEPAGE, 0, whole)
    return mapping
