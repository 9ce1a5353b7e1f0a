"""Rounds of mixed requests, with a bound and a leak that a short run can tell apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability import soak


@pytest.fixture
def plan(fake_command: list[str]) -> soak.Plan:
    """As few rounds as a trend needs, each with every entry once."""
    return soak.Plan(
        seconds=0.0,
        round_size=0,
        largest=2048,
        bound=20_000 * soak.MB,
        command=[*fake_command, "0", "exact"],
        environment={"QUIVER_THREADS": 2},
    )


def test_nothing_grows_and_nothing_changes(plan: soak.Plan, tmp_path: Path):
    found = soak.run(plan, tmp_path)

    assert {"200", "400", "404", "415", "422"} <= found.balance.outcomes.keys()
    assert [check for check in soak.checks(found, plan) if not check.held] == []


def test_a_leak_is_found(plan: soak.Plan, tmp_path: Path):
    leaked = 1 << 19
    found, controls = soak.control(plan, tmp_path, leaked)

    assert [check.held for check in controls] == [False, False]
    # A short run sees it roughly: what is free when the count begins takes the first of it, and
    # the heap grows by more than it is asked for.
    assert leaked / 2 < found.per_request < 2 * leaked
