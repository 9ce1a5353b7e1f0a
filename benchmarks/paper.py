"""The figures of the QUIVER paper: time and error against d, s and m, for five distributions.

Time is that of choosing the levels, on one thread. As in the paper the other methods get the
vector sorted (float64), and sorting is not counted; building prefix sums is. Ours get it
unsorted (float32), and everything is counted: checks, sorting, curve and search. "ours,
approx" has as many cells as Apx. QUIVER. vNMSE is the expected error of stochastic rounding
over the squared norm, computed from data and levels, not sampled. Figures are means over
seeds: five up to 2^16 values, three up to 2^20, one beyond.

A call of another method that is expected to take longer than the limit is left out and marked
"-". The other methods are this folder's own versions (baselines/), written from the papers; the
authors' program is not part of this repository.

Run ``python benchmarks/paper.py``; it prints Markdown and writes pictures to ``--images``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from baselines import alq, approx, candidates, merging, quiver, uniform, zipml
from baselines import curve as curves
from common import plots, sources
from common.tables import figure, size, table
from numpy.typing import NDArray

import quiver_kernels as qk

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A vector's length, number of levels and cells of a grid."""

    d: int
    s: int
    m: int


@dataclass(frozen=True)
class Method:
    """How levels are chosen.

    Attributes
    ----------
    choose
        From the unsorted float32 vector, the sorted float64 one and the case.
    power
        Time grows like d to this.
    gridded
        Whether m matters.
    """

    choose: Callable[[sources.Vector, Floats, Case], NDArray[Any]]
    power: float = 1.0
    gridded: bool = False


def _exact(path: Callable[..., Any]) -> Callable[[sources.Vector, Floats, Case], NDArray[Any]]:
    def choose(_: sources.Vector, values: Floats, case: Case) -> NDArray[Any]:
        curve = curves.of_sorted(values)
        return curve.values(path(curve, case.s))

    return choose


METHODS: dict[str, Method] = {
    "ours, exact": Method(lambda x, _, c: qk.optimal_levels(x, c.s)),
    "ours, approx": Method(
        lambda x, _, c: qk.optimal_levels(x, c.s, "approx", bins=c.m), gridded=True
    ),
    "ZipML": Method(_exact(zipml.path), 2.0),
    "QUIVER": Method(_exact(quiver.path)),
    "Accelerated QUIVER": Method(_exact(quiver.accelerated_path)),
    "Apx. QUIVER": Method(lambda _, v, c: approx.levels(v, c.s, c.m), gridded=True),
    "ZipML-CP uniform": Method(lambda _, v, c: candidates.uniform(v, c.s, c.m), gridded=True),
    "ZipML-CP quantile": Method(lambda _, v, c: candidates.quantiles(v, c.s, c.m), gridded=True),
    "ZipML 2-Apx": Method(lambda _, v, c: merging.levels(v, c.s)),
    "ALQ": Method(lambda _, v, c: alq.levels(v, c.s)),
    "uniform": Method(lambda _, v, c: uniform.levels(v, c.s)),
}
OURS = ("ours, exact", "ours, approx")
EXACT = ("ours, exact", "ours, approx", "Accelerated QUIVER", "QUIVER", "ZipML")
APPROXIMATE = (
    "ours, exact",
    "ours, approx",
    "Apx. QUIVER",
    "ZipML-CP uniform",
    "ZipML-CP quantile",
    "ZipML 2-Apx",
    "ALQ",
    "uniform",
)


@dataclass(frozen=True)
class Sweep:
    """One panel: cases along one axis."""

    title: str
    axis: str
    methods: tuple[str, ...]
    cases: tuple[Case, ...]
    group: str

    def place(self, case: Case) -> int:
        return int(getattr(case, self.axis))


def sweeps(*, quick: bool) -> tuple[Sweep, ...]:
    """The panels of the paper."""
    lengths = [1 << e for e in ((6, 8) if quick else range(12, 25, 2))]
    short, middle, long = (32, 64, 128) if quick else (1 << 12, 1 << 16, 1 << 22)
    counts = (4, 8) if quick else (4, 8, 16, 32, 64)
    cells = (20, 40) if quick else (100, 200, 400, 600, 800, 1000)
    few, many, coarse = (8, 8, 20) if quick else (16, 32, 400)

    def along_d(s: int) -> tuple[Case, ...]:
        return tuple(Case(d, s, coarse) for d in lengths)

    def along_s(d: int, m: int) -> tuple[Case, ...]:
        return tuple(Case(d, s, m) for s in counts)

    along_m = tuple(Case(long, many, m) for m in cells)
    exact, rough = "exact", "approximate"
    return (
        Sweep("exact, s=4", "d", EXACT, along_d(4), exact),
        Sweep(f"exact, s={few}", "d", EXACT, along_d(few), exact),
        Sweep(f"exact, d={size(short)}", "s", EXACT, along_s(short, coarse), exact),
        Sweep(f"exact, d={size(middle)}", "s", EXACT, along_s(middle, coarse), exact),
        Sweep(f"approximate, s={few}, m={coarse}", "d", APPROXIMATE, along_d(few), rough),
        Sweep(
            f"approximate, d={size(long)}, m={cells[-1]}",
            "s",
            APPROXIMATE,
            along_s(long, cells[-1]),
            rough,
        ),
        Sweep(f"approximate, d={size(long)}, s={many}", "m", APPROXIMATE, along_m, rough),
    )


@dataclass
class Measured:
    """Figures of one method on one case, a value for each seed."""

    milliseconds: list[float] = field(default_factory=list)
    vnmse: list[float] = field(default_factory=list)


Results = dict[tuple[str, Case], Measured]


def key_of(method: str, case: Case) -> tuple[str, Case]:
    """Where the figures of a method on a case are: one place for all m that do not matter."""
    return method, case if METHODS[method].gridded else Case(case.d, case.s, 0)


def seeds(d: int) -> int:
    """How many vectors of a length are measured."""
    return 5 if d <= 1 << 16 else 3 if d <= 1 << 20 else 1


def measure(name: str, panels: Sequence[Sweep], limit: float) -> Results:
    """Every case of the panels on one distribution; what would take too long is left out."""
    wanted = {
        key_of(method, case): None
        for sweep in panels
        for case in sweep.cases
        for method in sweep.methods
    }
    results: Results = {}
    for d in sorted({case.d for _, case in wanted}):
        todo = [key for key in wanted if key[1].d == d]
        for seed in range(seeds(d)):
            x = sources.draw(name, d, seed)
            values = sources.ascending(x)
            for method, case in sorted(todo, key=lambda key: (key[0], key[1].s, key[1].m)):
                late = method not in OURS and _expected(results, method, case) > limit
                if seed == 0 and late:
                    continue
                if seed > 0 and (method, case) not in results:
                    continue
                seconds, levels = _timed(method, x, values, case)
                found = results.setdefault((method, case), Measured())
                found.milliseconds.append(1000 * seconds)
                found.vnmse.append(curves.vnmse(values, levels))
    return results


def _expected(results: Results, method: str, case: Case) -> float:
    """Seconds that a call should take, from the nearest shorter vector that was measured.

    Nothing is known of the shortest one. Where the shorter one was left out, so is this.
    """
    known = [
        (other.s == case.s, other.d, -abs(other.s - case.s), other, found)
        for (name, other), found in results.items()
        if name == method and other.d <= case.d
    ]
    if not known:
        return 0.0
    *_, other, found = max(known, key=lambda one: one[:3])
    grown = (case.d / other.d) ** METHODS[method].power * max(case.s / other.s, 1.0)
    return 1e-3 * min(found.milliseconds) * grown


def _timed(
    method: str, x: sources.Vector, values: Floats, case: Case
) -> tuple[float, NDArray[Any]]:
    """Best of three calls where they are short: the data are the same, and noise only adds."""
    choose = METHODS[method].choose
    least = np.inf
    for _ in range(3):
        begun = time.perf_counter()
        levels = choose(x, values, case)
        seconds = time.perf_counter() - begun
        least = min(least, seconds)
        if seconds > 0.05:
            break
    return least, levels


def warm_up(panels: Sequence[Sweep], *, quick: bool) -> None:
    """Compile everything, on short vectors; ours on a longer one too, which takes other ways."""
    x = sources.draw("Normal(0, 1)", 300)
    for method in {name for sweep in panels for name in sweep.methods}:
        for s in (4, 5, 16):
            METHODS[method].choose(x, sources.ascending(x), Case(x.size, s, 100))
    for d in () if quick else (5000, 1 << 17, (1 << 22) + 1):
        x = sources.draw("Normal(0, 1)", d)
        for method in OURS:
            METHODS[method].choose(x, np.empty(0), Case(d, 16, 400))


def panel_of(sweep: Sweep, results: Results) -> plots.Panel:
    """A sweep as lines of a picture."""
    lines = {
        method: [
            (
                sweep.place(case),
                statistics.mean(found.milliseconds),
                statistics.mean(found.vnmse),
            )
            for case in sweep.cases
            if (found := results.get(key_of(method, case))) is not None
        ]
        for method in sweep.methods
    }
    return plots.Panel(sweep.title, sweep.axis, sweep.axis != "m", lines)


def tables(sweep: Sweep, results: Results) -> str:
    """A sweep as a table: milliseconds and vNMSE in each cell."""
    named = size if sweep.axis == "d" else str
    head = [sweep.title, *(f"{sweep.axis}={named(sweep.place(case))}" for case in sweep.cases)]
    rows = []
    for method in sweep.methods:
        cells = []
        for case in sweep.cases:
            found = results.get(key_of(method, case))
            cells.append(
                "-"
                if found is None
                else f"{figure(statistics.mean(found.milliseconds))} / "
                f"{figure(statistics.mean(found.vnmse), 4)}"
            )
        rows.append([method, *cells])
    return table(head, rows)


def report(
    found: dict[str, Results], panels: Sequence[Sweep], images: Path, limit: float
) -> Iterator[str]:
    """The Markdown; writes the pictures on the way."""
    yield (
        "Time in milliseconds / vNMSE; ours with sorting, the others without (see the head of "
        f'`benchmarks/paper.py`). "-": a call would take longer than {limit:g} s.'
    )
    for name, results in found.items():
        yield f"### {name}"
        for group in dict.fromkeys(sweep.group for sweep in panels):
            chosen = [sweep for sweep in panels if sweep.group == group]
            word = "".join(c for c in name.partition("(")[0].lower() if c.isalnum())
            file = images / f"paper-{word}-{group}.png"
            title = f"{name}: {group} methods"
            plots.draw(file, title, [panel_of(sweep, results) for sweep in chosen])
            yield f"![{title}: time and vNMSE](images/{file.name})"
        yield f"<details><summary>{name}: the figures as tables</summary>"
        for sweep in panels:
            yield tables(sweep, results)
        yield "</details>"


def as_json(found: dict[str, Results]) -> list[dict[str, Any]]:
    """One record for each method and case."""
    return [
        {
            "data": name,
            "method": method,
            "d": case.d,
            "s": case.s,
            "m": case.m,
            "milliseconds": statistics.mean(measured.milliseconds),
            "vnmse": statistics.mean(measured.vnmse),
            "seeds": len(measured.vnmse),
        }
        for name, results in found.items()
        for (method, case), measured in results.items()
    ]


def main() -> None:
    """Measure, draw, print Markdown, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description="Reproduce the figures of the QUIVER paper.")
    parser.add_argument("--only", nargs="+", choices=sources.DISTRIBUTIONS, help="some data only")
    parser.add_argument("--limit", type=float, default=1.2, help="seconds of a call, expected")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a test of this file")
    parser.add_argument(
        "--images", type=Path, default=Path("out/images"), help="folder of pictures"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    panels = sweeps(quick=options.quick)
    warm_up(panels, quick=options.quick)
    found = {}
    for name in options.only or sources.DISTRIBUTIONS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = measure(name, panels, options.limit)
    print("\n\n".join(report(found, panels, options.images, options.limit)))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
