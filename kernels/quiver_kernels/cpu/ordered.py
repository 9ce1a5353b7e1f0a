"""Cells of a sorted vector: runs of neighbours, shorter where levels will be dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, Ints, frozen, kernel
from quiver_kernels.cpu.summary import Summary
from quiver_kernels.stopping import checkpoint

_LONGEST = 1024
_SAMPLE = 2048
_ROUNDS = 4
_PARTS = 16
# Cells that may hold a level number about 4 s^1.5; this many more leave few values in them.
_CELLS = 32.0


@dataclass(frozen=True, slots=True)
class Ordered:
    """Ascending values, float32 or float64, with their weights (empty: ones)."""

    values: NDArray[Any]
    weights: Floats
    unit: float

    def summary(self, num_levels: int) -> Summary:
        """Cells fine enough for a search for `num_levels` levels; O(n)."""
        begin = np.empty(self.values.size + 1, np.int64)
        values = frozen(self.values)
        limit = cell_measure(values, self.unit, _CELLS * num_levels**1.5)
        count = cut(values, self.unit, limit, _LONGEST, begin)
        checkpoint()
        return self._sums(begin[:count], begin[1 : count + 1])

    def look(self, summary: Summary, cells: Ints) -> Summary:
        """The values in the given cells, each cut into `_PARTS` by rank."""
        kind = self.values.dtype
        low = np.searchsorted(self.values, summary.minimum[cells].astype(kind))
        high = np.searchsorted(self.values, summary.maximum[cells].astype(kind), side="right")
        # A value that ends one cell and begins the next is in one of them only.
        np.minimum(high[:-1], low[1:], out=high[:-1])
        size = int(np.minimum(high - low, 4 * _PARTS + 2).sum())
        begin, end = np.empty(size, np.int64), np.empty(size, np.int64)
        count = cut_parts(frozen(self.values), low, high, _PARTS, begin, end)
        return self._sums(begin[:count], end[:count])

    def _sums(self, begin: Ints, end: Ints) -> Summary:
        minimum, maximum, weight, lower, upper = (np.empty(begin.size) for _ in range(5))
        known = np.empty(begin.size, np.bool_)
        sum_cells(
            frozen(self.values),
            frozen(self.weights),
            begin,
            end,
            self.unit,
            minimum,
            maximum,
            weight,
            lower,
            upper,
            known,
        )
        return Summary(minimum, maximum, weight, lower, upper, known, self.unit)


@kernel
def cell_measure(values: NDArray[Any], unit: float, cells: float) -> float:
    """Largest count * width^2 of a cell so that there are about `cells` cells.

    Optimal levels have the density of (count * width^2)^(1/3), so cells even in this measure
    leave as few values undecided as any of their number. A stretch that holds more than its
    part (the gap before an outlier) counts as one part.
    """
    n = values.size
    steps = min(_SAMPLE, n - 1)
    measure = np.empty(steps)
    for i in range(steps):
        low, high = i * (n - 1) // steps, (i + 1) * (n - 1) // steps
        width = np.float64(values[high]) * unit - np.float64(values[low]) * unit
        measure[i] = np.cbrt((high - low) * width * width)
    total, part = 0.0, np.inf
    for _ in range(_ROUNDS):
        total = 0.0
        for i in range(steps):
            total += min(measure[i], part)
        part = total / min(cells, steps)
    return float((total / cells) ** 3)


@kernel
def cut(values: NDArray[Any], unit: float, limit: float, longest: int, begin: Ints) -> int:
    """Cut ascending values into cells; returns their number, begin[i] is where cell i begins.

    A cell has at most `longest` values, half as many as long as count * width^2 > limit; equal
    values stay together.
    """
    n = values.size
    count, start = 0, 0
    begin[0] = 0
    while start < n:
        size = min(longest, n - start)
        low = values[start] * unit
        while size > 1:
            width = values[start + size - 1] * unit - low
            if size * width * width <= limit:
                break
            size //= 2
        end = start + size
        while end < n and values[end] == values[end - 1]:
            end += 1
        count += 1
        begin[count] = start = end
    return count


@kernel
def cut_parts(
    values: NDArray[Any], low: Ints, high: Ints, parts: int, begin: Ints, end: Ints
) -> int:
    """Cut every stretch values[low:high] into about `parts` cells by rank; returns their number.

    Cell i is values[begin[i]:end[i]]. A stretch that is short may give twice as many, and
    frequent values twice as many again.
    """
    count = 0
    for c in range(low.size):
        step = max((high[c] - low[c]) // parts, 1)
        start = low[c]
        while start < high[c]:
            stop = min(start + step, high[c])
            if stop < high[c] and values[stop] == values[stop - 1]:
                # Equal values stay together; if others are before them, those are cut off.
                while stop > start and values[stop - 1] == values[start + step]:
                    stop -= 1
                if stop == start:
                    while stop < high[c] and values[stop] == values[start]:
                        stop += 1
            begin[count], end[count] = start, stop
            count += 1
            start = stop
    return count


@kernel
def sum_cells(
    values: NDArray[Any],
    weights: Floats,
    begin: Ints,
    end: Ints,
    unit: float,
    minimum: Floats,
    maximum: Floats,
    weight: Floats,
    lower: Floats,
    upper: Floats,
    known: NDArray[np.bool_],
) -> None:
    """Fill the arrays of a `Summary`, of cells values[begin:end] of ascending values."""
    for c in range(minimum.size):
        first, stop = begin[c], end[c]
        least, most = np.float64(values[first]), np.float64(values[stop - 1])
        low, high = least * unit, most * unit
        total, above = 0.0, 0.0
        if weights.size > 0:
            for i in range(first, stop):
                total += weights[i]
                above += weights[i] * (np.float64(values[i]) * unit - low)
        else:
            # Four sums side by side: one would wait for itself at every value. Differences of
            # float32 fit into float64 as they are, those of float64 may not.
            inner, outer = (1.0, unit) if values.itemsize == 4 else (unit, 1.0)
            least_inner = least * inner
            a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
            fours = first + (stop - first) // 4 * 4
            for i in range(first, fours, 4):
                a0 += np.float64(values[i]) * inner - least_inner
                a1 += np.float64(values[i + 1]) * inner - least_inner
                a2 += np.float64(values[i + 2]) * inner - least_inner
                a3 += np.float64(values[i + 3]) * inner - least_inner
            for i in range(fours, stop):
                a0 += np.float64(values[i]) * inner - least_inner
            above = ((a0 + a1) + (a2 + a3)) * outer
            total = np.float64(stop - first)
        minimum[c], maximum[c], weight[c] = least, most, total
        lower[c], upper[c] = above, max(total * (high - low) - above, 0.0)
        known[c] = stop - first <= 2 or least == most
