"""ZipML's 2-approximation: merge neighbouring intervals, the cheapest first. O(d + s^3).

With 2s levels the error is at most twice the optimum of s levels. Pairs of neighbours are
merged, except the dearest ones, until O(s) intervals are left; the levels are optimal among
their ends (after Acharya et al.'s greedy merging; the constants are those of the bound).
"""

from __future__ import annotations

import numpy as np

from baselines import zipml
from baselines.curve import Curve, Floats, of_sorted

# What is kept split is (1 + 1/_G) k pairs for k = s / 2.
_G = 1
_SLACK = 2


def levels(values: Floats, num_levels: int) -> Floats:
    """Levels of ascending `values`."""
    curve = of_sorted(values)
    x, area = curve.at.T
    # Twice the integral of S, for the absolute cost of an interval.
    twice = np.concatenate([[0.0], np.cumsum((area[1:] + area[:-1]) * np.diff(x))])
    # S is linear between neighbouring points, so the trapezium is the integral.
    ends = np.arange(values.size)
    keep = int((1 + 1 / _G) * num_levels / 2)
    while ends.size - 1 > (1 + _G) * num_levels + _SLACK:
        pairs = (ends.size - 1) // 2
        left, right = ends[: 2 * pairs : 2], ends[2 : 2 * pairs + 1 : 2]
        cost = (area[left] + area[right]) * (x[right] - x[left]) - (twice[right] - twice[left])
        split = np.zeros(ends.size, bool)
        split[::2] = True
        split[-1] = True
        if keep < pairs:
            dearest = np.argpartition(cost, pairs - keep)[pairs - keep :]
        else:
            break
        split[2 * dearest + 1] = True
        ends = ends[split]
    return values[ends[zipml.path(Curve(curve.at[ends], curve.first), num_levels)]]
