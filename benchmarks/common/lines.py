"""Pictures of lines in a row of panels that share their axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from common.plots import STYLE

COLOURS = ("#0b5fa5", "#d9730d", "#2e7d4f", "#8a4fa3", "#c2577a", "#7d8590", "#a08a2c", "#6cae87")
MARKERS = "osD^vxP*"


@dataclass(frozen=True)
class Line:
    """A name and its points."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A title and its lines."""

    title: str
    lines: Sequence[Line]


def draw_panels(
    path: Path, title: str, across: str, up: str, panels: Sequence[Panel], columns: int = 3
) -> None:
    """Write a picture; both axes are logarithmic, the horizontal one in powers of two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    looks = {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.7 * columns, 3.0 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")
        for panel, part in zip(panels, axes.flat, strict=False):
            for line in panel.lines:
                if line.points:
                    places, values = zip(*line.points, strict=True)
                    part.plot(places, values, label=line.name, lw=1.4, ms=4.5, **looks[line.name])
            part.set_title(panel.title)
            part.set_yscale("log")
            part.set_xscale("log", base=2)
            ticks = sorted({int(x) for line in panel.lines for x, _ in line.points})
            part.set_xticks(ticks, [str(tick) for tick in ticks])
            part.grid(axis="y", color="#e6e8eb")
        for part in axes[-1]:
            part.set_xlabel(across)
        for part in axes[:, 0]:
            part.set_ylabel(up)
        named = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
        figure.legend(
            list(named.values()), list(named), loc="outside lower center", ncols=4, frameon=False
        )
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        figure.savefig(path, dpi=110, facecolor="white")
