"""Kernels of the search for the best scale (`search` explains it)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel

# Of the squared norm: what the search may miss.
_TOLERANCE = 1e-9
# Points on a first walk from the greatest scale down, in steps of this ratio.
_WALK = 192
_RATIO = 2.0
# Intervals that wait, at most: one per step of the walk, and one per halving.
_STACK = 512
# For each of those: ends, phi there, half its slope there.
_FIELDS = 6


@kernel
def search_rows(
    values: Floats, weights: Floats, table: Floats, found: Floats, gains: Floats
) -> None:
    """Write the best scale of each row.

    Parameters
    ----------
    values
        Ascending rows, the greatest magnitude of each near 1.
    weights
        How often each value of the only row counts; none: once each.
    table
        Ascending entries.
    found
        Out: scales; 0 for a row of zeros.
    gains
        Out: by how much the squared error is below the squared norm.
    """
    n, s = values.shape[1], table.size
    # Counts, and sums of the greatest and of the least values.
    count, highest, lowest = np.empty(n + 1), np.empty(n + 1), np.empty(n + 1)
    stack = np.empty((_STACK, _FIELDS))
    walk = np.empty((_WALK, 3))
    point = np.empty(3)
    widest = max(abs(table[0]), abs(table[s - 1]))
    inner = np.inf
    for k in range(s - 1):
        middle = abs(0.5 * (table[k] + table[k + 1]))
        if middle > 0.0:
            inner = min(inner, middle)
    inner = widest if inner == np.inf else inner
    for b in range(values.shape[0]):
        row = values[b]
        square = 0.0
        count[0], highest[0], lowest[0] = 0.0, 0.0, 0.0
        for i in range(n):
            v, w = row[i], weights[i] if weights.size > 0 else 1.0
            count[i + 1] = count[i] + w
            lowest[i + 1] = lowest[i] + w * v
            square += w * v * v
            v, w = row[n - 1 - i], weights[n - 1 - i] if weights.size > 0 else 1.0
            highest[i + 1] = highest[i] + w * v
        found[b], gains[b] = 0.0, 0.0
        if square == 0.0:
            continue
        best, best_scale = 0.0, 0.0
        # At greater scales all codes stay what they are at this one.
        u = 0.5 * inner / max(abs(row[0]), abs(row[n - 1]))
        steps = 0
        limit = np.inf
        while steps < _WALK:
            _evaluate(row, count, lowest, highest, table, u, point)
            walk[steps, 0], walk[steps, 1], walk[steps, 2] = u, point[0], point[1]
            steps += 1
            if min(point[1], point[2]) > 0.0 and point[1] * point[1] > best * point[2]:
                best, best_scale = point[1] * point[1] / point[2], point[1] / point[2]
            # |x| <= scale |t_c| + root of the error, and |t_c| <= widest sqrt(n): a scale that is
            # less has a greater error than one that is known.
            left = np.sqrt(square) - np.sqrt(max(square - best, 0.0))
            limit = np.inf if left <= 0.0 else widest * np.sqrt(count[n]) / left
            if u >= limit:
                break
            u *= _RATIO
        waiting = 0
        for k in range(1, steps):
            for side in range(2):
                for f in range(3):
                    stack[waiting, 2 * f + side] = walk[k - 1 + side, f]
            waiting += 1
        while waiting > 0:
            waiting -= 1
            u1, u2 = stack[waiting, 0], stack[waiting, 1]
            phi1, phi2 = stack[waiting, 2], stack[waiting, 3]
            a1, a2 = stack[waiting, 4], stack[waiting, 5]
            if _most_gain(u1, u2, phi1, phi2) <= best + _TOLERANCE * square:
                continue
            # Where the tangents meet: of a phi with one corner in between, the corner.
            bend = 2.0 * (a2 - a1)
            u = (phi1 - phi2 - 2.0 * (a1 * u1 - a2 * u2)) / bend if bend > 0.0 else u1
            if not u1 < u < u2 or waiting + 2 > _STACK:
                continue
            _evaluate(row, count, lowest, highest, table, u, point)
            if min(point[1], point[2]) > 0.0 and point[1] * point[1] > best * point[2]:
                best, best_scale = point[1] * point[1] / point[2], point[1] / point[2]
            stack[waiting + 1, 0], stack[waiting + 1, 1] = u, u2
            stack[waiting + 1, 2], stack[waiting + 1, 3] = point[0], phi2
            stack[waiting + 1, 4], stack[waiting + 1, 5] = point[1], a2
            stack[waiting, 1], stack[waiting, 3], stack[waiting, 5] = u, point[0], point[1]
            waiting += 2
        found[b], gains[b] = best_scale, best


@kernel
def _evaluate(
    row: Floats,
    count: Floats,
    lowest: Floats,
    highest: Floats,
    table: Floats,
    u: float,
    point: Floats,
) -> None:
    """Write phi(u), and <x, t_c> and <t_c, t_c> of the codes of nearest rounding at 1 / u.

    Sums begin at the entry next to zero and go outward, so that nothing cancels: `count` and
    `lowest` are sums over the least values of `row`, `highest` over the greatest.
    """
    n, inner = row.size, 0
    while inner < table.size - 1 and table[inner] + table[inner + 1] <= 0.0:
        inner += 1
    product, square = table[inner] * lowest[n], table[inner] * table[inner] * count[n]
    first = 0
    for k in range(table.size - 1):
        limit = 0.5 * (table[k] + table[k + 1]) / u
        # Thresholds ascend: the search goes on from where the last ended.
        low, high = first, n
        while low < high:
            middle = (low + high) // 2
            if row[middle] < limit:
                low = middle + 1
            else:
                high = middle
        first = low
        gap = table[k + 1] - table[k]
        squares = gap * (table[k + 1] + table[k])
        if k < inner:
            product -= gap * lowest[low]
            square -= squares * count[low]
        else:
            product += gap * highest[n - low]
            square += squares * (count[n] - count[low])
    point[0] = 2.0 * u * product - square
    point[1] = product
    point[2] = square


@kernel
def _most_gain(u1: float, u2: float, phi1: float, phi2: float) -> float:
    """The most that a chord through (u1, phi1) and (u2, phi2), over u^2, reaches in between."""
    most = max(phi1 / (u1 * u1), phi2 / (u2 * u2))
    slope = (phi2 - phi1) / (u2 - u1)
    begin = phi1 - slope * u1
    if slope != 0.0:
        u = -2.0 * begin / slope
        if u1 < u < u2:
            most = max(most, (begin + slope * u) / (u * u))
    return most


@kernel
def sum_cells(
    x: NDArray[Any],
    factor: float,
    dropped: int,
    counts: Floats,
    sums: Floats,
    singles: NDArray[np.float32],
    bits: NDArray[np.uint32],
) -> None:
    """Add values times `factor` to the cells of their leading float32 bits, in ascending order.

    `singles` and `bits` are one memory, with room for the values.
    """
    for i in range(x.size):
        singles[i] = np.float32(np.float64(x[i]) * factor)
    for i in range(x.size):
        word = bits[i]
        # Bits of negative numbers descend.
        word = ~word if word >> np.uint32(31) else word | np.uint32(0x80000000)
        cell = np.int64(word >> np.uint32(dropped))
        counts[cell] += 1.0
        sums[cell] += np.float64(x[i]) * factor
