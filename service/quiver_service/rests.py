"""Lanes that failed: each rests, twice as long after every failure; then one call tries it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Rest:
    """A failed lane: why, how often in a row, and until when it is left alone."""

    reason: str
    failures: int
    until: float


def _rest_seconds(failures: int) -> float:
    return min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0 ** min(failures - 1, 10))


class Rests:
    """Which lanes rest, by their numbers. Thread-safe.

    Parameters
    ----------
    clock
        Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._resting: dict[int, Rest] = {}

    def __contains__(self, lane: int) -> bool:
        """Whether this lane has failed since it last worked."""
        return lane in self._resting

    def usable(self, lanes: Collection[int]) -> list[int]:
        """Those of `lanes` that may be used now: first the ones that are to be tried again."""
        now = self._clock()
        with self._lock:
            due = [lane for lane in lanes if lane in self._resting and self._due(lane, now)]
            return due + [lane for lane in lanes if lane not in self._resting]

    def _due(self, lane: int, now: float) -> bool:
        return now >= self._resting[lane].until

    def reason(self, lanes: Collection[int]) -> str | None:
        """Why one of `lanes` rests; None if none does."""
        with self._lock:
            found = [self._resting[lane].reason for lane in lanes if lane in self._resting]
        return found[0] if found else None

    def claim(self, lane: int) -> Rest | None:
        """None if the caller may use this lane; else why not."""
        with self._lock:
            rest = self._resting.get(lane)
            if rest is None:
                return None
            now = self._clock()
            if now < rest.until:
                return rest
            # This caller tries; others keep away until it has succeeded.
            until = now + _rest_seconds(rest.failures)
            self._resting[lane] = Rest(rest.reason, rest.failures, until)
            return None

    def failed(self, lane: int, reason: str) -> Rest:
        """Note a failure."""
        with self._lock:
            before = self._resting.get(lane)
            failures = 1 if before is None else before.failures + 1
            rest = Rest(reason, failures, self._clock() + _rest_seconds(failures))
            self._resting[lane] = rest
            return rest

    def worked(self, lane: int) -> bool:
        """Note a success; whether the lane had failed before it."""
        if lane not in self._resting:
            return False
        with self._lock:
            return self._resting.pop(lane, None) is not None

    def now(self) -> dict[int, tuple[Rest, float]]:
        """Resting lanes, and the seconds until one call tries them."""
        now = self._clock()
        with self._lock:
            return {
                lane: (rest, max(0.0, rest.until - now))
                for lane, rest in sorted(self._resting.items())
            }
