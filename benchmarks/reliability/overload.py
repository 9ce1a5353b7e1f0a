"""Ten times the load that the service can carry

Capacity is measured first, by a few clients that always wait for an answer. Then requests arrive at
ten times that rate, each on a connection of its own, whatever the answers do, and every client
gives up at its deadline. The service has one kernel thread, so that the other processor is left
for its event loop and for the generator. Refusals count from the moment that the connection is
asked for. The control has a queue without a useful bound.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reliability import messages
from reliability.generator import Load, Shot, closed_loop, fire, lag, percentile
from reliability.ledger import Balance, Ledger
from reliability.report import Check, Report
from reliability.servers import REAL, Server, serving

PROMISE = "R4"
ALLOWED = ("200", "429", "503")
UNBOUNDED = {"QUIVER_QUEUE_SIZE": 100_000, "QUIVER_BUDGET_BYTES": 1 << 40}


@dataclass(frozen=True)
class Plan:
    """How to overload which server.

    Attributes
    ----------
    body
        Of every request; it should take the kernel some 50 ms.
    deadline
        Seconds that a client waits.
    refusal_seconds, lag_seconds, goodput_share
        Bounds: of the 503s' p99, of how late requests may leave (p99), and of the answers a second
        as a share of capacity.
    """

    body: bytes
    seconds: float = 60.0
    factor: float = 10.0
    deadline: float = 10.0
    capacity_seconds: float = 10.0
    refusal_seconds: float = 0.05
    lag_seconds: float = 0.025
    goodput_share: float = 0.8
    command: Sequence[str] = REAL
    environment: Mapping[str, object] = field(default_factory=lambda: {"QUIVER_THREADS": 1})


@dataclass(frozen=True)
class Found:
    """What one run gave: seconds, requests a second, and the ledger."""

    capacity: float
    rate: float
    goodput: float
    balance: Balance
    waits: float
    refusals: float
    refusals_median: float
    generator_lag: float
    settled: bool
    tracebacks: int


def run(plan: Plan, folder: Path) -> Found:
    """Measure the capacity, overload, and look at what is left."""
    ledger = Ledger()
    with serving(folder, plan.command, **plan.environment) as server:
        load = Load(server.port, 1.0, plan.capacity_seconds, plan.body, plan.deadline)
        threads = int(server.metric("quiver_threads"))
        capacity = closed_loop(replace(load, prefix="capacity"), Ledger(), threads + 1)
        rate = plan.factor * capacity
        shots = fire(replace(load, rate=rate, seconds=plan.seconds), ledger)
        return _found(plan, capacity, rate, shots, ledger, server)


def _found(
    plan: Plan, capacity: float, rate: float, shots: list[Shot], ledger: Ledger, server: Server
) -> Found:
    good = [shot for shot in shots if shot.outcome == "200"]
    refused = [shot for shot in shots if shot.outcome in {"503", "429"}]
    return Found(
        capacity=capacity,
        rate=rate,
        goodput=sum(shot.ended <= plan.seconds for shot in good) / plan.seconds,
        balance=ledger.balance(ALLOWED),
        waits=percentile([shot.ended - shot.planned for shot in good], 0.99),
        refusals=percentile([shot.ended - shot.sent for shot in refused], 0.99),
        refusals_median=percentile([shot.ended - shot.sent for shot in refused], 0.5),
        generator_lag=lag(shots),
        settled=server.settles(),
        tracebacks=server.text().count("Traceback"),
    )


def checks(found: Found, plan: Plan) -> list[Check]:
    """The promise, part by part."""
    balance = found.balance
    share = found.goodput / found.capacity if found.capacity else 0.0
    return [
        Check(
            "every request ends as 200, 503 or 429 before its deadline",
            f"deadline {plan.deadline:g} s",
            str(balance),
            balance.even,
        ),
        Check(
            "refused at once",
            f"503: p99 <= {1000 * plan.refusal_seconds:.0f} ms",
            f"{1000 * found.refusals:.1f} ms, median {1000 * found.refusals_median:.1f} ms",
            found.refusals <= plan.refusal_seconds,
        ),
        Check(
            "useful work goes on",
            f">= {100 * plan.goodput_share:.0f} % of capacity",
            f"{found.goodput:.1f} of {found.capacity:.1f} answers/s: {100 * share:.0f} %",
            share >= plan.goodput_share,
        ),
        Check(
            "the generator keeps its times, or the figures above are its own",
            f"p99 late by <= {1000 * plan.lag_seconds:.0f} ms",
            f"{1000 * found.generator_lag:.1f} ms",
            found.generator_lag <= plan.lag_seconds,
        ),
        Check(
            "nothing is left behind",
            "nothing in flight, no traceback",
            f"in flight: {'nothing' if found.settled else 'still'}, tracebacks: {found.tracebacks}",
            found.settled and found.tracebacks == 0,
        ),
    ]


def control(plan: Plan, folder: Path) -> list[Check]:
    """The first check where everything may wait."""
    unbounded = replace(plan, environment={**plan.environment, **UNBOUNDED})
    first = checks(run(unbounded, folder), unbounded)[0]
    return [replace(first, promise=f"unlimited queue: {first.promise}")]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--factor", type=float, default=10.0, help="times the capacity")
    parser.add_argument("--deadline", type=float, default=10.0, help="of a client, in seconds")


def measure(options: argparse.Namespace) -> Report:
    body = messages.quantize(messages.vector(1 << 15), bits=8, seed=1)
    plan = Plan(body, options.seconds, options.factor, options.deadline)
    # Long enough for the last requests of an unlimited queue to wait beyond the deadline.
    short = replace(plan, seconds=min(plan.seconds, 10.0), deadline=min(plan.deadline, 5.0))
    with tempfile.TemporaryDirectory() as folder:
        found = run(plan, Path(folder))
        controls = control(short, Path(folder))
    results: dict[str, Any] = {
        **{name: value for name, value in vars(found).items() if name != "balance"},
        "sent": found.balance.sent,
        "outcomes": found.balance.outcomes,
    }
    return Report(checks(found, plan), controls, _notes(plan, found), results)


def _notes(plan: Plan, found: Found) -> str:
    return (
        f"{len(plan.body):,} bytes a request, {found.rate:.0f} requests/s offered for "
        f"{plan.seconds:g} s. Answers came after {found.waits:.2f} s (p99, from the planned time, "
        f"the queue included)."
    )
