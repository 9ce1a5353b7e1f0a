"""Streams and events as CUDA orders them: what is put in a stream is done later, or at once.

Nothing but order is promised within a stream, and what events say between streams. `Clock`
decides when work is done within these promises; work that is done in a wrong order by any clock
lacks an event.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable

LATE, EARLY, COPIES_FIRST, KERNELS_FIRST, RANDOM = "late", "early", "copies", "kernels", "random"
CLOCKS = (LATE, EARLY, COPIES_FIRST, KERNELS_FIRST, RANDOM)


class Clock:
    """When work is done: ``late`` is when somebody waits for it, ``early`` as soon as it may be.

    ``copies`` and ``kernels`` do the work of such streams early and other work late; ``random``
    draws.
    """

    def __init__(self, kind: str = LATE, seed: int = 0) -> None:
        self._kind = kind
        self._drawn = random.Random(seed)
        self.streams: list[Stream] = []

    def tick(self) -> None:
        """Called whenever something has been put in a stream."""
        if self._kind == RANDOM:
            for _ in range(self._drawn.randrange(3)):
                stream = self._drawn.choice(self.streams)
                if stream.ready():
                    stream.step()
        moved = True
        while moved:
            moved = False
            for stream in self.streams:
                while self._early(stream) and stream.ready():
                    stream.step()
                    moved = True

    def _early(self, stream: Stream) -> bool:
        if self._kind == COPIES_FIRST:
            return stream.only_copies
        if self._kind == KERNELS_FIRST:
            return not stream.only_copies
        return self._kind == EARLY


class Event:
    """A place in a stream."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.place = 0
        self.at = float("nan")

    def record(self, stream: Stream) -> None:
        self.stream, self.place = stream, stream.queued + 1
        stream.put(self._pass)

    def _pass(self) -> None:
        self.at = time.perf_counter()

    @property
    def done(self) -> bool:
        return self.stream is None or self.stream.passed >= self.place

    def synchronize(self) -> None:
        assert self.stream is not None, "an event that was never recorded"
        self.stream.run_to(self.place)


class Stream:
    """Work in order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._work: deque[Callable[[], None] | tuple[Stream, int]] = deque()
        self.ptr = 0x1000 + 16 * len(clock.streams)
        self.queued = 0
        self.passed = 0
        self.only_copies = True
        clock.streams.append(self)

    def put(self, work: Callable[[], None]) -> None:
        self._work.append(work)
        self.queued += 1
        self._clock.tick()

    def launch(self, kernel: Callable[[], None]) -> None:
        self.only_copies = False
        self.put(kernel)

    def wait_event(self, event: Event) -> None:
        assert event.stream is not None, "an event that was never recorded"
        # Where it is now: it may be recorded again.
        self._work.append((event.stream, event.place))
        self.queued += 1
        self._clock.tick()

    def synchronize(self) -> None:
        self.run_to(self.queued)

    def ready(self) -> bool:
        """Whether there is work that waits for no other stream."""
        if not self._work:
            return False
        first = self._work[0]
        return not isinstance(first, tuple) or first[0].passed >= first[1]

    def step(self) -> None:
        first = self._work.popleft()
        self.passed += 1
        if isinstance(first, tuple):
            first[0].run_to(first[1])
        else:
            first()

    def run_to(self, place: int) -> None:
        while self.passed < place:
            self.step()
