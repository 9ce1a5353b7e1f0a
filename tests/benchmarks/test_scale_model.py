"""The model of large rounds: its parts against obvious ones, its page against its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scale_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scale.costs import Costs, Line, fit
from scale.measuring import Check
from scale.rounds import Machine, Plan, Scheme, agreeing, busy, enough, schemes
from scale.simulation import served, simulate

ROOT = Path(__file__).parents[2]
FIGURES: dict[str, Any] = json.loads((ROOT / "docs" / "scale.json").read_text())
FACTOR = 2.5


def found() -> tuple[Costs, list[Check], float]:
    return scale_model.read(FIGURES)


def wrong(checks: list[Check]) -> list[str]:
    return [check.what for check in checks if not 1 / FACTOR < check.ratio < FACTOR]


def test_the_page_is_what_the_figures_give():
    page = (ROOT / "docs" / "scale.md").read_text()

    assert scale_model.report(*found()) in page


def test_what_was_predicted_was_measured():
    _, checks, _ = found()

    assert len(checks) >= 12
    assert {"s", "B"} == {check.unit for check in checks}
    assert wrong(checks) == []
    assert wrong([replace(check, predicted=3 * check.predicted) for check in checks])


@given(
    st.floats(0, 1), st.floats(0, 1e-3), st.lists(st.integers(1, 10**6), min_size=3, unique=True)
)
def test_a_line_is_found_again(fixed: float, each: float, numbers: list[int]):
    seconds = [fixed + each * n + 1e-9 for n in numbers]
    line = fit(numbers, seconds)

    assert [line.seconds(n) for n in numbers] == pytest.approx(seconds, rel=1e-3)


def test_no_part_of_a_line_is_negative():
    line = fit([1, 2, 3], [1.0, 2.5, 4.5])

    assert line.fixed == 0
    assert line.each > 0


def obvious(arrivals: list[float], transfer: float, work: float, processors: int) -> list[float]:
    """Every processor's diary, looked through for each message."""
    port, busy_until, ends = 0.0, [0.0] * processors, []
    for arrival in arrivals:
        port = max(port, arrival) + transfer
        first = min(range(processors), key=busy_until.__getitem__)
        busy_until[first] = max(port, busy_until[first]) + work
        ends.append(busy_until[first])
    return ends


@settings(max_examples=50)
@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=30).map(sorted),
    st.floats(0, 2),
    st.floats(0, 2),
    st.integers(1, 4),
)
def test_the_queue_is_the_obvious_one(
    arrivals: list[float], transfer: float, work: float, processors: int
):
    assert served(np.array(arrivals), transfer, work, processors) == pytest.approx(
        obvious(arrivals, transfer, work, processors)
    )


@pytest.mark.parametrize("scheme", range(3))
@pytest.mark.parametrize("fan_in", [8, 64, 1000])
def test_a_round_takes_as_long_as_its_busiest_resource_and_not_much_longer(
    scheme: int, fan_in: int
):
    costs, _, _ = found()
    machine, plan = Machine(), Plan(1000, 1e9, fan_in, 64)
    sent = schemes(costs)[scheme]
    times = simulate(plan, sent, costs, machine, spread=0.0)
    shares = busy(plan, sent, costs, machine)

    assert times.up + times.down >= 0.99 * max(shares.values())
    assert times.up + times.down <= 3 * sum(shares.values())


def test_a_faster_network_is_never_slower():
    costs, _, _ = found()
    plan, scheme = Plan(100, 1e9, 100, 16), schemes(costs)[0]
    times = [simulate(plan, scheme, costs, Machine(bandwidth=b)).total for b in (1e8, 1e9, 1e10)]

    assert times == sorted(times, reverse=True)
    assert times[0] > 5 * times[2]


@given(st.integers(1, 20_000), st.integers(2, 200))
def test_a_tree_ends_in_one_and_takes_everybody(workers: int, fan_in: int):
    nodes = Plan(workers, 1e6, fan_in, 3).nodes()

    assert nodes[-1] == 1
    below = workers
    for count in nodes:
        assert (count - 1) * fan_in < below <= count * fan_in
        below = count
    assert Plan(workers, 1e6, fan_in, 3).replicas() == 3 * sum(nodes)


def slowest(plan: Plan, scheme: Scheme, costs: Costs) -> tuple[float, float]:
    """How long the busiest replica takes, and the workers."""
    shares = busy(plan, scheme, costs, Machine())
    own = max(shares.pop("workers' processors"), shares.pop("workers' network"))
    return max(shares.values()), own


@pytest.mark.parametrize("scheme", range(3))
def test_enough_replicas_are_enough_and_one_column_less_is_not(scheme: int):
    costs, _, _ = found()
    sent = schemes(costs)[scheme]
    plan = enough(64, 1e10, 64, sent, costs, Machine())
    assert plan is not None
    theirs, own = slowest(plan, sent, costs)
    fewer, _ = slowest(replace(plan, columns=plan.columns - 1), sent, costs)

    assert theirs <= own * (1 + 1e-6)
    assert fewer > own


def test_where_requests_alone_take_too_long_no_number_is_enough():
    costs, _, _ = found()
    slow = replace(costs, hop=10.0)

    assert enough(1000, 1e6, 1000, schemes(slow)[1], slow, Machine()) is None


def test_a_tree_agrees_sooner_than_one_merger():
    costs, _, _ = found()
    flat, tree = (agreeing(10_000, fan_in, costs, Machine()) for fan_in in (10_000, 32))

    assert tree < flat / 20
    assert agreeing(8, 8, costs, Machine()) == agreeing(8, 32, costs, Machine())


def test_sums_of_one_table_get_wider_when_they_must():
    costs, _, _ = found()
    shared = schemes(costs)[2]

    assert [shared.width(below) for below in (8, 211, 212, 10_000)] == [2.0, 2.0, 4.0, 4.0]
    assert schemes(costs)[1].width(8) == 4.0


def test_costs_come_back_from_what_is_written():
    costs, _, _ = found()

    assert Costs.from_dict(json.loads(json.dumps(costs.as_dict()))) == costs
    assert isinstance(costs.solve, Line)


@pytest.mark.benchmarks
def test_the_script_measures_and_reads_what_it_wrote(tmp_path: Path):
    figures = tmp_path / "figures.json"
    script = [sys.executable, str(ROOT / "benchmarks" / "scale_model.py")]
    first = subprocess.run(
        [*script, "--quick", "--json", figures], capture_output=True, text=True, timeout=240
    )
    again = subprocess.run(
        [*script, "--figures", figures], capture_output=True, text=True, timeout=240
    )

    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert first.stdout == again.stdout
    assert "| 100 G | 10,000 | 4 bits, one table |" in first.stdout
