"""Ten times the capacity for some seconds, on a backend with a fixed service time."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability import messages, overload


@pytest.fixture
def plan(fake_command: list[str]) -> overload.Plan:
    """10 answers a second. Times are looser than in the long form: tests share the processors."""
    return overload.Plan(
        body=messages.quantize(messages.vector(256), bits=2, seed=1),
        seconds=2.5,
        deadline=3.0,
        capacity_seconds=1.0,
        refusal_seconds=1.0,
        lag_seconds=1.0,
        goodput_share=0.6,
        command=[*fake_command, "0.1", "exact"],
        environment={"QUIVER_THREADS": 1, "QUIVER_QUEUE_SIZE": 8, "QUIVER_LOG_LEVEL": "warning"},
    )


def test_every_request_is_answered_or_refused(plan: overload.Plan, tmp_path: Path):
    found = overload.run(plan, tmp_path)

    assert found.balance.outcomes["503"] > found.balance.outcomes["200"]
    assert [check for check in overload.checks(found, plan) if not check.held] == []


def test_without_a_bound_deadlines_are_missed(plan: overload.Plan, tmp_path: Path):
    assert [check.held for check in overload.control(plan, tmp_path)] == [False]
