"""Lanes: the GPUs of a process, each with stream and staging of its own, for one user at a time."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quiver_kernels.stopping import checkpoint

if TYPE_CHECKING:
    from quiver_kernels.dispatch import Backend

# Between two looks whether the result is still wanted.
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Lane:
    """One GPU.

    Attributes
    ----------
    number
        From 0; the device's, as CUDA counts those that this process sees.
    backend
        Computes on it.
    card
        Its name, for people.
    memory
        Bytes that computations may hold on it; None: unknown.
    """

    number: int
    backend: Backend
    card: str = ""
    memory: int | None = None


class Lanes:
    """Hands free lanes to those who wait, first come first served. Thread-safe.

    Parameters
    ----------
    lanes
        With numbers that differ.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = tuple(lanes)
        self._changed = threading.Condition()
        self._taken: set[int] = set()
        self._waiting: deque[object] = deque()
        self._booked = 0.0

    @property
    def backlog(self) -> float:
        """Seconds that a newcomer waits, as far as those before told what they take."""
        with self._changed:
            if len(self._taken) < len(self.lanes):
                return 0.0
            return self._booked / len(self.lanes)

    @property
    def waiting(self) -> int:
        """How many wait for a lane."""
        with self._changed:
            return len(self._waiting)

    @contextlib.contextmanager
    def taken(
        self, usable: Callable[[], Collection[int]], seconds: float = 0.0
    ) -> Iterator[Lane | None]:
        """Have a lane for as long as the block runs; waits until one is free.

        Parameters
        ----------
        usable
            Numbers of lanes that will do, in order of preference; asked anew whenever lanes were
            given back, without delay and without taking lanes itself.
        seconds
            How long the block takes, as far as is known.

        Returns
        -------
        context manager
            Of the lane, or of None as soon as `usable` names none.

        Raises
        ------
        Stopped
            Nobody wants the result any more.
        """
        with self._changed:
            self._booked += seconds
        try:
            lane = self._wait(usable)
            try:
                yield lane
            finally:
                if lane is not None:
                    with self._changed:
                        self._taken.remove(lane.number)
        finally:
            with self._changed:
                self._booked -= seconds
                self._changed.notify_all()

    def _wait(self, usable: Callable[[], Collection[int]]) -> Lane | None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while True:
                    numbers = usable()
                    if not numbers:
                        return None
                    free = [number for number in numbers if number not in self._taken]
                    if free and self._first(ticket):
                        self._taken.add(free[0])
                        return next(lane for lane in self.lanes if lane.number == free[0])
                    self._changed.wait(_LOOK_SECONDS)
                    checkpoint()
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _first(self, ticket: object) -> bool:
        return self._waiting[0] is ticket
