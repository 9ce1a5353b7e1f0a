"""R9: slow clients hold nothing, and a service that waits for ever is caught."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from reliability import slow
from reliability.report import Check
from reliability.servers import Server, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LIMITS = slow.Limits(header=1.0, idle=1.0, grace=1.5, send=1.0)
NEVER = slow.Limits(3600.0, 3600.0, 3600.0, 3600.0)
# The bound of the long form is 50 ms; this machine has other tests to run, and a stall is for ever.
MOST_SECONDS = 1.0


def failed(checks: list[Check]) -> list[Check]:
    return [check for check in checks if not check.held]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with short limits."""
    folder = tmp_path_factory.mktemp("strict")
    budget = {"QUIVER_BUDGET_BYTES": slow.BUDGET_BYTES}
    with serving(folder, **budget, **LIMITS.settings()) as server:
        yield server


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for ever, with room for few."""
    folder = tmp_path_factory.mktemp("patient")
    budget = {"QUIVER_BUDGET_BYTES": 80 << 20}
    with serving(folder, **budget, **NEVER.settings()) as server:
        yield server


def test_slow_heads_and_bodies_are_told_off(strict: Server):
    assert failed(slow.ending_checks(strict, LIMITS, 4, watch=5.0)) == []
    assert "Traceback" not in strict.text()


def test_slow_readers_are_cut_off(strict: Server):
    assert failed(slow.reader_checks(strict, LIMITS, 2)) == []


def test_stalled_uploads_keep_others_out_for_a_moment_only(strict: Server):
    blocked = slow.blocked_seconds(strict, b"", 10.0)

    # Less would mean that nobody was kept out, and the check saw nothing.
    assert blocked >= 0.5 * LIMITS.idle
    assert slow.blocked_check(blocked, LIMITS.idle).held, blocked


def test_small_requests_pass_beside_stalled_connections(patient: Server):
    assert failed(slow.stalled_checks(patient, 80, 50.0, 2.0, most_seconds=MOST_SECONDS)) == []


def test_a_service_that_waits_for_ever_is_caught(patient: Server):
    endings = slow.ending_checks(patient, LIMITS, 1, watch=2.6)
    beside = slow.stalled_checks(patient, 200, 50.0, 1.0, 60, MOST_SECONDS)

    assert len(failed(endings[:-1])) == len(slow.slow_kinds(LIMITS))
    assert not beside[0].held
