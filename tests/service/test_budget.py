"""Bytes in flight: lent, grown, and always given back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from starlette.testclient import TestClient

from messages import VND, pack, quantize_fields
from quiver_kernels.claims import claim
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.wire import QuantizeRequest
from quiver_service.budget import OVERHEAD_BYTES, ByteBudget
from quiver_service.errors import ServiceError
from quiver_service.footprint import Footprint, of_quantize
from service_fakes import fake_engine

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


def reckoned(size: int, **options: object) -> Footprint:
    vector = np.broadcast_to(np.float32(1), size)
    return of_quantize(QuantizeRequest(vector, None, QuantizeOptions.create(**options)))


@pytest.mark.parametrize(("method", "fitting"), [("exact", 2), ("approx", 3), ("uniform", 3)])
def test_so_many_vectors_of_64_mib_are_computed_within_256_mib(method: str, fitting: int):
    size = 1 << 24
    needed = 4 * size + reckoned(size, bits=4, method=method).total + OVERHEAD_BYTES

    assert 256 * MIB // needed == fitting


def test_working_memory_grows_with_what_a_method_keeps():
    size = 1 << 20
    in_passes = reckoned(16 * size, bits=4)

    assert reckoned(64 * size, bits=4).working == in_passes.working
    assert reckoned(16 * size, bits=8).working > in_passes.working > 0
    assert reckoned(size, bits=4, method="accelerated").working > 100 * size
    # Two levels are the ends: nothing is searched for.
    assert reckoned(size, bits=1).working < MIB
    # Tables of short blocks are what counts.
    assert reckoned(16 * size, bits=4, block_size=32).working >= 16 * size // 32 * 16 * 8


def test_memory_that_the_values_need_is_booked_and_given_back(
    make_client: Callable[..., TestClient],
):
    seen: list[int] = []

    def before(operation: str) -> None:
        if operation == "quantize":
            claim(100 << 20)
            seen.append(client.app.state.services.budget.used)
            claim(0)
            seen.append(client.app.state.services.budget.used)

    client = make_client(fake_engine(before), budget_bytes=200 << 20, max_body_bytes=1 << 20)

    answer = client.post(
        "/quantize", content=pack(quantize_fields()), headers={"content-type": VND}
    )

    assert answer.status_code == 200
    assert seen[0] > 100 << 20 > seen[1]
    assert client.app.state.services.budget.used == 0


def test_memory_that_is_not_there_is_refused_before_it_is_taken(
    make_client: Callable[..., TestClient],
):
    went_on: list[str] = []

    def before(operation: str) -> None:
        if operation == "quantize":
            claim(300 << 20)
            went_on.append(operation)

    client = make_client(fake_engine(before), budget_bytes=200 << 20, max_body_bytes=1 << 20)

    answer = client.post(
        "/quantize", content=pack(quantize_fields()), headers={"content-type": VND}
    )

    assert answer.status_code == 413
    assert answer.json()["setting"] == "QUIVER_BUDGET_BYTES"
    assert went_on == []
    assert client.app.state.services.budget.used == 0
