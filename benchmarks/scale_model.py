"""From one machine to 10,000 workers: a cost model, where its bottlenecks are, and checks of it

A round: every worker has a vector of so many values, all get the mean. Costs are straight lines
through times that were measured here on one thread, and predict larger sizes and whole rounds that
were measured, too. What a worker and a replica are is an assumption: 16 processors, each as fast
as the one that was measured, 25 Gbit/s each way, 0.1 ms latency, workers' slowness lognormal with
sigma 0.1. Replicas add up what comes, each for a part of the values (a column), as parameter
servers do; in a tree each adds 32 messages and sends the sum on. A round is simulated message by
message, one column of it, with a queue before every replica's network and processors; the way
back is reckoned. Its phases follow each other; a system that overlaps them is faster.

Run ``python benchmarks/scale_model.py``; it prints Markdown, and ``--json PATH`` writes the
figures. ``--figures PATH`` reads costs and checks from such a file instead of measuring.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.tables import table
from scale.costs import FLOAT_BYTES, Costs
from scale.measuring import CORES, Check, measure_and_check
from scale.rounds import SKETCHES, Machine, Plan, Scheme, agreeing, busy, enough, schemes
from scale.simulation import simulate

WORKERS = (8, 64, 1000, 10_000)
VALUES = (1e8, 1e9, 1e10, 1e11)
FAN_IN = 32
MOST_REPLICAS = 200_000
MACHINE = Machine()


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def count(value: float) -> str:
    """100 M, 100 G."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:,.0f}"


def cost_rows(costs: Costs) -> str:
    """The lines."""
    rows = [
        [name, f"{line['fixed'] * 1e3:.3g}", f"{line['each'] * 1e9:.3g}"]
        for name, line in costs.as_dict().items()
        if isinstance(line, dict)
    ]
    return table(["operation", "fixed, ms", "each, ns"], rows)


def check_rows(checks: Sequence[Check]) -> str:
    """Predicted beside measured."""

    def shown(value: float, unit: str) -> str:
        return seconds(value) if unit == "s" else f"{value:,.0f} B"

    rows = [
        [c.what, shown(c.predicted, c.unit), shown(c.measured, c.unit), f"{c.ratio:.2f}"]
        for c in checks
    ]
    return table(["what", "predicted", "measured", "ratio"], rows)


def plan_of(
    workers: int, values: float, scheme: Scheme, costs: Costs, machine: Machine = MACHINE
) -> tuple[Plan, bool]:
    """The fewest replicas, flat or in a tree, that keep up with the workers; and whether a tree.

    Where no number keeps up, the tree with one column for each of a worker's largest requests.
    """
    flat = enough(workers, values, workers, scheme, costs, machine)
    tree = enough(workers, values, min(FAN_IN, workers), scheme, costs, machine)
    found = [plan for plan in (flat, tree) if plan is not None]
    if not found:
        return Plan(workers, values, min(FAN_IN, workers), max(1, int(values / (1 << 24)))), True
    best = min(found, key=lambda plan: (plan.replicas(), plan.columns))
    return best, best.fan_in < workers


def bottleneck(plan: Plan, scheme: Scheme, costs: Costs) -> str:
    """The resource that is busy longest."""
    found = busy(plan, scheme, costs, MACHINE)
    return max(found, key=found.__getitem__)


def round_rows(costs: Costs) -> str:
    """Rounds by size: replicas that keep up, the simulated time, bytes against float32."""
    rows = []
    for values in VALUES:
        for workers in WORKERS:
            base: float | None = None
            for scheme in schemes(costs):
                plan, tree = plan_of(workers, values, scheme, costs)
                found = simulate(plan, scheme, costs, MACHINE).total
                base = found if base is None else base
                rows.append(
                    [
                        count(values),
                        f"{workers:,}",
                        scheme.name,
                        f"{plan.replicas():,}" + (" in a tree" if tree else ""),
                        seconds(found),
                        f"{base / found:.1f}x",
                        bottleneck(plan, scheme, costs),
                    ]
                )
    head = ["values", "workers", "sent as", "replicas", "round", "against float32", "bottleneck"]
    return table(head, rows)


def moving_rows(costs: Costs) -> str:
    """What is busy how long with 10,000 workers and 1 G values, as replicas are added."""
    scheme = schemes(costs)[2]
    rows = []
    for fan_in in (WORKERS[-1], FAN_IN):
        for columns in (1, 8, 64, 512, 4096):
            plan = Plan(WORKERS[-1], VALUES[1], fan_in, columns)
            if plan.replicas() > MOST_REPLICAS:
                continue
            found = busy(plan, scheme, costs, MACHINE)
            rows.append(
                [
                    "flat" if fan_in == WORKERS[-1] else f"tree of {fan_in}",
                    f"{plan.replicas():,}",
                    *(seconds(value) for value in found.values()),
                    bottleneck(plan, scheme, costs),
                ]
            )
    return table(["", "replicas", *found, "bottleneck"], rows)


def table_rows(costs: Costs) -> str:
    """Agreeing on one table: one replica merges all sketches, or a tree does."""
    rows = [
        [
            f"{workers:,}",
            f"{workers * costs.sketch_bytes / 1e6:,.1f} MB",
            *(seconds(agreeing(workers, fan_in, costs, MACHINE)) for fan_in in (workers, SKETCHES)),
        ]
        for workers in WORKERS
    ]
    return table(["workers", "sketches", "one merges all", f"tree of {SKETCHES}"], rows)


def network_rows(costs: Costs) -> str:
    """1,000 workers and 1 G values on slower and faster networks."""
    rows = []
    for gigabits in (1, 5, 25, 100, 400):
        machine = replace(MACHINE, bandwidth=gigabits * 1e9 / 8)
        found = []
        for scheme in schemes(costs):
            plan, _ = plan_of(WORKERS[2], VALUES[1], scheme, costs, machine)
            found.append(simulate(plan, scheme, costs, machine).total)
        best = found[0] / min(found[1:])
        rows.append([f"{gigabits} Gbit/s", *(seconds(value) for value in found), f"{best:.1f}x"])
    return table(["network", *(s.name for s in schemes(costs)), "better of both"], rows)


def report(costs: Costs, checks: Sequence[Check], load: float) -> str:
    """The page."""
    scheme = schemes(costs)[1]
    ratio = FLOAT_BYTES / scheme.up
    return "\n\n".join(
        [
            "### Measured costs",
            "Of one thread, by the number of values (`merge`: of sketches). `request` is `POST "
            "/quantize` as a client sees it. A sketch has "
            f"{costs.sketch_bytes / 1000:.0f} kB, a quantized vector {costs.head_bytes:.0f} bytes "
            f"beside its codes, a request of a few values takes {seconds(costs.hop)}.",
            cost_rows(costs),
            "### Predictions checked",
            "At sizes that no line was drawn through, for a whole round on one thread, and for "
            "clients before one and two replicas on this machine, whose processors they share. "
            "What runs in one process is timed by the processor's clock, requests by the wall's. "
            f"The load average was {load:.1f} on {CORES} processors: other programs ran beside, "
            "and requests had to wait for them. Ratios are predicted to measured.",
            check_rows(checks),
            "### Rounds",
            "With the fewest replicas that are no slower than the workers are by themselves. "
            f"4 bits are {ratio:.0f}x fewer bytes; how much of that becomes time depends on what "
            "else the workers do, which is choosing levels and rounding. With one table for all, "
            "levels are chosen once, and replicas add integers; their sums have 16 bits in a "
            "tree's lower levels and 32 above.",
            round_rows(costs),
            "### What the network changes",
            f"{WORKERS[2]:,} workers, {count(VALUES[1])} values each, everything else as above.",
            network_rows(costs),
            "### Where the bottleneck moves",
            f"{WORKERS[-1]:,} workers, {count(VALUES[1])} values each, one table: seconds that "
            "each resource is busy in a round. Bytes and values are shared by more replicas; "
            "requests are not: without a tree, every worker sends one to every column, so their "
            "fixed cost stays, however many replicas there are. A tree bounds it.",
            moving_rows(costs),
            "### Agreeing on one table",
            "Sketches of all workers into one, and the table back.",
            table_rows(costs),
        ]
    )


def main() -> None:
    """Measure (or read), print Markdown, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description="Model rounds of many workers.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a test of this file")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--figures", type=Path, help="costs and checks from here: measure nothing")
    options = parser.parse_args()
    if options.figures is not None:
        costs, checks, load = read(json.loads(options.figures.read_text()))
    else:
        costs, checks = measure_and_check(options.quick)
        load = os.getloadavg()[0]
    print(report(costs, checks, load))
    if options.json is not None:
        found = {
            "costs": costs.as_dict(),
            "checks": [asdict(check) for check in checks],
            "load": load,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def read(found: dict[str, Any]) -> tuple[Costs, list[Check], float]:
    """The reverse of what is written."""
    checks = [Check(**check) for check in found["checks"]]
    return Costs.from_dict(found["costs"]), checks, float(found["load"])


if __name__ == "__main__":
    main()
