"""The picture: accuracy against the bytes that crossed the sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from parameter_server.records import Result

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
}
COLORS = {"float32": "#1f2328", "quiver": "#0b5fa5", "sign": "#2e7d4f", "qsgd": "#d9730d"}
FEWER_BITS_LIGHTER = {8: 1.0, 4: 0.85, 3: 0.65, 2: 0.5}
LOWEST = 0.8


def draw(path: Path, runs: Mapping[str, Sequence[Result]]) -> None:
    """Write the picture: for each scheme the median over seeds, bytes on a logarithmic axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 5.2), layout="constrained")
        axes = figure.subplots()
        for scheme, results in runs.items():
            megabytes, accuracies = _curve(results)
            axes.plot(megabytes, accuracies, label=scheme, **_look(scheme))
        axes.set_xscale("log")
        axes.set_ylim(100 * LOWEST, 100)
        axes.set_xlabel("megabytes over the sockets, both ways, everything counted")
        axes.set_ylabel("accuracy on the test images, %")
        axes.grid(color="#e6e8eb")
        axes.legend(frameon=False, ncols=2, loc="lower right")
        first = next(iter(runs.values()))
        seeds = f"median of {len(first)} seeds" if len(first) > 1 else "one seed"
        axes.set_title(f"{first[0].workers} workers, two-way compression, {seeds}")
        figure.savefig(path, dpi=110, facecolor="white")


def _curve(results: Sequence[Result]) -> tuple[list[float], list[float]]:
    places = list(zip(*(result.points for result in results), strict=True))
    megabytes = [median(p.up + p.down for p in place) / 1e6 for place in places]
    return megabytes, [100 * median(p.accuracy for p in place) for place in places]


def _look(scheme: str) -> dict[str, Any]:
    kind = scheme.partition("-")[0]
    bits = scheme.rpartition("-")[2]
    style = ":" if "-l2-" in scheme or "-ef-" in scheme else "--" if kind == "qsgd" else "-"
    shade = FEWER_BITS_LIGHTER.get(int(bits), 1.0) if bits.isdecimal() else 1.0
    return {"color": COLORS[kind], "alpha": shade, "ls": style, "lw": 1.8}
