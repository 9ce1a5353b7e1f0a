"""Carries calls to the service: attempts, pauses, deadline."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from quiver_client._cancellation import Cancellation
from quiver_client._core import Call
from quiver_client._deadline import Clock, Deadline
from quiver_client._messages import Request
from quiver_client._retry import Attempts, RetryBudget, RetryPolicy
from quiver_client._transport import Transport
from quiver_client.errors import QuiverClientError

T = TypeVar("T")

# Seconds: what the service takes at most, and what it is told beyond the time left.
_LONGEST_TIMEOUT = 86_400.0
_TIMEOUT_MARGIN = 1.0


def _request_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Session:
    """What the calls of one client have in common; copies share transport and budget.

    Attributes
    ----------
    transport
        Sends one request, once.
    budget
        Retries that all calls together may still make.
    headers
        Sent with every request.
    timeout
        Seconds for a whole call: all attempts and the pauses between them.
    policy
        How persistent to be.
    cancellation
        Ends the calls of this copy from another thread.
    clock, sleep, uniform, request_id
        Time, chance and identity; replaced in tests.
    """

    transport: Transport
    budget: RetryBudget
    headers: Mapping[str, str]
    timeout: float
    policy: RetryPolicy
    cancellation: Cancellation | None = None
    clock: Clock = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform
    request_id: Callable[[], str] = field(default=_request_id)

    def perform(self, call: Call[T]) -> T:
        """Send the call until it succeeds, fails for good, or time or patience runs out."""
        return self._perform(call, Deadline.after(self.timeout, self.clock))

    def perform_all(self, calls: Iterable[Call[T]]) -> list[T]:
        """Send calls one after the other; `timeout` is for all of them together."""
        deadline = Deadline.after(self.timeout, self.clock)
        return [self._perform(call, deadline) for call in calls]

    def _perform(self, call: Call[T], deadline: Deadline) -> T:
        request = call.request(self.headers, self.request_id(), self.transport.target.prefix)
        attempts = Attempts(self.policy, self.budget, deadline, self.uniform)
        while True:
            try:
                timed = _with_timeout(request, deadline)
                return call.result(self.transport.send(timed, deadline, self.cancellation))
            except QuiverClientError as error:
                pause = attempts.pause_after(error)
                if pause is None:
                    raise
            self._pause(pause)

    def with_options(self, timeout: float | None, max_retries: int | None) -> Session:
        """A copy with another timeout or persistence, sharing transport and budget."""
        return replace(
            self,
            timeout=self.timeout if timeout is None else timeout,
            policy=self.policy
            if max_retries is None
            else replace(self.policy, max_retries=max_retries),
        )

    def cancelled_by(self, cancellation: Cancellation) -> Session:
        """A copy whose calls `cancellation` ends."""
        return replace(self, cancellation=cancellation)

    def _pause(self, seconds: float) -> None:
        if self.cancellation is None:
            self.sleep(seconds)
        else:
            self.cancellation.pause(seconds)


def _with_timeout(request: Request, deadline: Deadline) -> Request:
    """The request with the time left for it, so that nothing is computed for nobody.

    A little more than the time left, so that it is this client that tells of its timeout.
    """
    seconds = min(deadline.require() + _TIMEOUT_MARGIN, _LONGEST_TIMEOUT)
    return replace(request, headers={**request.headers, "X-Request-Timeout": f"{seconds:.3f}"})
