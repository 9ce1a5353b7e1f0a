"""The tables of `eden`: Lloyd-Max levels of the normal distribution, and where each is nearest."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes import lloyd_max

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """Levels and a grid that finds the nearest quickly.

    Attributes
    ----------
    levels, thresholds
        Ascending; a value on a threshold belongs to the upper level.
    cells
        Cells of the grid, which begins at the first threshold, to 1; no two thresholds share one.
    guess
        Thresholds below each cell.
    """

    levels: _Floats
    thresholds: _Floats
    cells: float
    guess: NDArray[np.uint8]


@functools.lru_cache(maxsize=256)
def normal(num_levels: int) -> Table:
    """The table of so many levels, 2..256; its levels are float32 numbers, the same anywhere."""
    levels = lloyd_max.table(num_levels).astype(np.float32).astype(np.float64)
    limits = lloyd_max.thresholds(levels)
    low, width = limits[0], max(limits[-1] - limits[0], 1.0)
    count = 4 * num_levels
    while True:
        cells = count / width
        places = ((limits - low) * cells).astype(np.int64)
        if (np.diff(places) > 0).all():
            break
        count *= 2
    guess = np.searchsorted(places, np.arange(places[-1] + 1), side="left").astype(np.uint8)
    for array in (levels, limits, guess):
        array.flags.writeable = False
    return Table(levels, limits, float(cells), guess)
