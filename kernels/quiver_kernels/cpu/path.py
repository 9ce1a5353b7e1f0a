"""Optimal levels as a shortest path over the points of the curve, by divide and conquer.

``best[j]`` is the least cost of a path of a given number of levels that ends at point j.
The interval cost is Monge, so the best predecessor of j never moves left as j grows: the
middle row's predecessor bounds those of the rows on either side. O(s n log n) time.
"""

from __future__ import annotations

import numpy as np

from quiver_kernels.cpu.compile import inlined, kernel


@kernel
def _step(x, area, best, after, choice):  # type: ignore[no-untyped-def]
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


@inlined
def _between(chord, slope, k, j, unit_weights):  # type: ignore[no-untyped-def]
    """The best single level between points k and j: where the curve's slope passes the chord's.

    The paper's closed form (Accelerated QUIVER): with unit weights slopes are consecutive
    integers and the index follows at once; otherwise it is found by bisection.
    """
    low = k + 1
    if unit_weights:
        low = min(max(k + np.int64(np.ceil(chord - slope[k])), low), j - 1)
    else:
        high = j - 1
        while low < high:
            mid = (low + high) // 2
            if slope[mid] >= chord:
                high = mid
            else:
                low = mid + 1
    return low


@kernel
def _double_step(x, slope, area, best, after, choice, middle, unit_weights):  # type: ignore[no-untyped-def]
    """Two more levels at once; `middle` receives the level between choice[j] and j.

    after[j] = min over k <= j of best[k] + cost~[k, b] + cost~[b, j] with the best b. This
    pair cost is Monge too, so the same search applies.
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
                if j - k >= 2:
                    b = _between((aj - ak) / (xj - xk), slope, k, j, unit_weights)
                xb, ab = x[b], area[b]
                cost = best[k] + ((xb * ak - xk * ab) + (xj * ab - xb * aj))
                if cost < least:
                    least, at, via = cost, k, b
            after[j] = least
            choice[j] = at
            middle[j] = via
        stride //= 2


@kernel
def best_path(x, slope, area, first, last, num_levels, accelerated, unit_weights, path):  # type: ignore[no-untyped-def]
    """Fill `path` with the point indices of the optimal `num_levels` >= 3 levels.

    Parameters
    ----------
    x, slope, area, first, last
        The curve of `area.build_curve`, n > num_levels points.
    accelerated
        Take two levels per step where possible.
    unit_weights
        Every point weighs 1.
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
