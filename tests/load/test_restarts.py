"""SIGTERM under load, three times, on a backend whose requests take a while."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from reliability import messages, restarts


@pytest.fixture
def plan(fake_command: list[str]) -> restarts.Plan:
    return restarts.Plan(
        small=messages.quantize(messages.vector(256), bits=2, seed=1),
        large=messages.quantize(messages.vector(1 << 18), bits=1, seed=1),
        restarts=3,
        rate=100.0,
        command=[*fake_command, "0.2", "light"],
        environment={"QUIVER_THREADS": 64},
    )


def test_what_was_accepted_is_answered(plan: restarts.Plan, tmp_path: Path):
    found = restarts.run(plan, tmp_path)

    assert found.balance.outcomes["200"] >= 3 * plan.restarts
    assert [check for check in restarts.checks(found, plan) if not check.held] == []


def test_a_killed_server_loses_requests(plan: restarts.Plan, tmp_path: Path):
    assert [c.held for c in restarts.control(replace(plan, restarts=1), tmp_path)] == [False]
