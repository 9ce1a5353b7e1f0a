"""Which failures are tried again, and when: pure decisions, no I/O.

Quantization is a pure function of its request, because every request carries a seed.
So a request may be sent again whenever the failure says that another try can succeed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from quiver_client._deadline import Clock, Deadline
from quiver_client.errors import ConnectionFailed, QuiverClientError, StatusError, UploadStalled

ALWAYS_RETRIED = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How persistent a client is.

    Attributes
    ----------
    max_retries
        Tries after the first one.
    base, cap
        The n-th pause is uniform in 0 .. min(cap, base * 2**n) seconds (full jitter).
    max_retry_after
        Longest ``Retry-After`` obeyed, in seconds; a longer one ends the call, and the
        error carries it.
    budget_ratio, budget_reserve, budget_per_second
        Retries are paid from a budget shared by all calls of a client: it holds at most
        `budget_reserve`, and grows by `budget_ratio` with every call and by
        `budget_per_second` with time. A service that fails for everybody thus gets about
        a tenth more requests, not five times as many.
    """

    max_retries: int = 4
    base: float = 0.25
    cap: float = 8.0
    max_retry_after: float = 60.0
    budget_ratio: float = 0.1
    budget_reserve: float = 50.0
    budget_per_second: float = 1.0


class RetryBudget:
    """The retries that all calls of a client may still make; safe for threads."""

    def __init__(self, policy: RetryPolicy, clock: Clock = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = policy.budget_reserve
        self._seen = clock()

    def earn(self) -> None:
        """Count one call."""
        with self._lock:
            self._grow(self._policy.budget_ratio)

    def spend(self) -> bool:
        """Pay for one retry; False if the budget does not allow it."""
        with self._lock:
            self._grow(0.0)
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def _grow(self, amount: float) -> None:
        now = self._clock()
        earned = amount + (now - self._seen) * self._policy.budget_per_second
        self._tokens = min(self._policy.budget_reserve, self._tokens + earned)
        self._seen = now


class Attempts:
    """The tries of one call: asked after each failure whether, and when, to try again."""

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        deadline: Deadline,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._deadline = deadline
        self._uniform = uniform
        self._retries = 0
        self._stalls = 0
        budget.earn()

    def pause_after(self, error: QuiverClientError) -> float | None:
        """Seconds to wait before the next try; None: give up and raise `error`."""
        if isinstance(error, UploadStalled):
            self._stalls += 1
        if self._retries >= self._policy.max_retries or not self._worth_it(error):
            return None
        bound = min(self._policy.cap, self._policy.base * 2.0**self._retries)
        pause = self._uniform(0.0, bound)
        if error.retry_after is not None:
            if error.retry_after > self._policy.max_retry_after:
                return None
            pause = max(pause, error.retry_after)
        if pause >= self._deadline.left() or not self._budget.spend():
            return None
        self._retries += 1
        return pause

    def _worth_it(self, error: QuiverClientError) -> bool:
        if isinstance(error, ConnectionFailed):
            return error.transient
        if isinstance(error, UploadStalled):
            return self._stalls == 1
        if not isinstance(error, StatusError):
            return False
        if error.status == 500:
            # The service's own 500 would fail again; a proxy's means that the node was lost.
            return not error.own
        return error.status in ALWAYS_RETRIED


def parse_retry_after(value: str | None, now: Callable[[], datetime] | None = None) -> float | None:
    """Seconds of a Retry-After header, in seconds or as a date; None if absent or unreadable."""
    if value is None:
        return None
    text = value.strip()
    if text.replace(".", "", 1).isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    current = datetime.now(UTC) if now is None else now()
    return max(0.0, (when - current).total_seconds())
