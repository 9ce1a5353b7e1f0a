"""Memory that requests are reckoned with, beside what the kernels use.

Each case is computed in a process of its own, a copy of one whose kernels are compiled, in a fresh
thread helped by others and with the service's heap settings, as a worker of the service does it
whose neighbours have nothing else to do. Used is the peak of
resident memory beyond what was resident before, without the answer.

Run ``python benchmarks/reliability/reckoning.py``; it prints Markdown. Exponents as
arguments choose the sizes, ``--json PATH`` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quiver_kernels import sharing
from quiver_kernels.cpu.backend import CpuBackend
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.wire import AggregateRequest, QuantizeRequest
from quiver_service import footprint
from quiver_service.footprint import Footprint
from quiver_service.heap import keep_heap

MIB = 1 << 20
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
THREADS = 4
POWERS = (16, 20, 21, 22, 24)


@dataclass(frozen=True)
class Case:
    """A computation: its name, its input, what is computed and what is reckoned."""

    name: str
    make: Callable[[], Any]
    compute: Callable[[Any], Any]
    reckon: Callable[[Any], Footprint]


@dataclass(frozen=True)
class Used:
    """Bytes of one case."""

    name: str
    output: int
    reckoned: int
    used: int


def cases(sizes: Sequence[int]) -> Iterator[Case]:
    """Methods, sizes, weights, blocks, means and decoding."""
    backend = CpuBackend()
    for size in sizes:
        for bits in (2, 4, 8):
            yield _quantize(backend, f"exact, {bits} bits", size, bits=bits)
        yield _quantize(backend, "exact, 4 bits, float64", size, dtype="float64", bits=4)
        yield _quantize(backend, "exact, 4 bits, weights", size, weighted=True, bits=4)
        yield _quantize(backend, "approx, 4 bits", size, method="approx")
        yield _quantize(backend, "approx, 4 bits, weights", size, weighted=True, method="approx")
        yield _quantize(backend, "uniform, 4 bits", size, method="uniform")
        if size <= 1 << 20:
            yield _quantize(backend, "accelerated, 4 bits", size, method="accelerated")
        for block in (32, 256, 1 << 16):
            yield _quantize(backend, f"exact, 4 bits, blocks of {block}", size, block_size=block)
        yield _aggregate(backend, size)
        yield _dequantize(backend, size)


def _quantize(
    backend: CpuBackend,
    name: str,
    size: int,
    *,
    weighted: bool = False,
    dtype: str = "float32",
    **options: Any,
) -> Case:
    chosen = QuantizeOptions.create(seed=1, **options)

    def make() -> QuantizeRequest:
        draw = np.random.default_rng(1)
        weights = draw.random(size, np.float32) if weighted else None
        return QuantizeRequest(draw.standard_normal(size).astype(dtype), weights, chosen)

    def compute(request: QuantizeRequest) -> Any:
        return backend.quantize(request.vector, chosen, request.weights)

    return Case(f"{name}, {_size(size)}", make, compute, footprint.of_quantize)


def _aggregate(backend: CpuBackend, size: int) -> Case:
    def make() -> AggregateRequest:
        q = _quantize(backend, "", size, method="uniform")
        return AggregateRequest((q.compute(q.make()),) * 16, None, None)

    def compute(request: AggregateRequest) -> Any:
        return backend.aggregate(request.vectors, None)

    return Case(f"mean of 16, {_size(size)}", make, compute, footprint.of_aggregate)


def _dequantize(backend: CpuBackend, size: int) -> Case:
    def make() -> Any:
        q = _quantize(backend, "", size, method="uniform")
        return q.compute(q.make())

    return Case(f"decode, {_size(size)}", make, backend.dequantize, footprint.of_dequantize)


def _size(size: int) -> str:
    return f"2^{size.bit_length() - 1}"


def measure(case: Case) -> Used:
    """Compute in a copy of this process; what it takes at most."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, the copy ends here.
        try:
            os.write(write, json.dumps(_figures(case)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    output, reckoned, peak = json.loads(text)
    return Used(case.name, output, reckoned, max(peak - output, 0))


def _figures(case: Case) -> tuple[int, int, int]:
    given = case.make()
    reckoned = case.reckon(given)
    peaks: list[int] = []

    def work() -> None:
        CLEAR_REFS.write_text("5")
        before = _resident("VmRSS")
        # Held until the peak has been read.
        with sharing.threads(THREADS):
            answer = case.compute(given)
        peaks.append(_resident("VmHWM") - before)
        del answer

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return reckoned.output, reckoned.working, peaks[0]


def _resident(name: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def markdown(rows: Sequence[Used]) -> str:
    """The cases as a table."""
    lines = ["| case | answer, MiB | reckoned, MiB | used, MiB |", "| --- | --: | --: | --: |"]
    lines += [
        f"| {row.name} | {row.output / MIB:.1f} | {row.reckoned / MIB:.1f} | {row.used / MIB:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory reckoned and used by the kernels.")
    parser.add_argument("powers", type=int, nargs="*", help=f"2^p values; default: {POWERS}")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    keep_heap()
    CpuBackend().warm_up()
    rows = [measure(case) for case in cases([1 << power for power in options.powers or POWERS])]
    print(markdown(rows))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
