"""A replica killed every two seconds, behind a balancer

Two servers behind haproxy; one after the other ends by SIGKILL and is started again, and the next
one is killed when two seconds are over and both are ready. Clients in threads ask all the time
through the Python client, which sends again what was lost; haproxy itself replays small requests
only. Between two requests a client pauses, so that there are processors left to start servers on.
Every answer is compared with the one that an undisturbed server gave. The control is a client
without retries, which asks beside the others.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quiver_client import Client
from quiver_client.errors import ConnectionFailed, QuiverClientError
from quiver_kernels.quantized import QuantizedVector
from reliability import haproxy, messages
from reliability.ledger import Balance, Ledger
from reliability.report import Check, Report
from reliability.servers import REAL, Server, free_port, start

PROMISE = "R6"
KIB = 1 << 10
SAME, OTHER = "same bits", "other bits"
SEEDS = 4
NOTICE_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """How to kill which servers.

    Attributes
    ----------
    seconds, kills
        Ends after both: at least so long, at least so many kills.
    every
        Seconds between two kills.
    clients
        How many threads send bodies of how many bytes.
    frail
        The same for the threads without retries.
    pause_share
        Pause of a client after a call, as a multiple of the time that calls of its size take
        undisturbed.
    bits
        Of the requests.
    """

    seconds: float = 120.0
    kills: int = 60
    every: float = 2.0
    clients: Mapping[int, int] = field(
        default_factory=lambda: {4 * KIB: 2, 1024 * KIB: 2, 16 * 1024 * KIB: 1}
    )
    frail: Mapping[int, int] = field(default_factory=lambda: {1024 * KIB: 2, 16 * 1024 * KIB: 1})
    pause_share: float = 4.0
    bits: int = 4
    command: Sequence[str] = REAL
    environment: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What one run gave: the books with and without retries, and requests by size."""

    balance: Balance
    without: Balance
    by_size: Mapping[int, int]
    kills: int
    seconds: float
    slowest: float


@dataclass
class _Replicas:
    """Two servers on fixed ports."""

    plan: Plan
    folder: Path
    ports: tuple[int, int]
    servers: list[Server]

    @classmethod
    def start(cls, plan: Plan, folder: Path) -> _Replicas:
        ports = (free_port(), free_port())
        with ThreadPoolExecutor() as starting:
            servers = list(starting.map(lambda port: _start(plan, folder, port), ports))
        return cls(plan, folder, ports, servers)

    def kill_and_start(self, which: int) -> None:
        self.servers[which].kill()
        self.servers[which] = _start(self.plan, self.folder, self.ports[which])

    def end(self) -> None:
        for server in self.servers:
            if server.process.poll() is None:
                server.kill()


def _start(plan: Plan, folder: Path, port: int) -> Server:
    return start(folder, plan.command, port, **plan.environment)


def run(plan: Plan, folder: Path) -> Found:
    """Ask undisturbed, then ask while replicas die."""
    vectors = {size: messages.vector(size // 4) for size in {*plan.clients, *plan.frail}}
    replicas = _Replicas.start(plan, folder)
    try:
        right, seconds = _undisturbed(replicas.servers[0].url, plan, vectors)
        pauses = {size: plan.pause_share * taken for size, taken in seconds.items()}
        with haproxy.balancing(folder, replicas.ports) as url:
            return _disturbed(url, plan, vectors, right, pauses, replicas)
    finally:
        replicas.end()


class _Frail:
    """A client that tries once, on a connection of its own.

    The SDK's, told not to retry, still sends again what was sent on a kept connection that turned
    out to be closed; the balancer closes its clients' connections when a replica dies.
    """

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")

    def quantize(self, x: NDArray[np.float32], bits: int, seed: int) -> QuantizedVector:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request(
                "POST",
                f"/quantize?bits={bits}&seed={seed}",
                memoryview(x).cast("B"),
                {"Content-Type": "application/octet-stream"},
            )
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionFailed(type(error).__name__) from None
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise ConnectionFailed(f"status {answer.status}")
        return QuantizedVector.from_bytes(body)


Right = Mapping[tuple[int, int], str]


def _undisturbed(
    url: str, plan: Plan, vectors: Mapping[int, NDArray[np.float32]]
) -> tuple[Right, dict[int, float]]:
    """The right answers, and the seconds that a call takes, by size."""
    right: dict[tuple[int, int], str] = {}
    seconds = dict.fromkeys(vectors, float("inf"))
    with Client(url) as client:
        for size, x in vectors.items():
            for seed in range(SEEDS):
                begun = time.monotonic()
                q = client.quantize(x, bits=plan.bits, seed=seed)
                seconds[size] = min(seconds[size], time.monotonic() - begun)
                right[size, seed] = messages.bits_of(q)
    return right, seconds


def _disturbed(
    url: str,
    plan: Plan,
    vectors: Mapping[int, NDArray[np.float32]],
    right: Right,
    pauses: Mapping[int, float],
    replicas: _Replicas,
) -> Found:
    stop = threading.Event()

    def ask(client: Client | _Frail, ledger: Ledger, size: int, which: int) -> tuple[int, float]:
        """Ask until told to stop: how often, and the longest that a call took."""
        slowest = 0.0
        for turn in itertools.count():
            if stop.is_set():
                return turn, slowest
            name, seed, begun = f"{size}-{which}-{turn}", turn % SEEDS, time.monotonic()
            ledger.send(name)
            try:
                q = client.quantize(vectors[size], bits=plan.bits, seed=seed)
            except QuiverClientError as error:
                ledger.end(name, type(error).__name__)
            else:
                same = messages.bits_of(q) == right[size, seed]
                ledger.end(name, SAME if same else OTHER)
            slowest = max(slowest, time.monotonic() - begun)
            stop.wait(pauses[size])
        raise AssertionError

    jobs = [(size, which) for size, count in plan.clients.items() for which in range(count)]
    frail_jobs = [(size, which) for size, count in plan.frail.items() for which in range(count)]
    books, frail_books, begun = Ledger(), Ledger(), time.monotonic()
    with (
        Client(url) as client,
        ThreadPoolExecutor(len(jobs) + len(frail_jobs)) as threads,
    ):
        asking = {job: threads.submit(ask, client, books, *job) for job in jobs}
        frail = _Frail(url)
        beside = [threads.submit(ask, frail, frail_books, *job) for job in frail_jobs]
        try:
            kills = _kill(plan, replicas)
        finally:
            stop.set()
        done = {job: future.result() for job, future in asking.items()}
        for future in beside:
            future.result()
    return Found(
        balance=books.balance([SAME]),
        without=frail_books.balance([SAME]),
        by_size={
            size: sum(turns for (s, _), (turns, _) in done.items() if s == size)
            for size in plan.clients
        },
        kills=kills,
        seconds=time.monotonic() - begun,
        slowest=max(slowest for _, slowest in done.values()),
    )


def _kill(plan: Plan, replicas: _Replicas) -> int:
    """Kill one replica after the other; how many."""
    begun = time.monotonic()
    next_kill = begun + plan.every
    for kills in itertools.count(1):
        time.sleep(max(0.0, next_kill - time.monotonic()))
        next_kill = time.monotonic() + plan.every
        # Returns when it is ready again; the balancer, which looks four times a second, has then
        # still to notice.
        replicas.kill_and_start(kills % 2)
        if kills >= plan.kills and time.monotonic() - begun >= plan.seconds:
            return kills
        next_kill = max(next_kill, time.monotonic() + NOTICE_SECONDS)
    raise AssertionError


def check(found: Found, balance: Balance, plan: Plan) -> Check:
    """No failure, no other bits."""
    return Check(
        "no failure is seen, and the bits are those of an undisturbed server",
        f"a replica killed every {plan.every:g} s",
        f"{found.kills} kills in {found.seconds:.0f} s; {balance}",
        balance.even and balance.sent > 0,
    )


def judge(found: Found, plan: Plan) -> Report:
    """The check, the control, and what else there is to know."""
    without = check(found, found.without, plan)
    sizes = ", ".join(f"{n:,} of {size // KIB:,} KiB" for size, n in found.by_size.items())
    return Report(
        [check(found, found.balance, plan)],
        [replace(without, promise=f"no retries: {without.promise}")],
        f"Requests: {sizes}. The slowest call took {found.slowest:.1f} s, its retries included.",
        {
            "kills": found.kills,
            "seconds": found.seconds,
            "outcomes": found.balance.outcomes,
            "outcomes_without_retries": found.without.outcomes,
            "by_size": {str(size): n for size, n in found.by_size.items()},
            "slowest_seconds": found.slowest,
        },
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=120.0, help="at least")
    parser.add_argument("--kills", type=int, default=60, help="at least")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")


def measure(options: argparse.Namespace) -> Report:
    plan = Plan(options.seconds, options.kills, options.every)
    with tempfile.TemporaryDirectory() as folder:
        return judge(run(plan, Path(folder)), plan)
