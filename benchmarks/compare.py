"""Every quantizer of the registry side by side: bits, error, bias and time.

For each vector, each scheme is tried with every number of levels that it takes among a few, and
with blocks of 64 and 1,024 values and none; the table has, for each scheme, what comes nearest to
4 bits per value, and of block sizes the one nearest to the rate-distortion bound of normal values.

- bits per value: all that travels but the head of the message: codes, tables, scales.
- vNMSE: squared error of one decode over the squared norm.
- gap: decibels above the least error that any quantizer of normal values can have at these bits,
  6.02 R + 10 log10 vNMSE. Heavy tails and real data may lie below 0: they are easier.
- left after 16: error of the mean of 16 decodes over that of one. What is unbiased and independent
  leaves 1/16 = 6.2 %; deterministic rounding leaves all of it.

Other packages stand beside them, as far as they are installed: `peers`, and nncodec in an
environment of its own (``--nncodec-python``).

Run ``python benchmarks/compare.py``; it prints Markdown. ``--write`` puts it into docs/schemes.md,
``--registry`` only what the registry declares, without measuring.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common.tables import figure, size, table
from common.timing import take_turns
from nncodec_peer import Peer
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes import described

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "schemes.md"
FIGURES = ROOT / "docs" / "schemes.json"
PICTURE = "images/schemes.png"

LEVELS = (2, 3, 4, 8, 16, 32, 64, 128, 256)
BLOCKS = (None, 1024, 64)
REPEATS = 16
# More is not looked at.
MOST_BITS = 12.0
# From about 6 bits of a normal value down to half a bit.
NNCODEC_PARAMETERS = (-20, -16, -12, -8, -4, -1, 3, 6)
# What the table shows of each scheme.
WANTED_BITS = 4.0
# Real vectors, by what they are in real.py.
REAL = ("network: weights", "network: gradient", "docstrings: embeddings")

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Point:
    """A quantizer with one choice, on one vector.

    Attributes
    ----------
    bits
        Per value, of codes, tables and side information.
    num_levels
        None: a choice of another kind.
    left
        Error of the mean of 16 decodes over that of one; None: not measured.
    encode_ms, decode_ms
        Of a longer normal vector; None: not measured.
    """

    data: str
    values: int
    name: str
    num_levels: int | None
    block_size: int | None
    bits: float
    vnmse: float
    left: float | None = None
    encode_ms: float | None = None
    decode_ms: float | None = None

    @property
    def gap(self) -> float:
        """Decibels above the rate-distortion bound of normal values."""
        return 20 * math.log10(2) * self.bits + 10 * math.log10(max(self.vnmse, 1e-30))


# -- vectors ------------------------------------------------------------------------------


def vectors(count: int, *, quick: bool) -> dict[str, Vector]:
    """Name and values of each; real ones as far as the tools that hold them are installed."""
    rng = np.random.default_rng(42)
    found = {
        "Normal(0, 1)": rng.standard_normal(count),
        "Laplace": rng.laplace(size=count),
        "LogNormal(0, 1)": rng.lognormal(size=count),
        "Student t, 3": rng.standard_t(3, count),
    }
    return {
        name: np.ascontiguousarray(x, np.float32)
        for name, x in (found | _real(count, quick)).items()
    }


def _real(count: int, quick: bool) -> dict[str, NDArray[Any]]:
    try:
        import real
    except ImportError:
        return {}
    every = real.vectors(quick=quick)
    return {
        name: x[:count] for name, x in every.items() if any(name.startswith(kind) for kind in REAL)
    }


# -- measuring ----------------------------------------------------------------------------


def points(data: str, x: Vector) -> Iterator[Point]:
    """Every scheme on one vector, with every number of levels."""
    for scheme in described.schemes():
        name, counts = scheme["name"], scheme["num_levels"]
        for levels in (count for count in LEVELS if count in counts):
            found = [
                point
                for block in BLOCKS
                if block is None or block < x.size
                for point in _tried(data, x, name, levels, block)
            ]
            # Tables for short blocks may take more than the values themselves.
            sensible = [point for point in found if point.bits < MOST_BITS]
            if sensible:
                yield min(sensible, key=lambda point: point.gap)


def _tried(data: str, x: Vector, name: str, levels: int, block: int | None) -> Iterator[Point]:
    """A scheme with one choice, if it takes that."""
    try:
        q = qk.quantize(x, method=name, num_levels=levels, block_size=block, seed=1)
    except InvalidInput:
        return
    vnmse = error(x, qk.dequantize(q))
    yield Point(data, x.size, name, levels, block, q.bits_per_value, vnmse)


def chosen(found: list[Point]) -> list[Point]:
    """Of each scheme and vector the point nearest to the bits wanted."""
    best: dict[tuple[str, str], Point] = {}
    for point in found:
        key = (point.data, point.name)
        if key not in best or _far(point) < _far(best[key]):
            best[key] = point
    return list(best.values())


def _far(point: Point) -> float:
    return abs(point.bits - WANTED_BITS)


def left_after_averaging(point: Point, x: Vector) -> float:
    """Error of the mean of decodes with different seeds over their mean error."""
    total, single = np.zeros(x.size), 0.0
    for seed in range(REPEATS):
        q = qk.quantize(
            x,
            method=point.name,
            num_levels=point.num_levels,
            block_size=point.block_size,
            seed=seed,
        )
        decoded = qk.dequantize(q)
        total += decoded
        single += error(x, decoded) / REPEATS
    return error(x, total / REPEATS) / single if single > 0 else 0.0


def timed(found: list[Point], count: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Milliseconds to encode and to decode `count` normal values, by scheme; they take turns."""
    x = np.random.default_rng(7).standard_normal(count).astype(np.float32)

    def encoding(point: Point) -> Callable[[], Any]:
        return lambda: qk.quantize(
            x,
            method=point.name,
            num_levels=point.num_levels,
            block_size=point.block_size,
            seed=1,
        )

    calls = {point.name: encoding(point) for point in found}
    messages = {name: call() for name, call in calls.items()}
    there = take_turns(calls, seconds)
    back = take_turns({name: _decoding(q) for name, q in messages.items()}, seconds)
    return {name: (1000 * there[name], 1000 * back[name]) for name in calls}


def _decoding(q: qk.QuantizedVector) -> Callable[[], Any]:
    return lambda: qk.dequantize(q)


def error(x: NDArray[Any], decoded: NDArray[Any]) -> float:
    """Squared error over squared norm."""
    exact = x.astype(np.float64)
    return float(np.square(decoded - exact).sum() / np.square(exact).sum())


def peers(data: str, x: Vector) -> Iterator[Point]:
    """Other packages' quantizers, as far as they are installed (`make bench-peers`)."""
    from peers import codecs

    rows = x[: x.size // 1024 * 1024]
    for bits in (4, 8):
        for name, make in codecs(bits).items():
            if name.startswith(("QUIVER", "torch", "kmeans")) or not rows.size:
                continue
            try:
                codec = make()
            except (ImportError, OSError):
                continue
            coded = codec.compress(rows)
            vnmse = error(rows, codec.decompress(coded))
            used = 8 * codec.size(coded) / rows.size
            yield Point(data, rows.size, name, 1 << bits, None, used, vnmse)


def nncodec(data: str, x: Vector, python: Path) -> Iterator[Point]:
    """nncodec in an environment of its own, on the vector over its root mean square."""
    unit = (x / np.sqrt(np.mean(np.square(x, dtype=np.float64)))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, Peer(python) as peer:
        path = Path(folder) / "values.npy"
        np.save(path, unit)
        for parameter in NNCODEC_PARAMETERS:
            _, bits, squared = peer.code(path, parameter, trellis=True)
            yield Point(data, x.size, "nncodec", None, None, bits, squared)


# -- what the registry declares --------------------------------------------------------------


def registry_markdown() -> str:
    """The list of schemes and their parameters; no measuring."""
    schemes = described.schemes()
    rows = [
        [
            f"`{each['name']}`",
            each["summary"],
            _levels(each["num_levels"]),
            each["rounding"],
            each["side_information"],
            ", ".join(name for name, holds in each["promises"].items() if holds) or "none",
            each["source"],
        ]
        for each in schemes
    ]
    head = [
        "method",
        "what it does",
        "levels",
        "rounding",
        "side information",
        "promises with its defaults",
        "source",
    ]
    parts = [table(head, rows, left=len(head))]
    rows = [
        [
            f"`{each['name']}`",
            f"`{one['name']}`",
            one["meaning"],
            _allowed(one),
            f"`{json.dumps(one['default'])}`",
        ]
        for each in schemes
        for one in each["parameters"]
    ]
    head = ["method", "parameter", "meaning", "may be", "default"]
    return "\n\n".join([*parts, table(head, rows, left=len(head))])


def _levels(counts: list[int]) -> str:
    if len(counts) > 9:
        return f"{counts[0]}..{counts[-1]}" + (
            "" if len(counts) > 200 else f", {len(counts)} of them"
        )
    return ", ".join(str(count) for count in counts)


def _allowed(one: dict[str, Any]) -> str:
    if one["choices"]:
        return ", ".join(f"`{choice}`" for choice in one["choices"])
    if isinstance(one["default"], bool):
        return "`true`, `false`"
    low, high = ("any" if bound is None else f"{bound:g}" for bound in (one["min"], one["max"]))
    return f"{low} to {high}"


# -- pages -----------------------------------------------------------------------------------


def figures_markdown(found: list[Point], count: int) -> str:
    """The tables of what was measured: one of time and bias, one of errors for each vector."""
    best = chosen(found)
    parts = [
        f"Nearest to {WANTED_BITS:g} bits per value. Times: {size(count)} normal values, "
        "one thread, with the choice for normal values."
    ]
    for data in dict.fromkeys(point.data for point in best):
        here = sorted((p for p in best if p.data == data), key=lambda point: point.gap)
        rows = [_row(point) for point in here]
        parts.append(f"{data}, {here[0].values:,} values:")
        parts.append(table(HEAD, rows))
    parts.append(f"![Error against bits]({PICTURE})")
    return "\n\n".join(parts)


HEAD = [
    "method",
    "levels",
    "block",
    "bits per value",
    "vNMSE",
    "gap, dB",
    "left after 16",
    "encode, ms",
    "decode, ms",
]


def _row(point: Point) -> list[str]:
    return [
        f"`{point.name}`" if " " not in point.name else point.name,
        str(point.num_levels or ""),
        "all" if point.block_size is None else f"{point.block_size:,}",
        f"{point.bits:.3f}",
        figure(point.vnmse),
        f"{point.gap:.2f}",
        "" if point.left is None else f"{100 * point.left:.1f} %",
        "" if point.encode_ms is None else figure(point.encode_ms),
        "" if point.decode_ms is None else figure(point.decode_ms),
    ]


def draw(found: list[Point], path: Path) -> None:
    """Error against bits, a panel for each vector, with the bound and the Lloyd-Max line."""
    import matplotlib as mpl
    from common.plots import STYLE
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(point.data for point in found))
    styles = _styles(list(dict.fromkeys(point.name for point in found)), mpl.colormaps["tab20"])
    columns = min(4, len(kinds))
    with mpl.rc_context(STYLE):
        plot = Figure(
            figsize=(4.2 * columns, 4.4 * -(-len(kinds) // columns)), layout="constrained"
        )
        panels = plot.subplots(-(-len(kinds) // columns), columns, squeeze=False)
        for axes, data in zip(panels.flat, kinds, strict=False):
            for name, style in styles.items():
                line = sorted((p.bits, p.vnmse) for p in found if (p.data, p.name) == (data, name))
                if line:
                    axes.plot(*zip(*line, strict=True), label=name, **style)
            rates = np.linspace(0.5, 9, 50)
            axes.plot(rates, 4.0**-rates, color="black", lw=1.4, label="R(D), normal")
            if data.startswith("Normal"):
                axes.plot(*lloyd_max_line(), color="black", ls=":", lw=1.4, label="Lloyd-Max")
            axes.set_yscale("log")
            axes.set_xlim(0.5, 9)
            axes.set_ylim(1e-5, 2)
            axes.set_title(data)
            axes.set_xlabel("bits per value")
        panels[0, 0].set_ylabel("vNMSE")
        for axes in list(panels.flat)[len(kinds) :]:
            axes.set_visible(False)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        plot.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        plot.savefig(path, dpi=90, facecolor="white")


def _styles(names: list[str], colours: Any) -> dict[str, dict[str, Any]]:
    """Lines for the schemes of the registry; hollow black marks for the other packages."""
    ours = [name for name in names if name in {each["name"] for each in described.schemes()}]
    styles: dict[str, dict[str, Any]] = {
        name: {"color": colours(number % 20), "marker": "osD^vPxX"[number % 8], "ms": 3.5, "lw": 1}
        for number, name in enumerate(ours)
    }
    for number, name in enumerate(name for name in names if name not in styles):
        marks = {"marker": "o^vs<>DpPX*h"[number % 12], "mfc": "white", "ms": 5.5, "mew": 0.8}
        line = "--" if name == "nncodec" else "none"
        styles[name] = {"color": "black", "ls": line, "lw": 0.8, **marks}
    # What the project is about lies on top of what it coincides with.
    styles["exact"] |= {"color": "black", "lw": 2.0, "ms": 4.5, "zorder": 5}
    return styles


def lloyd_max_line() -> tuple[list[float], list[float]]:
    """Bits and errors of the best fixed tables for normal values with nearest rounding."""
    # Max, "Quantizing for minimum distortion", 1960, for 2 to 256 levels.
    errors = {
        2: 0.363380,
        4: 0.117482,
        8: 0.034548,
        16: 0.009501,
        32: 0.0025047,
        64: 0.00064424,
        128: 0.00016348,
        256: 0.00004119,
    }
    return [math.log2(levels) for levels in errors], list(errors.values())


def between(text: str, name: str, content: str) -> str:
    """`text` with `content` between the two comments of a name."""
    begin, end = f"<!-- {name}: written by make compare -->", f"<!-- end of {name} -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page must have the comments {begin} and {end}")
    return f"{head}{begin}\n\n{content}\n\n{end}{tail}"


def measure(
    count: int, long: int, seconds: float, *, quick: bool, nncodec_python: Path | None = None
) -> list[Point]:
    """All points, with bias and time for those that the tables show."""
    every, found = vectors(count, quick=quick), []
    for data, x in every.items():
        print(f"{data}...", file=sys.stderr)
        found += [*points(data, x), *peers(data, x)]
        if nncodec_python is not None:
            found += nncodec(data, x, nncodec_python)
    ours = {each["name"] for each in described.schemes()}
    shown = [point for point in chosen(found) if point.name in ours]
    first = next(iter(every))
    times = timed([point for point in shown if point.data == first], long, seconds)
    extra: dict[Point, Point] = {}
    for point in shown:
        left = left_after_averaging(point, every[point.data])
        there, back = times[point.name] if point.data == first else (None, None)
        fields = asdict(point) | {"left": left, "encode_ms": there, "decode_ms": back}
        extra[point] = Point(**fields)
    return [extra.get(point, point) for point in found]


def main() -> None:
    """Measure, print Markdown, and write the page when asked to."""
    parser = argparse.ArgumentParser(description="Compare all schemes of the registry.")
    parser.add_argument("--quick", action="store_true", help="few values, for a test")
    parser.add_argument("--registry", action="store_true", help="only what the registry declares")
    parser.add_argument("--write", action="store_true", help="write the page, figures and picture")
    parser.add_argument("--page", type=Path, default=PAGE, help="which page")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--draw", action="store_true", help="draw the figures written before")
    parser.add_argument("--nncodec-python", type=Path, help="an interpreter that has nncodec")
    options = parser.parse_args()
    page: Path = options.page
    if options.draw:
        kept = json.loads(page.with_suffix(".json").read_text())
        draw([Point(**row) for row in kept], page.parent / PICTURE)
        return
    declared = registry_markdown()
    parts = {"registry": declared}
    if not options.registry:
        count, long, seconds = (3000, 3000, 0.0) if options.quick else (1 << 16, 1 << 18, 10.0)
        python: Path | None = options.nncodec_python
        found = measure(count, long, seconds, quick=options.quick, nncodec_python=python)
        parts["figures"] = figures_markdown(found, long)
        rows = json.dumps([asdict(point) for point in found], indent=1) + "\n"
        if options.json is not None:
            options.json.write_text(rows)
        if options.write:
            page.with_suffix(".json").write_text(rows)
            draw(found, page.parent / PICTURE)
    print("\n\n".join(parts.values()))
    if options.write:
        text = page.read_text()
        for name, content in parts.items():
            text = between(text, name, content)
        page.write_text(text)


if __name__ == "__main__":
    main()
