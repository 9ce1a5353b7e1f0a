"""Optimal levels with a proof, without a dynamic programme over all points.

Levels are sought among few points (nodes). Any solution can be rounded to nodes; how much
that may cost is bounded, so the best node path gives a lower bound as well as an upper one.
Stretches of data (cells between nodes) that are too dear to hold a level of an optimal
solution are given up, the others are divided, until lower and upper bound meet. The
statement and its proof are in docs/numerics.md, "The certificate". At worst all points
become nodes, and the cost is that of the priced paths over them: O(n log n) per pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.area import Curve
from quiver_kernels.cpu.compile import Floats, Ints, kernel
from quiver_kernels.cpu.lagrange import priced_paths, trace

_MIN_NODES = 256
_PARTS = 4
_EXTREMES = 32
_MAX_STAGES = 64
_MAX_SEARCH = 200
_POWER_STEPS = 12
_MAX_ROUNDS = 8
_DEAREST = 8.0
# Relative rounding of sums of costs, and of one cross product x * S (a few units in the last
# place): whatever is compared is widened by this, so that rounding cannot fake a proof.
_SUM_ROUNDING = 1e-12
_ROUNDING = 1e-15


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the search did and proved.

    Attributes
    ----------
    stages, passes
        Refinements, and priced passes over the nodes of all stages.
    most_nodes
        Largest number of nodes of a stage.
    gap
        (upper bound - lower bound) / upper bound at the end; of the order of rounding.
    rounding
        How much of the cost may be rounding of its largest terms, as a share of it.
    """

    stages: int
    passes: int
    most_nodes: int
    gap: float
    rounding: float


@dataclass(frozen=True, slots=True)
class Nodes:
    """Candidate positions: point indices, and which cells between them may hold a level."""

    index: Ints
    alive: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage found and proved.

    Attributes
    ----------
    path
        Best path over the nodes, as node numbers, and its `cost`.
    price, passes
        The price per link it was found at, and the priced passes it took.
    alive, keep
        Cells that may still hold a level of an optimal solution, and nodes that may be one.
    gap, tolerance, rounding
        Upper bound less lower bound, how much of that may be rounding of priced costs, and how
        much rounding of the path's own cost.
    """

    path: Ints
    cost: float
    price: float
    passes: int
    alive: NDArray[np.bool_]
    keep: NDArray[np.bool_]
    gap: float
    tolerance: float
    rounding: float


@dataclass(frozen=True, slots=True)
class _Priced:
    """A best node path of the wanted number of links, and the passes behind it.

    `total` is the priced cost of the best path of any number of links, `cost` the plain cost
    of `path`; f[v] is the priced cost of reaching node v.
    """

    price: float
    total: float
    cost: float
    path: Ints
    f: Floats
    passes: int


def certified_path(
    curve: Curve, links: int, start: Nodes | None = None, price: float | None = None
) -> tuple[Ints, Certificate] | None:
    """Point indices of an optimal path of `links` >= 2 links, and the proof's figures.

    Parameters
    ----------
    curve
        Over n > links + 1 points.
    start, price
        First nodes and price per link; by default chosen from the curve.

    Returns
    -------
    (path, certificate) or None
        The certificate's gap is of the order of rounding. Where costs span so many orders of
        magnitude that rounding drowns them, the gap says so. None: no path was found at all.
    """
    if start is None or price is None:
        count = min(max(_MIN_NODES, int(3.0 * (links + 1) ** 1.5)), curve.x.size)
        index, price = spread_nodes(curve, count, links)
        start = Nodes(index, np.ones(index.size - 1, bool))
    nodes, upper, best, passes, most = start, np.inf, np.empty(0, np.int64), 0, 0
    for number in range(1, _MAX_STAGES + 1):
        if nodes.index.size <= links:
            nodes = _divide(nodes, np.ones(nodes.index.size, bool))
            continue
        at = _restrict(curve, nodes.index)
        stage = run_stage(at, _heights(curve, nodes.index), nodes.alive, links, price, upper)
        if stage is None:
            return None
        price = stage.price
        passes += stage.passes
        most = max(most, nodes.index.size)
        if stage.cost < upper:
            upper, best = stage.cost, nodes.index[stage.path]
        undecided = stage.alive & (np.diff(nodes.index) > 1)
        if stage.gap <= stage.tolerance or not undecided.any():
            scale = 1.0 / upper if upper > 0 else 0.0
            proof = Certificate(
                number, passes, most, float(stage.gap * scale), stage.rounding * scale
            )
            return best, proof
        nodes = _divide(Nodes(nodes.index, stage.alive), stage.keep)
    return None


def run_stage(
    at: Curve,
    heights: Floats,
    alive: NDArray[np.bool_],
    links: int,
    price: float,
    upper: float = np.inf,
) -> Stage | None:
    """Best path over the nodes, and what cannot be part of a better one.

    Parameters
    ----------
    at
        The curve at the nodes.
    heights
        How far the chord of each cell may lie above the curve inside it.
    alive
        Cells that may hold a level.
    upper
        Cost of a solution known before.
    """
    found = _search_price(at, links, price)
    if found is None:
        return None
    noise = _ROUNDING * np.abs(at.x * at.area)
    through = found.f + _backward(at, found.price) - noise
    through[0] = through[-1] = found.total
    target = min(upper, found.cost) + found.price * links
    rounding = float(noise[found.path[1:-1]].max())
    tolerance = _SUM_ROUNDING * target + rounding
    limit = target + tolerance
    alive, eps = _prune(at, heights, alive, through, found.price, found.total, limit)
    keep = through - eps <= limit
    keep[:-1] |= alive
    keep[1:] |= alive
    keep[0] = keep[-1] = True
    gap = target - found.total + eps
    return Stage(
        path=found.path,
        cost=found.cost,
        price=found.price,
        passes=found.passes + 1,
        alive=alive,
        keep=keep,
        gap=gap,
        tolerance=tolerance,
        rounding=rounding,
    )


def spread_nodes(curve: Curve, count: int, links: int) -> tuple[Ints, float]:
    """About `count` point indices where levels will be, both ends included, and a first price.

    Optimal levels have density proportional to the cube root of the data's, so nodes are
    spread evenly in the cells' weight^(1/3) width^(2/3), over a sample of points half evenly
    by rank and half evenly by value. A level's window spans about sqrt(2 s) cells, so nodes
    must be denser than that between levels. The outermost points are all nodes: a wide cell
    with a few of them inside would blur the bounds of all others.
    """
    x, n = curve.x, curve.x.size
    by_rank = np.linspace(0, n - 1, 4 * count).astype(np.int64)
    by_value = np.searchsorted(x, np.linspace(x[0], x[-1], 4 * count)[:-1])
    sample = np.unique(np.concatenate([by_rank, by_value, [0, n - 1]]))
    picks, law = spread(x[sample], np.diff(curve.slope[sample]), count)
    edge = np.arange(min(_EXTREMES, n))
    index = np.unique(np.concatenate([sample[picks], edge, n - 1 - edge]))
    return index, law**3 / 3.0 / links**3


def spread(x: Floats, weight: Floats, count: int) -> tuple[Ints, float]:
    """Numbers of about `count` of the ascending `x`, even in weight^(1/3) width^(2/3).

    `weight` is that between neighbours. Also returns the total of this measure. A stretch that
    holds more than its part (the gap before an outlier) counts as one part, so that it takes no
    picks from the others.
    """
    measure = np.cbrt(weight) * np.cbrt(np.diff(x)) ** 2
    for _ in range(_MAX_ROUNDS):
        part = measure.sum() / count
        if measure.max() <= 2.0 * part:
            break
        measure = np.minimum(measure, part)
    law = np.concatenate([[0.0], np.cumsum(measure)])
    picks = np.searchsorted(law, np.linspace(0.0, law[-1], count))
    ends = np.array([0, x.size - 1])
    return np.unique(np.concatenate([ends, np.minimum(picks, x.size - 1)])), float(law[-1])


def _restrict(curve: Curve, index: Ints) -> Curve:
    return Curve(
        curve.x[index], curve.slope[index], curve.area[index], curve.first[index], curve.last[index]
    )


def _search_price(at: Curve, links: int, price: float) -> _Priced | None:
    """A price at which the best node path has `links` links, of the order of that path's cost.

    Where ties leave no such price, the path is spliced from the optimal ones on either side.
    """
    m = at.x.size
    f, back, work = np.zeros(m), np.empty(m, np.int64), np.empty(m, np.int64)
    low, high = 0.0, np.inf
    few: Ints | None = None
    many: Ints | None = None
    found: _Priced | None = None
    for passes in range(1, _MAX_SEARCH + 1):
        priced_paths(at.x, at.area, at.first, price, f, back)
        ends = f[1:-1] + at.last[1:-1]
        end = 1 + int(np.argmin(ends))
        total = float(ends[end - 1]) + price
        count = trace(back, end, work)
        path = work[: count + 1].copy()
        if count == links:
            cost = _path_cost(at, path)
            found = _Priced(price, total, cost, path, f.copy(), passes)
            # A price far above the cost would drown it in rounding. Some price up to the cost
            # itself has as many links, since one more link cannot save more than all of it.
            if price <= _DEAREST * cost or cost <= 0:
                return found
            high = price
            guess = max(2.0 * cost / links, _between(low, high))
        elif count > links:
            low, many = price, path
            guess = _next_price(price, count / links, low, high, passes)
        else:
            high, few = price, path
            guess = _next_price(price, count / links, low, high, passes)
        if not low < guess < high:
            break
        price = guess
    if found is not None:
        return found
    if few is None or many is None:
        return None
    spliced = _splice(few, many, links)
    if spliced is None:
        return None
    return _Priced(price, total, _path_cost(at, spliced), spliced, f, passes)


def _next_price(price: float, ratio: float, low: float, high: float, passes: int) -> float:
    # The number of links goes like price^(-1/3); bisect once that stops helping.
    guess = price * ratio**3
    if passes <= _POWER_STEPS and low < guess < high:
        return guess
    return 2.0 * low if high == np.inf else _between(low, high)


def _between(low: float, high: float) -> float:
    """Halfway: by ratio while the two are far apart, by difference near the end."""
    if low <= 0.0:
        return 1e-3 * high
    return math.sqrt(low) * math.sqrt(high) if high > 2.0 * low else 0.5 * (low + high)


def _splice(few: Ints, many: Ints, links: int) -> Ints | None:
    """A path of exactly `links` links from two optimal ones with fewer and with more.

    Both are optimal at one price, so where a link of `few` spans a link of `many` at the right
    offset, following `many` to there and `few` from there on is optimal too.
    """
    shift = links - (few.size - 1)
    for i in range(few.size - 1):
        j = i + shift
        if 0 <= j < many.size - 1 and few[i] <= many[j] and many[j + 1] <= few[i + 1]:
            return np.concatenate([many[: j + 1], few[i + 1 :]])
    return None


def _path_cost(at: Curve, path: Ints) -> float:
    x, area = at.x[path[1:-1]], at.area[path[1:-1]]
    inner = float(np.sum(x[1:] * area[:-1] - x[:-1] * area[1:]))
    return float(at.first[path[1]]) + inner + float(at.last[path[-2]])


def _backward(at: Curve, price: float) -> Floats:
    """Least priced cost from every node to the last: the forward pass on the mirror image."""
    f, back = np.zeros(at.x.size), np.empty(at.x.size, np.int64)
    x, area, first = (np.ascontiguousarray(a[::-1]) for a in (-at.x, at.area, at.last))
    priced_paths(x, area, first, price, f, back)
    return f[::-1]


def _prune(
    at: Curve,
    heights: Floats,
    alive: NDArray[np.bool_],
    through: Floats,
    price: float,
    total: float,
    target: float,
) -> tuple[NDArray[np.bool_], float]:
    """Give up cells whose every solution costs more than `target`; also returns eps.

    eps bounds what rounding the levels of an optimal solution to nodes can cost. It shrinks
    as cells are given up, so this repeats while it helps.
    """
    cheapest = np.minimum(through[:-1], through[1:])
    # Before anything is known, an interval may reach across everything.
    reach = np.full(alive.size, alive.size - 1)
    eps = np.inf
    for _ in range(_MAX_ROUNDS):
        before = eps
        delta = np.where(alive, heights, 0.0)
        eps = min(eps, rounding_bound(at.x, delta, reach))
        find_reach(at.x, at.area, delta, price + (target - total) + eps, reach)
        eps = min(eps, rounding_bound(at.x, delta, reach))
        still = alive & (cheapest - eps <= target)
        if np.array_equal(still, alive) and eps > 0.9 * before:
            break
        alive = still
    return alive, float(eps)


def _heights(curve: Curve, index: Ints) -> Floats:
    low, high = index[:-1], index[1:]
    slopes = curve.slope[low], curve.slope[high - 1]
    heights = chord_heights(curve.x[index], curve.area[index], *slopes)
    return np.where(high - low > 1, heights, 0.0)


def chord_heights(x: Floats, area: Floats, after: Floats, before: Floats) -> Floats:
    """How far each cell's chord may lie above the curve: the triangle of its end slopes.

    `after` is the slope right of each cell's lower end, `before` that left of its upper end.
    """
    width = np.diff(x)
    chord = np.diff(area) / width
    # Slopes that agree in all digits but the last say nothing about their difference.
    unsure = _ROUNDING * (np.abs(after) + np.abs(before) + (area[1:] + area[:-1]) / width)
    rise = np.maximum(chord - after, 0.0) + unsure
    fall = np.maximum(before - chord, 0.0) + unsure
    return width * rise * fall / np.maximum(rise + fall, 1e-300)


@kernel
def find_reach(x: Floats, area: Floats, delta: Floats, limit: float, reach: Ints) -> None:
    """reach[c]: the last cell that an interval which starts in cell c can cover, in part; O(m).

    An interval that one more level improves by more than `limit` is in no optimal solution.
    The improvement grows with the interval, so two pointers do; any middle node gives a bound.
    Where delta is 0 a cell holds no level inside: intervals start and end at its nodes.
    """
    cells = x.size - 1
    far = 0
    middle = 1
    for c in range(cells):
        k = c + 1 if delta[c] > 0.0 else c
        far = max(far, c)
        middle = max(middle, k)
        while far + 1 < cells:
            j = far + 1 if delta[far + 1] > 0.0 else far + 2
            if j > k + 1:
                rise, run = area[j] - area[k], x[j] - x[k]
                while middle < j - 1 and (area[middle + 1] - area[middle]) * run < rise * (
                    x[middle + 1] - x[middle]
                ):
                    middle += 1
                over = (x[middle] - x[k]) * (area[j] - area[middle])
                under = (area[middle] - area[k]) * (x[j] - x[middle])
                if over - under - _ROUNDING * (abs(over) + abs(under)) > limit:
                    break
            far += 1
        reach[c] = far


@kernel
def rounding_bound(x: Floats, delta: Floats, reach: Ints) -> float:
    """Most that rounding all levels of an optimal solution to nodes can cost; O(m).

    That cost is at most the sum over intervals of (delta at both ends) * length. Every
    stretch of the axis is charged the largest delta of the cells from which, and of those to
    which, an interval can span it: two sliding maxima over a queue of falling values.
    """
    cells = delta.size
    queue = np.empty(cells, np.int64)
    total = 0.0
    head, size, entered = 0, 0, 0
    for c in range(cells):
        while entered <= reach[c]:
            while size > head and delta[queue[size - 1]] <= delta[entered]:
                size -= 1
            queue[size] = entered
            size += 1
            entered += 1
        while queue[head] < c:
            head += 1
        total += delta[queue[head]] * (x[c + 1] - x[c])
    head, size, earliest = 0, 0, 0
    for c in range(cells):
        while size > head and delta[queue[size - 1]] <= delta[c]:
            size -= 1
        queue[size] = c
        size += 1
        while reach[earliest] < c:
            earliest += 1
        while queue[head] < earliest:
            head += 1
        total += delta[queue[head]] * (x[c + 1] - x[c])
    return total


def _divide(nodes: Nodes, keep: NDArray[np.bool_]) -> Nodes:
    """The next stage's nodes: kept ones, and alive cells cut into `_PARTS` by rank.

    A dropped node has no alive cell beside it, so the stretch across it is dead.
    """
    index = nodes.index
    low, high = index[:-1][nodes.alive], index[1:][nodes.alive]
    cuts = [low + (high - low) * part // _PARTS for part in range(1, _PARTS)]
    merged = np.unique(np.concatenate([index[keep], *cuts]))
    # A new cell is alive if it starts inside an alive old one.
    cell = np.searchsorted(index, merged[:-1], side="right") - 1
    return Nodes(merged, nodes.alive[cell])
