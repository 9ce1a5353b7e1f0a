"""Bytes in flight: lent, grown, and always given back."""

from __future__ import annotations

import threading

import pytest

from quiver_service.budget import OVERHEAD_BYTES, ByteBudget
from quiver_service.errors import ServiceError

MIB = 1 << 20


def test_a_lease_counts_until_it_is_released():
    budget = ByteBudget(10 * MIB)

    lease = budget.reserve(MIB)

    assert budget.used == lease.amount == MIB + OVERHEAD_BYTES
    lease.release()
    assert budget.used == 0


def test_what_does_not_fit_is_busy_and_changes_nothing():
    budget = ByteBudget(10 * MIB)
    budget.reserve(8 * MIB)
    before = budget.used

    with pytest.raises(ServiceError) as refused:
        budget.reserve(4 * MIB)

    assert refused.value.code == "busy"
    assert refused.value.setting == "QUIVER_BUDGET_BYTES"
    assert budget.used == before


def test_one_request_may_always_take_all():
    budget = ByteBudget(MIB)

    assert budget.reserve(5 * MIB).amount == MIB


def test_a_lease_can_grow_and_shrink():
    budget = ByteBudget(10 * MIB)
    lease = budget.reserve(MIB)

    lease.resize(5 * MIB)
    assert budget.used == 5 * MIB + OVERHEAD_BYTES
    lease.resize(0)
    assert budget.used == OVERHEAD_BYTES


def test_growth_that_others_prevent_is_busy_and_growth_beyond_all_is_too_large():
    budget = ByteBudget(10 * MIB)
    lease = budget.reserve(MIB)
    other = budget.reserve(5 * MIB)

    with pytest.raises(ServiceError) as busy:
        lease.resize(8 * MIB)
    with pytest.raises(ServiceError) as too_large:
        lease.resize(11 * MIB)

    assert (busy.value.code, too_large.value.code) == ("busy", "too_large")
    lease.release()
    other.release()
    assert budget.used == 0


def test_the_last_holder_gives_back():
    budget = ByteBudget(10 * MIB)
    lease = budget.reserve(MIB)
    lease.hold()

    lease.release()
    assert budget.used
    lease.release()
    assert budget.used == 0


def test_a_released_lease_does_not_grow_again():
    budget = ByteBudget(10 * MIB)
    lease = budget.reserve(MIB)
    lease.release()

    lease.resize(MIB)

    assert budget.used == 0


def test_exhaustion_is_timed():
    budget = ByteBudget(10 * MIB)
    assert budget.full_for() == 0

    lease = budget.reserve(10 * MIB)

    assert budget.full_for() > 0
    lease.release()
    assert budget.full_for() == 0


def test_threads_do_not_lose_counts():
    budget = ByteBudget(1 << 40)

    def churn() -> None:
        for size in range(500):
            lease = budget.reserve(size)
            lease.resize(size * 2)
            lease.release()

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert budget.used == 0
