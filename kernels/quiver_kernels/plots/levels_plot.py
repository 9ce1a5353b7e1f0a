"""Levels over the histogram of their vector, as a `Scene`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.plots.histogram import Histogram, shares
from quiver_kernels.plots.scene import Box, Label, Line, Scene

_MARGIN = 12
_HEAD = 24
_FOOT = 30
_TICK = 8


def levels_plot(
    counted: Histogram,
    levels: NDArray[Any],
    title: str,
    *,
    width: int = 720,
    height: int = 300,
) -> Scene:
    """Bars for counts, a line from top to bottom for each level.

    Parameters
    ----------
    counted
        Of the vector.
    levels
        In the vector's units, any shape; those beyond the histogram's range are left out.
    title
        A line of text above.
    width, height
        Of the picture in pixels, at least 120 and 80.

    Notes
    -----
    Bars are as high as the square root of their counts, so that tails are seen.
    """
    width, height = max(width, 120), max(height, 80)
    base = height - _FOOT
    return Scene(
        width,
        height,
        title,
        boxes=tuple(_bars(counted, width, base)),
        lines=(
            Line(_MARGIN, base, width - _MARGIN, base, "axis"),
            *(
                Line(at, _HEAD, at, base + _TICK, "level")
                for at in _places(counted, levels, width - 2 * _MARGIN)
            ),
        ),
        labels=(
            Label(_MARGIN, _HEAD - 9, title),
            Label(_MARGIN, height - 6, f"{counted.low:.4g}"),
            Label(width - _MARGIN, height - 6, f"{counted.high:.4g}", "end"),
        ),
    )


def _bars(counted: Histogram, width: int, base: int) -> Iterator[Box]:
    most = int(counted.counts.max(initial=0))
    step = (width - 2 * _MARGIN) / counted.counts.size
    for place, count in enumerate(counted.counts.tolist()):
        if count:
            tall = (base - _HEAD) * math.sqrt(count / most)
            yield Box(_MARGIN + place * step, base - tall, step, tall)


def _places(counted: Histogram, levels: NDArray[Any], room: int) -> list[float]:
    """Where the levels stand, in pixels; each place once."""
    values = levels.astype(np.float64).reshape(-1)
    values = values[(values >= counted.low) & (values <= counted.high)]
    parts = shares(values, counted.low, counted.high)
    return [float(at) for at in np.unique(np.round(_MARGIN + room * parts, 2))]
