"""Many small vectors: one request each, or many in one request; and where the time goes.

16 connections send vectors of 4 KiB (1,024 float32 values, 4 bits) one by one, and the same
vectors as lists of 16 and of 256. Load generator and service share the machine, so the
processor time of the service for each vector says more than the rate. The modes take turns.

What a vector costs less among 256 is the request itself: HTTP, Python and the log line. The
second table has the service's own phases of a single request, one at a time (elapsed time). The
third asks what the service could gain by gathering concurrent requests itself. That leaves HTTP,
reading and writing of each request as they are; at most it saves the way to another thread and
back, where a request is not so small that it is computed without, and what a call of the kernels
costs beside its work. The first is an empty call through the pool; the second is bounded by one
call for 256 tables (``block_size``) against 256 calls. The bound is generous: one call can make the
tables of vectors of one size and with the same options only, and would have to round each with
a seed of its own, which no kernel does. It would be worth building above 20 %.

Run ``python benchmarks/many_small.py``; it prints Markdown, and ``--json PATH`` writes the
results. ``--quick`` takes seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quiver_kernels import dispatch, wire
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.request import QuantizeRequest
from quiver_kernels.rng import batch_seeds
from quiver_service import effort
from quiver_service.engine import Engine
from quiver_service.pool import WorkerPool

VALUES = 1024
CONNECTIONS = 16
BATCHES = (1, 16, 256)
METHODS = ("exact", "uniform")
START_SECONDS = 600.0
WORTH_IT = 0.2
READY = re.compile(r"^QUIVER is ready at http://127\.0\.0\.1:(\d+)$", re.MULTILINE)
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
PHASES = ("receive", "queue", "decode", "kernel", "encode", "send")


@dataclass(frozen=True)
class Rate:
    """Vectors sent in one way."""

    method: str
    batch: int
    vectors_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_us: float


@dataclass(frozen=True)
class Parts:
    """Microseconds of one single request, sequential, on the service's side."""

    method: str
    cpu: float
    phases: dict[str, float]


@dataclass(frozen=True)
class Bound:
    """What gathering could save of a single request, microseconds."""

    method: str
    hop: float
    call: float
    blocked: float
    cpu: float

    @property
    def gain(self) -> float:
        """More requests for the same processor time, as a share."""
        saved = self.hop + max(0.0, self.call - self.blocked)
        return saved / max(self.cpu - saved, 1.0)


@dataclass(frozen=True)
class Server:
    """The service in a process of its own."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """Processor time it has used; to the nanosecond, unlike ``/proc/PID/stat``."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def phases(self) -> dict[str, tuple[float, float]]:
        """Seconds and number of each phase so far, from ``/metrics``."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        found = {}
        for name in PHASES:
            pattern = rf'^quiver_phase_duration_seconds_%s{{phase="{name}"}} (\S+)$'
            sums, counts = (
                re.search(pattern % part, text, re.MULTILINE) for part in ("sum", "count")
            )
            found[name] = (float(sums[1]) if sums else 0.0, float(counts[1]) if counts else 0.0)
        return found


@contextlib.contextmanager
def served() -> Iterator[Server]:
    """The service for as long as the block runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUIVER_")}
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "quiver_service"],
            env=environment | {"QUIVER_PORT": "0"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (found := READY.search(Path(log.name).read_text())):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"no service: {Path(log.name).read_text()[-2000:]}")
                time.sleep(0.05)
            yield Server(process.pid, int(found[1]))
        finally:
            process.terminate()
            process.wait(60)


def bodies(method: str, batch: int, count: int) -> list[bytes]:
    """Requests that bring `count` vectors, `batch` in each."""
    vectors = np.random.default_rng(0).lognormal(size=(count, VALUES)).astype(np.float32)
    options = [
        QuantizeOptions.create(bits=4, method=method, seed=seed) for seed in batch_seeds(7, count)
    ]
    asked = [QuantizeRequest(x, None, o) for x, o in zip(vectors, options, strict=True)]
    if batch == 1:
        made = [wire.encode_quantize_request(r.vector, r.options) for r in asked]
    else:
        made = [
            wire.encode_batch_request(asked[start : start + batch], None, options[0])
            for start in range(0, count, batch)
        ]
    return [_with_head(b"".join(segments)) for segments in made]


def _with_head(body: bytes) -> bytes:
    head = (
        f"POST /quantize HTTP/1.1\r\nHost: localhost\r\nContent-Type: {wire.MEDIA_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Lane:
    """A connection with one request in flight."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got = bytearray()
        self._whole = 0
        self.begun = 0.0

    def send(self, request: bytes) -> None:
        """Send a request."""
        self._got.clear()
        self._whole = 0
        self.begun = time.perf_counter()
        self.sock.sendall(request)

    def receive(self) -> bool:
        """Take what has come; whether the answer is whole."""
        self._got += self.sock.recv(1 << 20)
        if not self._whole and (end := self._got.find(b"\r\n\r\n")) > 0:
            found = LENGTH.search(self._got, 0, end)
            if not self._got.startswith(b"HTTP/1.1 200") or found is None:
                raise RuntimeError(f"refused: {bytes(self._got[:600])!r}")
            self._whole = end + 4 + int(found[1])
        return 0 < self._whole <= len(self._got)


def drive(port: int, requests: Sequence[bytes], connections: int) -> list[float]:
    """Send all requests, one at a time on each connection; seconds of each."""
    waiting = list(reversed(requests))
    taken: list[float] = []
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(min(connections, len(requests))):
            lane = Lane(port)
            stack.callback(lane.sock.close)
            selector.register(lane.sock, selectors.EVENT_READ, lane)
            lane.send(waiting.pop())
        while len(taken) < len(requests):
            for key, _ in selector.select():
                if key.data.receive():
                    taken.append(time.perf_counter() - key.data.begun)
                    if waiting:
                        key.data.send(waiting.pop())
    return taken


def rates(server: Server, method: str, count: int, rounds: int) -> list[Rate]:
    """Every mode, taking turns; medians over the rounds."""
    requests = {batch: bodies(method, batch, count) for batch in BATCHES}
    seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    cpu: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    latencies: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for _ in range(rounds):
        for batch, sent in requests.items():
            used, begun = server.cpu_seconds(), time.perf_counter()
            latencies[batch] += drive(server.port, sent, CONNECTIONS)
            seconds[batch].append(time.perf_counter() - begun)
            cpu[batch].append(server.cpu_seconds() - used)
    return [
        Rate(
            method=method,
            batch=batch,
            vectors_per_second=count / statistics.median(seconds[batch]),
            p50_ms=1e3 * float(np.quantile(latencies[batch], 0.5)),
            p99_ms=1e3 * float(np.quantile(latencies[batch], 0.99)),
            server_cpu_us=1e6 * statistics.median(cpu[batch]) / count,
        )
        for batch in BATCHES
    ]


def parts(server: Server, method: str, count: int) -> Parts:
    """Single requests, one after the other."""
    requests = bodies(method, 1, count)
    before, used = server.phases(), server.cpu_seconds()
    drive(server.port, requests, 1)
    cpu, after = server.cpu_seconds() - used, server.phases()
    phases = {
        name: 1e6 * (after[name][0] - before[name][0]) / (after[name][1] - before[name][1] or 1)
        for name in PHASES
    }
    return Parts(method, 1e6 * cpu / count, phases)


def bound(method: str, cpu: float, rounds: int) -> Bound:
    """An empty call through the pool; 256 calls of the kernels against one for 256 tables."""
    count = BATCHES[-1]
    x = np.random.default_rng(0).lognormal(size=count * VALUES).astype(np.float32)
    backend = dispatch.pick("cpu")
    alone = QuantizeOptions.create(bits=4, method=method, seed=1)
    blocks = QuantizeOptions.create(bits=4, method=method, seed=1, block_size=VALUES)
    vectors = x.reshape(count, VALUES)

    def many() -> None:
        for vector in vectors:
            backend.quantize(vector, alone, None)

    def once() -> None:
        backend.quantize(x, blocks, None)

    calls, blocked = _take_turns([many, once], rounds)
    tiny = effort.of_quantize(QuantizeRequest(vectors[0], None, alone)) <= effort.SIZES.tiny
    hop = 0.0 if tiny else asyncio.run(_hop(100 * rounds))
    return Bound(method, hop, 1e6 * calls / count, 1e6 * blocked / count, cpu)


def _take_turns(works: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    taken: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(rounds):
        for times, work in zip(taken, works, strict=True):
            # Processor time: it stays what it is when others use the machine, too.
            begun = time.process_time()
            work()
            times.append(time.process_time() - begun)
    return [statistics.median(times) for times in taken]


async def _hop(count: int) -> float:
    engine = Engine(WorkerPool(1, 16), 1 << 20)
    engine.start()
    try:
        begun = time.process_time()
        for _ in range(count):
            await engine.run(lambda: None)
        return 1e6 * (time.process_time() - begun) / count
    finally:
        engine.close(1.0)


def as_markdown(found: Sequence[Rate], taken: Sequence[Parts], bounds: Sequence[Bound]) -> str:
    """The three tables."""
    lines = [
        f"{CONNECTIONS} connections, vectors of {4 * VALUES // 1024} KiB:",
        "",
        "| method | vectors in a request | vectors/s | against single | request p50, ms | p99, ms "
        "| service CPU per vector, us |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    single = {rate.method: rate.vectors_per_second for rate in found if rate.batch == 1}
    lines += [
        f"| {r.method} | {r.batch} | {r.vectors_per_second:,.0f} "
        f"| {r.vectors_per_second / single[r.method]:.2f}x | {r.p50_ms:.1f} | {r.p99_ms:.1f} "
        f"| {r.server_cpu_us:,.0f} |"
        for r in found
    ]
    lines += [
        "",
        "A single request, one at a time, microseconds:",
        "",
        "| method | service CPU | " + " | ".join(PHASES) + " |",
        "|---|--:|" + "--:|" * len(PHASES),
    ]
    lines += [
        f"| {p.method} | {p.cpu:,.0f} | "
        + " | ".join(f"{p.phases[name]:,.0f}" for name in PHASES)
        + " |"
        for p in taken
    ]
    lines += [
        "",
        "What gathering concurrent requests in the service could gain, CPU microseconds:",
        "",
        "| method | to a thread and back | kernels, a call each | in one call | service CPU "
        "| gain at most |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {b.method} | {b.hop:,.0f} | {b.call:,.0f} | {b.blocked:,.0f} | {b.cpu:,.0f} "
        f"| {b.gain:.0%} |"
        for b in bounds
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few vectors")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    count, rounds = (256, 1) if options.quick else (1024, 3)
    found: list[Rate] = []
    taken: list[Parts] = []
    with served() as server:
        for method in METHODS:
            drive(server.port, bodies(method, 1, CONNECTIONS), CONNECTIONS)
            taken.append(parts(server, method, count // 4))
            found += rates(server, method, count, rounds)
    bounds = [bound(part.method, part.cpu, rounds) for part in taken]
    sys.stdout.write(as_markdown(found, taken, bounds) + "\n")
    if options.json is not None:
        content = {
            "rates": [asdict(rate) for rate in found],
            "parts": [asdict(part) for part in taken],
            "bounds": [{**asdict(b), "gain": b.gain, "worth_it": WORTH_IT} for b in bounds],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
