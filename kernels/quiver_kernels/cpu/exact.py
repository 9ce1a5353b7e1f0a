"""Optimal levels of sorted rows: the solver behind ``exact`` and ``accelerated``."""

from __future__ import annotations

import numpy as np

from quiver_kernels.cpu.area import build_curve, distinct_sorted
from quiver_kernels.cpu.compile import kernel
from quiver_kernels.cpu.path import best_path


@kernel
def write_levels(values, count, levels):  # type: ignore[no-untyped-def]
    """Write `count` ascending values without repeats, then repeat the last to the end."""
    place = 0
    for i in range(count):
        if place == 0 or values[i] != levels[place - 1]:
            levels[place] = values[i]
            place += 1
    for i in range(place, levels.size):
        levels[i] = levels[place - 1]


@kernel
def solve_rows(rows, weights, accelerated, levels):  # type: ignore[no-untyped-def]
    """Optimal levels of every row.

    Parameters
    ----------
    rows
        float64, shape (r, n), each row ascending and finite.
    weights
        Of the same shape and order, or shape (r, 0) for weights of one.
    accelerated
        Two levels per step (Accelerated QUIVER) instead of one; the same optimum.
    levels
        Out: float64, shape (r, s). Points of the row; the last is repeated where a row has
        fewer than s distinct values.
    """
    n = rows.shape[1]
    num_levels = levels.shape[1]
    values, merged = np.empty(n), np.empty(n)
    x, slope, area = np.empty(n), np.empty(n), np.empty(n)
    first, last = np.empty(n), np.empty(n)
    path = np.empty(num_levels, np.int64)
    chosen = np.empty(num_levels)
    for row in range(rows.shape[0]):
        count = distinct_sorted(rows[row], weights[row], values, merged)
        if count <= num_levels:
            write_levels(values, count, levels[row])
            continue
        if num_levels == 2:
            levels[row, 0], levels[row, 1] = values[0], values[count - 1]
            continue
        build_curve(
            values[:count],
            merged[:count],
            x[:count],
            slope[:count],
            area[:count],
            first[:count],
            last[:count],
        )
        unit_weights = weights.shape[1] == 0 and count == n
        best_path(
            x[:count],
            slope[:count],
            area[:count],
            first[:count],
            last[:count],
            num_levels,
            accelerated,
            unit_weights,
            path,
        )
        for i in range(num_levels):
            chosen[i] = values[path[i]]
        write_levels(chosen, num_levels, levels[row])
