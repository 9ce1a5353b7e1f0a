"""The kernels on a GPU, against the measured copy bandwidth of the card.

Kernels are compiled, their codes, levels and values are compared with the CPU's, and everything is
timed. Values are LogNormal(0, 1), float32, 4 bits unless said otherwise. Kernels are timed by
CUDA's events, launched again as they were in a whole call; whole calls by the clock of the
host. The share is the time that the bytes of the pass need at the bandwidth of a copy on the card
(which reads and writes), over the measured time. What no time is left for is named.

Run ``python benchmarks/gpu.py --json results.json``; it prints Markdown, and takes up to eight
minutes. ``--quick`` takes tiny sizes. Without a GPU it says so and fails.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common.on_device import Recorder, Resident, kernel_seconds
from common.tables import figure, size, table

import quiver_kernels as qk
from quiver_kernels import dispatch
from quiver_kernels.calibration import SIZES, Stopwatch, calibrate
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.cupy_device import open_device
from quiver_kernels.gpu.device import Device
from quiver_kernels.options import QuantizeOptions

METHODS = ("uniform", "approx", "exact")
DTYPES = ("float16", "float32", "float64")
# Bytes that a kernel reads and writes for a value of float32, besides codes.
BYTES = {"range": 4, "cells": 4, "encode": 4, "errors": 4, "decode": 4}
CODED = ("encode", "decode")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    large
        Values of the vector that kernels are timed on.
    whole
        Values of the vectors that whole calls are timed on.
    small
        Values that levels are timed on.
    exact
        Values that levels of both kinds are compared on.
    rows, columns
        Of the batch.
    vectors
        In a mean.
    seconds
        After which nothing new begins.
    """

    large: int = 1 << 28
    whole: tuple[int, ...] = tuple(1 << shift for shift in (20, 22, 24, 26, 28))
    small: int = 1 << 20
    exact: int = 1 << 26
    rows: int = 10_000
    columns: int = 4096
    vectors: int = 16
    copied: int = 1 << 30
    launches: int = 1000
    seconds: float = 400.0
    calibration: tuple[int, ...] = SIZES
    rounds: int = 3


QUICK = Sizes(
    large=5000,
    whole=(500, 5000),
    small=300,
    exact=5000,
    rows=2,
    columns=8,
    vectors=3,
    copied=1 << 14,
    launches=5,
    calibration=(16, 48),
    rounds=1,
)


@dataclass(frozen=True)
class Figure:
    """One measurement.

    Attributes
    ----------
    part
        ``bus``, ``kernel``, ``whole``, ``levels`` or ``other``.
    name, values
        What was timed, on how many values.
    seconds
        Median.
    rate
        Values, or of copies bytes, a second.
    share
        Of what the card's copy bandwidth allows; None where no bytes are told.
    """

    part: str
    name: str
    values: int
    seconds: float
    rate: float
    share: float | None = None


@dataclass
class Report:
    """What was found."""

    card: str
    figures: list[Figure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    compile_seconds: float = 0.0
    bits_compared: int = 0
    costs: dict[str, object] = field(default_factory=dict)

    def of(self, part: str, name: str, values: int | None = None) -> Figure | None:
        """A figure by its name."""
        for one in self.figures:
            if (one.part, one.name) == (part, name) and values in (None, one.values):
                return one
        return None


def draw(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Values; a long vector repeats a shorter one, whose levels it has."""
    base = np.random.default_rng(1).lognormal(size=min(n, 1 << 24)).astype(np.float32)
    return np.resize(base, n)


class Bench:
    """Measures one device.

    Parameters
    ----------
    device
        The GPU, or in tests what stands for it.
    sizes
        How much.
    """

    def __init__(self, device: Device, sizes: Sizes) -> None:
        self._device = device
        self._sizes = sizes
        self._recorder = Recorder(device)
        self._gpu = GpuBackend(self._recorder)
        self._cpu = dispatch.load("cpu")
        self._begun = time.monotonic()
        self.report = Report(device.name)

    def run(self) -> Report:
        """Everything, in an order such that what matters comes first."""
        for name, step in (
            ("compilation", self._compile),
            ("bits", self._compare),
            ("copies", self._copies),
            ("kernels", self._kernels),
            ("whole calls", self._whole),
            ("levels", self._levels),
            ("batch", self._batch),
            ("mean", self._mean),
            ("launches", self._launches),
            ("costs", self._costs),
        ):
            self._if_time(name, step)
        return self.report

    def _if_time(self, name: str, step: Callable[[], object]) -> None:
        if time.monotonic() - self._begun > self._sizes.seconds:
            self.report.left_out.append(name)
        else:
            step()

    def _add(
        self, part: str, name: str, values: int, seconds: float, nbytes: float | None = None
    ) -> None:
        copy = self.report.of("bus", "copy on the card")
        # A copy of n bytes moves 2 n.
        floor = None if nbytes is None or copy is None else nbytes / (2 * copy.rate)
        share = None if floor is None else floor / seconds
        self.report.figures.append(Figure(part, name, values, seconds, values / seconds, share))

    def _compile(self) -> None:
        begun = time.perf_counter()
        self._gpu.warm_up()
        self.report.compile_seconds = time.perf_counter() - begun
        self._cpu.warm_up()

    def _compare(self) -> None:
        self._gpu.verify()
        values = draw(self._sizes.small)
        for dtype in DTYPES:
            x = np.minimum(values, 1e4).astype(dtype)
            for options in self._cases():
                ours, theirs = (one.quantize(x, options, None) for one in (self._gpu, self._cpu))
                same = [
                    ours.codes.tobytes() == theirs.codes.tobytes(),
                    ours.levels.tobytes() == theirs.levels.tobytes(),
                    ours.vnmse == theirs.vnmse,
                    self._gpu.dequantize(theirs).tobytes()
                    == self._cpu.dequantize(theirs).tobytes(),
                ]
                self.report.bits_compared += len(same)
                if not all(same):
                    name = f"{dtype}, {options.method}, {options.bits} bits, {options.block_size}"
                    self.report.wrong.append(name)

    def _cases(self) -> Iterable[QuantizeOptions]:
        for bits in (1, 4, 8):
            for method in METHODS:
                yield QuantizeOptions.create(bits=bits, method=method, seed=1)
        yield QuantizeOptions.create(bits=4, method="approx", block_size=1000, seed=1)

    def _copies(self) -> None:
        nbytes = self._sizes.copied
        source, target = self._device.allocate(nbytes), self._device.allocate(nbytes)
        copy = lambda: self._device.copy(source, target)  # noqa: E731
        copy()
        seconds = statistics.median(self._device.seconds_of(copy) for _ in range(3))
        self._add("bus", "copy on the card", nbytes, seconds)
        pinned = self._device.pinned(nbytes)
        for kind, host in (("pageable", np.zeros(nbytes, np.uint8)), ("pinned", pinned)):

            def up(host: np.ndarray[Any, np.dtype[np.uint8]] = host) -> None:
                self._device.fill(target, host)
                self._device.finish()

            def down(host: np.ndarray[Any, np.dtype[np.uint8]] = host) -> None:
                self._device.download(target, host)

            self._add("bus", f"to the card, {kind}", nbytes, self._wall(up))
            self._add("bus", f"from the card, {kind}", nbytes, self._wall(down))

    def _kernels(self) -> None:
        n = self._sizes.large
        x = Resident(self._device, draw(n)).lent()
        for bits in range(1, 9):
            options = QuantizeOptions.create(bits=bits, method="uniform", seed=1)
            self._if_time(f"encode, {bits} bits", lambda o=options: self._passes(x, o))
        for method in ("approx", "exact"):
            options = QuantizeOptions.create(bits=4, method=method, seed=1)
            self._if_time(f"kernels of {method}", lambda o=options: self._passes(x, o))
        options = QuantizeOptions.create(bits=4, method="uniform", seed=1)
        q = self._gpu.quantize(x, options, None)
        launches = self._recorder.record(lambda: self._gpu.dequantize(q))
        seconds = self._kernel_time(launches)
        self._add("kernel", "decode, 4 bits", n, seconds, 4.5 * n)

    def _passes(self, x: Any, options: QuantizeOptions) -> None:
        """Times of the kernels of one call, by module; none is told twice."""
        n, bits = self._sizes.large, options.bits
        launches = self._recorder.record(lambda: self._gpu.quantize(x, options, None))
        by_module: dict[str, list[Any]] = {}
        for launch in launches:
            by_module.setdefault(launch.module, []).append(launch)
        for module, found in by_module.items():
            name = f"encode, {bits} bits" if module == "encode" else module
            if module not in BYTES:
                name = f"{module}, {options.method}"
            if self.report.of("kernel", name) is not None:
                continue
            seconds = self._kernel_time(found)
            coded = bits / 8 if module in CODED else 0.0
            nbytes = None if module not in BYTES else (BYTES[module] + coded) * n
            self._add("kernel", name, n, seconds, nbytes)

    def _whole(self) -> None:
        for n in self._sizes.whole:
            for method in METHODS:
                self._if_time(f"{method}, {size(n)}", lambda n=n, m=method: self._calls(n, m))

    def _calls(self, n: int, method: str) -> None:
        options = QuantizeOptions.create(bits=4, method=method, seed=1)
        host = draw(n)
        x = Resident(self._device, host).lent()
        # Range, levels (of approx one pass more, of exact at least), codes.
        nbytes = {"uniform": 8.5, "approx": 12.5, "exact": 12.5}[method] * n
        seconds = self._wall(lambda: self._gpu.quantize(x, options, None))
        self._add("whole", f"{method}, on the card", n, seconds, nbytes)
        seconds = self._wall(lambda: self._gpu.quantize(host, options, None))
        self._add("whole", f"{method}, from the host", n, seconds)
        if n <= 1 << 22:
            seconds = self._wall(lambda: self._cpu.quantize(host, options, None))
            self._add("whole", f"{method}, CPU, one thread", n, seconds)

    def _levels(self) -> None:
        for n in (self._sizes.small, self._sizes.exact):
            x = Resident(self._device, draw(n)).lent()
            for method in ("approx", "exact"):
                options = QuantizeOptions.create(bits=4, method=method)
                seconds = self._wall(lambda x=x, o=options: self._gpu.solve_levels(x, o, None))
                self._add("levels", method, n, seconds)
            buffer = self._device.upload(draw(n))
            sort = functools.partial(self._device.sort, buffer, np.dtype(np.uint32))
            self._add("levels", "sort", n, self._device.seconds_of(sort), 8 * n)

    def _batch(self) -> None:
        rows, columns = self._sizes.rows, self._sizes.columns
        x = Resident(self._device, draw(rows * columns)).lent()
        for method, grid in (("uniform", "robust"), ("approx", "uniform"), ("exact", "robust")):
            options = QuantizeOptions.create(
                bits=4, method=method, grid=grid, block_size=columns, seed=1
            )
            name = f"{rows:,} rows of {columns:,}, {method}"
            launches = self._recorder.record(lambda o=options: self._gpu.quantize(x, o, None))
            self._add("batch", f"{name}, kernels", rows * columns, self._kernel_time(launches))
            seconds = self._wall(lambda o=options: self._gpu.quantize(x, o, None))
            self._add("batch", f"{name}, whole", rows * columns, seconds)

    def _kernel_time(self, launches: list[Any]) -> float:
        return kernel_seconds(self._device, launches, self._sizes.rounds)

    def _wall(self, call: Callable[[], object]) -> float:
        return wall(call, self._sizes.rounds)

    def _mean(self) -> None:
        n, count = self._sizes.small, self._sizes.vectors
        q = self._cpu.quantize(draw(n), QuantizeOptions.create(bits=4, method="uniform"), None)
        launches = self._recorder.record(lambda: self._gpu.aggregate([q] * count, None))
        name = f"mean of {count}"
        nbytes = (count * 0.5 + 8) * n
        self._add("kernel", name, count * n, self._kernel_time(launches), nbytes)
        seconds = self._wall(lambda: self._gpu.aggregate([q] * count, None))
        self._add("whole", name, count * n, seconds)

    def _launches(self) -> None:
        one = np.ones(1, np.float32)
        x = Resident(self._device, one).lent()
        options = QuantizeOptions.create(bits=1, method="uniform", seed=1)
        found = self._recorder.record(lambda: self._gpu.quantize(x, options, None))
        again = [found[0]] * self._sizes.launches
        seconds = self._kernel_time(again) / len(again)
        self._add("other", "launch, in a row", 1, seconds)
        self._add(
            "other",
            "quantize of one value",
            1,
            self._wall(lambda: self._gpu.quantize(x, options, None)),
        )

    def _costs(self) -> None:
        watch = Stopwatch(sizes=self._sizes.calibration, repeats=self._sizes.rounds)
        self.report.costs = calibrate(self._cpu, self._gpu, self._device, watch).describe()


def wall(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, by the host's clock, after one that does not count."""
    call()
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def targets(report: Report, sizes: Sizes) -> list[tuple[str, str, str, bool | None]]:
    """What was aimed at, as (target, limit, found, met); None where nothing was found."""
    rows: list[tuple[str, str, str, bool | None]] = []

    def check(name: str, limit: str, value: float | None, met: Callable[[float], bool]) -> None:
        text = "-" if value is None else figure(value)
        rows.append((name, limit, text, None if value is None else met(value)))

    def get(part: str, name: str, what: str, values: int | None = None) -> float | None:
        found = report.of(part, name, values)
        return None if found is None else getattr(found, what)

    n = sizes.large
    check(
        f"quantize, approx, on the card, {size(n)}: share of the floor of 12.5 bytes a value",
        ">= 0.6",
        get("whole", "approx, on the card", "share", n),
        lambda v: v >= 0.6,
    )
    check(
        "encode, 4 bits: values/s",
        ">= 6e11",
        get("kernel", "encode, 4 bits", "rate"),
        lambda v: v >= 6e11,
    )
    check(
        "decode, 4 bits: share of the floor",
        ">= 0.8",
        get("kernel", "decode, 4 bits", "share"),
        lambda v: v >= 0.8,
    )
    check(
        f"levels, approx, {size(sizes.small)}: us",
        "< 100",
        scaled(get("levels", "approx", "seconds", sizes.small), 1e6),
        lambda v: v < 100,
    )
    batch = f"{sizes.rows:,} rows of {sizes.columns:,}, approx, kernels"
    check(f"{batch}: ms", "< 1", scaled(get("batch", batch, "seconds"), 1e3), lambda v: v < 1)
    exact, approx = (
        get("levels", method, "seconds", sizes.exact) for method in ("exact", "approx")
    )
    ratio = None if exact is None or approx is None else exact / approx
    check(f"levels, exact over approx, {size(sizes.exact)}", "<= 3", ratio, lambda v: v <= 3)
    bus = get("bus", "to the card, pinned", "rate")
    host = get("whole", "uniform, from the host", "rate", sizes.whole[-1])
    share = None if bus is None or host is None else 4.0 * host / bus
    check(
        "quantize, uniform, from the host: share of the bus (pinned)",
        ">= 0.8",
        share,
        lambda v: v >= 0.8,
    )
    return rows


def scaled(value: float | None, factor: float) -> float | None:
    """A value in another unit."""
    return None if value is None else factor * value


def as_markdown(report: Report, sizes: Sizes) -> str:
    """The tables."""
    found = targets(report, sizes)
    words = {True: "yes", False: "**no**", None: "not measured"}
    lines = [
        f"{report.card}; kernels compiled and warm in {report.compile_seconds:.1f} s; "
        f"{report.bits_compared} comparisons with the CPU's bits, {len(report.wrong)} differ.",
        table(("target", "limit", "found", "met"), [(*row[:3], words[row[3]]) for row in found]),
        table(
            ("part", "what", "values", "ms", "a second", "share"),
            [
                (
                    one.part,
                    one.name,
                    size(one.values),
                    figure(1e3 * one.seconds),
                    figure(one.rate),
                    "" if one.share is None else f"{one.share:.0%}",
                )
                for one in report.figures
            ],
            left=2,
        ),
    ]
    if report.costs:
        lines.append(_costs_table(report.costs))
    if report.left_out:
        lines.append(f"No time was left for: {', '.join(report.left_out)}.")
    if report.wrong:
        lines.append(f"**Other bits than the CPU's:** {'; '.join(report.wrong)}.")
    return "\n\n".join(lines)


def _costs_table(costs: dict[str, Any]) -> str:
    rows = [
        (
            row["operation"],
            str(row["itemsize"]),
            str(row["cpu"]["ns_per_value"]),
            str(row["gpu"]["fixed_us"]),
            str(row["gpu"]["ns_per_value"]),
            "never" if row["break_even"] is None else f"{row['break_even']:,}",
        )
        for row in costs["costs"]
    ]
    head = (
        "operation",
        "bytes a value",
        "CPU, ns a value",
        "GPU, us a call",
        "GPU, ns a value",
        "break-even, values in host memory",
    )
    return table(head, rows)


def measure(device: Device, sizes: Sizes) -> tuple[str, dict[str, Any], bool]:
    """Markdown, what goes into the JSON file, and whether all bits were right."""
    report = Bench(device, sizes).run()
    content = {
        **asdict(report),
        "sizes": asdict(sizes),
        "targets": [
            {"target": name, "limit": limit, "found": found, "met": met}
            for name, limit, found, met in targets(report, sizes)
        ],
    }
    return as_markdown(report, sizes), content, not report.wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit code is 1 without a GPU or with wrong bits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args(arguments)
    try:
        device = open_device()
    except qk.BackendUnavailable as error:
        sys.stderr.write(f"benchmarks/gpu.py needs a GPU: {error.detail}\n")
        return 1
    printed, content, right = measure(device, QUICK if options.quick else Sizes())
    sys.stdout.write(printed + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
