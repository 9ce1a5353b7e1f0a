"""Sums of codes without decoding, against decoding each message and adding it up.

Workers quantize vectors that have most in common with one table on an integer grid; a server adds
their messages up. All ways are timed to the mean as an array, on one thread, taking turns. What
counts is the thread's processor time, so that others on the machine disturb less; the time for one
message is that of the whole over the workers. The ways:

- decode, add: `dequantize` each message, add it to a float64 array, divide once;
- decode, add float32: the same with a float32 array, whose sums may be rounded;
- aggregate: the library's mean, which decodes chunk by chunk;
- codes: `IntegerSum` with the narrowest accumulators that hold the workers' sum, all messages at
  once, and one by one as they would arrive.

The sums of codes must equal the float64 sums to the last bit, or the script fails.

Run ``python benchmarks/homomorphic.py``; it prints Markdown, and ``--json PATH`` writes the
results. ``--quick`` takes seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common.tables import figure, size, table
from common.timing import take_turns
from numpy.typing import NDArray

import quiver_kernels as qk

VALUES, QUICK_VALUES = 1 << 22, 1 << 16
WORKERS, QUICK_WORKERS = 16, 4
BITS = (1, 2, 4, 8)
# What workers have of their own, beside the gradient they have in common.
NOISE = 0.3
DECODE = "decode, add"
CODES = "codes"
WAYS = (DECODE, "decode, add float32", "aggregate", CODES, "codes, one by one")


@dataclass(frozen=True)
class Timing:
    """One way to the mean of all messages at one width."""

    bits: int
    way: str
    values: int
    workers: int
    granularity: int
    accumulators: str
    seconds: float
    loss: float


@dataclass(frozen=True)
class Round:
    """Messages of all workers, with one table."""

    table: qk.GridLevels
    messages: list[qk.QuantizedVector]
    loss: float

    @classmethod
    def of(cls, vectors: list[NDArray[np.float32]], bits: int) -> Round:
        """Sketch, choose, encode."""
        sketch = qk.Sketch.merged(qk.Sketch.from_vector(x) for x in vectors)
        found = qk.grid_levels(sketch, 1 << bits)
        free = np.mean([qk.expected_mse(x, sketch.levels(1 << bits)) for x in vectors[:2]])
        own = np.mean([qk.expected_mse(x, found.levels) for x in vectors[:2]])
        messages = [qk.quantize(x, levels=found.levels, seed=i) for i, x in enumerate(vectors)]
        return cls(found, messages, float(own / free - 1))

    def empty(self) -> qk.IntegerSum:
        """An empty sum with the narrowest accumulators."""
        return qk.IntegerSum(self.table, self.messages[0].shape, len(self.messages))

    def ways(self) -> dict[str, Callable[[], Any]]:
        """Each way to the mean."""

        def decoded(dtype: type) -> NDArray[Any]:
            total: NDArray[Any] = np.zeros(self.messages[0].shape, dtype)
            for q in self.messages:
                total += qk.dequantize(q)
            total /= len(self.messages)
            return total

        def at_once() -> NDArray[Any]:
            total = self.empty()
            total.add_all(self.messages)
            return total.mean()

        def one_by_one() -> NDArray[Any]:
            total = self.empty()
            for q in self.messages:
                total.add(q)
            return total.mean()

        calls = (
            lambda: decoded(np.float64),
            lambda: decoded(np.float32),
            lambda: qk.aggregate(self.messages),
            at_once,
            one_by_one,
        )
        return dict(zip(WAYS, calls, strict=True))


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """The call, which returns the processor seconds of this thread that it took."""

    def watched() -> float:
        begun = time.thread_time()
        call()
        return time.thread_time() - begun

    return watched


def measure(values: int, workers: int, seconds: float) -> Iterator[Timing]:
    """Time all ways at all widths."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=values).astype(np.float32)
    noise = [NOISE * rng.standard_normal(values, np.float32) for _ in range(4)]
    vectors = [common + noise[i % len(noise)] for i in range(workers)]
    for bits in BITS:
        made = Round.of(vectors, bits)
        ways = made.ways()
        if not np.array_equal(ways[CODES](), ways[DECODE]()):
            raise AssertionError(f"the sum of codes of {bits} bits is not that of the values")
        watched = {way: timed(call) for way, call in ways.items()}
        for way, taken in take_turns(watched, seconds, least_rounds=5, timed=True).items():
            yield Timing(
                bits=bits,
                way=way,
                values=values,
                workers=workers,
                granularity=made.table.granularity,
                accumulators=made.empty().dtype,
                seconds=taken,
                loss=made.loss,
            )


def markdown(timings: list[Timing]) -> str:
    """Milliseconds for each message, and how many times as fast the codes are."""
    rows = []
    for bits in BITS:
        found = {t.way: t for t in timings if t.bits == bits}
        first = found[CODES]
        cells = [figure(1e3 * found[way].seconds / first.workers) for way in WAYS]
        gains = [f"{found[way].seconds / first.seconds:.1f} x" for way in (DECODE, "aggregate")]
        grid = f"{first.granularity} steps, {first.accumulators}"
        rows.append([str(bits), grid, *cells, *gains])
    head = ["bits", "table, accumulators", *WAYS, "codes against decode", "against aggregate"]
    first = timings[0]
    what = f"each of {first.workers} messages of {size(first.values)} values"
    figures = str(table(head, rows, left=2))
    return f"Milliseconds of processor time for {what}.\n\n{figures}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="small sizes, in seconds")
    arguments = parser.parse_args()
    if arguments.quick:
        timings = list(measure(QUICK_VALUES, QUICK_WORKERS, 0.2))
    else:
        timings = list(measure(VALUES, WORKERS, 8.0))
    print(markdown(timings))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(t) for t in timings], indent=1) + "\n")


if __name__ == "__main__":
    main()
