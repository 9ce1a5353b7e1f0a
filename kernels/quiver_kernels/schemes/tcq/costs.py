"""The nearest points of each kind: by a kernel where Numba is, else in NumPy, the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.trellis.paths import has_numba

Floats = NDArray[np.float64]


def nearest(values: Floats, points: Floats) -> tuple[Floats, NDArray[np.uint16]]:
    """Squared distance and index of the nearest of every fourth point, shape (n, 4).

    Of points 4 n + j at place 2 (j mod 2) + j // 2: quantizer and lowest bit of the code.

    Parameters
    ----------
    values
        Flat.
    points
        Ascending, 4 at least, a power of two of them.
    """
    if not has_numba():
        return plain_nearest(values, points)
    from quiver_kernels.schemes.tcq import kernels

    costs, picks = np.empty((values.size, 4)), np.empty((values.size, 4), np.uint16)
    kernels.nearest(values, points, costs, picks)
    return costs, picks


def plain_nearest(values: Floats, points: Floats) -> tuple[Floats, NDArray[np.uint16]]:
    """`nearest` in NumPy."""
    costs, picks = np.empty((values.size, 4)), np.empty((values.size, 4), np.uint16)
    below = np.searchsorted(points, values)
    for j in range(4):
        low = np.maximum(j, (below - 1 - j) // 4 * 4 + j)
        high = np.minimum(low + 4, points.size - 4 + j)
        near, far = np.square(values - points[low]), np.square(points[high] - values)
        place = 2 * (j & 1) + (j >> 1)
        costs[:, place] = np.minimum(near, far)
        picks[:, place] = np.where(far < near, high, low)
    return costs, picks
