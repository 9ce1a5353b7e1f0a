"""Large bodies fast, and small requests fast beside them

Requests go in turns to the service and to plain servers (`rivals.py`): a bare ASGI sink that only
receives the same bytes into an array, the handler that one writes first (``request.body()``,
``unpackb``, the same kernel on the event loop), and a FastAPI echo. Client and servers share the
machine. ``overhead`` of a small request is its time less what the answer says the kernel took; the
client asks for its answer without sleeping, since a virtual processor that has halted while a
kernel runs takes a while to wake, and has not halted yet when an echo comes.
The load beside which small requests and probes are timed is one client that sends 64 MiB requests
back to back. The controls put the naive handler in the service's place.

What is missed, and why: with two processors, most of the time of 64 MiB is the kernel's, which both
handlers run. The last columns are what a request takes of all processors, client and server
together; divided by their number it is the least time that any way of sharing the work could take.
The first pass over the values begins while they arrive, later ones are shared by idle threads, here
two; the search for the levels is left to one.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.tables import table

from quiver_kernels import wire
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from reliability import messages
from reliability.generator import percentile
from reliability.raw import head
from reliability.report import Check, Report
from reliability.servers import REAL, Server, serving

PROMISE = "R1, R3"
HERE = Path(__file__).parent
LARGE = 1 << 24
SMALL = 1000
METHODS = ("uniform", "approx", "exact")
LIMITS = {"QUIVER_BUDGET_BYTES": 4 << 30, "QUIVER_MAX_BODY_BYTES": 1 << 30}
MIB = 1 << 20
KERNEL = ("levels", "encode")


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes
    ----------
    values, rounds
        Of a large vector, and how often it is sent to each server.
    huge
        Values of the largest vector, sent `rounds` times; 0: none.
    small_rounds
        Small requests in turns.
    load_seconds
        Of large requests back to back beside small ones.
    """

    values: int = LARGE
    huge: int = 100_000_000
    rounds: int = 9
    small_rounds: int = 3000
    load_seconds: float = 8.0


@dataclass(frozen=True)
class Rivals:
    """The servers side by side."""

    quiver: Server
    naive: Server
    sink: Server
    echo: Server


@contextlib.contextmanager
def all_serving(folder: Path) -> Iterator[Rivals]:
    """All of them for as long as the block runs."""
    with contextlib.ExitStack() as stack:

        def started(command: Sequence[str], **environment: object) -> Server:
            return stack.enter_context(serving(folder, command, **environment))

        yield Rivals(
            started(REAL, **LIMITS),
            *(started(rival(kind)) for kind in ("naive", "sink", "echo")),
        )


def rival(kind: str) -> list[str]:
    return [sys.executable, str(HERE / "rivals.py"), kind]


class Connection:
    """A kept connection that sends prepared requests; nothing is copied on the way out.

    Parameters
    ----------
    port
        Of the server, on this machine.
    room
        Where answers go, as far as they fit.
    polls
        Whether it asks for the answer without sleeping; for short requests only.
    """

    def __init__(self, port: int, room: bytearray | None = None, *, polls: bool = False) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(not polls)
        self._answer = memoryview(bytearray(MIB) if room is None else room)

    def close(self) -> None:
        self._socket.close()

    def exchange(self, segments: Sequence[bytes | memoryview]) -> tuple[float, bytes]:
        """Seconds from the first byte out to the last byte in, and the body of the answer."""
        begun = time.perf_counter()
        for segment in segments:
            self._socket.sendall(segment)
        received = self._receive(self._answer)
        while (end := bytes(self._answer[: min(received, 4096)]).find(b"\r\n\r\n")) < 0:
            received += self._receive(self._answer[received:])
        lines = bytes(self._answer[:end]).lower().split(b"\r\n")
        length = next(int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length:"))
        total = end + 4 + length
        if total > len(self._answer):
            larger = memoryview(bytearray(total))
            larger[:received] = self._answer[:received]
            self._answer = larger
        while received < total:
            received += self._receive(self._answer[received:total])
        seconds = time.perf_counter() - begun
        if not lines[0].endswith(b"200 ok"):
            raise RuntimeError(f"{lines[0]!r}: {bytes(self._answer[end:total])[:300]!r}")
        return seconds, bytes(self._answer[end + 4 : total])

    def _receive(self, room: memoryview) -> int:
        while True:
            with contextlib.suppress(BlockingIOError):
                return self._socket.recv_into(room)


@contextlib.contextmanager
def connected(
    server: Server, room: bytearray | None = None, *, polls: bool = False
) -> Iterator[Connection]:
    connection = Connection(server.port, room, polls=polls)
    try:
        yield connection
    finally:
        connection.close()


def request(values: int, method: str, seed: int = 7) -> list[bytes | memoryview]:
    """Head and segments of one ``POST /quantize`` at 4 bits."""
    options = QuantizeOptions.create(bits=4, method=method, seed=seed)
    segments = wire.encode_quantize_request(messages.vector(values), options)
    length = sum(len(segment) for segment in segments)
    first = head("/quantize", length, wire.MEDIA_TYPE)
    if length < 64 << 10:
        return [b"".join([first, *segments])]
    return [first, *segments]


# -- large bodies ------------------------------------------------------------------------


@dataclass(frozen=True)
class Large:
    """Of a large request, by server: median seconds, and the mean of processor seconds.

    The latter are those of client and server together.
    """

    seconds: dict[str, float]
    work: dict[str, float]


def large(rivals: Rivals, values: int, method: str, rounds: int) -> Large:
    """Requests in turns; the first turn is not counted."""
    segments = request(values, method)
    names = ("quiver", "naive", "sink")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    work = dict.fromkeys(names, 0.0)
    codes: dict[str, bytes] = {}
    # Any client that sends vector after vector keeps room for the answers.
    room = bytearray(values + MIB)
    for turn in range(rounds + 1):
        for name in names:
            server: Server = getattr(rivals, name)
            with connected(server, room) as connection:
                before = server.processor_seconds() + time.process_time()
                spent, answer = connection.exchange(segments)
                used = server.processor_seconds() + time.process_time() - before
            if turn:
                seconds[name].append(spent)
                work[name] += used / rounds
            elif name != "sink":
                codes[name] = QuantizedVector.from_bytes(answer).codes.tobytes()
    if codes["quiver"] != codes["naive"]:
        raise RuntimeError("the servers disagree")
    return Large({name: statistics.median(found) for name, found in seconds.items()}, work)


def large_checks(method: str, values: int, found: Large) -> list[Check]:
    seconds = found.seconds
    size = f"{4 * values / MIB:.0f} MiB {method}"
    naive, sink = seconds["naive"] / seconds["quiver"], seconds["quiver"] / seconds["sink"]
    return [
        Check(f"{size} beside the naive handler", ">= 3x faster", f"{naive:.2f}x", naive >= 3),
        Check(
            f"{size} beside a sink for the same bytes",
            "<= 1.6x its time",
            f"{sink:.2f}x",
            sink <= 1.6,
        ),
    ]


# -- small requests ----------------------------------------------------------------------


@dataclass(frozen=True)
class Overhead:
    """Median microseconds of a small request: echo, ours in all, its kernel, and the rest."""

    echo: float
    quiver: float
    kernel: float
    overhead: float

    @property
    def ratio(self) -> float:
        return self.overhead / self.echo


def overhead(rivals: Rivals, method: str, rounds: int) -> Overhead:
    """Small requests to the echo and to the service, in turns on kept connections."""
    segments = request(SMALL, method)
    echoes, whole, kernels = [], [], []
    with connected(rivals.echo, polls=True) as echo, connected(rivals.quiver, polls=True) as ours:
        for _ in range(rounds):
            echoes.append(echo.exchange(segments)[0])
            seconds, answer = ours.exchange(segments)
            whole.append(seconds)
            timings = QuantizedVector.from_bytes(answer).timings_ms
            kernels.append(sum(timings[name] for name in KERNEL) / 1000)
    rest = [all_of_it - kernel for all_of_it, kernel in zip(whole, kernels, strict=True)]
    return Overhead(*(1e6 * statistics.median(x) for x in (echoes, whole, kernels, rest)))


# -- beside a load -----------------------------------------------------------------------


@dataclass(frozen=True)
class Beside:
    """99th percentiles in ms beside large requests, and how many of these were served."""

    livez: float
    small: float
    large: int


@contextlib.contextmanager
def loaded(server: Server, values: int, method: str) -> Iterator[list[float]]:
    """One client sends large requests back to back; their seconds."""
    segments, seconds, stop = request(values, method), [], threading.Event()

    def run() -> None:
        with connected(server) as connection:
            while not stop.is_set():
                seconds.append(connection.exchange(segments)[0])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not seconds:
            time.sleep(0.01)
        yield seconds
    finally:
        stop.set()
        thread.join()


def beside(server: Server, plan: Plan, method: str = "exact") -> Beside:
    """Probe and send small requests while large ones run."""
    with loaded(server, plan.values, method) as done:
        livez = _probes(server, plan.load_seconds)
        small = _small(server, plan.load_seconds)
        return Beside(percentile(livez, 0.99), percentile(small, 0.99), len(done))


def _probes(server: Server, seconds: float) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        found.append(1000 * (time.perf_counter() - begun))
        time.sleep(0.002)
    connection.close()
    return found


def _small(server: Server, seconds: float) -> list[float]:
    segments = request(SMALL, "exact")
    found, end = [], time.monotonic() + seconds
    with connected(server) as connection:
        while time.monotonic() < end:
            found.append(1000 * connection.exchange(segments)[0])
            time.sleep(0.002)
    return found


def beside_checks(found: Beside) -> list[Check]:
    return [
        Check(
            "/livez beside 64 MiB requests back to back",
            "p99 <= 25 ms",
            f"{found.livez:.1f} ms",
            found.livez <= 25,
        ),
        Check(
            "4 KiB requests beside 64 MiB requests back to back",
            "p99 <= 50 ms",
            f"{found.small:.1f} ms",
            found.small <= 50,
        ),
    ]


# -- the scenario ------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9, help="of every large request")
    parser.add_argument("--small-rounds", type=int, default=3000, help="of every small request")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--values", type=int, default=LARGE, help="of a large vector")
    parser.add_argument("--huge", type=int, default=100_000_000, help="values; 0: not measured")


def measure(options: argparse.Namespace) -> Report:
    plan = Plan(options.values, options.huge, options.rounds, options.small_rounds, options.seconds)
    with tempfile.TemporaryDirectory() as folder, all_serving(Path(folder)) as rivals:
        smalls = {method: overhead(rivals, method, plan.small_rounds) for method in METHODS}
        sizes = [plan.values, *([plan.huge] if plan.huge else [])]
        times = {
            (values, method): large(
                rivals, values, method, plan.rounds if values == plan.values else 3
            )
            for values in sizes
            for method in METHODS
        }
        ours = beside(rivals.quiver, plan)
        theirs = beside(rivals.naive, plan)
    checks = [
        *(check for m in METHODS for check in large_checks(m, plan.values, times[plan.values, m])),
        Check(
            "overhead of a 4 KiB quantize beside a FastAPI echo",
            "<= 1.5x its p50",
            f"{smalls['exact'].ratio:.2f}x",
            smalls["exact"].ratio <= 1.5,
        ),
        *beside_checks(ours),
    ]
    found = times[plan.values, "exact"]
    same = replace(found, seconds={**found.seconds, "quiver": found.seconds["naive"]})
    controls = [
        replace(large_checks("exact", plan.values, same)[0], promise="naive beside itself"),
        *(replace(c, promise=f"naive handler: {c.promise}") for c in beside_checks(theirs)),
    ]
    results = {
        "large": {f"{values}/{method}": vars(found) for (values, method), found in times.items()},
        "small": {method: vars(found) for method, found in smalls.items()},
        "beside": {"quiver": vars(ours), "naive": vars(theirs)},
    }
    return Report(checks, controls, _notes(times, smalls), results)


def _notes(times: dict[tuple[int, str], Large], smalls: dict[str, Overhead]) -> str:
    rows: list[list[Any]] = [
        [
            f"{4 * values / 1e6:.0f} MB",
            method,
            *(f"{1000 * found.seconds[name]:.0f}" for name in ("sink", "quiver", "naive")),
            f"{4e-9 * values / found.seconds['quiver']:.2f}",
            *(f"{1000 * found.work[name]:.0f}" for name in ("sink", "quiver")),
        ]
        for (values, method), found in times.items()
    ]
    heads = ["body", "method", "sink, ms", "quiver", "naive", "quiver, GB/s"]
    first = table([*heads, "sink, processor ms", "quiver, processor ms"], rows, left=2)
    small_rows: list[list[Any]] = [
        [method, *(f"{value:.0f}" for value in vars(found).values()), f"{found.ratio:.2f}x"]
        for method, found in smalls.items()
    ]
    second = table(
        ["4 KiB", "echo, us", "quiver in all", "its kernel", "overhead", "over echo"],
        small_rows,
        left=1,
    )
    return f"{first}\n\n{second}"
