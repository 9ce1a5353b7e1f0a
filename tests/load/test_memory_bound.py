"""R2: memory stays within the budget, and one that never refuses is caught."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reliability import memory
from reliability.servers import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 1 << 20
CLIENTS, BODY, BUDGET = 16, 16 * MIB, 64 * MIB


def test_a_crowd_stays_within_the_budget_and_is_served(tmp_path: Path):
    with serving(tmp_path, QUIVER_BUDGET_BYTES=BUDGET) as server:
        found = memory.crowd(server, "approx", CLIENTS, BODY)

    assert found.refusals > 0
    assert memory.crowd_check("approx", CLIENTS, BODY, found, BUDGET).held, found


def test_a_budget_without_end_is_caught(tmp_path: Path):
    with serving(tmp_path, QUIVER_BUDGET_BYTES=1 << 40) as server:
        found = memory.crowd(server, "approx", CLIENTS, BODY)

    assert found.served
    assert not memory.crowd_check("no gate", CLIENTS, BODY, found, BUDGET).held, found


def test_computations_take_no_more_than_is_reckoned(tmp_path: Path):
    rows = memory.reckoning(tmp_path / "reckoning.json", [16, 18])

    assert memory.reckoning_check(rows).held, rows
    # The same rows, reckoned with nothing, do not pass.
    free = [{**row, "reckoned": 0} for row in rows]
    assert not memory.reckoning_check(free).held
