"""The calls into the package below its interface: what changes there changes here only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.area import Curve
from quiver_kernels.cpu.certified import certified_path

Floats = NDArray[np.float64]


def prepare(values: Floats) -> tuple[Floats, Curve]:
    """Distinct points of ascending `values`, and the curve over them: what a solver is given."""
    points, counts = np.unique(values, return_counts=True)
    masses = counts.astype(np.float64)
    masses[0] = masses[-1] = 0.0
    return points, Curve.of(points, masses)


def solve(curve: Curve, num_levels: int) -> NDArray[np.int64]:
    """Indices of the optimal levels among the points of a prepared curve."""
    found = certified_path(curve, num_levels - 1)
    assert found is not None
    return found.path
