"""Optimal levels of sorted data: which solver does what for ``exact`` and ``accelerated``."""

from __future__ import annotations

import numpy as np

from quiver_kernels.cpu.area import Curve, build_curves
from quiver_kernels.cpu.certified import Certificate, certified_path
from quiver_kernels.cpu.compile import Floats
from quiver_kernels.cpu.path import best_levels, best_path

# Up to this many points times levels the dynamic programme is faster than the search.
SMALL_WORK = 60_000
# A proof with a larger gap than this and rounding is left to the programme, if its tables fit.
_PROVED = 1e-8
_LARGEST_TABLES = 1 << 30


def solve_row(values: Floats, weights: Floats, num_levels: int, accelerated: bool) -> Floats:
    """Optimal levels of ascending `values`; an empty `weights` means ones.

    Returns
    -------
    ndarray
        float64, shape (s,), points of `values`; the last is repeated where there are fewer
        than s distinct ones.
    """
    points, masses = _merge(values, weights)
    if points.size <= num_levels:
        return _padded(points, num_levels)
    if num_levels == 2:
        return points[[0, -1]]
    unit_weights = accelerated and weights.size == 0
    if unit_weights:
        # Its closed form needs unit weights; equal neighbours are then points of their own.
        points, masses = values, np.ones(values.size)
    # The ends are levels and cost nothing: their weight would only shift the curve's anchor.
    masses[0] = masses[-1] = 0.0
    curve = Curve.of(points, masses)
    found = None
    if points.size * num_levels > SMALL_WORK and not accelerated:
        found = certified_path(curve, num_levels - 1)
    tables = 4 * num_levels * points.size
    if found is not None and (accepted(found[1]) or tables > _LARGEST_TABLES):
        path = found[0]
    else:
        path = np.empty(num_levels, np.int64)
        best_path(
            curve.x,
            curve.slope,
            curve.area,
            curve.first,
            curve.last,
            num_levels,
            accelerated,
            unit_weights,
            path,
        )
    return _padded(np.unique(points[path]), num_levels)


def accepted(proof: Certificate) -> bool:
    """Whether the bounds met, up to the rounding of the cost's own terms."""
    return proof.gap <= _PROVED + proof.rounding


def _merge(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Distinct values with their total weights, without inner ones of weight 0."""
    starts = np.concatenate([[0], 1 + np.flatnonzero(values[1:] != values[:-1])])
    points = values[starts]
    if weights.size == 0:
        return points, np.diff(np.append(starts, values.size)).astype(np.float64)
    masses = np.add.reduceat(weights, starts)
    keep = masses > 0
    keep[0] = keep[-1] = True
    return points[keep], masses[keep]


def _padded(points: Floats, num_levels: int) -> Floats:
    return np.concatenate([points, np.full(num_levels - points.size, points[-1])])


def solve_small_rows(rows: Floats, weights: Floats, accelerated: bool, levels: Floats) -> None:
    """`solve_row` for every row of many short ones, without a call from Python for each.

    Parameters
    ----------
    rows
        Shape (r, n), each row ascending and finite.
    weights
        Of the same shape and order, or shape (r, 0) for weights of one.
    levels
        Out: shape (r, s).
    """
    counts = np.empty(len(rows), np.int64)
    points, x, slope, area, first, last = (np.empty(rows.shape) for _ in range(6))
    build_curves(rows, weights, counts, points, x, slope, area, first, last)
    best_levels(points, x, slope, area, first, last, counts, accelerated, weights.size == 0, levels)
