"""Replicas that die behind a balancer, on a backend whose requests take a while."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability import kills

KIB = 1 << 10


@pytest.fixture
def plan(fake_command: list[str], haproxy_here: None) -> kills.Plan:
    return kills.Plan(
        seconds=0.0,
        kills=3,
        every=1.0,
        clients={4 * KIB: 2, 1024 * KIB: 2, 16 * 1024 * KIB: 1},
        frail={1024 * KIB: 6},  # enough to be hit for sure
        pause_share=0.0,
        bits=1,
        command=[*fake_command, "0.3", "light"],
        environment={"QUIVER_THREADS": 16},
    )


def test_retries_hide_what_kills_do(plan: kills.Plan, tmp_path: Path):
    found = kills.run(plan, tmp_path)
    report = kills.judge(found, plan)

    assert found.kills == 3
    assert all(found.by_size.values())
    assert [check for check in report.checks if not check.held] == []
    assert [check.held for check in report.controls] == [False]
