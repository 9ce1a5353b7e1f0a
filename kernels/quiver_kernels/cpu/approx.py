"""Apx. QUIVER: optimal levels among the points of a uniform grid, from unsorted data.

One pass gives, per cell, the weight and the weight times distance to the cell's upper edge.
That is all the area form needs at the edges, so interval costs are those of the true data;
only the positions of the levels are restricted (paper, section 5). O(d + s m log m).
"""

from __future__ import annotations

import numpy as np

from quiver_kernels.cpu.area import power_of_two_unit
from quiver_kernels.cpu.compile import kernel
from quiver_kernels.cpu.exact import write_levels
from quiver_kernels.cpu.path import best_path


@kernel
def add_to_histogram(x, weights, low, high, mass, distance):  # type: ignore[no-untyped-def]
    """Add the values of `x` to the cells between `low` and `high`, in order.

    mass[c] grows by the weight of a value in cell c, distance[c] by the weight times its
    distance to the upper edge, in cell widths. An empty `weights` means ones.
    """
    cells = mass.size
    unit = power_of_two_unit(low, high)
    base = low * unit
    per_cell = cells / (high * unit - base)
    weighted = weights.size > 0
    for i in range(x.size):
        place = (np.float64(x[i]) * unit - base) * per_cell
        c = min(np.int64(place), cells - 1)
        w = np.float64(weights[i]) if weighted else 1.0
        mass[c] += w
        distance[c] += w * max(np.float64(c + 1) - place, 0.0)


@kernel
def solve_grid(mass, distance, low, high, levels):  # type: ignore[no-untyped-def]
    """Optimal levels among the edges of a histogram, float64, shape (s,), s >= 2."""
    cells = mass.size
    n = cells + 1
    num_levels = levels.size
    if num_levels == 2 or n <= num_levels:
        count = 2 if num_levels == 2 else n
        for i in range(count):
            levels[i] = _edge(i, count - 1, low, high)
        for i in range(count, num_levels):
            levels[i] = high
        return
    x, slope, area = np.empty(n), np.empty(n), np.empty(n)
    x[0] = slope[0] = area[0] = 0.0
    for c in range(cells):
        x[c + 1] = c + 1.0
        area[c + 1] = area[c] + slope[c] + distance[c]
        slope[c + 1] = slope[c] + mass[c]
    # With x[0] = area[0] = 0 the first cost~ is 0; the true costs differ by telescoping terms.
    first = np.zeros(n)
    last = np.empty(n)
    for k in range(n):
        last[k] = x[cells] * area[k] - x[k] * area[cells]
    path = np.empty(num_levels, np.int64)
    best_path(x, slope, area, first, last, num_levels, False, False, path)
    chosen = np.empty(num_levels)
    for i in range(num_levels):
        chosen[i] = _edge(path[i], cells, low, high)
    write_levels(chosen, num_levels, levels)


@kernel
def _edge(index, count, low, high):  # type: ignore[no-untyped-def]
    # Interpolated from both ends: exact at both, and high - low may overflow.
    t = index / count
    return low * (1.0 - t) + high * t


@kernel
def few_distinct(x, found, count):  # type: ignore[no-untyped-def]
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
def solve_grid_rows(rows, weights, bins, levels):  # type: ignore[no-untyped-def]
    """Levels of every row of `rows`, shape (r, n), unsorted; weights (r, n) or (r, 0).

    With `bins` the levels are optimal on a grid of so many cells; with 0 they are equal steps.
    """
    mass, distance = np.empty(bins), np.empty(bins)
    num_levels = levels.shape[1]
    for row in range(rows.shape[0]):
        count = few_distinct(rows[row], levels[row], 0)
        if count > 0:
            levels[row, count:] = levels[row, count - 1]
            continue
        low, high = np.float64(rows[row].min()), np.float64(rows[row].max())
        if bins == 0:
            for i in range(num_levels):
                levels[row, i] = _edge(i, num_levels - 1, low, high)
            continue
        mass[:] = 0.0
        distance[:] = 0.0
        add_to_histogram(rows[row], weights[row], low, high, mass, distance)
        solve_grid(mass, distance, low, high, levels[row])
