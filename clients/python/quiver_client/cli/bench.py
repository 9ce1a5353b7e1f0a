"""``quiver bench``."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from quiver_client.cli.choices import INTEGERS, NAMES
from quiver_client.cli.output import Output, output_options, pass_output
from quiver_client.cli.progress import progress
from quiver_client.cli.tables import number, table
from quiver_client.cli.timing import Call, Timing, measure
from quiver_client.cli.where import Where, where_options
from quiver_kernels.quantized import QuantizedVector

_SEED = 1
_MAX_SIZE = 1 << 28


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on vectors of one size by one method.

    Attributes
    ----------
    operation, method, size
        What is measured; `size` in values of float32.
    message
        Bytes of the quantized vector.
    """

    operation: str
    method: str
    size: int
    message: int


@click.command("bench")
@click.option(
    "--sizes", type=INTEGERS, default="1024,65536,1048576", show_default=True,
    help="Values of each vector, separated by commas.",
)  # fmt: skip
@click.option(
    "--methods", type=NAMES, default="exact,approx", show_default=True,
    help="Methods, separated by commas.",
)  # fmt: skip
@click.option("--bits", type=click.IntRange(1, 8), default=4, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(0), default=5.0, show_default=True,
    help="How long to measure, for all cases together.",
)  # fmt: skip
@click.option(
    "--parallel", type=click.IntRange(1, 256), default=1, show_default=True,
    help="Requests in flight at once.",
)  # fmt: skip
@where_options
@output_options
@pass_output
def command(
    output: Output,
    where: Where,
    sizes: tuple[int, ...],
    methods: tuple[str, ...],
    bits: int,
    seconds: float,
    parallel: int,
) -> None:
    """Measure quantize and dequantize in this process, or by a service (--server).

    Vectors are normal values of float32. Every case is warmed up, then cases take turns; times are
    medians and quantiles of single calls, throughput counts the vector's bytes.

    Example: quiver bench --sizes 65536 --seconds 2
    """
    _check_sizes(sizes)
    drawn = np.random.default_rng(_SEED)
    vectors = {size: drawn.standard_normal(size, dtype=np.float32) for size in sizes}
    with where.connect() as client:
        cases, calls = [], []
        for method in methods:
            for x in vectors.values():
                for case, call in _cases(client, x, method, bits):
                    cases.append(case)
                    calls.append(call)
        with progress(output, "measuring", None, unit="calls") as advance:
            found = measure(calls, seconds, parallel=parallel, done=advance)
    rows = [_row(case, timing) for case, timing in zip(cases, found, strict=True)]
    about = {"where": where.name, "bits": bits, "parallel": parallel, "dtype": "float32"}
    output.result({**about, "cases": rows}, lambda: _text(about, rows))


def _check_sizes(sizes: tuple[int, ...]) -> None:
    for size in sizes:
        if not 1 <= size <= _MAX_SIZE:
            raise click.BadParameter(
                f"sizes must be 1..{_MAX_SIZE}; got {size}", param_hint="--sizes"
            )


def _cases(
    client: Any, x: NDArray[np.float32], method: str, bits: int
) -> Iterator[tuple[Case, Call]]:
    quantize = functools.partial(client.quantize, x, bits, method, _SEED)
    q = quantize()
    yield Case("quantize", method, x.size, q.nbytes), Call(quantize, _timings)
    dequantize = functools.partial(client.dequantize, q)
    yield Case("dequantize", method, x.size, q.nbytes), Call(dequantize)


def _timings(q: QuantizedVector) -> dict[str, float]:
    return dict(q.timings_ms)


def _row(case: Case, timing: Timing) -> dict[str, Any]:
    nbytes = 4 * case.size
    return {
        "operation": case.operation,
        "method": case.method,
        "values": case.size,
        "vector_bytes": nbytes,
        "message_bytes": case.message,
        "calls": len(timing.seconds),
        "p50_ms": 1e3 * timing.median,
        "p99_ms": 1e3 * timing.quantile(0.99),
        "bytes_per_second": timing.rate * nbytes,
        "stages_ms": _stages(timing),
    }


def _stages(timing: Timing) -> dict[str, float]:
    """Medians of what the answers tell, and the rest: network, coding of messages, checks."""
    told = [one for one in timing.results if one]
    if not told:
        return {}
    names = list(dict.fromkeys(name for one in told for name in one))
    stages = {name: float(np.median([one.get(name, 0.0) for one in told])) for name in names}
    rests = [
        1e3 * seconds - sum(one.values())
        for seconds, one in zip(timing.seconds, timing.results, strict=True)
        if one
    ]
    return {**stages, "rest": max(float(np.median(rests)), 0.0)}


def _text(about: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    heading = ["operation", "method", "values", "message", "calls", "p50 ms", "p99 ms", "MB/s"]
    lines = [heading]
    lines += [
        [
            row["operation"],
            row["method"],
            f"{row['values']:,}",
            f"{row['message_bytes']:,}",
            str(row["calls"]),
            number(row["p50_ms"], 3),
            number(row["p99_ms"], 3),
            f"{row['bytes_per_second'] / 1e6:.0f}",
        ]
        for row in rows
    ]
    head = f"by {about['where']}, {about['bits']} bits, {about['parallel']} at a time"
    return "\n\n".join([head, table(lines, left=2), *_trees(about, rows)])


def _trees(about: Mapping[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Where the time goes, for the largest vector of each method."""
    most = max(row["values"] for row in rows)
    rest = "rest" if about["where"] == "this process" else "network and messages"
    for row in rows:
        if row["stages_ms"] and row["values"] == most:
            stages = {rest if n == "rest" else n: ms for n, ms in row["stages_ms"].items()}
            total = sum(stages.values()) or 1.0
            lines = [f"{row['operation']} {row['method']}, {most:,} values: {total:.3g} ms"]
            for place, (name, ms) in enumerate(stages.items()):
                corner = "└─" if place == len(stages) - 1 else "├─"
                lines.append(f"  {corner} {name:20} {ms:9.3f} ms  {ms / total:4.0%}")
            yield "\n".join(lines)
