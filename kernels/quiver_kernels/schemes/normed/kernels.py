"""Tables fitted to a mixture of normal distributions that are cut off at -1 and 1.

With A(t) the share of the distribution at or below t, S an integral of A and T one of S, the
expected squared error V of unbiased rounding is twice the area between S and its chords
(docs/numerics.md). Its derivative by a level l between neighbours c < e is

    A(l) (e - c) - (S(e) - S(c)),

zero where A has the slope of the chord: the closed form of ALQ's coordinate descent, with S in
place of a partial expectation. The second derivatives fill three diagonals, so Newton's method
takes O(levels) a step.
"""

from __future__ import annotations

import math

import numpy as np

from quiver_kernels.cpu.compile import Floats, kernel

_ROOT_HALF = 0.7071067811865476
_ROOT_TAU = 2.5066282746310002
_STEPS = 60
_SHORTENED = 6
_ROUNDING = 1e-13
_LEVEL = 1e-15
_GOLDEN = 0.6180339887498949


@kernel
def prepare(means: Floats, deviations: Floats, shares: Floats, parts: Floats) -> None:
    """What `integrals` needs of each part of a mixture; parts: shape (n, 7)."""
    for i in range(means.size):
        mean, deviation = means[i], deviations[i]
        low, high = (-1.0 - mean) / deviation, (1.0 - mean) / deviation
        # Of two tails of one side the difference is exact where 1 less each is not.
        side = -1.0 if low + high >= 0 else 1.0
        low_tail = 0.5 * math.erfc(side * low * _ROOT_HALF)
        whole = side * (low_tail - 0.5 * math.erfc(side * high * _ROOT_HALF))
        bell = math.exp(-0.5 * low * low) / _ROOT_TAU
        scale = shares[i] / whole if whole > 0 else 0.0
        parts[i, 0], parts[i, 1], parts[i, 2], parts[i, 3] = mean, deviation, scale, side
        parts[i, 4], parts[i, 5], parts[i, 6] = low_tail, bell, low * bell


@kernel
def integrals(t: float, parts: Floats, out: Floats) -> None:
    """Density, A, S and T at t in [-1, 1]: each the integral, from -1 on, of the one before."""
    density, share, first, second = 0.0, 0.0, 0.0, 0.0
    for i in range(parts.shape[0]):
        deviation, scale, side = parts[i, 1], parts[i, 2], parts[i, 3]
        z = (t - parts[i, 0]) / deviation
        below = side * (parts[i, 4] - 0.5 * math.erfc(side * z * _ROOT_HALF))
        bell = math.exp(-0.5 * z * z) / _ROOT_TAU
        # First and second moments of what lies below t, about the mean, in deviations.
        moment = parts[i, 5] - bell
        square = below + parts[i, 6] - z * bell
        density += scale * bell / deviation
        share += scale * below
        first += scale * deviation * (z * below - moment)
        second += scale * deviation * deviation * 0.5 * (z * z * below - 2.0 * z * moment + square)
    out[0], out[1], out[2], out[3] = density, share, first, second


@kernel
def expected_error(levels: Floats, parts: Floats, at: Floats) -> float:
    """V of ascending `levels` from -1 to 1; at: the integrals at each, shape (s, 4), out."""
    for j in range(levels.size):
        integrals(levels[j], parts, at[j])
    total = 0.0
    for j in range(1, levels.size):
        width = levels[j] - levels[j - 1]
        total += max(width * (at[j - 1, 2] + at[j, 2]) - 2.0 * (at[j, 3] - at[j - 1, 3]), 0.0)
    return total


@kernel
def share_below(share: float, low: float, high: float, start: float, parts: Floats) -> float:
    """Where A is `share`, between `low` and `high`: Newton's steps, halving where they leave."""
    at = np.empty(4)
    t = start
    for _ in range(_STEPS):
        integrals(t, parts, at)
        excess = at[1] - share
        if excess > 0:
            high = t
        else:
            low = t
        after = t - excess / at[0] if at[0] > 0 else math.inf
        if not low < after < high:
            after = 0.5 * (low + high)
        if abs(after - t) < 1e-15 * (1e-3 + abs(t)):
            return after
        t = after
    return t


@kernel
def sweep(levels: Floats, parts: Floats, at: Floats) -> float:
    """One sweep of coordinate descent over inner `levels`; V afterwards.

    at: the integrals at `levels`, in and out.
    """
    for j in range(1, levels.size - 1):
        low, high = levels[j - 1], levels[j + 1]
        if low < high:
            slope = (at[j + 1, 2] - at[j - 1, 2]) / (high - low)
            start = levels[j] if low < levels[j] < high else 0.5 * (low + high)
            levels[j] = share_below(slope, low, high, start, parts)
            integrals(levels[j], parts, at[j])
    return expected_error(levels, parts, at)


@kernel
def descend(levels: Floats, parts: Floats, costs: Floats) -> int:
    """Improve inner `levels` until they hold still: Newton's steps where they help, else sweeps.

    Parameters
    ----------
    levels
        In and out: ascending from -1 to 1.
    costs
        Out: V before, and after each step, never rising but for rounding; it has room for as
        many steps as may be done.

    Returns
    -------
    int
        Steps that were done.
    """
    s = levels.size
    at, later = np.empty((s, 4)), np.empty((s, 4))
    after, step, factor = levels.copy(), np.zeros(s), np.zeros(s)
    costs[0] = expected_error(levels, parts, at)
    steepest = math.inf
    for done in range(1, costs.size):
        before_that, steepest = steepest, 0.0
        for j in range(1, s - 1):
            width = levels[j + 1] - levels[j - 1]
            slope = at[j, 1] * width - (at[j + 1, 2] - at[j - 1, 2])
            steepest = max(steepest, abs(slope))
        # V is flat at its least: near it, only its slopes tell whether a step helps.
        flat = costs[done - 1] * (1.0 + _ROUNDING)
        gained = done == 1 or costs[done - 2] > flat
        if steepest <= _LEVEL or not (gained or steepest <= 0.5 * before_that):
            return done - 1
        # Elimination on the three diagonals.
        fine = True
        for j in range(1, s - 1):
            width = levels[j + 1] - levels[j - 1]
            slope = at[j, 1] * width - (at[j + 1, 2] - at[j - 1, 2])
            before, behind = at[j - 1, 1] - at[j, 1], at[j, 1] - at[j + 1, 1]
            if j == 1:
                before = 0.0
            pivot = at[j, 0] * width - before * factor[j - 1]
            if not pivot > 0:
                fine = False
                break
            factor[j] = behind / pivot
            step[j] = (slope - before * step[j - 1]) / pivot
        if fine:
            for j in range(s - 3, 0, -1):
                step[j] -= factor[j] * step[j + 1]
        cost, share = math.inf, 1.0
        for _ in range(_SHORTENED if fine else 0):
            ordered = True
            for j in range(1, s - 1):
                after[j] = levels[j] - share * step[j]
                ordered = ordered and after[j - 1] < after[j] < 1.0
            if ordered:
                cost = expected_error(after, parts, later)
                if cost <= flat:
                    break
            cost, share = math.inf, 0.5 * share
        if cost == math.inf:
            after[:] = levels
            later[:] = at
            cost = sweep(after, parts, later)
        if cost > flat:
            return done - 1
        levels[:] = after
        at[:] = later
        costs[done] = min(cost, costs[done - 1])
    return costs.size - 1


@kernel
def compand(levels: Floats, parts: Floats, cells: int) -> None:
    """Fill `levels` as densely as the cube root of the density: best where levels are many."""
    s = levels.size
    # Cells are as fine as the narrowest part asks for, where there is something at all.
    low, high = 1.0, -1.0
    for i in range(parts.shape[0]):
        low = min(low, parts[i, 0] - 9.0 * parts[i, 1])
        high = max(high, parts[i, 0] + 9.0 * parts[i, 1])
    low, high = max(low, -1.0), min(high, 1.0)
    width = (high - low) / cells
    total = np.empty(cells + 1)
    total[0] = 0.0
    for c in range(cells):
        t, density = low + (c + 0.5) * width, 0.0
        for i in range(parts.shape[0]):
            z = (t - parts[i, 0]) / parts[i, 1]
            density += parts[i, 2] / parts[i, 1] * math.exp(-0.5 * z * z)
        total[c + 1] = total[c] + density ** (1.0 / 3.0)
    # The ends are far out where the parts are narrow: inner levels share the rest.
    levels[0], levels[s - 1] = -1.0, 1.0
    c = 0
    for j in range(1, s - 1):
        wanted = total[cells] * (j - 0.5) / (s - 2)
        while c < cells - 1 and total[c + 1] < wanted:
            c += 1
        part = (wanted - total[c]) / max(total[c + 1] - total[c], 1e-300)
        levels[j] = low + (c + min(max(part, 0.0), 1.0)) * width


@kernel
def power_error(multiplier: float, levels: Floats, parts: Floats, at: Floats) -> float:
    """V of AMQ's levels, as `tables.powers`; spoils `levels`."""
    s = levels.size
    power = 1.0
    for j in range(s // 2):
        levels[s - 1 - j] = power
        levels[j] = -power
        power *= multiplier
    cost: float = expected_error(levels, parts, at)
    return cost


@kernel
def fit_multiplier(num_levels: int, parts: Floats, tries: int) -> float:
    """The multiplier in (0, 1) of least V: the best of some, then golden sections."""
    levels, at = np.empty(num_levels), np.empty((num_levels, 4))
    best, place = math.inf, 1
    # Equal steps of the logarithm of the smallest level: it lies between 2**-30 and 1.
    power = 1.0 / max(num_levels // 2 - 1, 1)
    for i in range(1, tries):
        cost = power_error(2.0 ** (-30.0 * power * i / tries), levels, parts, at)
        if cost < best:
            best, place = cost, i
    low: float = 2.0 ** (-30.0 * power * (place + 1) / tries)
    high: float = 2.0 ** (-30.0 * power * (place - 1) / tries)
    inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_inner = power_error(inner, levels, parts, at)
    at_outer = power_error(outer, levels, parts, at)
    while high - low > 1e-7 * high:
        if at_inner <= at_outer:
            high, outer, at_outer = outer, inner, at_inner
            inner = high - _GOLDEN * (high - low)
            at_inner = power_error(inner, levels, parts, at)
        else:
            low, inner, at_inner = inner, outer, at_outer
            outer = low + _GOLDEN * (high - low)
            at_outer = power_error(outer, levels, parts, at)
    return 0.5 * (low + high)
