"""Apx. QUIVER: optimal levels among the points of a uniform grid. O(d + s m), without a sort.

Levels lie on the grid, the data do not move: each cell's count and sum give the exact curve at
the grid's points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines import quiver
from baselines.compiled import kernel
from baselines.curve import Curve, Floats


def levels(values: NDArray[Any], num_levels: int, cells: int) -> Floats:
    """Levels of `values` (any order) on a grid of `cells` cells between their extremes."""
    low, high = float(values.min()), float(values.max())
    at = np.empty((cells + 1, 2))
    _grid_curve(values, low, high, at)
    curve = Curve(at, low)
    found = curve.values(quiver.path(curve, num_levels))
    found[-1] = high
    return found


@kernel
def _grid_curve(values: NDArray[Any], low: float, high: float, at: Floats) -> None:
    cells = len(at) - 1
    counts, sums = np.zeros(cells + 1, np.int64), np.zeros(cells + 1)
    width = (high - low) / cells
    per_value = 1.0 / width if width > 0.0 else 0.0
    for value in values:
        x = np.float64(value) - low
        # The grid point above: a value counts as weight to the left of it.
        cell = min(int(np.ceil(x * per_value)), cells)
        counts[cell] += 1
        sums[cell] += x
    below, total = 0, 0.0
    for cell in range(cells + 1):
        below += counts[cell]
        total += sums[cell]
        at[cell, 0] = cell * width
        at[cell, 1] = below * at[cell, 0] - total
