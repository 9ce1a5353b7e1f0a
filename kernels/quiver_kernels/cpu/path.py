"""Optimal levels as a shortest path over the points of the curve, by divide and conquer.

``best[j]`` is the least cost of a path of a given number of levels that ends at point j.
The interval cost is Monge, so the best predecessor of j never moves left as j grows: the
middle row's predecessor bounds those of the rows on either side. O(s n log n) time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, Ints, kernel


@kernel
def _step(x: Floats, area: Floats, best: Floats, after: Floats, choice: NDArray[np.int32]) -> None:
    """One more level: after[j] = min over k <= j of best[k] + cost~[k, j]; O(n log n)."""
    n = x.size
    stride = 1
    while stride < n:
        stride *= 2
    while stride > 0:
        for j in range(stride - 1, n, 2 * stride):
            low = choice[j - stride] if j >= stride else 0
            high = min(choice[j + stride], j) if j + stride < n else j
            xj, aj = x[j], area[j]
            least, at = np.inf, low
            for k in range(low, high + 1):
                cost = best[k] + (xj * area[k] - x[k] * aj)
                if cost < least:
                    least, at = cost, k
            after[j] = least
            choice[j] = at
        stride //= 2


@kernel
def _double_step(
    x: Floats,
    slope: Floats,
    area: Floats,
    best: Floats,
    after: Floats,
    choice: NDArray[np.int32],
    middle: NDArray[np.int32],
    unit_weights: bool,
) -> None:
    """Two more levels at once; `middle` receives the level between choice[j] and j.

    after[j] = min over k <= j of best[k] + cost~[k, b] + cost~[b, j] with the best b between:
    where the curve's slope passes the chord's. This is the paper's closed form (Accelerated
    QUIVER): with unit weights slopes are consecutive integers and the index follows at once;
    otherwise it is found by bisection. The pair cost is Monge too, so the same search applies.
    """
    n = x.size
    stride = 1
    while stride < n:
        stride *= 2
    while stride > 0:
        for j in range(stride - 1, n, 2 * stride):
            low = choice[j - stride] if j >= stride else 0
            high = min(choice[j + stride], j) if j + stride < n else j
            xj, aj = x[j], area[j]
            least, at, via = np.inf, low, low
            for k in range(low, high + 1):
                xk, ak = x[k], area[k]
                b = k
                if j - k >= 2 and xj > xk:
                    chord = (aj - ak) / (xj - xk)
                    b = k + 1
                    if unit_weights:
                        b = min(max(k + int(np.ceil(chord - slope[k])), b), j - 1)
                    else:
                        top = j - 1
                        while b < top:
                            mid = (b + top) // 2
                            if slope[mid] >= chord:
                                top = mid
                            else:
                                b = mid + 1
                xb, ab = x[b], area[b]
                cost = best[k] + ((xb * ak - xk * ab) + (xj * ab - xb * aj))
                if cost < least:
                    least, at, via = cost, k, b
            after[j] = least
            choice[j] = at
            middle[j] = via
        stride //= 2


@kernel
def best_path(
    x: Floats,
    slope: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
    num_levels: int,
    accelerated: bool,
    unit_weights: bool,
    path: Ints,
) -> float:
    """Fill `path` with the point indices of the optimal `num_levels` >= 3 levels.

    Parameters
    ----------
    x, slope, area, first, last
        A `Curve` of n > num_levels points.
    accelerated
        Take two levels per step where possible.
    unit_weights
        Every point weighs 1.
    path
        Out: shape (num_levels,).

    Returns
    -------
    float
        The cost of the path, in the curve's units.
    """
    n = x.size
    inner = num_levels - 3
    doubles = inner // 2 if accelerated else 0
    singles = inner - 2 * doubles
    choices = np.empty((singles + doubles, n), np.int32)
    middles = np.empty((doubles, n), np.int32)
    best = first.copy()
    # Inner levels keep off both ends: costs measured from a far outlier carry its rounding.
    best[0] = np.inf
    after = np.empty(n)
    for layer in range(singles + doubles):
        if layer < singles:
            _step(x, area, best, after, choices[layer])
        else:
            _double_step(
                x, slope, area, best, after, choices[layer], middles[layer - singles], unit_weights
            )
        best, after = after, best

    least, end = np.inf, 1
    for k in range(1, n - 1):
        cost = best[k] + last[k]
        if cost < least:
            least, end = cost, k

    path[0] = 0
    path[num_levels - 1] = n - 1
    place = num_levels - 2
    path[place] = end
    for layer in range(singles + doubles - 1, -1, -1):
        before = choices[layer, end]
        if layer >= singles:
            place -= 1
            path[place] = middles[layer - singles, end]
        place -= 1
        path[place] = before
        end = before
    return least


@kernel
def best_levels(
    points: Floats,
    x: Floats,
    slope: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
    counts: Ints,
    accelerated: bool,
    unit_weights: bool,
    levels: Floats,
) -> None:
    """Optimal levels of every row of the curves of `area.build_curves`; levels has shape (r, s).

    The last level is repeated where a row has fewer than s distinct points.
    """
    num_levels = levels.shape[1]
    path = np.empty(num_levels, np.int64)
    for row in range(points.shape[0]):
        count = counts[row]
        used = min(count, num_levels)
        for i in range(used):
            path[i] = i
        path[used - 1] = count - 1
        if count > num_levels > 2:
            best_path(
                x[row, :count],
                slope[row, :count],
                area[row, :count],
                first[row, :count],
                last[row, :count],
                num_levels,
                accelerated,
                unit_weights and count == points.shape[1],
                path,
            )
        place = 0
        for i in range(used):
            if place == 0 or points[row, path[i]] != levels[row, place - 1]:
                levels[row, place] = points[row, path[i]]
                place += 1
        for i in range(place, num_levels):
            levels[row, i] = points[row, count - 1]
