"""Pictures of runtime and error against one parameter, one row of panels for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
}
# Ours are the two strong colours of the other pictures; the rest is told apart by marker too.
LOOKS: dict[str, dict[str, Any]] = {
    "ours, exact": {"color": "#0b5fa5", "marker": "o", "lw": 2.4, "ms": 5.5, "zorder": 5},
    "ours, approx": {"color": "#d9730d", "marker": "o", "lw": 2.4, "ms": 5.5, "zorder": 4},
    "Accelerated QUIVER": {"color": "#2e7d4f", "marker": "s"},
    "QUIVER": {"color": "#6cae87", "marker": "D"},
    "ZipML": {"color": "#8a4fa3", "marker": "^"},
    "Apx. QUIVER": {"color": "#2e7d4f", "marker": "s"},
    "ZipML-CP uniform": {"color": "#b58bd0", "marker": "v"},
    "ZipML-CP quantile": {"color": "#8a4fa3", "marker": "^"},
    "ZipML 2-Apx": {"color": "#c2577a", "marker": "D"},
    "ALQ": {"color": "#a08a2c", "marker": "P"},
    "uniform": {"color": "#7d8590", "marker": "x"},
}
USUAL: dict[str, Any] = {"lw": 1.3, "ms": 4.5}


@dataclass(frozen=True)
class Panel:
    """One column: a title, the axis, and (x, milliseconds, vNMSE) by method."""

    title: str
    axis: str
    powers: bool
    lines: Mapping[str, Sequence[tuple[float, float, float]]]


def draw(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Write a picture with runtimes above and errors below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.5 * len(panels), 6.2), layout="constrained")
        axes = figure.subplots(2, len(panels), squeeze=False)
        for column, panel in enumerate(panels):
            _draw_panel(axes[0, column], panel, 1)
            _draw_panel(axes[1, column], panel, 2)
            axes[0, column].set_title(panel.title)
            axes[1, column].set_xlabel(panel.axis)
        axes[0, 0].set_ylabel("time, ms")
        axes[1, 0].set_ylabel("vNMSE")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        named = {label: line for a in axes.flat for line, label in zip(*_legend(a), strict=True)}
        order = [name for name in LOOKS if name in named]
        figure.legend(
            [named[name] for name in order],
            order,
            loc="outside lower center",
            ncols=min(len(order), 5),
            frameon=False,
        )
        figure.savefig(path, dpi=110, facecolor="white")


def _legend(axes: Axes) -> tuple[list[Any], list[str]]:
    lines, labels = axes.get_legend_handles_labels()
    return lines, labels


def _draw_panel(axes: Axes, panel: Panel, which: int) -> None:
    for name, points in panel.lines.items():
        if points:
            places = [point[0] for point in points]
            axes.plot(places, [p[which] for p in points], label=name, **USUAL | LOOKS[name])
    axes.set_yscale("log")
    if panel.powers:
        places = sorted({int(point[0]) for points in panel.lines.values() for point in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(
            places, [str(n) if n < 1024 else f"$2^{{{n.bit_length() - 1}}}$" for n in places]
        )
    axes.grid(axis="y", color="#e6e8eb")
