"""The kernels on one thread: levels by each method, encoding and decoding.

Values are LogNormal(0, 1), float32, unsorted. All operations on one size, and two yardsticks
(``np.sort`` and a copy of the vector), take turns, so that a slow moment of the machine falls
on all of them alike; figures are medians. An operation that is expected to take longer than
``--limit`` seconds is left out.

Run ``python benchmarks/kernels.py --json results.json``; it prints Markdown.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import quiver_kernels as qk
from quiver_kernels import dispatch

SIZES = tuple(1 << shift for shift in (12, 14, 16, 18, 20))
FULL_SIZES = (*SIZES, 1 << 22, 1 << 24)
BITS = (2, 4, 8)
METHODS = ("exact", "accelerated", "approx", "uniform")
SORT, COPY = "np.sort", "copy"
LEAST_ROUNDS, MOST_ROUNDS = 3, 25

Vector = np.ndarray[Any, np.dtype[np.float32]]
Operation = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """One operation on one size.

    Attributes
    ----------
    bits
        Bits per value; None for the yardsticks.
    milliseconds
        Median of `rounds`.
    to_sort, to_copy
        Ratios to the yardsticks of the same size.
    """

    operation: str
    bits: int | None
    size: int
    milliseconds: float
    rounds: int
    to_sort: float
    to_copy: float


def operations(x: Vector) -> dict[tuple[str, int | None], Operation]:
    """What is timed on `x`; each call returns its seconds."""
    target = np.empty_like(x)
    found: dict[tuple[str, int | None], Operation] = {
        (SORT, None): _stopwatch(lambda: np.sort(x)),
        (COPY, None): _stopwatch(lambda: np.copyto(target, x)),
    }
    for bits in BITS:
        for method in METHODS:
            found[f"levels, {method}", bits] = _stopwatch(
                functools.partial(qk.optimal_levels, x, 1 << bits, method)
            )
        found["encode", bits] = functools.partial(_encode_seconds, x, bits)
        q = qk.quantize(x, bits, "uniform", seed=1)
        found["decode", bits] = _stopwatch(functools.partial(qk.dequantize, q))
    return found


def _stopwatch(call: Callable[[], object]) -> Operation:
    def timed() -> float:
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    return timed


def _encode_seconds(x: Vector, bits: int) -> float:
    """Rounding, packing and the error, without the choice of levels."""
    return qk.quantize(x, bits, "uniform", seed=1).timings_ms["encode"] / 1000


def measure(sizes: Sequence[int], limit: float, seconds_per_size: float) -> list[Timing]:
    """Time every operation on every size, in turns."""
    dispatch.load("cpu").warm_up()
    rng = np.random.default_rng(42)
    timings: list[Timing] = []
    previous: dict[tuple[str, int | None], float] = {}
    for size in sizes:
        print(f"{size} values ...", file=sys.stderr, flush=True)
        x = rng.lognormal(size=size).astype(np.float32)
        growth = 1.2 * size / sizes[max(0, sizes.index(size) - 1)]
        due = {
            key: operation
            for key, operation in operations(x).items()
            if previous.get(key, 0.0 if size == sizes[0] else np.inf) * growth <= limit
        }
        medians, rounds = _take_turns(due, seconds_per_size)
        previous = medians
        timings.extend(
            Timing(
                operation=name,
                bits=bits,
                size=size,
                milliseconds=1000 * seconds,
                rounds=rounds,
                to_sort=seconds / medians[SORT, None],
                to_copy=seconds / medians[COPY, None],
            )
            for (name, bits), seconds in medians.items()
        )
    return timings


def _take_turns(
    due: dict[tuple[str, int | None], Operation], seconds: float
) -> tuple[dict[tuple[str, int | None], float], int]:
    """Median seconds of each, and the number of rounds."""
    taken: dict[tuple[str, int | None], list[float]] = {key: [] for key in due}
    deadline = time.monotonic() + seconds
    rounds = 0
    while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.monotonic() < deadline):
        for key, operation in due.items():
            taken[key].append(operation())
        rounds += 1
    return {key: statistics.median(values) for key, values in taken.items()}, rounds


def as_markdown(timings: Sequence[Timing]) -> str:
    """Two tables: levels against sorting, encoding and decoding against copying."""
    return "\n\n".join(
        [
            "Choosing levels, in milliseconds (times the `np.sort` of the same vector):",
            _table([t for t in timings if t.operation == SORT or "levels" in t.operation], SORT),
            "Encoding (rounding, packing, expected error) and decoding, in milliseconds (times a "
            "copy of the same vector):",
            _table([t for t in timings if t.operation in (COPY, "encode", "decode")], COPY),
        ]
    )


def _table(timings: Sequence[Timing], yardstick: str) -> str:
    sizes = sorted({t.size for t in timings})
    cells = {(t.operation, t.bits, t.size): _cell(t, yardstick) for t in timings}
    rows = dict.fromkeys((t.operation, t.bits) for t in timings)
    head = ["operation", "bits", *(f"2^{size.bit_length() - 1}" for size in sizes)]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for name, bits in sorted(rows, key=lambda row: row[1] or 0):
        figures = [cells.get((name, bits, size), "-") for size in sizes]
        lines.append([name, "" if bits is None else str(bits), *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(timing: Timing, yardstick: str) -> str:
    text = f"{timing.milliseconds:.3g}"
    if timing.operation == yardstick:
        return text
    ratio = timing.to_sort if yardstick == SORT else timing.to_copy
    return f"{text} ({ratio:.0f}x)" if ratio >= 10 else f"{text} ({ratio:.2g}x)"


def main() -> None:
    """Measure, print Markdown tables, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description="Time the kernels on one thread.")
    parser.add_argument("--full", action="store_true", help="to 2^24 values, without a limit")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of values, ascending")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of one call, expected")
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds for each size")
    parser.add_argument("--json", type=Path, help="write the timings here")
    options = parser.parse_args()
    sizes = options.sizes or (FULL_SIZES if options.full else SIZES)
    timings = measure(sizes, np.inf if options.full else options.limit, options.seconds)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(t) for t in timings], indent=1) + "\n")
    print(as_markdown(timings))


if __name__ == "__main__":
    main()
