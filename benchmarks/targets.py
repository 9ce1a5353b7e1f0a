"""What the kernels are to achieve, and what they do: one row per target.

Both sides of a row are measured in the same run, in turns, as medians of one thread; data are
LogNormal(0, 1), float32, unsorted, unless a row says otherwise. "Accelerated QUIVER" is this
folder's own version of the published algorithm (baselines/quiver.py): the authors' program is
not part of this repository.

What is missed or nearly so, and why:

- *Levels within 2x of a sort, s = 16* (b). Sorting is about half of the time; the rest goes to
  reading the range, summing cells and the search. Counting into cells instead of sorting pays
  for longer vectors only. Other numbers of cells, parts and nodes made no difference that can
  be told from noise.
- *Quantize approx within 12x of a copy* (e) and *0.6 G values/s of encoding* (f). No stage of
  encoding stands out: random words, finding the interval with its levels and reciprocal,
  rounding, the expected error, packing. LLVM emits no gathers for look-ups, so up to 16 levels
  are compared with 16 values at once; packed pairs of levels and a run-time loop of rounds were
  slower. The error is a part of every message, so it cannot be left out.
- *3 s for import and first quantize without kernels on disk* (i). Nearly all of it is Numba
  compiling, most of that its type inference. Kernels are kept on disk by default.
- *Time per value* (j) falls with the length, but one more pass over the values may be needed
  from one length to the next.

Run ``python benchmarks/targets.py``; ``--only a b`` for some groups, ``--quick`` for small
sizes (which nobody judges). It prints Markdown.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from baselines import curve as curves
from baselines import quiver
from common import ours, sources
from common.tables import figure, size, table
from common.timing import take_turns

import quiver_kernels as qk

HERE = Path(__file__).parent
# An interpreter with the other quantizers; `make bench-peers` makes it.
PEERS = HERE.parent / ".venv" / "bench" / "bin" / "python"
# Two optimal tables may differ by ties and rounding, and ours are rounded to float32.
SAME = 1e-6


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes
    ----------
    ours, other
        Both sides; `other` is None where the target is a figure by itself.
    unit
        Of both sides.
    ratio
        What the target is about; for a figure by itself that figure.
    limit, at_least
        The target, and whether it is a lower limit; None: for information.
    """

    target: str
    what: str
    ours: float
    other_name: str
    other: float | None
    unit: str
    ratio: float
    limit: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.limit is None:
            return None
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


@dataclass(frozen=True)
class Scale:
    """How much is measured: exponents of sizes are lowered by `less`, rounds end sooner."""

    less: int = 0
    seconds: float = 4.0

    @property
    def quick(self) -> bool:
        return self.less > 0

    def size(self, exponent: int) -> int:
        return 1 << (exponent - self.less)


def solving(scale: Scale) -> Iterator[Row]:
    """a. Exact levels against Accelerated QUIVER: the solve alone, and all of it."""
    d = scale.size(20)
    x = sources.draw("LogNormal(0, 1)", d)
    values = sources.ascending(x)
    points, prepared = ours.prepare(values)
    curve = curves.of_sorted(values)
    # Compiles everything once: the slow ones need no round that does not count.
    _sort_and_solve(x[:1024], 4)
    quiver.accelerated_path(curves.of_sorted(values[:1024]), 4, every_row=True)
    for num_levels, limit in ((4, 300.0), (16, 60.0), (64, 15.0)):
        qk.optimal_levels(x, num_levels)
        mine = points[ours.solve(prepared, num_levels)]
        theirs = curve.values(quiver.accelerated_path(curve, num_levels))
        check_equal(curves.vnmse(values, mine), curves.vnmse(values, theirs))
        took = take_turns(
            {
                "ours": lambda s=num_levels: ours.solve(prepared, s),
                "published": lambda s=num_levels: quiver.accelerated_path(curve, s, every_row=True),
                "trimmed": lambda s=num_levels: quiver.accelerated_path(curve, s),
                "ours, all": lambda s=num_levels: qk.optimal_levels(x, s),
                "theirs, all": lambda s=num_levels: _sort_and_solve(x, s),
            },
            scale.seconds,
            warm=True,
        )
        what = f"solve, sorted float64, {size(d)}, s={num_levels}; sort and prefix sums excluded"
        name = "Accelerated QUIVER, as published"
        yield _faster("a", what, took["ours"], name, took["published"], limit)
        name = "the same without the last layer's unused rows"
        yield _faster("a", what, took["ours"], name, took["trimmed"], None)
        what = f"all of it, unsorted float32, {size(d)}, s={num_levels}"
        name = "np.sort, prefix sums, Accelerated QUIVER"
        yield _faster("a", what, took["ours, all"], name, took["theirs, all"], None)


def _sort_and_solve(x: sources.Vector, num_levels: int) -> Any:
    curve = curves.of_sorted(sources.ascending(x))
    return curve.values(quiver.accelerated_path(curve, num_levels))


def sorting(scale: Scale) -> Iterator[Row]:
    """b. Exact levels from unsorted data, in sorts of the same vector."""
    x = sources.draw("LogNormal(0, 1)", scale.size(20))
    yield from _against_sort("b", "LogNormal(0, 1)", x, {16: 2.0, 64: 8.0, 256: 60.0}, scale)


def hard(scale: Scale) -> Iterator[Row]:
    """c. The same for data that is hard on solvers."""
    for name in sources.HARD:
        x = sources.draw(name, scale.size(20))
        yield from _against_sort("c", name, x, {16: 4.0}, scale)


def _against_sort(
    target: str, name: str, x: sources.Vector, limits: dict[int, float], scale: Scale
) -> Iterator[Row]:
    operations: dict[str, Callable[[], object]] = {"np.sort": lambda: np.sort(x)}
    for num_levels in limits:
        operations[str(num_levels)] = functools.partial(qk.optimal_levels, x, num_levels)
    took = take_turns(operations, scale.seconds)
    for num_levels, limit in limits.items():
        what = f"exact levels, {name}, {size(x.size)}, s={num_levels}"
        yield _longer(target, what, took[str(num_levels)], "np.sort", took["np.sort"], limit)


def large(scale: Scale) -> Iterator[Row]:
    """d, e. Whole quantizations of a long vector: exact over approx, approx over a copy."""
    x = sources.draw("LogNormal(0, 1)", scale.size(24))
    target = np.empty_like(x)
    took = take_turns(
        {
            "copy": lambda: np.copyto(target, x),
            "approx": lambda: qk.quantize(x, 4, "approx", seed=1),
            "exact": lambda: qk.quantize(x, 4, "exact", seed=1),
        },
        2 * scale.seconds,
    )
    what = f"quantize exact, {size(x.size)}, 4 bits"
    yield _longer("d", what, took["exact"], "quantize approx, m=1024", took["approx"], 2.0)
    what = f"quantize approx, {size(x.size)}, 4 bits"
    yield _longer("e", what, took["approx"], "copy of the vector", took["copy"], 12.0)


def encoding(scale: Scale) -> Iterator[Row]:
    """f. Rounding and packing alone, by itself and against other unbiased quantizers."""
    x = sources.draw("LogNormal(0, 1)", scale.size(24))

    def encode() -> float:
        return qk.quantize(x, 4, "approx", seed=1).timings_ms["encode"] / 1000

    took = take_turns({"encode": encode}, scale.seconds, timed=True)
    speed = x.size / took["encode"] / 1e9
    what = f"encode, {size(x.size)}, 4 bits, levels of approx"
    yield Row("f", what, speed, "", None, "G values/s", speed, 0.6, at_least=True)
    found = _peers_encoding(scale)
    if found:
        d = size(int(found["size"]))
        yield _faster("f", f"encode, {d}, 4 bits", found["ours"], found["name"], found["peer"], 2.0)
    else:
        name = "unbiased peers: not installed (make bench-peers)"
        yield Row("f", what, speed, name, None, "G values/s", speed)


def _peers_encoding(scale: Scale) -> dict[str, Any] | None:
    if scale.quick or not PEERS.exists():
        return None
    command = [PEERS, HERE / "peers.py", "--encoding"]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "kernels")}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    return json.loads(done.stdout)


def blocks(scale: Scale) -> Iterator[Row]:
    """g. Many short vectors in one call."""
    count, length = (10_000, 4096) if not scale.quick else (20, 512)
    x = sources.draw("LogNormal(0, 1)", count * length)
    took = take_turns(
        {"ours": lambda: qk.quantize(x, 4, "exact", seed=1, block_size=length)},
        scale.seconds,
        least_rounds=1,
    )
    each = 1000 * took["ours"] / count
    what = f"quantize exact, {count:,} vectors of {length:,} values in one call, 4 bits, each"
    yield Row("g", what, each, "", None, "ms", each, 1.5)


MEMORY = """
import ctypes
import sys
import numpy as np
import quiver_kernels as qk

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

size = int(sys.argv[1])
rng = np.random.default_rng(42)
warm = qk.quantize(rng.lognormal(size=1 << 16).astype(np.float32), 4, seed=1)
x = np.empty(size, np.float32)
step = min(size, 1 << 20)
for start in range(0, size, step):
    x[start : start + step] = rng.lognormal(size=step)
if size > 1 << 22:
    qk.quantize(x[: (1 << 22) + 1], 4, seed=1)  # compile the streamed solver, too
ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not pass for memory of this call
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = status("VmRSS")
q = qk.quantize(x, 4, seed=1)
print(status("VmHWM") - before - q.codes.nbytes)
"""


def memory(scale: Scale) -> Iterator[Row]:
    """h. Memory beyond input and output while a long vector is quantized exactly."""
    d = scale.size(26)
    try:
        extra = int(_fresh(MEMORY, str(d)))
    except subprocess.CalledProcessError:
        return
    what = f"peak memory beyond input and output, quantize exact, {size(d)}, 4 bits"
    mib = 1 << 20
    yield Row("h", what, extra / mib, "the vector", 4 * d / mib, "MiB", extra / (4 * d), 0.3)


FIRST = """
import time
begun = time.perf_counter()
import numpy as np
import quiver_kernels as qk
qk.quantize(np.random.default_rng(0).lognormal(size=10_000).astype(np.float32), 4, seed=1)
print(time.perf_counter() - begun)
"""


def first_call(scale: Scale) -> Iterator[Row]:
    """i. Import and first quantize in a fresh process, without compiled kernels and with them."""
    what = "import and first quantize (exact, 10,000 values, 4 bits), fresh process"
    with tempfile.TemporaryDirectory() as folder:
        # Numba then looks for kernels here and nowhere else.
        environment = {} if scale.quick else {"NUMBA_CACHE_DIR": folder}
        cold = float(_fresh(FIRST, **environment))
        warm = float(_fresh(FIRST, **environment))
    if not scale.quick:
        yield Row("i", f"{what}, no kernels on disk", cold, "", None, "s", cold, 3.0)
    yield Row("i", f"{what}, kernels on disk", warm, "", None, "s", warm, 3.0)


def _fresh(code: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | environment, check=True
    )
    return done.stdout


def growth(scale: Scale) -> Iterator[Row]:
    """j. Time per value of one exact quantization, from short to long vectors."""
    exponents = (16, 18, 20, 22, 24, 26)
    first = None
    for exponent in exponents:
        x = sources.draw("LogNormal(0, 1)", scale.size(exponent))
        took = take_turns(
            {"ours": lambda x=x: qk.quantize(x, 4, seed=1)},
            scale.seconds / 2,
            least_rounds=1 if exponent > 24 else 3,
        )
        each = 1e9 * took["ours"] / x.size
        what = f"quantize exact, {size(x.size)}, 4 bits, time per value"
        if first is None:
            first = each
            yield Row("j", what, each, "", None, "ns", each)
        else:
            yield Row("j", what, each, "the shortest, per value", first, "ns", each / first, 1.0)


GROUPS = {
    "a": solving,
    "b": sorting,
    "c": hard,
    "d": large,
    "f": encoding,
    "g": blocks,
    "h": memory,
    "i": first_call,
    "j": growth,
}


def _faster(
    target: str, what: str, mine: float, name: str, other: float, limit: float | None
) -> Row:
    return Row(
        target, what, 1e3 * mine, name, 1e3 * other, "ms", other / mine, limit, at_least=True
    )


def _longer(
    target: str, what: str, mine: float, name: str, other: float, limit: float | None
) -> Row:
    return Row(target, what, 1e3 * mine, name, 1e3 * other, "ms", mine / other, limit)


def check_equal(mine: float, theirs: float) -> None:
    """Both sides must have solved the same problem."""
    if abs(mine - theirs) > SAME * theirs:
        raise RuntimeError(f"the errors differ: ours {mine!r}, theirs {theirs!r}")


def as_markdown(rows: list[Row], *, judged: bool = True) -> str:
    """One table."""
    lines = []
    for row in rows:
        other = "" if row.other is None else f"{figure(row.other)} {row.unit}"
        sign = "≥" if row.at_least else "≤"
        own = row.other is None
        ratio = "" if own else f"{figure(row.ratio)}x"
        limit = f"{sign} {row.limit:g}" + (f" {row.unit}" if own else "x") if row.limit else ""
        met = {None: "", True: "yes", False: "**no**"}[row.met if judged else None]
        mine = f"{figure(row.ours)} {row.unit}"
        lines.append([row.target, row.what, row.other_name, mine, other, ratio, limit, met])
    head = ["", "what", "compared with", "ours", "other", "ratio", "target", "met"]
    return table(head, lines, left=3)


def main() -> None:
    """Measure, print Markdown, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description="Measure what the kernels are to achieve.")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="some groups; d includes e")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a test of this file")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    scale = Scale(less=10, seconds=0.0) if options.quick else Scale()
    rows: list[Row] = []
    for name in options.only or GROUPS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += GROUPS[name](scale)
    if options.json is not None:
        found = [asdict(row) | {"met": row.met} for row in rows]
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(as_markdown(rows, judged=not options.quick))


if __name__ == "__main__":
    main()
