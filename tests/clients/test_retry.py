"""Retry decisions, with time and chance given."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from quiver_client import errors
from quiver_client._deadline import Deadline
from quiver_client._retry import Attempts, RetryBudget, RetryPolicy, parse_retry_after


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def attempts(
    policy: RetryPolicy | None = None,
    budget: RetryBudget | None = None,
    clock: Clock | None = None,
    allowed: float = 100.0,
) -> Attempts:
    policy, clock = policy or RetryPolicy(), clock or Clock()
    budget = budget or RetryBudget(policy, clock)
    return Attempts(policy, budget, Deadline.after(allowed, clock), lambda low, high: high)


def status(code: int, *, own: bool = True, retry_after: float | None = None) -> errors.StatusError:
    kind = errors.STATUS_CLASSES.get(code, errors.StatusError)
    return kind("x", status=code, own=own, retry_after=retry_after)


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_overload_is_retried(code: int) -> None:
    assert attempts().pause_after(status(code)) is not None


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 409, 411, 413, 415, 422, 501])
@pytest.mark.parametrize("own", [True, False])
def test_refusals_are_final(code: int, own: bool) -> None:
    assert attempts().pause_after(status(code, own=own)) is None


def test_a_500_is_retried_only_if_foreign() -> None:
    assert attempts().pause_after(status(500, own=True)) is None
    assert attempts().pause_after(status(500, own=False)) is not None


def test_a_408_is_retried_once() -> None:
    tried = attempts()
    assert tried.pause_after(status(408)) is not None
    assert tried.pause_after(status(408)) is None


def test_lost_connections_are_retried_but_not_mistrusted_ones() -> None:
    assert attempts().pause_after(errors.ConnectionFailed("reset")) is not None
    assert attempts().pause_after(errors.ConnectionFailed("tls", transient=False)) is None


@pytest.mark.parametrize("kind", [errors.TimedOut, errors.BadAnswer, errors.ClientClosed])
def test_other_failures_are_final(kind: type[errors.QuiverClientError]) -> None:
    assert attempts().pause_after(kind("x")) is None


def test_pauses_double_to_a_cap_and_end() -> None:
    tried = attempts(RetryPolicy(max_retries=5, base=0.5, cap=3.0))
    pauses = [tried.pause_after(status(503)) for _ in range(6)]
    assert pauses == [0.5, 1.0, 2.0, 3.0, 3.0, None]


def test_jitter_is_full() -> None:
    bounds = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return low

    policy = RetryPolicy()
    tried = Attempts(policy, RetryBudget(policy), Deadline.after(9), uniform)
    assert tried.pause_after(status(503)) == 0.0
    assert bounds == [(0.0, policy.base)]


def test_retry_after_is_the_least_pause() -> None:
    assert attempts().pause_after(status(503, retry_after=2.0)) == 2.0
    assert attempts(RetryPolicy(base=5.0)).pause_after(status(503, retry_after=2.0)) == 5.0


def test_a_long_retry_after_ends_the_call() -> None:
    assert attempts().pause_after(status(429, retry_after=61.0)) is None


def test_no_pause_beyond_the_deadline() -> None:
    clock = Clock()
    tried = attempts(clock=clock, allowed=10.0)
    clock.now = 8.0
    assert tried.pause_after(status(503, retry_after=2.0)) is None
    assert tried.pause_after(status(503, retry_after=1.5)) == 1.5


def test_max_retries_zero_never_retries() -> None:
    assert attempts(RetryPolicy(max_retries=0)).pause_after(status(503)) is None


def test_a_sick_service_gets_about_a_tenth_more_requests() -> None:
    clock = Clock()
    policy = RetryPolicy(budget_reserve=10.0, budget_per_second=0.0)
    budget = RetryBudget(policy, clock)
    sent = 0
    for _ in range(1000):
        tried = attempts(policy, budget, clock)
        sent += 1
        while tried.pause_after(status(503)) is not None:
            sent += 1
    assert 1100 <= sent <= 1112


def test_the_budget_grows_with_time_up_to_its_reserve() -> None:
    clock = Clock()
    policy = RetryPolicy(budget_reserve=2.0, budget_per_second=0.5, budget_ratio=0.0)
    budget = RetryBudget(policy, clock)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    clock.now = 2.0
    assert [budget.spend() for _ in range(2)] == [True, False]
    clock.now = 1000.0
    assert [budget.spend() for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        (" 2.5 ", 2.5),
        ("0", 0.0),
        ("Sun, 22 Nov 2026 10:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 09:00:00 GMT", 0.0),
        ("Sun, 22 Nov 2026 10:00:30 -0000", 30.0),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("\u0663", None),
    ],
)
def test_retry_after_formats(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, lambda: datetime(2026, 11, 22, 10, tzinfo=UTC)) == seconds
