"""Optimal levels of sorted data: which solver does what for ``exact`` and ``accelerated``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.claims import claim
from quiver_kernels.cpu.area import Curve, build_curves
from quiver_kernels.cpu.certified import Certificate, certified_path
from quiver_kernels.cpu.chunking import converted
from quiver_kernels.cpu.compile import Floats, Ints
from quiver_kernels.cpu.layers import layered_path
from quiver_kernels.cpu.narrowing import narrowed_levels
from quiver_kernels.cpu.ordered import Ordered
from quiver_kernels.cpu.path import accelerated_levels, accelerated_path, best_levels, best_path
from quiver_kernels.stopping import checkpoint

# Up to this many points times levels the dynamic programme is faster than the search.
SMALL_WORK = 8_000
# Above this many the programme stops between its layers, and within them, to look whether to go
# on. Below it takes some 15 ms.
LARGE_WORK = 1 << 16
# Above this many values the search begins with sums over cells.
DIRECT = 1 << 14
# A proof with a larger gap than this and rounding is left to the programme, if its tables fit.
# The rounding of its largest term stands in the proof; that of a sum of up to 255 is more.
_PROVED = 1e-8
_TERMS = 4.0
_LARGEST_TABLES = 1 << 30
# What each value takes there besides the tables.
_PROGRAMME_BYTES = 100


def solve_row(
    values: NDArray[Any], weights: Floats, unit: float, num_levels: int, accelerated: bool
) -> Floats:
    """Optimal levels of ascending `values`, float32 or float64; an empty `weights` means ones.

    Parameters
    ----------
    unit
        Power of two that brings the values within [-1, 1].

    Returns
    -------
    ndarray
        float64, shape (s,), points of `values`; the last is repeated where there are fewer
        than s distinct ones.
    """
    if num_levels == 2:
        return values[[0, -1]].astype(np.float64)
    if values.size > DIRECT and not accelerated:
        levels = _narrowed(values, weights, unit, num_levels)
        if levels is not None:
            return levels
        claim(values.size * _PROGRAMME_BYTES)
    points, masses = _merge(converted(values, np.dtype(np.float64)), weights)
    checkpoint()
    if points.size <= num_levels:
        return padded(points, num_levels)
    unit_weights = accelerated and weights.size == 0
    if unit_weights:
        # Its closed form needs unit weights; equal neighbours are then points of their own.
        points, masses = converted(values, np.dtype(np.float64)), np.ones(values.size)
    # The ends are levels and cost nothing: their weight would only shift the curve's anchor.
    masses[0] = masses[-1] = 0.0
    curve = Curve.of(points, masses)
    checkpoint()
    found = None
    if points.size * num_levels > SMALL_WORK and not accelerated:
        found = certified_path(curve, num_levels - 1)
    tables = 4 * num_levels * points.size
    if found is not None and (accepted(found.certificate) or tables > _LARGEST_TABLES):
        path = found.path
    else:
        if not accelerated:
            claim(points.size * _PROGRAMME_BYTES + tables)
        path = programme(curve, num_levels, accelerated, unit_weights)
    return padded(np.unique(points[path]), num_levels)


def _narrowed(values: NDArray[Any], weights: Floats, unit: float, num_levels: int) -> Floats | None:
    """Levels by way of sums over cells; None where their proof fails."""
    if weights.size:
        # Only the ends may be levels that weigh nothing.
        keep = weights > 0
        keep[0] = keep[-1] = True
        values, weights = values[keep], weights[keep]
    checkpoint()
    ordered = Ordered(values, weights, unit)
    found = narrowed_levels(ordered.summary(num_levels), num_levels, ordered.look)
    if found is None or not accepted(found.certificate):
        return None
    return padded(np.unique(found.levels), num_levels)


def programme(
    curve: Curve, num_levels: int, accelerated: bool = False, unit_weights: bool = False
) -> Ints:
    """Numbers of the best `num_levels` >= 3 points, by dynamic programming; O(s n log n)."""
    x, slope, area, first, last = curve.x, curve.slope, curve.area, curve.first, curve.last
    if x.size * num_levels > LARGE_WORK:
        doubles = (num_levels - 3) // 2 if accelerated else 0
        return layered_path(curve, num_levels, doubles, unit_weights)
    path = np.empty(num_levels, np.int64)
    if accelerated:
        accelerated_path(x, slope, area, first, last, num_levels, unit_weights, path)
    else:
        best_path(x, area, first, last, num_levels, path)
    return path


def accepted(proof: Certificate | None) -> bool:
    """Whether the bounds met, up to the rounding of the cost's own terms."""
    return proof is None or proof.gap <= _PROVED + _TERMS * proof.rounding


def _merge(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Distinct values with their total weights, without inner ones of weight 0."""
    starts = np.concatenate([[0], 1 + np.flatnonzero(values[1:] != values[:-1])])
    checkpoint()
    points = values[starts]
    checkpoint()
    if weights.size == 0:
        return points, np.diff(np.append(starts, values.size)).astype(np.float64)
    masses = np.add.reduceat(weights, starts)
    keep = masses > 0
    keep[0] = keep[-1] = True
    return points[keep], masses[keep]


def padded(points: Floats, num_levels: int) -> Floats:
    """At most s `points` as s levels: the last is repeated."""
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
    unit_weights = weights.size == 0
    if rows.shape[1] * levels.shape[1] > LARGE_WORK:
        nothing = np.zeros(rows.shape)
        for row, n in enumerate(counts.tolist()):
            path = np.arange(n)
            if n > levels.shape[1]:
                arrays = (a[row, :n] for a in (x, slope, area, first, last, nothing))
                curve = Curve(*arrays)
                unit = unit_weights and n == rows.shape[1]
                path = programme(curve, levels.shape[1], accelerated, unit)
            levels[row] = padded(np.unique(points[row, path]), levels.shape[1])
    elif accelerated:
        accelerated_levels(points, x, slope, area, first, last, counts, unit_weights, levels)
    else:
        best_levels(points, x, area, first, last, counts, levels)
