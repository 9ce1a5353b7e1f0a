"""The area form of the objective: convex curve S, and exact first and last interval costs.

With A(t) the weight of data at or below t, S is an integral of A: convex, piecewise linear,
kinks at the data. The objective of a set of levels is twice the area between the polyline
through (level, S(level)) and the curve. Costs of intervals are then cross products

    cost~[k, j] = x[j] * S[k] - x[k] * S[j]

which differ from the true cost by potential[j] - potential[k], a term that telescopes along
a path of levels (docs/numerics.md). Nothing is squared, and every sum has terms of one sign.
"""

from __future__ import annotations

import numpy as np

from quiver_kernels.cpu.compile import kernel


@kernel
def power_of_two_unit(low, high):  # type: ignore[no-untyped-def]
    """The power of two that brings max(abs(low), abs(high)) into [1/4, 1/2), within float64."""
    top = max(abs(low), abs(high))
    if top == 0.0:
        return 1.0
    exponent = np.int64(np.floor(np.log2(top))) + 2
    return 2.0 ** float(min(max(-exponent, -1023), 1000))


@kernel
def distinct_sorted(values, weights, out_values, out_weights):  # type: ignore[no-untyped-def]
    """Merge equal neighbours of sorted `values`; O(n). An empty `weights` means ones."""
    count = 0
    weighted = weights.size > 0
    for i in range(values.size):
        w = weights[i] if weighted else 1.0
        if count > 0 and values[i] == out_values[count - 1]:
            out_weights[count - 1] += w
        else:
            out_values[count] = values[i]
            out_weights[count] = w
            count += 1
    return count


@kernel
def build_curve(values, weights, x, slope, area, first, last):  # type: ignore[no-untyped-def]
    """Fill the curve over `n` distinct ascending `values`; O(n), sums of one sign only.

    x, area
        Points of the curve, anchored at the weighted median: x = 0, S = 0 and S' about 0
        there, so that far outliers on either side do not drown the bulk.
    slope
        Slope of the curve right of each point (weight up to it, less that at the anchor).
    first, last
        Potential-corrected exact costs of the intervals (0, v) and (v, n-1): with these as
        ends the sum of cost~ over a path is the objective itself, in scaled units.

    Returns
    -------
    float
        The scale: costs are in units of (value * scale) squared.
    """
    n = values.size
    unit = power_of_two_unit(values[0], values[n - 1])
    total = 0.0
    for i in range(n):
        total += weights[i]
    anchor = 0
    running = weights[0]
    while anchor < n - 1 and running < 0.5 * total:
        anchor += 1
        running += weights[anchor]

    # Subtract first where it cannot overflow: the unit brings all values below 1/2.
    origin = values[anchor] * unit
    for i in range(n):
        x[i] = values[i] * unit - origin
    spread = max(x[n - 1], -x[0])
    stretch = power_of_two_unit(spread, 0.0)
    for i in range(n):
        x[i] *= stretch

    # Slopes relative to the anchor's own middle, so that both sides grow from about zero.
    middle = 0.5 * weights[anchor]
    slope[anchor] = middle
    for i in range(anchor + 1, n):
        slope[i] = slope[i - 1] + weights[i]
    left = -middle
    for i in range(anchor - 1, -1, -1):
        slope[i] = left
        left -= weights[i]

    # first and last hold the integral T of the curve until the potentials are known.
    area[anchor] = 0.0
    first[anchor] = 0.0
    for i in range(anchor + 1, n):
        gap = x[i] - x[i - 1]
        area[i] = area[i - 1] + slope[i - 1] * gap
        first[i] = first[i - 1] + 0.5 * (area[i - 1] + area[i]) * gap
    for i in range(anchor - 1, -1, -1):
        gap = x[i + 1] - x[i]
        area[i] = area[i + 1] - slope[i] * gap
        first[i] = first[i + 1] - 0.5 * (area[i] + area[i + 1]) * gap

    _end_costs(x, weights, area, first, last)
    return unit * stretch


@kernel
def _end_costs(x, weights, area, first, last):  # type: ignore[no-untyped-def]
    # cost(0, v) = sum over i <= v of w_i (x_i - x_0)(x_v - x_i): the same recurrence as S with
    # the weights w_i (x_i - x_0); cost(v, n-1) is its mirror image.
    n = x.size
    cost, growth = 0.0, 0.0
    backward = 0.0
    decline = 0.0
    for v in range(n - 1, -1, -1):
        if v < n - 1:
            backward += decline * (x[v + 1] - x[v])
        decline += weights[v] * (x[n - 1] - x[v])
        potential = x[v] * area[v] - 2.0 * first[v]
        last[v] = backward + potential
    for v in range(n):
        if v > 0:
            cost += growth * (x[v] - x[v - 1])
        growth += weights[v] * (x[v] - x[0])
        potential = x[v] * area[v] - 2.0 * first[v]
        first[v] = cost - potential
