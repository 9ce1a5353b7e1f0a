"""Slow clients hold neither memory nor the service.

Heads that do not come, bodies that stall or drip, and answers that are not taken: each connection
is told off or closed when its limit is over, and what it held is free again. Beside 200 stalled
connections, small requests go on as if alone. Large uploads that stall book memory which they never
fill: measured is how long they keep others out. The controls are a plain uvicorn server, and a
service whose limits are too long and whose budget is too small.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quiver_kernels.wire import MEDIA_TYPE
from reliability import messages, raw
from reliability.generator import Load, Shot, fire, percentile
from reliability.ledger import Ledger
from reliability.report import Check, Report
from reliability.servers import Server, planted, serving

PROMISE = "R9"
MIB = 1 << 20
BARE = (sys.executable, str(Path(__file__).with_name("bare.py")))
TOLERANCE_SECONDS = 1.0
TRAFFIC_P99_SECONDS = 0.05
GROWTH_BYTES = 32 * MIB
BUDGET_BYTES = 256 * MIB
LARGE_BODY, STALLED_LARGE = 60 * MIB, 4
DRIP_SECONDS = 0.2


@dataclass(frozen=True)
class Limits:
    """How long the service waits for slow clients, in seconds."""

    header: float = 2.0
    idle: float = 2.0
    grace: float = 4.0
    send: float = 2.0

    def settings(self) -> dict[str, object]:
        """The same as the service takes it; any body is too slow after the grace time."""
        return {
            "QUIVER_HEADER_SECONDS": self.header,
            "QUIVER_BODY_IDLE_SECONDS": self.idle,
            "QUIVER_BODY_GRACE_SECONDS": self.grace,
            "QUIVER_BODY_MIN_BYTES_PER_SECOND": 1e12,
            "QUIVER_SEND_IDLE_SECONDS": self.send,
        }


@dataclass(frozen=True)
class Slow:
    """A way to be slow: what is sent at once, what is repeated, and how it should end."""

    name: str
    begin: bytes
    drip: bytes
    limit: float
    status: str


@dataclass(frozen=True)
class Ending:
    """How a connection ended: the status of its answer, if any, and after how long."""

    status: str
    seconds: float


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=200, help="stalled beside the traffic")
    parser.add_argument("--each", type=int, default=20, help="connections of each slow kind")
    parser.add_argument("--rate", type=float, default=50.0, help="small requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of traffic")


def measure(options: argparse.Namespace) -> Report:
    limits = Limits()
    never = Limits(3600.0, 3600.0, 3600.0, 3600.0)
    watch = max(limits.grace, limits.idle) + TOLERANCE_SECONDS + 3.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder, **limits.settings()) as server:
            checks = ending_checks(server, limits, options.each, watch)
            checks += reader_checks(server, limits, 4)
        with serving(folder, BARE) as server:
            controls = [
                check
                for check in ending_checks(server, limits, 4, watch)
                if "memory" not in check.promise
            ]
        with serving(folder, **never.settings()) as server:
            checks += stalled_checks(server, options.connections, options.rate, options.seconds)
        with serving(folder, QUIVER_BUDGET_BYTES=64 * MIB, **never.settings()) as server:
            tight = stalled_checks(server, options.connections, options.rate, 3.0, 60)
            controls.append(tight[0])
        booking = {"QUIVER_BUDGET_BYTES": BUDGET_BYTES}
        with serving(folder, **booking, **limits.settings()) as server:
            blocked = blocked_seconds(server, b"", limits.grace + 10)
        with serving(folder, **booking, **limits.settings()) as server:
            dripped = blocked_seconds(server, b"x", limits.grace + 10)
        with serving(folder, planted("trust", 0), **booking, **never.settings()) as server:
            forever = blocked_seconds(server, b"", limits.idle + TOLERANCE_SECONDS)
    checks.append(blocked_check(blocked, limits.idle))
    controls.append(blocked_check(forever, limits.idle))
    return Report(
        checks=checks,
        controls=controls,
        notes=(
            f"Limits: {limits.header:g} s for a head, {limits.idle:g} s of pause within a body, "
            f"{limits.grace:g} s for a whole body, {limits.send:g} s for each MiB of an answer. "
            f"{STALLED_LARGE} uploads of "
            f"{LARGE_BODY // MIB} MiB that drip a byte every {DRIP_SECONDS:g} s keep an 8 MiB "
            f"request out of a budget of {BUDGET_BYTES // MIB} MiB for {_seconds(dripped)}."
        ),
        results={"blocked": blocked, "blocked_by_dripping": dripped},
    )


def slow_kinds(limits: Limits) -> list[Slow]:
    """Heads and bodies that stall or drip."""
    head = raw.head("/quantize", MIB)
    return [
        Slow("a connection without a head", b"", b"", limits.header, ""),
        Slow("half a head", head[:30], b"", limits.header, ""),
        Slow("a dripping head", b"POST /quantize HTTP/1.1\r\nX: ", b"x", limits.header, ""),
        Slow("a stalled body", head + b"x" * 1000, b"", limits.idle, "408"),
        Slow("a dripping body", head, b"x", limits.grace, "408"),
    ]


def ending_checks(server: Server, limits: Limits, each: int, watch: float) -> list[Check]:
    """Every slow connection ends when its limit is over, and then holds nothing."""
    kinds = slow_kinds(limits)
    before = server.sample()
    endings = watched(server.port, [kind for kind in kinds for _ in range(each)], watch)
    # An answered connection lingers for a moment, for what its client still sends.
    raw.eventually(lambda: server.sample().descriptors <= before.descriptors, 5.0)
    after = server.sample()
    checks = []
    for at, kind in enumerate(kinds):
        own = endings[at * each : (at + 1) * each]
        seconds = [ending.seconds for ending in own]
        statuses = {ending.status for ending in own}
        in_time = max(seconds) <= kind.limit + TOLERANCE_SECONDS
        # A connection that ends before its limit was not closed for being slow.
        checks.append(
            Check(
                f"{kind.name} is {'answered 408' if kind.status else 'closed'}",
                f"{kind.limit:g} to {kind.limit + TOLERANCE_SECONDS:g} s",
                f"{_seconds(min(seconds))} to {_seconds(max(seconds))}",
                in_time and min(seconds) >= 0.95 * kind.limit and statuses == {kind.status},
            )
        )
    descriptors = after.descriptors - before.descriptors
    grown = after.rss - before.rss
    checks.append(
        Check(
            f"{len(endings)} slow connections leave no memory and no descriptor",
            f"<= +{GROWTH_BYTES // MIB} MiB, +0",
            f"{grown / MIB:+.1f} MiB, {descriptors:+d}",
            grown <= GROWTH_BYTES and descriptors <= 0,
        )
    )
    return checks


def watched(port: int, slow: Sequence[Slow], seconds: float) -> list[Ending]:
    """Be slow on one connection each, for at most `seconds`; infinity: it did not end."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(raw.connected(port)) for _ in slow]
        begun = time.monotonic()
        for connection, kind in zip(connections, slow, strict=True):
            connection.sendall(kind.begin)
            connection.setblocking(False)
        received = [b""] * len(slow)
        ended: dict[int, Ending] = {}
        next_drip = begun
        while len(ended) < len(slow) and time.monotonic() < begun + seconds:
            drips = time.monotonic() >= next_drip
            next_drip += DRIP_SECONDS if drips else 0.0
            for at, (connection, kind) in enumerate(zip(connections, slow, strict=True)):
                if at in ended:
                    continue
                try:
                    part = connection.recv(1 << 16)
                    received[at] += part
                    over = not part
                    if drips and kind.drip and not received[at]:
                        connection.send(kind.drip)
                except BlockingIOError:
                    over = False
                    if drips and kind.drip:
                        with contextlib.suppress(ConnectionError):
                            connection.send(kind.drip)
                except ConnectionError:
                    over = True
                if over:
                    status = received[at][9:12].decode("latin-1")
                    ended[at] = Ending(status, time.monotonic() - begun)
            time.sleep(0.01)
        return [ended.get(at, Ending("", math.inf)) for at in range(len(slow))]


def reader_checks(server: Server, limits: Limits, clients: int) -> list[Check]:
    """Answers that are not taken, or drop by drop, are cut off."""
    values = 1 << 23
    message = raw.one_bit(server.port, values)
    # Twice, so that the heap has its size.
    _let_wait(server, message, clients, 1 << 10, limits.send + 10)
    before = server.sample()
    spent = {
        name: _let_wait(server, message, clients, take, limits.send + 10)
        for name, take in (("that nobody takes", 0), ("taken drop by drop", 1 << 10))
    }
    grown = server.sample().rss - before.rss
    return [
        *(
            Check(
                f"{clients} answers of {4 * values // MIB} MiB {name} are cut off",
                f"nothing in flight after {limits.send + TOLERANCE_SECONDS:g} s",
                _seconds(seconds),
                seconds <= limits.send + TOLERANCE_SECONDS,
            )
            for name, seconds in spent.items()
        ),
        Check(
            "slow readers leave no memory",
            f"<= +{GROWTH_BYTES // MIB} MiB",
            f"{grown / MIB:+.1f} MiB",
            grown <= GROWTH_BYTES,
        ),
    ]


def _let_wait(server: Server, message: bytes, clients: int, take: int, most: float) -> float:
    """Seconds until answers of which clients take so many bytes at a time hold nothing."""
    head = raw.head("/dequantize", len(message), MEDIA_TYPE)
    with contextlib.ExitStack() as stack:
        waiting = [
            stack.enter_context(raw.connected(server.port, receive_buffer=1 << 12))
            for _ in range(clients)
        ]
        for connection in waiting:
            connection.sendall(head + message)
        begun = time.monotonic()
        for connection in waiting:
            connection.recv(1)
        while time.monotonic() < begun + most:
            if server.metric("quiver_inflight_bytes") == 0:
                return time.monotonic() - begun
            for connection in waiting if take else []:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    connection.recv(take)
            time.sleep(DRIP_SECONDS)
        return math.inf


def stalled_checks(
    server: Server,
    connections: int,
    rate: float,
    seconds: float,
    filling: int = 0,
    most_seconds: float = TRAFFIC_P99_SECONDS,
) -> list[Check]:
    """Small requests beside connections that stall: at connect, in the head, in the body.

    They are compared with the same alone, before and after. `filling` uploads of 4 KiB stall,
    too: they take what the others leave of a budget that is too small.
    """
    kinds = slow_kinds(Limits())
    alone = traffic(server, rate, seconds / 2)
    before = server.sample()
    with contextlib.ExitStack() as stack:
        for number in range(connections):
            connection = stack.enter_context(raw.connected(server.port))
            # Half of them hold a place in the budget, too.
            kind = kinds[3] if number % 2 else kinds[number // 2 % 3]
            connection.sendall(kind.begin)
        for _ in range(filling):
            connection = stack.enter_context(raw.connected(server.port))
            connection.sendall(raw.head("/quantize", 4096))
        shots = traffic(server, rate, seconds)
        grown = server.sample().rss - before.rss
    alone += traffic(server, rate, seconds / 2)
    quiet = percentile(latencies(alone), 0.99)
    good = sum(shot.outcome == "200" for shot in shots)
    slowest = percentile(latencies(shots), 0.99)
    return [
        Check(
            f"4 KiB requests beside {connections} stalled connections are served",
            f"all, p99 <= {1000 * most_seconds:.0f} ms more than alone",
            f"{good} of {len(shots)}, p99 {1000 * slowest:.1f} ms; alone {1000 * quiet:.1f} ms",
            good == len(shots) and slowest <= quiet + most_seconds,
        ),
        Check(
            f"{connections} stalled connections hold no memory",
            f"<= +{GROWTH_BYTES // MIB} MiB",
            f"{grown / MIB:+.1f} MiB",
            grown <= GROWTH_BYTES,
        ),
    ]


def traffic(server: Server, rate: float, seconds: float) -> list[Shot]:
    """Requests of 4 KiB at their planned times."""
    body = messages.quantize(messages.vector(1024), bits=4, seed=1)
    return fire(Load(server.port, rate, seconds, body, deadline=10.0), Ledger())


def latencies(shots: Sequence[Shot]) -> list[float]:
    """Seconds from the planned time to the outcome."""
    return [shot.ended - shot.planned for shot in shots]


def blocked_seconds(server: Server, drip: bytes, most: float) -> float:
    """How long large uploads that stall (or drip) keep a request of 8 MiB out."""
    head = raw.head("/quantize?method=approx", LARGE_BODY)
    body = memoryview(np.ones(2 * MIB, np.float32)).cast("B")
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(raw.connected(server.port)) for _ in range(STALLED_LARGE)
        ]
        for connection in connections:
            connection.sendall(head + b"x" * 1000)
        begun = time.monotonic()
        # What still fits is booked in smaller parts, so that nothing is left for others.
        rest = raw.head("/quantize?method=approx", 4 * MIB)
        booked = [stack.enter_context(raw.connected(server.port)) for _ in range(16)]
        for connection in booked:
            connection.sendall(rest + b"x")
        time.sleep(0.2)
        while time.monotonic() < begun + most:
            if raw.post(server.port, "/quantize?method=approx&seed=1", body)[0] == 200:
                return time.monotonic() - begun
            for connection in (*connections, *booked) if drip else ():
                with contextlib.suppress(ConnectionError):
                    connection.send(drip)
            time.sleep(DRIP_SECONDS)
        return math.inf


def blocked_check(seconds: float, idle: float) -> Check:
    """Uploads that stall keep others out for no longer than the pause they are allowed."""
    return Check(
        f"{STALLED_LARGE} stalled uploads of {LARGE_BODY // MIB} MiB keep others out of a budget "
        f"of {BUDGET_BYTES // MIB} MiB no longer than the idle limit",
        f"<= {idle + TOLERANCE_SECONDS:g} s",
        _seconds(seconds),
        seconds <= idle + TOLERANCE_SECONDS,
    )


def _seconds(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.2f} s"
