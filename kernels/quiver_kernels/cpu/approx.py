"""Apx. QUIVER: optimal levels among the points of a uniform grid, from unsorted data.

Splitting a value's weight between the two grid points around it, in proportion to nearness,
keeps every interval cost between grid points exact up to a constant: (b - x)(x - a) is
quadratic in x with the same second derivative whatever a and b. So one pass turns the data
into weights of grid points, and the problem into a weighted exact one over these: the costs
are those of the true data, only the positions of levels are restricted (paper, section 5).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range
from quiver_kernels.cpu.compile import Floats, kernel

# Shares of grid points are whole multiples of 2^-20: sums of them are exact for up to 2^33 values,
# so a device may add them in any order. Adding and taking away this number rounds to such ones.
ROUNDS_SHARES = 1.5 * 2.0 ** (52 - 20)


def grid_points(bounds: Range, count: int) -> Floats:
    """`count` equally spaced values, exact at both ends even where high - low overflows."""
    return between(bounds.low, bounds.high, np.arange(count) / (count - 1))


def between(low: float | Floats, high: float | Floats, t: Floats) -> Floats:
    """The values a share `t` of the way from `low` to `high`."""
    return low * (1.0 - t) + high * t


@kernel
def add_to_grid(
    x: NDArray[Any], weights: Floats, low: float, high: float, unit: float, grid: Floats
) -> None:
    """Split the weight of every value between the grid points around it, in order; O(d).

    Parameters
    ----------
    x
        float32 or float64 values in [low, high].
    weights
        One per value, or empty for ones.
    unit
        Power of two that keeps differences of values within float64.
    grid
        In and out: weights of grid.size >= 2 equally spaced points from `low` to `high`.

    Notes
    -----
    A value's share of the upper point is rounded to a multiple of 2^-20: with 1,024 cells this
    is as if the value had moved by up to 5e-10 of the range.
    """
    cells = grid.size - 1
    base = low * unit
    per_cell = cells / (high * unit - base)
    weighted = weights.size > 0
    for i in range(x.size):
        place = (np.float64(x[i]) * unit - base) * per_cell
        c = min(int(place), cells - 1)
        w = weights[i] if weighted else 1.0
        upper = w * ((min(place - c, 1.0) + ROUNDS_SHARES) - ROUNDS_SHARES)
        grid[c] += w - upper
        grid[c + 1] += upper


@kernel
def few_distinct(x: NDArray[Any], found: Floats, count: int) -> int:
    """Merge the distinct values of `x` into the ascending found[:count].

    Returns
    -------
    int
        The new count, or -1 as soon as there are more than found.size. Continuous data
        give -1 after a few values; O(d log s) at worst.
    """
    previous = np.float64(x[0])
    fresh = True
    for i in range(x.size):
        value = np.float64(x[i])
        if value == previous and not fresh:
            continue
        previous, fresh = value, False
        low, high = 0, count
        while low < high:
            mid = (low + high) // 2
            if found[mid] < value:
                low = mid + 1
            else:
                high = mid
        if low < count and found[low] == value:
            continue
        if count == found.size:
            return -1
        for j in range(count, low, -1):
            found[j] = found[j - 1]
        found[low] = value
        count += 1
    return count


@kernel
def split_rows(
    rows: NDArray[Any],
    weights: Floats,
    ends: Floats,
    grids: Floats,
    levels: Floats,
    done: NDArray[np.bool_],
) -> None:
    """The first part of `approx` for every row of many short ones.

    Parameters
    ----------
    rows, weights
        Shape (r, n), and the same or (r, 0) for weights of one.
    ends
        Out: minimum and maximum of each row, shape (r, 2).
    grids
        Out: weights of each row's grid points, shape (r, bins + 1); or (r, 0) for none.
    levels, done
        Out: rows with at most s distinct values are done, and have them as levels.
    """
    for row in range(rows.shape[0]):
        count = few_distinct(rows[row], levels[row], 0)
        done[row] = count > 0
        if count > 0:
            levels[row, count:] = levels[row, count - 1]
            continue
        low, high = np.float64(rows[row, 0]), np.float64(rows[row, 0])
        for i in range(rows.shape[1]):
            low = min(low, np.float64(rows[row, i]))
            high = max(high, np.float64(rows[row, i]))
        ends[row, 0], ends[row, 1] = low, high
        if grids.shape[1] > 0:
            exponent = math.frexp(max(abs(low), abs(high)))[1]
            unit = math.ldexp(1.0, max(-1000, min(1000, -exponent)))
            grids[row, :] = 0.0
            add_to_grid(rows[row], weights[row], low, high, unit, grids[row])
