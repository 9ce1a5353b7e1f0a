"""Memory stays within what was lent, for one huge request and for a crowd.

One request at a time: the peak of resident memory beyond what the process had after a small
request, as a multiple of the body and its answer. A crowd: 24 clients send 64 MiB each at once to
a service with a budget of 256 MiB, and again after each 503, until they have their answer. The
control has a budget that never refuses. What the budget reckons with is compared with what the
kernels use.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.tables import table

from reliability import messages, raw
from reliability.report import Check, Report
from reliability.servers import Server, serving

PROMISE = "R2"
MIB = 1 << 20
OF_BODY_AND_ANSWER = 1.3
OF_BUDGET = 1.15
CROWD_BUDGET = 256 * MIB
# What a thread keeps from the first request on, whatever it computes.
THREAD_BYTES = 4 * MIB
PAUSE_SECONDS = (0.1, 0.6)
RECKONING = Path(__file__).with_name("reckoning.py")


@dataclass(frozen=True)
class Peak:
    """One request: its sizes, and the peak beyond what was there."""

    method: str
    body: int
    answer: int
    extra: int

    @property
    def share(self) -> float:
        """The peak as a multiple of body and answer."""
        return self.extra / (self.body + self.answer)


@dataclass(frozen=True)
class Crowd:
    """Many clients at once: how they ended, the peak, and how often they were sent away."""

    statuses: dict[int, int]
    growth: int
    refusals: int
    seconds: float

    @property
    def served(self) -> bool:
        """Whether every client got its answer."""
        return set(self.statuses) == {200}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--mib", type=int, default=64, help="body of each of them")
    parser.add_argument("--sizes", type=int, nargs="*", default=[64 * MIB, 400_000_000])
    parser.add_argument("--methods", nargs="*", default=["exact", "approx"])
    parser.add_argument(
        "--powers",
        type=int,
        nargs="*",
        default=[16, 20, 21, 22, 24],
        help="2^p values are reckoned",
    )


def measure(options: argparse.Namespace) -> Report:
    body = options.mib * MIB
    checks, peaks, crowds = [], [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for method in options.methods:
            for size in options.sizes:
                # A fresh process for each: freed memory that is kept would hide what is taken.
                with serving(folder) as server:
                    peaks.append(peak(server, method, size))
            with serving(folder, QUIVER_BUDGET_BYTES=CROWD_BUDGET) as server:
                crowds[method] = crowd(server, method, options.clients, body)
        with serving(folder, QUIVER_BUDGET_BYTES=1 << 40) as server:
            ungated = crowd(server, options.methods[-1], options.clients, body)
        rows = reckoning(folder / "reckoning.json", options.powers)
    checks += [peak_check(found) for found in peaks]
    checks += [
        crowd_check(method, options.clients, body, found) for method, found in crowds.items()
    ]
    checks.append(reckoning_check(rows))
    refusals = ", ".join(
        f"{method} {found.seconds:.1f} s with {found.refusals} refusals"
        for method, found in crowds.items()
    )
    lines = table(
        ["computation", "answer, MiB", "reckoned, MiB", "used, MiB"],
        [
            [row["name"], *(f"{row[key] / MIB:.1f}" for key in ("output", "reckoned", "used"))]
            for row in rows
        ],
    )
    return Report(
        checks=checks,
        controls=[crowd_check("a budget without end", options.clients, body, ungated)],
        notes=(
            f"The crowds took: {refusals}; without a bound {ungated.seconds:.1f} s. Working memory "
            f"as the budget reckons it, and as the kernels use it on normal values:\n\n{lines}"
        ),
        results={
            "peaks": [vars(found) for found in peaks],
            "crowds": {method: vars(found) for method, found in crowds.items()},
            "ungated": vars(ungated),
            "reckoning": rows,
        },
    )


def peak(server: Server, method: str, size: int) -> Peak:
    """The peak of one request of `size` bytes."""
    values = memoryview(messages.vector(size // 4)).cast("B")
    path = f"/quantize?bits=4&seed=1&method={method}"
    _expect_200(raw.post(server.port, path, values[:MIB]))
    before = reset_peak(server)
    answer = _expect_200(raw.post(server.port, path, values))
    return Peak(method, size, len(answer), server.sample().peak_rss - before)


def crowd(server: Server, method: str, clients: int, size: int) -> Crowd:
    """Many bodies of `size` bytes at once, each until it is answered by something but 503."""
    values = memoryview(messages.vector(size // 4)).cast("B")
    path = f"/quantize?bits=4&seed=1&method={method}"
    _expect_200(raw.post(server.port, path, values[:MIB]))
    before = reset_peak(server)
    refusals: list[int] = []
    together = threading.Barrier(clients)

    def client(number: int) -> int:
        draw = random.Random(number)
        together.wait()
        while True:
            status = raw.post(server.port, path, values)[0]
            if status != 503:
                return status
            refusals.append(number)
            time.sleep(draw.uniform(*PAUSE_SECONDS))

    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        statuses = Counter(pool.map(client, range(clients)))
    seconds = time.monotonic() - begun
    return Crowd(dict(statuses), server.sample().peak_rss - before, len(refusals), seconds)


def reset_peak(server: Server) -> int:
    """Let the peak start again from now; what is resident now."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    return server.sample().rss


def peak_check(found: Peak) -> Check:
    return Check(
        f"one {found.method} request of {found.body / 1e6:.0f} MB takes little more than its bytes",
        f"<= {OF_BODY_AND_ANSWER:g}x body and answer",
        f"{found.share:.2f}x ({found.extra / MIB:.0f} MiB)",
        found.share <= OF_BODY_AND_ANSWER,
    )


def crowd_check(
    name: str, clients: int, size: int, found: Crowd, budget: int = CROWD_BUDGET
) -> Check:
    return Check(
        f"{clients} clients with {size // MIB} MiB each are served within a budget of "
        f"{budget // MIB} MiB, {name}",
        f"all 200, <= +{budget * OF_BUDGET / MIB:.0f} MiB",
        f"{found.statuses.get(200, 0)} x 200, +{found.growth / MIB:.0f} MiB",
        found.served and found.growth <= budget * OF_BUDGET,
    )


def reckoning(path: Path, powers: Sequence[int]) -> list[dict[str, Any]]:
    """What `reckoning.py` finds, in a process of its own."""
    command = [sys.executable, str(RECKONING), "--json", str(path), *map(str, powers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def reckoning_check(rows: Sequence[dict[str, Any]]) -> Check:
    """No computation takes more than it was lent."""
    over = {row["name"]: row["used"] - row["reckoned"] for row in rows}
    worst = max(over, key=lambda name: over[name])
    return Check(
        f"{len(rows)} kinds of computation take no more than is reckoned for them",
        f"<= {THREAD_BYTES // MIB} MiB more",
        f"{over[worst] / MIB:+.1f} MiB at most ({worst})",
        over[worst] <= THREAD_BYTES,
    )


def _expect_200(answer: raw.Answer) -> bytes:
    status, _, body = answer
    if status != 200:
        raise AssertionError(f"status {status}: {body[:300]!r}")
    return body
