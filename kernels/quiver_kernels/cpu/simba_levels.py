"""Level sets with little expected error: descent along the exact gradient.

Written in the order in which the sets step, a_0 <= .. with a_{ql+h} = level q of set h, the
levels of state i are a_i .. a_{i+l-1}, and T_i is their mean. With the second moments b_i of
these, the error of all data is

    E = sum over i of m_i b_i - sum x^2        m_i: weight of the data, split between T_i and
                                               T_{i+1} in proportion to nearness

the sum of a function that is linear between points (T_i, b_i), of slope a_i + a_{i+l} behind
T_i. Moving such a point up adds m_i; moving it right subtracts the slopes on both sides times
the parts of m_i from there. So

    l dE/da_k = sum over the states i with a_k in them of 2 a_k m_i - pull_i

and counts and sums of the data between thresholds give E and all of it. The descent is L-BFGS
with a backtracking line search, within the levels whose first and last thresholds are the ends
of the data. Data make kinks, at which it stops; so single levels, and pairs of neighbours, are
moved as well, which changes E between a few thresholds only. E never rises. What is found is a
local minimum, so one begins at several tables, among them the best sets of half the number, each
of them twice, which have the same E.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, frozen, kernel
from quiver_kernels.stopping import checkpoint

# Pairs of steps and changes of gradient that the descent remembers.
_MEMORY = 8
# A round is so many steps of the descent and sweeps of single moves, of these fewer where a sweep
# takes longer; rounds end where one gains less than this part of E.
_STEPS, _SWEEPS, _LEAST_SWEEPS, _SWEPT = 32, 12, 3, 1 << 13
_ROUNDS, _LEAST_GAIN = 8, 1e-3
# Up to so many levels more tables are tried to begin at.
_FEW = 128
# Spreads of the sets about the table that they begin at: 1 is evenly between its levels.
_SPREADS = (1.0, 0.5)


@kernel
def first_from(points: Floats, value: float, begin: int) -> int:
    """Where, from `begin` on, the ascending `points` are not below `value`; near is found soon."""
    size, step = points.size, 1
    while begin + step < size and points[begin + step] < value:
        step *= 2
    low, end = begin, min(size, begin + step)
    while low < end:
        middle = (low + end) // 2
        if points[middle] < value:
            low = middle + 1
        else:
            end = middle
    return end


@kernel
def error_and_slope(
    a: Floats,
    sets: int,
    points: Floats,
    counts: Floats,
    sums: Floats,
    grad: Floats,
    curvature: Floats,
    mass: Floats,
    pull: Floats,
) -> float:
    """E plus the sum of squares, its gradient, and the part of its curvature that is certain.

    Parameters
    ----------
    a
        Levels in stepping order.
    sets
        Number of sets, l.
    points, counts, sums
        Ascending data, and weights and sums of all before each point and of all of them.
    grad, curvature
        Out: of the size of `a`.
    mass, pull
        Space to work in: of the size of `a`.
    """
    states, size = a.size - sets, points.size
    for k in range(a.size):
        mass[k], pull[k] = 0.0, 0.0
    total, begin = 0.0, 0
    mean, moment = 0.0, 0.0
    for k in range(sets):
        mean += a[k]
        moment += a[k] * a[k]
    mean, moment = mean / sets, moment / sets
    for i in range(states):
        following = 0.0
        for k in range(i + 1, i + 1 + sets):
            following += a[k]
        following /= sets
        end = size
        if i < states - 1:
            end = first_from(points, following, begin)
        weight = counts[end] - counts[begin]
        width = following - mean
        above = sums[end] - sums[begin] - weight * mean
        right = above / width if width > 0.0 else 0.0
        slope = a[i] + a[i + sets]
        mass[i] += weight - right
        mass[i + 1] += right
        pull[i] += slope * (weight - right)
        pull[i + 1] += slope * right
        total += weight * moment + slope * above
        moment += slope * (a[i + sets] - a[i]) / sets
        begin, mean = end, following
    for k in range(a.size):
        m, p = 0.0, 0.0
        for i in range(max(0, k - sets + 1), min(k, states) + 1):
            m += mass[i]
            p += pull[i]
        grad[k] = (2.0 * a[k] * m - p) / sets
        curvature[k] = 2.0 * m / sets
    return total


@kernel
def level_out(v: Floats, scale: Floats, sets: int) -> None:
    """Divide `v` by `scale`, and take the mean off the first and the last `sets` of it.

    The mean is that in the metric of `scale`, so that the operation is symmetric.
    """
    for k in range(v.size):
        v[k] /= scale[k]
    for first in (0, v.size - sets):
        part, whole = 0.0, 0.0
        for k in range(first, first + sets):
            part += v[k]
            whole += 1.0 / scale[k]
        for k in range(first, first + sets):
            v[k] -= part / whole / scale[k]


@kernel
def dot(u: Floats, v: Floats) -> float:
    """Sum of products, in order."""
    total = 0.0
    for k in range(u.size):
        total += u[k] * v[k]
    return total


@kernel
def descend(
    a: Floats,
    sets: int,
    steps: int,
    points: Floats,
    counts: Floats,
    sums: Floats,
    moves: Floats,
    changes: Floats,
) -> float:
    """At most `steps` steps down from `a`, which becomes where they end; E there, as above.

    `moves` and `changes`, shape (memory, size of a), are space to work in.
    """
    size, memory = a.size, moves.shape[0]
    grad, curvature, mass, pull = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    scale, slope, way, new = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    rho, alpha = np.zeros(memory), np.zeros(memory)
    low, high = 0.0, 0.0
    for k in range(sets):
        low += a[k]
        high += a[size - 1 - k]
    error = error_and_slope(a, sets, points, counts, sums, grad, curvature, mass, pull)
    slope[:] = grad
    floor = 0.0
    for k in range(size):
        floor = max(floor, curvature[k])
    for k in range(size):
        scale[k] = max(curvature[k], 1e-3 * floor)
    known = 0
    for _ in range(steps):
        way[:] = slope
        level_out(way, np.ones(size), sets)
        for n in range(known - 1, max(known - memory, 0) - 1, -1):
            alpha[n % memory] = rho[n % memory] * dot(moves[n % memory], way)
            for k in range(size):
                way[k] -= alpha[n % memory] * changes[n % memory, k]
        level_out(way, scale, sets)
        for n in range(max(known - memory, 0), known):
            beta = alpha[n % memory] - rho[n % memory] * dot(changes[n % memory], way)
            for k in range(size):
                way[k] += beta * moves[n % memory, k]
        descent = dot(slope, way)
        if not descent > 0.0:
            if known == 0:
                break
            known = 0
            continue
        length = 1.0
        for k in range(size - sets):
            gap, closing = a[k + sets] - a[k], way[k + sets] - way[k]
            if closing * length > 0.9 * gap:
                length = 0.9 * gap / closing
        found, tried = error, 0
        while tried < 40:
            tried += 1
            first, last = 0.0, 0.0
            for k in range(size):
                new[k] = a[k] - length * way[k]
            for k in range(sets):
                first += new[k]
                last += new[size - 1 - k]
            for k in range(sets):
                # What rounding has moved the ends by.
                new[k] += (low - first) / sets
                new[size - 1 - k] += (high - last) / sets
            ascends = True
            for k in range(size - sets):
                ascends = ascends and new[k] <= new[k + sets]
            if ascends:
                found = error_and_slope(
                    new, sets, points, counts, sums, grad, curvature, mass, pull
                )
                if found < error - 1e-4 * length * descent:
                    break
            length *= 0.5
        if tried == 40 or not found < error:
            if known == 0:
                break
            known = 0
            error_and_slope(a, sets, points, counts, sums, grad, curvature, mass, pull)
            slope[:] = grad
            continue
        here = known % memory
        for k in range(size):
            moves[here, k] = new[k] - a[k]
            changes[here, k] = grad[k] - slope[k]
        level_out(changes[here], np.ones(size), sets)
        product = dot(moves[here], changes[here])
        if product > 1e-14 * floor * dot(moves[here], moves[here]):
            rho[here] = 1.0 / product
            known += 1
        a[:] = new
        slope[:] = grad
        error = found
    return error


@kernel
def part_of_error(
    a: Floats, sets: int, first: int, last: int, points: Floats, counts: Floats, sums: Floats
) -> float:
    """The part of E, as above, of the data between the thresholds of two states."""
    states, size = a.size - sets, points.size
    mean, moment = 0.0, 0.0
    for k in range(first, first + sets):
        mean += a[k]
        moment += a[k] * a[k]
    mean, moment = mean / sets, moment / sets
    begin = 0
    if first > 0:
        begin = int(np.searchsorted(points, mean))
    total = 0.0
    for i in range(first, last):
        following = 0.0
        for k in range(i + 1, i + 1 + sets):
            following += a[k]
        following /= sets
        end = size
        if i < states - 1:
            end = first_from(points, following, begin)
        weight = counts[end] - counts[begin]
        slope = a[i] + a[i + sets]
        total += weight * moment + slope * (sums[end] - sums[begin] - weight * mean)
        moment += slope * (a[i + sets] - a[i]) / sets
        begin, mean = end, following
    return total


@kernel
def sweep(
    a: Floats, sets: int, reach: Floats, points: Floats, counts: Floats, sums: Floats
) -> float:
    """Move levels one by one, and neighbours apart and together; what E has lost by it.

    `reach`, shape (2, size of a), has how far to try, and learns from it.
    """
    states, gained = a.size - sets, 0.0
    for pair in range(2):
        for k in range(a.size - pair):
            ends = k < sets or k >= a.size - sets
            if ends and (pair == 0 or k == sets - 1):
                # The means of the outermost levels stay.
                continue
            if pair == 1 and k + 1 == a.size - sets:
                continue
            first, last = max(0, k - sets), min(states, k + pair + 1)
            old, other = a[k], a[k + pair]
            before = part_of_error(a, sets, first, last, points, counts, sums)
            better = False
            for way in (1.0, -1.0):
                a[k] = old + way * reach[pair, k]
                if pair == 1:
                    a[k + 1] = other - way * reach[pair, k]
                ascends = True
                for j in (k, k + pair):
                    ascends = ascends and (j < sets or a[j - sets] <= a[j])
                    ascends = ascends and (j + sets >= a.size or a[j] <= a[j + sets])
                if ascends:
                    after = part_of_error(a, sets, first, last, points, counts, sums)
                    if after < before:
                        gained += before - after
                        better = True
                        break
                a[k + pair] = other
                a[k] = old
            reach[pair, k] *= 1.6 if better else 0.5
    return gained


class Data:
    """Data as the descent takes them, moved so that their mean is 0.

    Parameters
    ----------
    points
        Ascending, in units that bring them near 1.
    weights
        How many values each stands for.
    """

    def __init__(self, points: Floats, weights: NDArray[np.generic]) -> None:
        heavy = weights.astype(np.float64)
        self.center = float((points * heavy).sum() / heavy.sum())
        self.values = points
        moved = points - self.center
        self.points = frozen(moved)
        self.counts = frozen(np.concatenate([[0.0], np.cumsum(heavy)]))
        self.sums = frozen(np.concatenate([[0.0], np.cumsum(heavy * moved)]))
        self.squares = float((heavy * moved * moved).sum())

    def error(self, a: Floats, sets: int) -> float:
        """E of levels in stepping order."""
        return self.descended(a.copy(), sets, 0)

    def descended(self, a: Floats, sets: int, steps: int) -> float:
        """E after at most `steps` steps down from `a`, which is changed."""
        moves, changes = np.empty((_MEMORY, a.size)), np.empty((_MEMORY, a.size))
        data = self.points, self.counts, self.sums
        return float(descend(a, sets, steps, *data, moves, changes)) - self.squares

    def swept(self, a: Floats, sets: int, sweeps: int) -> float:
        """E after `sweeps` rounds of single moves from `a`, which is changed."""
        reach = np.tile(np.gradient(a) / 2, (2, 1))
        for _ in range(sweeps):
            checkpoint()
            sweep(a, sets, reach, self.points, self.counts, self.sums)
        return self.error(a, sets)


def best_sets(data: Data, table: Floats, level_sets: int) -> Floats:
    """Level sets, shape (l, s), in the units of `data`; locally the best that were found.

    Parameters
    ----------
    data
        What is to be rounded.
    table
        A good table for one set, ascending, shape (s,): its ends are those of the data.
    level_sets
        l >= 1.
    """
    quantiles = _quantiles(data, table)
    found = _best(data, table - data.center, quantiles, level_sets)
    return found.reshape(-1, level_sets).T + data.center


def _quantiles(data: Data, table: Floats) -> Floats:
    """A table of points with equal weights between them."""
    share = np.linspace(0.0, data.counts[-1], table.size)
    at = np.searchsorted(data.counts[1:], share, side="left")
    found = data.points[np.minimum(at, data.points.size - 1)].copy()
    found[0], found[-1] = table[0] - data.center, table[-1] - data.center
    return found


def _best(data: Data, table: Floats, quantiles: Floats, sets: int) -> Floats:
    """Levels in stepping order."""
    if sets == 1:
        return table.copy()
    divisor = next(k for k in range(2, sets + 1) if sets % k == 0)
    # Every set several times over has the same thresholds, others halfway, and the same error.
    fewer = _best(data, table, quantiles, sets // divisor)
    begun = [np.repeat(fewer, divisor)]
    begun += [_spread(table, sets, spread) for spread in _SPREADS]
    if table.size * sets <= _FEW:
        begun.append(_spread(quantiles, sets, _SPREADS[-1]))
    error, best = min(((_round(data, a, sets), a) for a in begun), key=lambda pair: pair[0])
    for _ in range(_ROUNDS):
        before, error = error, _round(data, best, sets)
        if not before - error > _LEAST_GAIN * before:
            break
    return best


def _round(data: Data, a: Floats, sets: int) -> float:
    """E after some steps down and some single moves from `a`, which is changed."""
    checkpoint()
    before = data.descended(a, sets, _STEPS)
    kept = a.copy()
    after = data.swept(a, sets, max(_LEAST_SWEEPS, min(_SWEEPS, _SWEPT // a.size)))
    if after > before:
        # Sums of the parts and of the whole are rounded in their own ways.
        a[:] = kept
    return min(before, after)


def _spread(table: Floats, sets: int, spread: float) -> Floats:
    """The sets about the levels of `table`, as far apart as `spread` says, the ends kept."""
    steps = np.arange(table.size, dtype=np.float64)
    offsets = (np.arange(sets) - (sets - 1) / 2) / sets * spread
    places = (steps[:, np.newaxis] + offsets).reshape(-1)
    found = np.interp(places, steps, table)
    found += np.minimum(places, 0.0) * (table[1] - table[0])
    found += np.maximum(places - steps[-1], 0.0) * (table[-1] - table[-2])
    found[:sets] += table[0] - found[:sets].mean()
    found[-sets:] += table[-1] - found[-sets:].mean()
    # A short outermost step may be overtaken.
    for k in range(sets, found.size):
        found[k] = max(found[k], found[k - sets])
    found[-sets:] += table[-1] - found[-sets:].mean()
    return found
