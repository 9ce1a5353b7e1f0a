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
def widest(n: int) -> int:
    """Stride of the middle row of n, the first to be filled."""
    stride = 1
    while stride < n:
        stride *= 2
    return stride


@kernel
def step(
    x: Floats,
    area: Floats,
    best: Floats,
    after: Floats,
    choice: NDArray[np.int32],
    stride: int,
    narrowest: int,
    first: int,
    stop: int,
) -> None:
    """One more level: after[j] = min over k <= j of best[k] + cost~[k, j]; O(n log n).

    Parameters
    ----------
    stride, narrowest
        Fill the rows of these strides and of those between, half as wide each; the rows of wider
        ones are filled.
    first, stop
        Of each stride the rows from number `first` to `stop`, where it has as many.
    """
    n = x.size
    while stride >= narrowest:
        end = min(n, 2 * stride * stop)
        for j in range(stride - 1 + 2 * stride * first, end, 2 * stride):
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
def double_step(
    x: Floats,
    slope: Floats,
    area: Floats,
    best: Floats,
    after: Floats,
    choice: NDArray[np.int32],
    middle: NDArray[np.int32],
    unit_weights: bool,
    stride: int,
    narrowest: int,
    first: int,
    stop: int,
) -> None:
    """Two more levels at once; `middle` receives the level between choice[j] and j.

    after[j] = min over k <= j of best[k] + cost~[k, b] + cost~[b, j] with the best b between:
    where the curve's slope passes the chord's. This is the paper's closed form (Accelerated
    QUIVER): with unit weights slopes are consecutive integers and the index follows at once;
    otherwise it is found by bisection. The pair cost is Monge too, so the same search applies.

    Parameters
    ----------
    stride, narrowest, first, stop
        As of `step`.
    """
    n = x.size
    while stride >= narrowest:
        end = min(n, 2 * stride * stop)
        for j in range(stride - 1 + 2 * stride * first, end, 2 * stride):
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
                        # Halvings without a branch, which no processor could foretell.
                        size = j - 1 - b
                        while size > 0:
                            half = size >> 1
                            b = b if slope[b + half] >= chord else b + size - half
                            size = half
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
    x: Floats, area: Floats, first: Floats, last: Floats, num_levels: int, path: Ints
) -> float:
    """Fill `path` with the point indices of the optimal `num_levels` >= 3 levels.

    Parameters
    ----------
    x, area, first, last
        Of a `Curve` of n > num_levels points.
    path
        Out: shape (num_levels,).

    Returns
    -------
    float
        The cost of the path, in the curve's units.
    """
    n = x.size
    layers = num_levels - 3
    choices = np.empty((layers, n), np.int32)
    best, after = np.empty(n), np.empty(n)
    for i in range(n):
        best[i] = first[i]
    # Inner levels keep off both ends: costs measured from a far outlier carry its rounding.
    best[0] = np.inf
    for layer in range(layers):
        step(x, area, best, after, choices[layer], widest(n), 1, 0, n)
        best, after = after, best

    least, end = cheapest(best, last)
    path[0], path[num_levels - 1] = 0, n - 1
    for place in range(num_levels - 2, 0, -1):
        path[place] = end
        end = choices[place - 2, end] if place > 1 else 0
    return least


@kernel
def accelerated_path(
    x: Floats,
    slope: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
    num_levels: int,
    unit_weights: bool,
    path: Ints,
) -> float:
    """As `best_path`, two levels a step.

    Parameters
    ----------
    slope
        Of the curve.
    unit_weights
        Every point weighs 1.
    """
    n = x.size
    single = (num_levels - 3) % 2
    doubles = (num_levels - 3) // 2
    choices = np.empty((single + doubles, n), np.int32)
    middles = np.empty((doubles, n), np.int32)
    best, after = np.empty(n), np.empty(n)
    for i in range(n):
        best[i] = first[i]
    best[0] = np.inf
    for layer in range(single + doubles):
        if layer < single:
            step(x, area, best, after, choices[layer], widest(n), 1, 0, n)
        else:
            choice, middle = choices[layer], middles[layer - single]
            double_step(
                x, slope, area, best, after, choice, middle, unit_weights, widest(n), 1, 0, n
            )
        best, after = after, best

    least, end = cheapest(best, last)
    path[0], path[num_levels - 1] = 0, n - 1
    place = num_levels - 2
    path[place] = end
    for layer in range(single + doubles - 1, -1, -1):
        before = choices[layer, end]
        if layer >= single:
            place -= 1
            path[place] = middles[layer - single, end]
        place -= 1
        path[place] = before
        end = before
    return least


@kernel
def cheapest(best: Floats, last: Floats) -> tuple[float, int]:
    """Least cost of a path with its last link, and the point where that begins."""
    least, end = np.inf, 1
    for k in range(1, best.size - 1):
        cost = best[k] + last[k]
        if cost < least:
            least, end = cost, k
    return least, end


@kernel
def best_levels(
    points: Floats,
    x: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
    counts: Ints,
    levels: Floats,
) -> None:
    """Optimal levels of every row of the curves of `area.build_curves`; levels has shape (r, s).

    The last level is repeated where a row has fewer than s distinct points.
    """
    num_levels = levels.shape[1]
    path = np.empty(num_levels, np.int64)
    for row in range(points.shape[0]):
        n = counts[row]
        if n > num_levels > 2:
            best_path(x[row, :n], area[row, :n], first[row, :n], last[row, :n], num_levels, path)
        _fill_levels(points[row], n, path, levels[row])


@kernel
def accelerated_levels(
    points: Floats,
    x: Floats,
    slope: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
    counts: Ints,
    unit_weights: bool,
    levels: Floats,
) -> None:
    """As `best_levels`, two levels a step."""
    num_levels = levels.shape[1]
    path = np.empty(num_levels, np.int64)
    for row in range(points.shape[0]):
        n = counts[row]
        if n > num_levels > 2:
            accelerated_path(
                x[row, :n],
                slope[row, :n],
                area[row, :n],
                first[row, :n],
                last[row, :n],
                num_levels,
                unit_weights and n == points.shape[1],
                path,
            )
        _fill_levels(points[row], n, path, levels[row])


@kernel
def _fill_levels(points: Floats, count: int, path: Ints, levels: Floats) -> None:
    """Levels from a path over points[:count], or all of these if there are not enough."""
    used = min(count, levels.size)
    chosen = count > levels.size > 2
    place = 0
    for i in range(used):
        at = path[i] if chosen else i
        if i == used - 1:
            at = count - 1
        if place == 0 or points[at] != levels[place - 1]:
            levels[place] = points[at]
            place += 1
    for i in range(place, levels.size):
        levels[i] = points[count - 1]
