"""QUIVER and Accelerated QUIVER: optimal levels by SMAWK, a layer of the programme at a time.

After Ben Basat, Ben-Itzhak, Mitzenmacher and Vargaftik (NeurIPS 2024). The costs of all pairs
form a Monge matrix, so the best predecessors of a whole layer are the minima of a totally
monotone matrix, found with O(d) evaluations; O(s d) altogether. The accelerated form places
two levels per layer: the best one between a pair of points has a closed form where every point
weighs one.

Made fast for a fair comparison: points, curve and both layers lie side by side in memory, the
stack of SMAWK keeps the value of each head, and nothing recurses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from baselines.compiled import inlined, kernel
from baselines.curve import Curve, Floats, Ints


def path(curve: Curve, num_levels: int, *, every_row: bool = False) -> Ints:
    """Indices of `num_levels` optimal levels, ascending; repeated where there are too few.

    Parameters
    ----------
    curve
        Any curve, weighted or at candidates.
    num_levels
        At least 2.
    every_row
        Solve the last layer for all its rows, as the published procedure does; only one of them
        is needed.
    """
    return _path(curve, num_levels, num_levels - 2, None, every_row=every_row)


def accelerated_path(curve: Curve, num_levels: int, *, every_row: bool = False) -> Ints:
    """As `path`, two levels per layer; `curve` must be that of points of weight one."""
    return _path(curve, num_levels, num_levels // 2 - 1, True, every_row=every_row)


def _path(
    curve: Curve, num_levels: int, layers: int, pairs: bool | None, *, every_row: bool
) -> Ints:
    n = len(curve.at)
    table = np.empty((n, 4))
    choices = np.empty((max(layers, 0), n), np.int32)
    found = np.zeros(num_levels, np.int64)
    found[-1] = n - 1
    if num_levels > 2:
        _solve(curve.at, table, choices, pairs, every_row, found)
    return found


@inlined
def _middle(table: Floats, k: int, j: int) -> int:
    """The best level between points k <= j: where the slope of S, a count, passes the chord's.

    It may be j itself, whose second interval costs nothing.
    """
    width = table[j, 0] - table[k, 0]
    passed = int((table[j, 1] - table[k, 1]) / width) if width > 0.0 else k
    return min(max(passed, k + 1), j)


@inlined
def _cost(table: Floats, now: int, k: int, j: int, pairs: Any) -> float:
    """Cost of reaching point j from k <= j, with another level between them if `pairs`."""
    if pairs is None:
        total = table[k, now] + (table[j, 0] * table[k, 1] - table[k, 0] * table[j, 1])
    else:
        # The costs of both intervals, collected by the middle point.
        b = _middle(table, k, j)
        width, rise = table[j, 0] - table[k, 0], table[j, 1] - table[k, 1]
        total = table[k, now] + (table[b, 1] * width - table[b, 0] * rise)
    return total


@kernel
def _layer(
    table: Floats,
    now: int,
    choice: Ints,
    columns: Ints,
    heads: Floats,
    starts: Ints,
    pairs: Any,
) -> None:
    """The other layer's column of `table` from column `now`, and the predecessors; SMAWK.

    Round r has every 2^r-th row. Entries right of the diagonal are infinite: that keeps the
    matrix totally monotone.
    """
    n = len(table)
    then = 5 - now
    rounds = 0
    while (n >> (rounds + 1)) > 0:
        rounds += 1

    # Reduce: as many columns as rows. The whole matrix is square and needs none of it.
    starts[0] = starts[1] = 0
    for r in range(1, rounds + 1):
        rows, size, base = n >> r, 0, starts[r]
        count = n if r == 1 else base - starts[r - 1]
        for p in range(count):
            c = p if r == 1 else columns[starts[r - 1] + p]
            while size > 0:
                j = (size << r) - 1
                if c > j or heads[size - 1] <= _cost(table, now, c, j, pairs):
                    break
                size -= 1
            if size < rows:
                columns[base + size] = c
                j = ((size + 1) << r) - 1
                heads[size] = _cost(table, now, c, j, pairs) if c <= j else np.inf
                size += 1
        starts[r + 1] = base + size

    # Interpolate: a row's minimum lies between those of its neighbours in the next round.
    for r in range(rounds, 0, -1):
        rows, p, end = n >> r, starts[r], starts[r + 1]
        for i in range(0, rows, 2):
            j = ((i + 1) << r) - 1
            high = min(j, choice[j + (1 << r)]) if i + 1 < rows else j
            least, at = np.inf, 0
            while p < end and columns[p] <= high:
                cost = _cost(table, now, columns[p], j, pairs)
                if cost < least:
                    least, at = cost, columns[p]
                p += 1
            # The next row begins with the column that this one ended with.
            p -= 1
            table[j, then], choice[j] = least, at
    low = 0
    for j in range(0, n, 2):
        high = min(j, choice[j + 1]) if j + 1 < n else j
        least, at = np.inf, low
        for k in range(low, high + 1):
            cost = _cost(table, now, k, j, pairs)
            if cost < least:
                least, at = cost, k
        table[j, then], choice[j] = least, at
        low = high


@kernel
def _solve(
    curve: Floats, table: Floats, choices: Ints, pairs: Any, every_row: bool, found: Ints
) -> None:
    n, num_levels, layers = len(table), found.size, len(choices)
    for i in range(n):
        table[i, 0], table[i, 1] = curve[i, 0], curve[i, 1]
        table[i, 2] = table[i, 3] = 0.0
    now = 2
    # Two levels cost nothing from point 0 (both its coordinates are 0), three one pair.
    odd = pairs is not None and num_levels % 2 == 1
    if odd:
        for j in range(n):
            table[j, now] = _cost(table, 3, 0, j, pairs)
    columns, heads = np.empty(n + 64, np.int64), np.empty(n // 2 + 1)
    starts = np.empty(66, np.int64)
    for layer in range(layers):
        choice = choices[layer]
        if layer < layers - 1 or every_row:
            _layer(table, now, choice, columns, heads, starts, pairs)
        else:
            least, at = np.inf, 0
            for k in range(n):
                cost = _cost(table, now, k, n - 1, pairs)
                if cost < least:
                    least, at = cost, k
            choice[n - 1] = at
        now = 5 - now

    place, end = num_levels - 1, n - 1
    for layer in range(layers - 1, -1, -1):
        before = choices[layer, end]
        if pairs is not None:
            place -= 1
            found[place] = _middle(table, before, end)
        place -= 1
        found[place] = end = before
    if odd:
        found[1] = _middle(table, 0, end)
