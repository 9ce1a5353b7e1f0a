"""A long day: mixed requests, bad ones, and clients that leave

Four clients send rounds of requests in a random order: all operations, sizes from one value to
millions, several methods and types, requests that must be refused, clients that leave during the
upload or before the answer. Every answer is compared with the first one to the same request. After
each round, at rest, the server's memory, descriptors and threads are noted. A line is fitted to the
memory of the second half of the run, through means of batches, since samples that follow each other
are alike. The promise holds when the slope is below the bound with 95 % confidence: the upper end
of its interval must be below. A run too short to tell does not pass. The control is a server that
keeps 1 KB of every request.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import math
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from reliability import catalogue
from reliability.catalogue import Entry
from reliability.ledger import Balance, Ledger
from reliability.report import Check, Report
from reliability.servers import REAL, Sample, planted, serving
from reliability.trend import BATCHES, Trend, trend

PROMISE = "R11"
MB = 1_000_000
HOUR = 3600.0
SLACK = 2
# The service closes connections that were idle for 5 s; a request then may meet the closing.
_IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class Plan:
    """How long to soak which server.

    Attributes
    ----------
    seconds, rounds
        Ends after both: at least so long, at least so many rounds.
    round_size
        Requests between two samples, about.
    largest
        Values of the longest vector.
    bound
        Bytes an hour that the memory may grow.
    """

    seconds: float = 1800.0
    rounds: int = 2 * BATCHES
    seed: int = 0
    clients: int = 4
    round_size: int = 200
    largest: int = 1 << 21
    bound: float = 20.0 * MB
    command: Sequence[str] = REAL
    environment: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What one run gave; samples are taken at rest, after each round."""

    balance: Balance
    changed: tuple[str, ...]
    samples: Sequence[Sample]
    requests: Sequence[int]
    growth: Trend
    settled: bool
    tracebacks: int

    @property
    def per_request(self) -> float:
        """Bytes that the memory grows with each request, in the second half."""
        seconds = self.samples[-1].seconds - self.samples[0].seconds
        return self.growth.slope / HOUR * seconds / (self.requests[-1] - self.requests[0])


def _growth(samples: Sequence[Sample]) -> Trend:
    """Bytes an hour."""
    if len(samples) < 2 * BATCHES:
        # It did not come to rest, which another check tells: nothing is known of the memory.
        return Trend(math.nan, math.nan, math.nan, math.nan)
    return trend([sample.seconds / HOUR for sample in samples], [s.rss for s in samples])


class _Answers:
    """The first answer to each entry, and the entries that had another one later."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._lock = threading.Lock()
        self.changed: set[str] = set()

    def check(self, entry: Entry, said: str) -> None:
        with self._lock:
            if self._first.setdefault(entry.name, said) != said:
                self.changed.add(entry.name)


def run(plan: Plan, folder: Path) -> Found:
    """Send rounds until the time is over."""
    ledger, answers = Ledger(), _Answers()
    samples: list[Sample] = []
    counts: list[int] = []
    with serving(folder, plan.command, **plan.environment) as server:
        mix = catalogue.multiset(catalogue.entries(server.url, plan.largest), plan.round_size)
        order = random.Random(plan.seed)
        connections = [
            http.client.HTTPConnection("127.0.0.1", server.port, timeout=catalogue.TIMEOUT_SECONDS)
            for _ in range(plan.clients)
        ]
        begun = time.monotonic()
        with ThreadPoolExecutor(plan.clients) as threads:
            for number in itertools.count():
                order.shuffle(mix)
                shares = [mix[i :: plan.clients] for i in range(plan.clients)]
                names = [f"{number}-{i}" for i in range(plan.clients)]
                jobs = zip(connections, shares, names, strict=True)
                for done in [threads.submit(_client, *job, ledger, answers) for job in jobs]:
                    done.result()
                # What clients that left have begun may still run.
                settled = server.settles()
                samples.append(server.sample())
                counts.append((number + 1) * len(mix))
                over = time.monotonic() - begun >= plan.seconds and len(samples) >= plan.rounds
                if over or not settled:
                    break
        for connection in connections:
            connection.close()
        tracebacks = server.text().count("Traceback")
    return Found(
        balance=ledger.balance({catalogue.outcome(entry) for entry in mix}),
        changed=tuple(sorted(answers.changed)),
        samples=samples,
        requests=counts,
        growth=_growth(samples),
        settled=settled,
        tracebacks=tracebacks,
    )


def _client(
    connection: http.client.HTTPConnection,
    entries: Sequence[Entry],
    prefix: str,
    ledger: Ledger,
    answers: _Answers,
) -> None:
    # Between rounds the connection was idle for who knows how long.
    used = -math.inf
    for turn, entry in enumerate(entries):
        if time.monotonic() - used > _IDLE_SECONDS:
            connection.close()
        name = f"{prefix}-{turn}"
        ledger.send(name)
        try:
            answered, status, said = catalogue.ask(connection, entry, name)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            ledger.end(name, f"{type(error).__name__} ({entry.name})")
            continue
        used = time.monotonic()
        ledger.end(answered, status)
        # The status belongs to what must not change.
        answers.check(entry, f"{status} {said}" if status == catalogue.outcome(entry) else status)


def checks(found: Found, plan: Plan) -> list[Check]:
    """The promise, part by part."""
    return [
        memory_check(found, plan),
        counts_check(found),
        Check(
            "every request ends as it must, with the bits of the first time",
            "no other status, no other answer",
            f"{found.balance}; changed answers: {', '.join(found.changed) or 'none'}",
            found.balance.even and not found.changed,
        ),
        Check(
            "nothing is left behind",
            "nothing in flight, no traceback",
            f"in flight: {'nothing' if found.settled else 'still'}, tracebacks: {found.tracebacks}",
            found.settled and found.tracebacks == 0,
        ),
    ]


def memory_check(found: Found, plan: Plan) -> Check:
    """Whether the memory grows slower than the bound, for sure."""
    growth = found.growth
    return Check(
        "memory does not grow",
        f"< {plan.bound / MB:,.0f} MB/h, upper end of the interval",
        f"{growth.slope / MB:,.1f} MB/h, standard error {growth.error / MB:,.1f}, "
        f"95 % below {growth.high / MB:,.1f}",
        growth.high < plan.bound,
    )


def counts_check(found: Found) -> Check:
    """Whether descriptors and threads stay as many; connections that close come and go."""
    return Check(
        "descriptors and threads stay",
        f"median of the last third <= that of the first + {SLACK}",
        f"descriptors {_span(found, 'descriptors')}, threads {_span(found, 'threads')}",
        _flat(found, "descriptors") and _flat(found, "threads"),
    )


def _series(found: Found, name: str) -> list[int]:
    return [getattr(sample, name) for sample in found.samples]


def _thirds(found: Found, name: str) -> tuple[float, float]:
    series = _series(found, name)
    third = max(1, len(series) // 3)
    return statistics.median(series[:third]), statistics.median(series[-third:])


def _span(found: Found, name: str) -> str:
    return "{:g} to {:g}".format(*_thirds(found, name))


def _flat(found: Found, name: str) -> bool:
    first, last = _thirds(found, name)
    return last <= first + SLACK


def control(plan: Plan, folder: Path, leaked: int) -> tuple[Found, list[Check]]:
    """The checks of what a process holds, on a server that keeps some of it with requests."""
    found = run(replace(plan, command=planted("leak", leaked, plan.command)), folder)
    memory, counts = memory_check(found, plan), counts_check(found)
    return found, [
        replace(memory, promise=f"{leaked} bytes kept of a request: {memory.promise}"),
        replace(counts, promise=f"one kept of 100 requests: {counts.promise}"),
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the requests")
    parser.add_argument("--control-minutes", type=float, default=10.0)
    parser.add_argument("--leak", type=int, default=1024, help="bytes that the control keeps")


def measure(options: argparse.Namespace) -> Report:
    plan = Plan(60 * options.minutes, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = run(plan, Path(folder))
        short = replace(plan, seconds=60 * options.control_minutes)
        leaking, controls = control(short, Path(folder), options.leak)
    rate = found.requests[-1] / (found.samples[-1].seconds - found.samples[0].seconds)
    first, last = found.samples[0], found.samples[-1]
    notes = (
        f"{options.minutes:g} minutes, {found.requests[-1]:,} requests, {rate:.0f} a second, order "
        f"by seed {plan.seed}. Memory at rest: {first.rss / MB:.0f} MB after the first round, "
        f"{last.rss / MB:.0f} MB at the end; at most {last.peak_rss / MB:.0f} MB. Each request: "
        f"{found.per_request:+.0f} bytes; in the control ({options.control_minutes:g} minutes, "
        f"{options.leak} bytes kept of each) {leaking.per_request:+.0f} bytes."
    )
    results = {
        "requests": found.requests[-1],
        "slope_bytes_per_hour": found.growth.slope,
        "slope_standard_error": found.growth.error,
        "slope_upper_95": found.growth.high,
        "bytes_per_request": found.per_request,
        "control_slope_bytes_per_hour": leaking.growth.slope,
        "control_bytes_per_request": leaking.per_request,
        "outcomes": found.balance.outcomes,
        "rss": _thinned(found),
    }
    return Report(checks(found, plan), controls, notes, results)


def _thinned(found: Found) -> list[tuple[float, int]]:
    """At most some hundred (seconds, bytes) for a picture."""
    step = max(1, len(found.samples) // 200)
    begun = found.samples[0].seconds
    return [(round(s.seconds - begun, 1), s.rss) for s in found.samples[::step]]
