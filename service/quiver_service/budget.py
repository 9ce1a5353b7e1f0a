"""Bytes in flight: what the requests being served may hold together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from quiver_service.errors import ServiceError

# What a connection costs beside its body, so that tiny requests are bounded too.
OVERHEAD_BYTES = 64 << 10
_NEARLY_FULL = 0.95


class ByteBudget:
    """A number of bytes, lent out in leases. Thread-safe; never waits."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._nearly_full = _NEARLY_FULL * capacity
        self._used = 0
        # Of the budget and of all its leases: a lease never changes without it.
        self._lock = threading.Lock()
        self._full_since: float | None = None
        self._when_grown: Callable[[], None] | None = None

    def when_grown(self, call: Callable[[], None]) -> None:
        """Call `call` after every lease that has grown, in the thread that made it grow."""
        self._when_grown = call

    @property
    def used(self) -> int:
        """Bytes lent out now."""
        return self._used

    def reserve(self, amount: int) -> Lease:
        """A lease of `amount` bytes, at most the whole budget; ``busy`` if they are not free."""
        amount = min(amount + OVERHEAD_BYTES, self.capacity)
        with self._lock:
            self._change(amount)
        return Lease(self, amount)

    def full_for(self) -> float:
        """Seconds for which the budget has been (nearly) exhausted; 0 if it is not."""
        since = self._full_since
        return 0.0 if since is None else time.monotonic() - since

    def _change(self, delta: int) -> None:
        """Lend `delta` bytes more; under the lock."""
        if delta > 0 and self._used + delta > self.capacity:
            raise ServiceError(
                "busy",
                f"requests in flight hold {self._used} of {self.capacity} bytes and this one "
                f"needs {delta} more; try again",
                limit=self.capacity,
                got=self._used + delta,
                setting="QUIVER_BUDGET_BYTES",
            )
        self._used += delta
        if self._used < self._nearly_full:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = time.monotonic()


class Lease:
    """A share of a `ByteBudget`, given back when its last holder releases it.

    The request holds it until its answer is written. A job holds it too: the thread that
    computes cannot be stopped, so the memory stays in use even if the client has left.
    """

    def __init__(self, budget: ByteBudget, amount: int) -> None:
        self._budget = budget
        self._amount = amount
        self._holders = 1
        self._lock = budget._lock

    @property
    def amount(self) -> int:
        """Bytes held."""
        return self._amount

    def resize(self, amount: int) -> None:
        """Hold `amount` bytes from now on.

        Raises
        ------
        ServiceError
            ``too_large`` if no budget of this size could ever serve it, ``busy`` if the
            others hold too much now; the lease is unchanged then.
        """
        amount += OVERHEAD_BYTES
        capacity = self._budget.capacity
        if amount > capacity:
            raise ServiceError(
                "too_large",
                f"the request needs {amount} bytes of memory (body, working memory and answer) and "
                f"the service has {capacity} (QUIVER_BUDGET_BYTES); shorter vectors, fewer levels "
                "and method approx need less",
                limit=capacity,
                got=amount,
                setting="QUIVER_BUDGET_BYTES",
            )
        with self._lock:
            more = amount - self._amount
            if self._holders:
                self._budget._change(more)
                self._amount = amount
        if more > 0 and self._budget._when_grown is not None:
            self._budget._when_grown()

    def hold(self) -> None:
        """Count one more holder."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """Count one holder less; the last one gives the bytes back."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
            amount, self._amount = self._amount, 0
            self._budget._change(-amount)
