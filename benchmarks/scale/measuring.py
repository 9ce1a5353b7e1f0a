"""The costs of this machine, and predictions of them checked at sizes that were not measured."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reliability.servers import serving

import quiver_kernels as qk
from quiver_client import Client
from scale.costs import BITS, CODE_BYTES_PER_VALUE, Costs, Line, fit

LEVELS = 1 << BITS
TOGETHER = 8
CORES = 2
MERGED = 1 << 16
FEW = 16
Vector = NDArray[np.float32]
Timed = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Check:
    """A prediction beside what was measured, in seconds or bytes."""

    what: str
    predicted: float
    measured: float
    unit: str

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def vector(size: int, seed: int = 0) -> Vector:
    """Normal values."""
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


Clock = Callable[[], float]


def medians(calls: Timed, rounds: int, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Median seconds; the calls take turns, so that a slow moment falls on all alike.

    What runs in this process is timed by the processor's clock, which stands still while other
    programs have the processor.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begun = clock()
            call()
            if turn:  # the first one warms up
                found[name].append(clock() - begun)
    return {name: statistics.median(times) for name, times in found.items()}


def operations(size: int) -> Timed:
    """What workers and replicas do with one vector, on one thread."""
    x = vector(size)
    q = qk.quantize(x, bits=BITS, seed=1)
    table = qk.grid_levels(x, LEVELS).levels
    shared = qk.quantize(x, seed=1, levels=table)
    total = np.zeros(size, np.float64)
    integers = qk.IntegerSum(table, size, count=1 << 20)
    return {
        "solve": lambda: qk.optimal_levels(x, LEVELS),
        "encode": lambda: qk.quantize(x, seed=1, levels=table),
        "decode": lambda: qk.dequantize(q),
        "add_float": lambda: np.add(total, x, out=total),
        "add_decoded": lambda: np.add(total, qk.dequantize(q), out=total),
        "add_codes": lambda: integers.add(shared),
        "sketch": lambda: qk.Sketch.from_vector(x),
    }


def merging(counts: Sequence[int]) -> Timed:
    """Sketches into one, by their number."""
    sketches = [qk.Sketch.from_vector(vector(MERGED, seed)) for seed in range(max(counts))]
    return {
        str(count): (lambda count=count: qk.Sketch.merged(sketches[:count])) for count in counts
    }


def asking(url: str, size: int) -> Callable[[], object]:
    """One request for a vector of so many values."""
    x = vector(size)

    def ask() -> object:
        with Client(url) as client:
            return client.quantize(x, bits=BITS, seed=1)

    return ask


def measure(sizes: Sequence[int], counts: Sequence[int], rounds: int, url: str) -> Costs:
    """Lines through medians at all sizes."""
    by_size = [medians(operations(size), rounds, time.process_time) for size in sizes]
    lines = {name: fit(sizes, [found[name] for found in by_size]) for name in by_size[0]}
    merged = medians(merging(counts), rounds, time.process_time)
    asked = medians({str(size): asking(url, size) for size in sizes}, rounds)
    hop = medians({"hop": asking(url, FEW)}, 5 * rounds)["hop"]
    x = vector(sizes[-1])
    q = qk.quantize(x, bits=BITS, seed=1)
    return Costs(
        **lines,
        merge=fit(counts, [merged[str(count)] for count in counts]),
        request=fit(sizes, [asked[str(size)] for size in sizes]),
        hop=hop,
        sketch_bytes=float(len(qk.Sketch.from_vector(x).to_bytes())),
        head_bytes=float(len(q.to_bytes()) - q.codes.nbytes),
    )


def check_lines(costs: Costs, size: int, rounds: int, url: str) -> list[Check]:
    """The lines, at a larger size than they were drawn through."""
    found = medians(operations(size), rounds, time.process_time)
    found |= medians({"request": asking(url, size)}, rounds)
    lines: dict[str, Line] = {name: getattr(costs, name) for name in found}
    return [
        Check(f"{name}, {size:,} values", lines[name].seconds(size), seconds, "s")
        for name, seconds in found.items()
    ]


def check_bytes(costs: Costs, size: int) -> list[Check]:
    """Messages and sketches of a larger vector."""
    x = vector(size, 3)
    message = len(qk.quantize(x, bits=BITS, seed=1).to_bytes())
    predicted = costs.head_bytes + size * CODE_BYTES_PER_VALUE
    sketch = len(qk.Sketch.from_vector(x).to_bytes())
    return [
        Check(f"message, {size:,} values", predicted, message, "B"),
        Check(f"sketch, {size:,} values", costs.sketch_bytes, sketch, "B"),
    ]


def check_round(costs: Costs, size: int, rounds: int) -> list[Check]:
    """A round of workers with one table, all of it on one thread."""
    vectors = [vector(size, seed) for seed in range(TOGETHER)]

    def play() -> object:
        merged = qk.Sketch.merged([qk.Sketch.from_vector(x) for x in vectors])
        table = qk.grid_levels(merged, LEVELS).levels
        messages = [qk.quantize(x, seed=1, levels=table) for x in vectors]
        total = qk.IntegerSum(table, size, count=TOGETHER)
        total.add_all(messages)
        return total.mean()

    own = costs.sketch.seconds(size) + costs.encode.seconds(size)
    predicted = TOGETHER * (own + costs.add_codes.seconds(size)) + costs.merge.seconds(TOGETHER)
    found = medians({"round": play}, rounds, time.process_time)["round"]
    return [Check(f"round of {TOGETHER} workers, {size:,} values each", predicted, found, "s")]


def processors(size: int) -> float:
    """As many of the processors as two busy threads were given."""
    x = vector(size)
    begun, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(lambda _: qk.optimal_levels(x, LEVELS), range(4 * CORES)))
    return (time.process_time() - used) / (time.perf_counter() - begun)


def check_replicas(costs: Costs, size: int, rounds: int, urls: Sequence[str]) -> list[Check]:
    """Several clients at once, before one replica and before two."""
    x = vector(size)
    clients, each = 4, 4

    def ask(url: str) -> None:
        with Client(url) as client:
            for seed in range(each):
                client.quantize(x, bits=BITS, seed=seed)

    def all_of(given: Sequence[str]) -> Callable[[], object]:
        def call() -> object:
            with ThreadPoolExecutor(clients) as threads:
                return list(threads.map(ask, itertools.islice(itertools.cycle(given), clients)))

        return call

    shares: list[float] = []
    found = medians(
        {
            "1": all_of(urls[:1]),
            "2": all_of(urls[:2]),
            "share": lambda: shares.append(processors(size)),
        },
        rounds,
    )
    share = statistics.median(shares)
    kernel = costs.solve.seconds(size) + costs.encode.seconds(size)
    whole = costs.request.seconds(size)
    return [
        Check(
            f"{clients * each} requests, {size:,} values, {replicas} replica{'s' * (replicas > 1)}",
            # A replica here has one thread; clients and replicas share what processors there are.
            clients * each * max(kernel / replicas, whole / share),
            found[str(replicas)],
            "s",
        )
        for replicas in (1, 2)
    ]


def measure_and_check(quick: bool) -> tuple[Costs, list[Check]]:
    """Everything that this machine has to say, in seconds (`quick`) or half a minute."""
    sizes = (1 << 12, 1 << 14, 1 << 16) if quick else (1 << 18, 1 << 20, 1 << 22)
    counts = (2, 8, 16) if quick else (4, 16, 64)
    rounds = 3 if quick else 5
    larger = sizes[-1] * 2
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), QUIVER_THREADS=1, QUIVER_DEVICE="cpu") as first,
        serving(Path(folder), QUIVER_THREADS=1, QUIVER_DEVICE="cpu") as second,
    ):
        costs = measure(sizes, counts, rounds, first.url)
        checks = [
            *check_lines(costs, larger, rounds, first.url),
            *check_round(costs, larger, rounds),
            *check_replicas(costs, sizes[-1], rounds, [first.url, second.url]),
            *check_bytes(costs, larger),
        ]
    return costs, checks
