"""ZipML's candidate points: optimal levels for, or among, m + 1 points chosen beforehand.

Two readings of the heuristic. As measured in the QUIVER paper (its figures fit no other), the
candidates stand for the data: exact levels of the m + 1 points alone. With `among`, they are
only the allowed positions, and the error is that of all data; with evenly spaced candidates
that is Apx. QUIVER.
"""

from __future__ import annotations

import numpy as np

from baselines import curve, zipml
from baselines.curve import Floats


def uniform(values: Floats, num_levels: int, cells: int, *, among: bool = False) -> Floats:
    """Levels from candidates at equal distances; `values` ascend."""
    points = np.linspace(values[0], values[-1], cells + 1)
    return _levels(values, points, num_levels, among=among)


def quantiles(values: Floats, num_levels: int, cells: int, *, among: bool = False) -> Floats:
    """Levels from candidates at equal ranks; `values` ascend."""
    ranks = np.arange(cells + 1) * (values.size - 1) // cells
    return _levels(values, values[ranks], num_levels, among=among)


def _levels(values: Floats, points: Floats, num_levels: int, *, among: bool) -> Floats:
    found = curve.at_candidates(values, points) if among else curve.of_sorted(points)
    return points[zipml.path(found, num_levels)]
