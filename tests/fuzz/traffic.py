"""Broken requests over kept connections to a server process, and what comes back.

`fuzz` sends the cases of a range from several threads, reads every answer, and after each block of
cases sends good requests on the same connections, whose answers must have the right bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tests.fuzz.answers import Answer, NotAnAnswer, faults, take
from tests.fuzz.memory import MIB, Watch, waited
from tests.fuzz.shots import Range, Request, Shot

from quiver_kernels import QuantizedVector, aggregate, dequantize, quantize, wire
from quiver_kernels.options import QuantizeOptions

LONGEST_SECONDS = 1.0
MOST_GROWTH = 50 * MIB
CONNECTIONS = 8
MOST_FAULTS = 100
TRIES = 2
# How long a client waits; what takes so long even without waiting for a processor hangs.
PATIENCE = 5 * LONGEST_SECONDS
BLOCK = 2000
START_SECONDS = 240.0
# Short waits, so that a case which makes the service wait does not wait long.
SETTINGS = {
    "QUIVER_PORT": "0",
    "QUIVER_THREADS": "2",
    "QUIVER_HEADER_SECONDS": "0.3",
    "QUIVER_BODY_IDLE_SECONDS": "0.4",
    "QUIVER_MAX_BODY_BYTES": str(4 * MIB),
    "QUIVER_BUDGET_BYTES": str(2048 * MIB),
    "QUIVER_LOG_LEVEL": "warning",
}


# -- the server ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A server process."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    def tracebacks(self) -> int:
        """How many it has logged."""
        return self.log.read_text(errors="replace").count("Traceback (most recent")


@contextlib.contextmanager
def serving(command: Sequence[str] = ("-m", "quiver_service")) -> Iterator[Server]:
    """A server on a free port for as long as the block runs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QUIVER_")}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=clean | SETTINGS,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Server(process, log, _announced_port(process, log))
        finally:
            process.kill()
            process.wait()


def _announced_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"^QUIVER is ready at http://.*:(\d+)$", log.read_text(), re.MULTILINE)
        if found:
            return int(found[1])
        time.sleep(0.02)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")


# -- good requests ------------------------------------------------------------------------


@dataclass(frozen=True)
class Good:
    """A request that is served, and the check of its answer."""

    name: str
    data: bytes
    right: Callable[[bytes], bool]


@functools.cache
def good_requests() -> tuple[Good, ...]:
    """One of each operation; what is right is computed here, with the library."""
    x = np.random.default_rng(3).normal(size=40).astype(np.float32)
    options = QuantizeOptions.create(bits=3, seed=9, block_size=16)
    q = quantize(x, 3, seed=9, block_size=16)
    levels = b"".join(wire.encode_quantize_request(x, options, route="levels"))
    body = b"".join(wire.encode_quantize_request(x, options))

    def same_vector(data: bytes) -> bool:
        got = QuantizedVector.from_bytes(data)
        return _stable(got) == _stable(q)

    def same_array(expected: np.ndarray) -> Callable[[bytes], bool]:
        return lambda data: wire.decode_tensor(data).tobytes() == expected.tobytes()

    def same_levels(data: bytes) -> bool:
        return wire.decode_levels(data).levels.tobytes() == q.levels.tobytes()

    mean = b"".join(wire.encode_aggregate_request([q, q], [1.0, 3.0]))
    return (
        Good("quantize", Request(b"/quantize", body).encode(), same_vector),
        Good("levels", Request(b"/v1/levels", levels).encode(), same_levels),
        Good(
            "dequantize",
            Request(b"/dequantize", q.to_bytes()).encode(),
            same_array(dequantize(q)),
        ),
        Good(
            "aggregate",
            Request(b"/aggregate", mean).encode(),
            same_array(aggregate([q, q], [1.0, 3.0])),
        ),
    )


def _stable(q: QuantizedVector) -> bytes:
    """The message without what differs from run to run."""
    return dataclasses.replace(q, device="", timings_ms={}).to_bytes()


# -- the client ---------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one case got."""

    answers: list[Answer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    closed: bool = False


class Connection:
    """One connection at a time, opened again when it is gone."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._buffer = bytearray()

    def close(self) -> None:
        """Leave."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer.clear()

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), LONGEST_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._socket

    def fire(self, shot: Shot) -> Outcome:
        """Send a case and read what comes; a kept connection may have been closed meanwhile."""
        kept = self._socket is not None
        outcome = self._fire(shot)
        if kept and outcome.closed and not outcome.answers:
            outcome = self._fire(shot)
        if not shot.keeps or outcome.closed or outcome.problems:
            self.close()
        return outcome

    def _fire(self, shot: Shot) -> Outcome:
        outcome = Outcome()
        begun = time.perf_counter()
        try:
            self._exchange(self._open(), shot, outcome)
        except NotAnAnswer as error:
            outcome.problems.append(f"not HTTP: {error}")
        except TimeoutError:
            outcome.problems.append("hangs")
        outcome.seconds = time.perf_counter() - begun
        if outcome.closed or outcome.problems:
            self.close()
        return outcome

    def _exchange(self, link: socket.socket, shot: Shot, outcome: Outcome) -> None:
        # Where the service refuses early it may close while the rest is sent: the answer is there.
        with contextlib.suppress(ConnectionError):
            link.settimeout(5 * LONGEST_SECONDS)
            link.sendall(shot.data)
        if shot.leaves:
            outcome.closed = True
            return
        deadline = time.perf_counter() + PATIENCE
        patient = True
        while len(outcome.answers) < shot.answers and not outcome.closed:
            answer = take(self._buffer, head=shot.head)
            if answer is None:
                try:
                    outcome.closed = not self._more(link, deadline)
                except TimeoutError:
                    if patient:
                        raise
                    return
                if outcome.closed and self._buffer:
                    raise NotAnAnswer(f"cut off after {len(self._buffer)} bytes")
            elif answer.status == 100:
                with contextlib.suppress(ConnectionError):
                    link.sendall(shot.rest)
            else:
                outcome.answers.append(answer)
                outcome.closed = answer.closes
                patient = shot.all_answers
                if not patient:
                    # Whether there is more to come the client cannot know.
                    deadline = min(deadline, time.perf_counter() + 0.02)

    def _more(self, link: socket.socket, deadline: float) -> bool:
        link.settimeout(max(deadline - time.perf_counter(), 0.001))
        try:
            data = link.recv(1 << 18)
        except ConnectionError:
            return False
        self._buffer += data
        return bool(data)


def judge(shot: Shot, outcome: Outcome) -> list[str]:
    """Everything that is wrong with what a case got."""
    found = list(outcome.problems)
    if not outcome.answers and not outcome.problems and shot.must_answer and not shot.leaves:
        found.append("closed without an answer")
    ended = outcome.problems or (outcome.answers and outcome.answers[-1].closes)
    if shot.all_answers and len(outcome.answers) < shot.answers and not ended:
        found.append(f"{len(outcome.answers)} answers to {shot.answers} requests")
    for answer in outcome.answers:
        if answer.status not in shot.statuses:
            found.append(f"status {answer.status}: {answer.body[:200]!r}")
        found += faults(answer, head=shot.head)
    return found


# -- a run --------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run saw."""

    cases: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    good: int = 0
    repeated: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    kept: int = 0
    peak: int = 0
    tracebacks: int = 0
    exit_status: int | None = None

    def problems(self) -> list[str]:
        """Everything that breaks the promise, in words."""
        found = list(self.faults)
        if self.exit_status is not None:
            found.append(f"the server ended with {self.exit_status}")
        if self.tracebacks:
            found.append(f"{self.tracebacks} tracebacks in the log")
        if self.peak >= MOST_GROWTH:
            found.append(f"memory grew by {self.peak / MIB:.0f} MiB, {MOST_GROWTH / MIB:.0f} may")
        return found


class Run:
    """Cases sent to one server by several threads."""

    def __init__(self, server: Server, everything: Range, seed: int) -> None:
        self._server = server
        self._range = everything
        self._seed = seed
        self._lock = threading.Lock()
        self._late: list[int] = []
        self._connections = [Connection(server.port) for _ in range(CONNECTIONS)]
        self.report = Report()

    def close(self) -> None:
        """Leave."""
        for connection in self._connections:
            connection.close()

    def block(self, first: int, cases: int, *, check_good: bool = True) -> None:
        """Cases `first` to `first + cases`, then good requests on every connection."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda i: self._stripe(i, first, cases), range(CONNECTIONS)))
            while self._late and self._server.process.poll() is None:
                self._alone(self._late.pop())
            if check_good:
                list(pool.map(self._check_good, self._connections))
        if self._server.process.poll() is not None:
            self.report.exit_status = self._server.process.returncode

    def _stripe(self, index: int, first: int, cases: int) -> None:
        for number in range(first + index, first + cases, CONNECTIONS):
            if len(self.report.faults) < MOST_FAULTS and self._server.process.poll() is None:
                self._case(self._connections[index], number)

    def _case(self, connection: Connection, number: int) -> None:
        shot = self._range.shot(self._seed, number)
        outcome = connection.fire(shot)
        found = judge(shot, outcome)
        if _is_late(outcome, found):
            with self._lock:
                self._late.append(number)
        else:
            self._note(number, shot, outcome, found)

    def _alone(self, number: int) -> None:
        """A case that was late, again: a machine that is busy makes anything slow."""
        shot = self._range.shot(self._seed, number)
        connection = self._connections[0]
        for _ in range(TRIES):
            connection.close()
            before = waited(self._server.process.pid) + waited()
            outcome = connection.fire(shot)
            # Without the time that either side waited for a processor.
            outcome.seconds -= waited(self._server.process.pid) + waited() - before
            found = judge(shot, outcome)
            if not _is_late(outcome, found):
                break
        if outcome.seconds > LONGEST_SECONDS:
            found.append(f"took {outcome.seconds:.1f} s")
        self.report.repeated += 1
        self._note(number, shot, outcome, found)

    def _note(self, number: int, shot: Shot, outcome: Outcome, found: list[str]) -> None:
        with self._lock:
            self.report.cases += 1
            self.report.kinds[shot.kind] += 1
            self.report.slowest = max(self.report.slowest, outcome.seconds)
            for answer in outcome.answers:
                self.report.statuses[str(answer.status)] += 1
            if not outcome.answers:
                self.report.statuses["left" if shot.leaves else "closed"] += 1
            if found:
                what = f"{self._seed}:{number} {shot.kind}: {'; '.join(found)}"
                self.report.faults.append(f"{what}; sent {shot.data[:300]!r}")

    def _check_good(self, connection: Connection) -> None:
        for good in good_requests():
            if self._server.process.poll() is not None:
                return
            shot = Shot("good", good.data, frozenset({200}), keeps=True)
            outcome = connection.fire(shot)
            found = judge(shot, outcome)
            if not found and not good.right(outcome.answers[0].body):
                found = ["other bytes than the library's"]
            with self._lock:
                self.report.good += 1
                if found:
                    self.report.faults.append(f"a good /{good.name}: {'; '.join(found)}")


def _is_late(outcome: Outcome, found: list[str]) -> bool:
    late = any(text == "closed without an answer" or "status 408" in text for text in found)
    return late or outcome.seconds > LONGEST_SECONDS


def fuzz(
    server: Server,
    everything: Range,
    cases: int,
    seed: int,
    *,
    warm_up: int = BLOCK,
    check_good: bool = True,
) -> Report:
    """Send `cases` cases; those of `warm_up` before are not counted.

    `check_good`: whether good requests come between, which must have the library's answers.
    """
    with (
        contextlib.closing(Run(server, everything, seed + 1)) as warm,
        contextlib.closing(Run(server, everything, seed)) as run,
    ):
        if warm_up:
            warm.block(0, warm_up, check_good=check_good)
        watch = Watch.start(server.process.pid)
        begun = time.perf_counter()
        for first in range(0, cases, BLOCK):
            run.block(first, min(BLOCK, cases - first), check_good=check_good)
            if run.report.exit_status is not None or len(run.report.faults) >= MOST_FAULTS:
                break
    report = run.report
    report.faults = [*warm.report.faults, *report.faults]
    report.seconds = time.perf_counter() - begun
    report.tracebacks = server.tracebacks()
    if report.exit_status is None:
        report.kept, report.peak = watch.kept(), watch.peak()
    return report
