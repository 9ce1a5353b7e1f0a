"""The area form of the objective: convex curve S, and exact first and last interval costs.

With A(t) the weight of data at or below t, S is an integral of A: convex, piecewise linear,
kinks at the data. The objective of a set of levels is twice the area between the polyline
through (level, S(level)) and the curve. Costs of intervals are then cross products

    cost~[k, j] = x[j] * S[k] - x[k] * S[j]

which differ from the true cost by potential[j] - potential[k], a term that telescopes along
a path of levels (docs/numerics.md). Nothing is squared, and every sum has terms of one sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, Ints, frozen, inlined, kernel


@dataclass(frozen=True, slots=True)
class Curve:
    """The curve over n ascending points, in scaled units.

    Attributes
    ----------
    x, area
        Points and S there, anchored at the weighted median: x = 0, S = 0 and S' about 0
        there, so that far outliers on either side do not drown the bulk.
    slope
        Slope of S right of each point: the weight up to it, less that at the anchor.
    inside
        Weight of data between each point and the next that are no points themselves; slope +
        inside is the slope left of the next point.
    first, last
        Costs of the intervals (0, v) and (v, n-1), exact and corrected by the potential: with
        these at the ends, the sum of cost~ along a path is the objective itself.
    """

    x: Floats
    slope: Floats
    area: Floats
    first: Floats
    last: Floats
    inside: Floats

    @classmethod
    def empty(cls, size: int) -> Curve:
        """Arrays for `size` points, to be filled; nothing inside."""
        x, slope, area, first, last = (np.empty(size) for _ in range(5))
        return cls(x, slope, area, first, last, np.zeros(size))

    @classmethod
    def of(cls, values: Floats, weights: Floats) -> Curve:
        """The curve of n >= 2 distinct ascending `values`, all of them points; O(n)."""
        curve = cls.empty(values.size)
        arrays = (curve.x, curve.slope, curve.area, curve.first, curve.last)
        build_curve(frozen(values), frozen(weights), *arrays)
        return curve


@inlined
def _power_of_two(top: float) -> float:
    """The power of two that brings `top` > 0 into [1/4, 1), within float64."""
    exponent = min(max(-int(np.floor(np.log2(top))) - 2, -1023), 1000)
    return float(2.0**exponent)


@kernel
def build_curve(
    values: Floats,
    weights: Floats,
    x: Floats,
    slope: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
) -> None:
    """Fill the arrays of a `Curve` from distinct ascending `values`; O(n), sums of one sign."""
    n = values.size
    total = 0.0
    for i in range(n):
        total += weights[i]
    anchor = 0
    running = weights[0]
    while anchor < n - 1 and running < 0.5 * total:
        anchor += 1
        running += weights[anchor]

    # Two steps, since the values' own range may exceed float64 and their spread be tiny.
    unit = _power_of_two(max(abs(values[0]), abs(values[n - 1])))
    origin = values[anchor] * unit
    stretch = _power_of_two(max(values[n - 1] * unit - origin, origin - values[0] * unit))
    for i in range(n):
        x[i] = (values[i] * unit - origin) * stretch

    # From the anchor outwards; `last` holds the integral of S until the potentials are known.
    above = 0.5 * weights[anchor]
    slope[anchor], area[anchor], last[anchor] = above, 0.0, 0.0
    for i in range(anchor + 1, n):
        gap = x[i] - x[i - 1]
        area[i] = area[i - 1] + above * gap
        last[i] = last[i - 1] + 0.5 * (area[i - 1] + area[i]) * gap
        above += weights[i]
        slope[i] = above
    below = 0.5 * weights[anchor]
    for i in range(anchor - 1, -1, -1):
        gap = x[i + 1] - x[i]
        area[i] = area[i + 1] + below * gap
        last[i] = last[i + 1] - 0.5 * (area[i] + area[i + 1]) * gap
        slope[i] = -below
        below += weights[i]

    # cost(0, v) = sum over i <= v of w_i (x_i - x_0)(x_v - x_i): the recurrence of S with the
    # weights w_i (x_i - x_0); cost(v, n-1) is its mirror image.
    cost, growth = 0.0, 0.0
    for v in range(n):
        if v > 0:
            cost += growth * (x[v] - x[v - 1])
        growth += weights[v] * (x[v] - x[0])
        first[v] = cost - (x[v] * area[v] - 2.0 * last[v])
    cost, growth = 0.0, 0.0
    for v in range(n - 1, -1, -1):
        if v < n - 1:
            cost += growth * (x[v + 1] - x[v])
        growth += weights[v] * (x[n - 1] - x[v])
        last[v] = cost + (x[v] * area[v] - 2.0 * last[v])


@kernel
def build_cell_curve(
    minimum: Floats,
    maximum: Floats,
    weight: Floats,
    lower: Floats,
    upper: Floats,
    known: NDArray[np.bool_],
    unit: float,
    points: Floats,
    x: Floats,
    slope: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
    inside: Floats,
) -> None:
    """Fill the arrays of a `Curve` over the minima and maxima of cells; O(n), sums of one sign.

    Parameters
    ----------
    minimum, maximum
        Least and greatest value of each of m cells, or bounds of these, ascending; cells may
        share an end, and do not overlap else.
    weight
        Weight of its values.
    lower, upper
        Sums of w * (value - minimum) and of w * (maximum - value), times `unit`.
    known
        Cells whose values are all at their minimum and maximum.
    unit
        Power of two that brings the values within [-1, 1].
    points
        Out: the distinct minima and maxima.
    x, slope, area, first, last, inside
        Out: the curve at these points.

    Notes
    -----
    The sums of second order that P and the end links need are not known of a cell. They would
    change all paths' costs by one constant; an estimate keeps that constant small
    (docs/numerics.md, "Cells").
    """
    n = points.size
    at, below, above = np.zeros(n), np.zeros(n), np.zeros(n)
    total = 0.0
    i = -1
    for c in range(minimum.size):
        total += weight[c]
        if c == 0 or minimum[c] > maximum[c - 1]:
            i += 1
            points[i] = minimum[c]
        if maximum[c] <= minimum[c]:
            at[i] += weight[c]
            continue
        if known[c]:
            share = lower[c] / (upper[c] + lower[c])
            at[i] += weight[c] * (1.0 - share)
            at[i + 1] = weight[c] * share
        else:
            inside[i], below[i], above[i] = weight[c], lower[c], upper[c]
        i += 1
        points[i] = maximum[c]
    # The ends are levels and cost nothing: their weight would only shift the anchor.
    total -= at[0] + at[n - 1]
    at[0] = at[n - 1] = 0.0
    anchor, running = 0, at[0] + inside[0]
    while anchor < n - 1 and running < 0.5 * total:
        anchor += 1
        running += at[anchor] + inside[anchor]

    origin = points[anchor] * unit
    stretch = _power_of_two(max(points[n - 1] * unit - origin, origin - points[0] * unit))
    for i in range(n):
        x[i] = (points[i] * unit - origin) * stretch
        below[i] *= stretch
        above[i] *= stretch

    # From the anchor outwards; `last` holds the integral of S until the potentials are known.
    slope[anchor], area[anchor], last[anchor] = 0.5 * at[anchor], 0.0, 0.0
    for i in range(anchor + 1, n):
        gap, after = x[i] - x[i - 1], slope[i - 1]
        second = max(above[i - 1] * gap - _product(below[i - 1], above[i - 1], inside[i - 1]), 0.0)
        area[i] = area[i - 1] + after * gap + above[i - 1]
        last[i] = last[i - 1] + area[i - 1] * gap + 0.5 * (after * gap * gap + second)
        slope[i] = after + inside[i - 1] + at[i]
    before = -0.5 * at[anchor]
    for i in range(anchor - 1, -1, -1):
        gap = x[i + 1] - x[i]
        second = max(below[i] * gap - _product(below[i], above[i], inside[i]), 0.0)
        area[i] = area[i + 1] - before * gap + below[i]
        last[i] = last[i + 1] - area[i + 1] * gap + 0.5 * (before * gap * gap - second)
        slope[i] = before - inside[i]
        before = slope[i] - at[i]

    # cost(0, v) = sum over i <= v of w_i (x_i - x_0)(x_v - x_i): the recurrence of S with the
    # weights w_i (x_i - x_0); cost(v, n-1) is its mirror image.
    cost, growth = 0.0, 0.0
    for v in range(n):
        if v > 0:
            start = x[v - 1] - x[0]
            product = _product(below[v - 1], above[v - 1], inside[v - 1])
            cost += growth * (x[v] - x[v - 1]) + start * above[v - 1] + product
            growth += start * inside[v - 1] + below[v - 1]
        growth += at[v] * (x[v] - x[0])
        first[v] = cost - (x[v] * area[v] - 2.0 * last[v])
    cost, growth = 0.0, 0.0
    for v in range(n - 1, -1, -1):
        if v < n - 1:
            start = x[n - 1] - x[v + 1]
            cost += growth * (x[v + 1] - x[v]) + start * below[v]
            cost += _product(below[v], above[v], inside[v])
            growth += start * inside[v] + above[v]
        growth += at[v] * (x[n - 1] - x[v])
        last[v] = cost + (x[v] * area[v] - 2.0 * last[v])


@inlined
def _product(below: float, above: float, weight: float) -> float:
    """An estimate of the sum of w (x - l)(u - x), from those of w (x - l) and w (u - x).

    Exact for evenly spread values, at most 3/2 of this for any, 0 if all are at the ends.
    """
    return 2.0 / 3.0 * below * above / weight if weight > 0.0 else 0.0


@kernel
def build_curves(
    rows: Floats,
    weights: Floats,
    counts: Ints,
    points: Floats,
    x: Floats,
    slope: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
) -> None:
    """The curve of every row of ascending `rows`, shape (r, n); O(r n).

    Equal neighbours are merged and inner ones of weight 0 dropped: row i has counts[i] distinct
    `points` and as many entries in each array of its curve. `weights` has the rows' shape, or
    shape (r, 0) for ones.
    """
    n = rows.shape[1]
    weighted = weights.shape[1] > 0
    masses = np.empty(n)
    for row in range(rows.shape[0]):
        count = 0
        for i in range(n):
            w = weights[row, i] if weighted else 1.0
            if count > 0 and rows[row, i] == points[row, count - 1]:
                masses[count - 1] += w
                continue
            if count > 1 and masses[count - 1] == 0.0:
                count -= 1
            points[row, count], masses[count] = rows[row, i], w
            count += 1
        counts[row] = count
        if count > 1:
            # The ends are levels and cost nothing: their weight would only shift the anchor.
            masses[0] = masses[count - 1] = 0.0
            build_curve(
                points[row, :count],
                masses[:count],
                x[row, :count],
                slope[row, :count],
                area[row, :count],
                first[row, :count],
                last[row, :count],
            )
