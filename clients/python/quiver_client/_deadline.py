"""A moment by which a call must be over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from quiver_client.errors import TimedOut

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at` seconds on `clock`; `allowed` is how long it was in all."""

    at: float
    allowed: float
    clock: Clock

    @classmethod
    def after(cls, seconds: float, clock: Clock = time.monotonic) -> Deadline:
        """A deadline `seconds` from now."""
        return cls(clock() + seconds, seconds, clock)

    def left(self) -> float:
        """Seconds left; not positive when it has passed."""
        return self.at - self.clock()

    def require(self) -> float:
        """Seconds left.

        Raises
        ------
        TimedOut
            When none are.
        """
        left = self.left()
        if left <= 0:
            raise TimedOut(f"no answer within the timeout of {self.allowed:g} s")
        return left
