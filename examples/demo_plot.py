"""The picture of the demo: levels over the histogram they were chosen for, and the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

COLORS = {"exact": "#0b5fa5", "approx": "#d9730d", "uniform": "#7d8590"}
STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
}
HISTOGRAM_BINS = 160


def draw(
    path: Path,
    name: str,
    vector: NDArray[np.float32],
    levels: Mapping[str, NDArray[Any]],
    errors: Mapping[str, Mapping[int, float]],
) -> None:
    """Write the picture for one vector.

    Parameters
    ----------
    path
        A .png, .svg or .pdf file; its folder is made.
    name, vector
        The vector and what it is.
    levels
        By method, level tables of the same length.
    errors
        By method, bits to vNMSE.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 4.4), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1.9, 1), height_ratios=(3.2, 1))
        histogram = figure.add_subplot(grid[0, 0])
        _draw_histogram(histogram, name, vector, levels["exact"])
        _draw_rows(figure.add_subplot(grid[1, 0], sharex=histogram), levels)
        _draw_errors(figure.add_subplot(grid[:, 1]), errors)
        figure.savefig(path, dpi=150, facecolor="white")


def _draw_histogram(
    axes: Axes, name: str, vector: NDArray[np.float32], levels: NDArray[Any]
) -> None:
    axes.hist(vector.ravel(), bins=HISTOGRAM_BINS, color="#c9d1d9", log=True)
    axes.vlines(levels, 0, 1, transform=axes.get_xaxis_transform(), color=COLORS["exact"], lw=1.1)
    axes.set_title(f"{name}: {vector.size:,} values and their {len(levels)} optimal levels")
    axes.set_ylabel("values per bin")
    axes.tick_params(labelbottom=False)


def _draw_rows(axes: Axes, levels: Mapping[str, NDArray[Any]]) -> None:
    """One row of ticks per method."""
    methods = list(levels)
    for row, method in enumerate(methods):
        axes.vlines(levels[method], row - 0.36, row + 0.36, color=COLORS[method], lw=1.6)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set_xlabel("value")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_errors(axes: Axes, errors: Mapping[str, Mapping[int, float]]) -> None:
    for method, by_bits in errors.items():
        bits: Sequence[int] = list(by_bits)
        axes.plot(bits, list(by_bits.values()), "o-", color=COLORS[method], label=method, ms=5)
    axes.set_yscale("log")
    axes.set_xticks(list(errors["exact"]))
    axes.set_xlabel("bits per value")
    axes.set_title("vNMSE (expected squared error\nover squared norm)")
    axes.grid(axis="y", color="#e6e8eb")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
