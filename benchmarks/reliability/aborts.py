"""Clients that leave at any moment leave nothing behind.

Connections are closed, half of them with a reset, at a random offset of their upload, while
their vector is computed, and after a part of the answer. Afterwards the gauges are back at 0, the
process has the memory and the descriptors it had after half as many aborts before, and its log
holds no traceback. Then large computations, each alone,
lose their client; from the socket's end to an idle thread is how long a kernel runs for nobody.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quiver_kernels.wire import MEDIA_TYPE
from reliability import raw
from reliability.report import Check, Report
from reliability.servers import Server, serving

PROMISE = "R8"
MIB = 1 << 20
CARELESS = (sys.executable, str(Path(__file__).with_name("careless.py")), "lease", "deaf")
SETTLE_SECONDS = 10.0
# The request for the metrics is itself in flight.
SCRAPE = 1
CLIENTS = 8
LEAST_BODY, LARGEST_BODY = 1 << 12, 1 << 23
GROWTH_BYTES = 32 * MIB
# 64 levels of 16 million values take a second and more.
STOPPED_VALUES, STOPPED_BITS = 1 << 25, 6
STOP_SECONDS = 0.05


@dataclass(frozen=True)
class Left:
    """What a load of aborts left behind."""

    aborts: int
    inflight_bytes: float
    inflight_requests: float
    descriptors: int
    rss_growth: int
    tracebacks: int


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--aborts", type=int, default=1000, help="of uploads")
    parser.add_argument("--computing", type=int, default=100, help="aborts in mid-compute")
    parser.add_argument("--answering", type=int, default=100, help="aborts in the answer")
    parser.add_argument("--stops", type=int, default=20, help="large computations to be stopped")
    parser.add_argument("--seed", type=int, default=1)


def measure(options: argparse.Namespace) -> Report:
    counts = (options.aborts, options.computing, options.answering)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder) as server:
            left = load(server, counts, options.seed)
        with serving(folder, QUIVER_THREADS=2) as server:
            stops = stopping_seconds(server, options.stops)
        with serving(folder, CARELESS, QUIVER_THREADS=2, QUIVER_BUDGET_BYTES=1 << 40) as server:
            deaf = stopping_seconds(server, 1)
            kept = load(server, (20, 5, 5), options.seed, settle_seconds=1.0)
    return Report(
        checks=[*left_checks(left), stop_check(stops)],
        controls=[left_checks(kept)[0], stop_check(deaf)],
        notes=f"Milliseconds to stop: {', '.join(f'{1000 * s:.0f}' for s in sorted(stops))}.",
        results={"left": vars(left), "stop_seconds": stops, "deaf_stop_seconds": deaf},
    )


def left_checks(left: Left) -> list[Check]:
    """Nothing lent, nothing open, nothing grown, nothing unforeseen."""
    gauges = f"{left.inflight_bytes:.0f} bytes, {left.inflight_requests:.0f} requests"
    return [
        Check(
            f"after {left.aborts} aborts nothing is in flight",
            "0 bytes, 0 requests",
            gauges,
            left.inflight_bytes == 0 and left.inflight_requests == 0,
        ),
        Check("no descriptor stays open", "+0", f"{left.descriptors:+d}", left.descriptors <= 0),
        Check(
            "memory is back",
            f"<= +{GROWTH_BYTES // MIB} MiB",
            f"{left.rss_growth / MIB:+.1f} MiB",
            left.rss_growth <= GROWTH_BYTES,
        ),
        Check("no traceback is logged", "0", str(left.tracebacks), left.tracebacks == 0),
    ]


def stop_check(stops: Sequence[float], bound: float = STOP_SECONDS) -> Check:
    """Kernels end soon after their clients."""
    middle = sorted(stops)[len(stops) // 2]
    return Check(
        "a kernel stops when its client has left",
        f"median <= {1000 * bound:.0f} ms",
        f"{1000 * middle:.0f} ms, at most {1000 * max(stops):.0f} ms",
        middle <= bound,
    )


def load(
    server: Server,
    counts: tuple[int, ...],
    seed: int,
    settle_seconds: float = SETTLE_SECONDS,
) -> Left:
    """Abort uploads, computations and answers; what is left once all has settled."""
    draw = random.Random(seed)
    answerable = raw.one_bit(server.port, 1 << 23)
    body = np.random.default_rng(seed).standard_normal(LARGEST_BODY // 4, np.float32)
    kinds: tuple[Callable[[Server, random.Random, memoryview], None], ...] = (
        _abort_upload,
        _abort_computation,
        _abort_answer,
    )
    sources = (memoryview(body).cast("B"), memoryview(body).cast("B"), memoryview(answerable))

    def abort_all(numbers: Sequence[int]) -> int:
        kind = [at for at, number in enumerate(numbers) for _ in range(number)]
        draw.shuffle(kind)
        seeds = [draw.getrandbits(64) for _ in kind]
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(
                clients.map(
                    lambda at, key: kinds[at](server, random.Random(key), sources[at]), kind, seeds
                )
            )
        return len(kind)

    # The heap is kept for the next bodies, and has its size after some of them.
    abort_all([-(-number // 2) for number in counts])
    _settle(server, settle_seconds)
    before = server.sample()
    aborts = abort_all(counts)
    inflight = _settle(server, settle_seconds)
    # The last scrape's connection may not be closed yet.
    raw.eventually(lambda: server.sample().descriptors <= before.descriptors, settle_seconds)
    after = server.sample()
    return Left(
        aborts=aborts,
        inflight_bytes=inflight[0],
        inflight_requests=inflight[1],
        descriptors=after.descriptors - before.descriptors,
        rss_growth=after.rss - before.rss,
        tracebacks=server.text().count("Traceback"),
    )


def stopping_seconds(
    server: Server, times: int, size: int = STOPPED_VALUES, bits: int = STOPPED_BITS
) -> list[float]:
    """From the close of a client's socket to an idle thread, for computations of a second."""
    values = np.random.default_rng(1).standard_normal(size, np.float32)
    body = memoryview(values).cast("B")
    spent = []
    for turn in range(times):
        with raw.connected(server.port) as connection:
            connection.sendall(raw.head(f"/quantize?bits={bits}&seed=1", len(body)))
            connection.sendall(body)
            if not raw.eventually(lambda: server.metric("quiver_jobs_running") == 1, 30, 0.005):
                raise AssertionError("the computation did not begin")
            # Another stretch of the computation each time.
            time.sleep(0.3 * (turn + 1) / times)
            if server.metric("quiver_jobs_running") != 1:
                raise AssertionError("the computation ended before its client left")
            raw.reset(connection)
            begun = time.perf_counter()
        if not raw.eventually(lambda: server.metric("quiver_jobs_running") == 0, 60, 0.002):
            raise AssertionError("the computation did not end")
        spent.append(time.perf_counter() - begun)
    return spent


def _abort_upload(server: Server, draw: random.Random, source: memoryview) -> None:
    """Leave at any byte of a body of any size."""
    size = _size(draw)
    with raw.connected(server.port) as connection:
        connection.sendall(raw.head("/quantize?bits=4", size))
        connection.sendall(source[: draw.randrange(size)])
        _leave(connection, draw)


def _abort_computation(server: Server, draw: random.Random, source: memoryview) -> None:
    """Leave up to 50 ms after the body is complete."""
    size = _size(draw)
    with raw.connected(server.port) as connection:
        connection.sendall(raw.head(f"/quantize?bits={draw.choice((2, 4, 6))}", size))
        connection.sendall(source[:size])
        time.sleep(draw.uniform(0.0, 0.05))
        _leave(connection, draw)


def _abort_answer(server: Server, draw: random.Random, source: memoryview) -> None:
    """Leave after a part of an answer that is larger than what the sockets hold."""
    with raw.connected(server.port, receive_buffer=1 << 16) as connection:
        connection.sendall(raw.head("/dequantize", len(source), MEDIA_TYPE))
        connection.sendall(source)
        for _ in range(draw.randrange(1, 20)):
            connection.recv(1 << 16)
        _leave(connection, draw)


def _leave(connection: raw.socket.socket, draw: random.Random) -> None:
    if draw.random() < 0.5:
        raw.reset(connection)
    else:
        connection.close()


def _size(draw: random.Random) -> int:
    """Bytes of a body, of every magnitude alike."""
    return round(LEAST_BODY * (LARGEST_BODY / LEAST_BODY) ** draw.random()) // 4 * 4


def _settle(server: Server, seconds: float) -> tuple[float, float]:
    """Bytes and requests in flight, once they are 0 or the time is over."""

    def inflight() -> tuple[float, float]:
        held = server.metric("quiver_inflight_bytes")
        return held, server.metric("quiver_inflight_requests") - SCRAPE

    raw.eventually(lambda: inflight() == (0, 0), seconds)
    return inflight()
