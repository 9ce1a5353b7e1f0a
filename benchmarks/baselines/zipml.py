"""ZipML's exact levels: the dynamic programme over all pairs of points (Zhang et al., ICML 2017).

O(s d^2) time, O(s d) memory. Works on any `Curve`, weighted or restricted to candidates.
"""

from __future__ import annotations

import numpy as np

from baselines.compiled import kernel
from baselines.curve import Curve, Floats, Ints

_PIECE = 256


def path(curve: Curve, num_levels: int) -> Ints:
    """Indices of `num_levels` optimal levels, ascending; repeated where there are too few."""
    n = len(curve.at)
    choices = np.empty((num_levels, n), np.int32)
    found = np.empty(num_levels, np.int64)
    x, area = (np.ascontiguousarray(column) for column in curve.at.T)
    _solve(x, area, choices, np.zeros(n), np.empty(n), found)
    return found


@kernel
def _nearest(x: Floats, area: Floats, best: Floats, j: int) -> tuple[float, int]:
    """The least cost of reaching point j with one more level, and from where.

    Four minima at a time, so that comparisons need not wait for each other; which point it was
    is looked up afterwards, in the piece that has the least one.
    """
    xj, aj = x[j], area[j]
    least, piece = np.inf, 0
    for start in range(0, j + 1, _PIECE):
        stop = min(start + _PIECE, j + 1)
        costs, areas, points = best[start:stop], area[start:stop], x[start:stop]
        low0 = low1 = low2 = low3 = np.inf
        fours = (stop - start) // 4 * 4
        for i in range(0, fours, 4):
            cost0 = costs[i] + (xj * areas[i] - points[i] * aj)
            cost1 = costs[i + 1] + (xj * areas[i + 1] - points[i + 1] * aj)
            cost2 = costs[i + 2] + (xj * areas[i + 2] - points[i + 2] * aj)
            cost3 = costs[i + 3] + (xj * areas[i + 3] - points[i + 3] * aj)
            low0 = min(cost0, low0)
            low1 = min(cost1, low1)
            low2 = min(cost2, low2)
            low3 = min(cost3, low3)
        for i in range(fours, stop - start):
            low0 = min(costs[i] + (xj * areas[i] - points[i] * aj), low0)
        low = min(low0, low1, low2, low3)
        if low < least:
            least, piece = low, start
    value, at = np.inf, piece
    for k in range(piece, min(piece + _PIECE, j + 1)):
        cost = best[k] + (xj * area[k] - x[k] * aj)
        if cost < value:
            value, at = cost, k
    return value, at


@kernel
def _solve(
    x: Floats, area: Floats, choices: Ints, best: Floats, after: Floats, found: Ints
) -> None:
    n, num_levels = x.size, found.size
    # The cost of the interval from point 0: x[0] and area[0] are 0.
    best[:] = 0.0
    for level in range(2, num_levels):
        choice = choices[level]
        # The last level can only be the last point.
        for j in range(n - 1 if level == num_levels - 1 else 0, n):
            after[j], choice[j] = _nearest(x, area, best, j)
        best, after = after, best
    found[0], found[num_levels - 1] = 0, n - 1
    for level in range(num_levels - 1, 1, -1):
        found[level - 1] = choices[level, found[level]]
