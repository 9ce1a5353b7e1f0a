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
    first, last
        Costs of the intervals (0, v) and (v, n-1), exact and corrected by the potential: with
        these at the ends, the sum of cost~ along a path is the objective itself.
    """

    x: Floats
    slope: Floats
    area: Floats
    first: Floats
    last: Floats

    @classmethod
    def of(cls, values: Floats, weights: Floats) -> Curve:
        """The curve of n >= 2 distinct ascending `values`; O(n)."""
        curve = cls(*(np.empty(values.size) for _ in range(5)))
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
