"""Optimal levels with a proof, without a dynamic programme over all points.

Levels are sought among few points (nodes). Any solution can be rounded to nodes; how much
that may cost is bounded, so the best node path gives a lower bound as well as an upper one.
Stretches of data (cells between nodes) that are too dear to hold a level of an optimal
solution are given up, the others are divided, until lower and upper bound meet. The
statement and its proof are in docs/numerics.md, "The certificate". At worst all points
become nodes, and the cost is that of the priced paths over them: O(n log n) per pass.

With a price per link the number of levels is free, and one left-to-right pass finds the
best path: f[j] = min over k < j of f[k] + cost[k, j] + price. The cost is Monge, so of two
predecessors the later one, once better, stays better; a queue of predecessors with the
positions where each takes over gives O(m log m) time and O(m) memory (Hirschberg and
Larmore 1987, Galil and Park 1990). The best costs are convex in the number of links, so the
price can be searched for the wanted number (Aggarwal, Schieber and Tokuyama 1994).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.area import Curve
from quiver_kernels.cpu.compile import Floats, Ints, kernel
from quiver_kernels.stopping import checkpoint

Flags = NDArray[np.bool_]

_MIN_NODES = 256
_PARTS = 4
_EXTREMES = 32
_MAX_STAGES = 64
_MAX_SEARCH = 200
# Nodes times passes between two looks whether to go on.
_WORK = 1 << 17
_POWER_STEPS = 12
_MAX_ROUNDS = 8
_PRUNINGS = 3
_DEAREST = 8.0
_WORTHWHILE = 0.15
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
    """Candidate positions of levels, and the price per link at which to look for them.

    Attributes
    ----------
    index
        Points that may be levels; both ends of the curve among them.
    alive
        Which cells between neighbours may hold a level inside.
    price
        Price per link, where to begin.
    """

    index: Ints
    alive: Flags
    price: float


@dataclass(frozen=True, slots=True)
class Found:
    """The best path over points, and what its proof leaves open.

    Attributes
    ----------
    path
        Point indices of the levels, ascending; shape (links + 1,).
    nodes
        The last stage's: no level of an optimal solution is outside of its alive cells, its
        nodes aside. Where such a cell has data inside that are no points, these are to be
        looked at; if there is none, `path` is optimal.
    certificate
        The proof's figures.
    """

    path: Ints
    nodes: Nodes
    certificate: Certificate


class Hunt(NamedTuple):
    """How far the search for a stage's price per link has come.

    Attributes
    ----------
    passes
        Passes made; 0 once it is done: nothing was found.
    price
        To be tried next, or found.
    low, high
        Prices that give too many links, and too few.
    few_links, many_links
        Links of the paths there; 0: none yet.
    found
        Passes made when the best price so far was found, 0: none; then that price, the priced
        cost of its best path, and the plain one.
    """

    passes: int
    price: float
    low: float
    high: float
    few_links: int
    many_links: int
    found: int
    found_price: float
    total: float
    cost: float
    done: bool


def certified_path(
    curve: Curve, links: int, start: Nodes | None = None, caution: float = 1.0
) -> Found | None:
    """The best path of `links` >= 2 links over the points of `curve`, with its proof.

    Parameters
    ----------
    curve
        Over n > links + 1 points.
    start
        First nodes and price per link; by default chosen from the curve.
    caution
        Factor of the bound on what rounding to nodes costs. Less than 1 is no proof: tests
        show with it that a bound that is too small is noticed.

    Returns
    -------
    Found or None
        Its certificate's gap is of the order of rounding unless cells with data that are no
        points are left. Where costs span so many orders of magnitude that rounding drowns them,
        the gap says so. None: no path was found at all.
    """
    arrays = (curve.x, curve.slope, curve.inside, curve.area, curve.first, curve.last)
    if start is None:
        price, index = first_nodes(curve.x, curve.slope, links)
        alive = np.ones(index.size - 1, np.bool_)
    else:
        keep = np.ones(start.index.size, np.bool_)
        price = start.price
        index, alive = _divide(start.index, start.alive, keep, _PARTS)
    path, figures = np.empty(links + 1, np.int64), np.zeros(6)
    state = np.array([1.0, *[math.inf] * 3, *[0.0] * 3, price, 0.0, math.inf, *[0.0] * 7])
    f, sides = np.empty(0), np.empty((3, 0), np.int64)
    while state[0] > 0:
        checkpoint()
        index, alive, f, sides = search(
            *arrays, links, state, index, alive, f, sides, caution, _WORK, path, figures
        )
    stages, passes, most, gap, rounding, price = figures.tolist()
    if stages == 0:
        return None
    proof = Certificate(int(stages), int(passes), int(most), gap, rounding)
    return Found(path, Nodes(index, alive, price), proof)


@kernel
def search(
    x: Floats,
    slope: Floats,
    inside: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
    links: int,
    state: Floats,
    index: Ints,
    alive: Flags,
    f: Floats,
    sides: Ints,
    caution: float,
    work: int,
    best: Ints,
    figures: Floats,
) -> tuple[Ints, Flags, Floats, Ints]:
    """Go on with `certified_path` on the arrays of a `Curve`, for about `work` node visits.

    Parameters
    ----------
    state
        In and out: the number of the stage, from 1 (0: it is done); cost of the best path, gap of
        the stage before, `longest` as of `run_stage`, passes, most nodes; then the stage's `Hunt`.
    index, alive, f, sides
        The stage's nodes, and what `find_price` keeps from pass to pass.
    best
        In and out: the path, shape (links + 1,).
    figures
        Out: stages (0: no path was found), passes, most nodes, gap, rounding, price.

    Returns
    -------
    index, alive, f, sides
        As they are now; once it is done, the last stage's nodes.
    """
    upper, previous, longest = state[1], state[2], state[3]
    passes, most = int(state[4]), int(state[5])
    hunt = Hunt(
        int(state[6]),
        state[7],
        state[8],
        state[9],
        int(state[10]),
        int(state[11]),
        int(state[12]),
        state[13],
        state[14],
        state[15],
        state[16] > 0.0,
    )
    first_stage, state[0] = int(state[0]), 0.0
    spent = 0
    for stage in range(first_stage, _MAX_STAGES + 1):
        m = index.size
        keep = np.ones(m, np.bool_)
        if m > links:
            most = max(most, m)
            if hunt.passes == 0:
                f, sides = np.empty(m), np.empty((3, m), np.int64)
            at_x, at_area, at_first, at_last = (np.empty(m), np.empty(m), np.empty(m), np.empty(m))
            for v in range(m):
                i = index[v]
                at_x[v], at_area[v], at_first[v], at_last[v] = x[i], area[i], first[i], last[i]
            path = sides[2]
            if not hunt.done:
                before = hunt.passes
                more = max(1, (work - spent) // m)
                hunt = find_price(
                    at_x, at_area, at_first, at_last, links, hunt, more, f, sides[0], sides[1], path
                )
                spent += max(hunt.passes - before, 1) * m
            if hunt.done and hunt.passes == 0:
                return index, alive, f, sides
            if spent >= work or not hunt.done:
                state[0], state[1], state[2], state[3] = stage, upper, previous, longest
                state[4], state[5] = passes, most
                state[6], state[7], state[8], state[9] = (
                    hunt.passes,
                    hunt.price,
                    hunt.low,
                    hunt.high,
                )
                state[10], state[11], state[12] = hunt.few_links, hunt.many_links, hunt.found
                state[13], state[14], state[15] = hunt.found_price, hunt.total, hunt.cost
                state[16] = 1.0 if hunt.done else 0.0
                return index, alive, f, sides
            heights = _chord_heights(x, slope, inside, area, index)
            cost, price = hunt.cost, hunt.price
            gap, tolerance, rounding, longest = run_stage(
                at_x,
                at_area,
                at_last,
                heights,
                links,
                price,
                hunt.total,
                cost,
                upper,
                longest,
                caution,
                alive,
                keep,
                path,
                f,
            )
            passes += hunt.passes + 1
            # The way back, and bounds over the cells, take as long as some passes.
            spent += 4 * m
            if cost < upper:
                upper = cost
                for i in range(links + 1):
                    best[i] = index[path[i]]
            divisible, blurred = False, False
            for c in range(m - 1):
                if alive[c] and index[c + 1] - index[c] > 1:
                    divisible = True
                elif alive[c] and inside[index[c]] > 0.0:
                    blurred = True
            # Dividing the others is of little use where one that cannot be divided is too wide.
            blurred &= gap > _WORTHWHILE * previous
            previous = gap
            if gap <= tolerance or blurred or not divisible:
                scale = 1.0 / upper if upper > 0.0 else 0.0
                figures[0], figures[1], figures[2] = stage, passes, most
                figures[3], figures[4], figures[5] = gap * scale, rounding * scale, price
                index, alive = _divide(index, alive, keep, 1 if gap > tolerance else 0)
                return index, alive, f, sides
        index, alive = _divide(index, alive, keep, _PARTS)
        hunt = Hunt(0, hunt.price, 0.0, np.inf, 0, 0, 0, 0.0, 0.0, 0.0, False)
    return index, alive, f, sides


@kernel
def run_stage(
    x: Floats,
    area: Floats,
    last: Floats,
    heights: Floats,
    links: int,
    price: float,
    total: float,
    cost: float,
    upper: float,
    longest: float,
    caution: float,
    alive: Flags,
    keep: Flags,
    path: Ints,
    f: Floats,
) -> tuple[float, float, float, float]:
    """What cannot be part of a better path than the best one over nodes.

    Parameters
    ----------
    x, area, last
        The curve at the nodes.
    heights
        How far the chord of each cell may lie above the curve inside it.
    price, total, cost, path, f
        As of `find_price`; `f` is spoiled.
    upper
        Cost of a solution known before.
    longest
        No interval of an optimal solution is improved by more than this by one more level.
    alive
        In and out: cells that may hold a level inside.
    keep
        Out: nodes that may be a level of an optimal solution, or end an alive cell.

    Returns
    -------
    gap, tolerance, rounding, longest
        Upper less lower bound, how much of that may be rounding, and how much of the cost;
        `longest` as far as it is now known.
    """
    m = x.size
    # through[v]: least priced cost of a path through node v, made from both sides of it.
    mirrored_x, mirrored_area, mirrored_last = np.empty(m), np.empty(m), np.empty(m)
    backward, back = np.empty(m), np.empty(m, np.int64)
    for v in range(m):
        mirrored_x[v], mirrored_area[v] = -x[m - 1 - v], area[m - 1 - v]
        mirrored_last[v] = last[m - 1 - v]
    priced_paths(mirrored_x, mirrored_area, mirrored_last, price, backward, back)
    rounding = 0.0
    for i in range(1, links):
        rounding = max(rounding, _ROUNDING * abs(x[path[i]] * area[path[i]]))
    target = min(upper, cost) + price * links
    tolerance = _SUM_ROUNDING * target + rounding
    limit = target + tolerance
    through = f
    for v in range(1, m - 1):
        through[v] += backward[m - 1 - v] - _ROUNDING * abs(x[v] * area[v])
    through[0] = through[m - 1] = total

    slack = price + limit - total
    eps = _prune(x, area, heights, through, links, slack, longest, limit, caution, alive)
    for v in range(m):
        beside = (v > 0 and alive[v - 1]) or (v < m - 1 and alive[v])
        keep[v] = beside or through[v] - eps <= limit
    keep[0] = keep[m - 1] = True
    longest = min(longest, slack + eps)
    return target - total + eps, tolerance, rounding, longest


@kernel
def _prune(
    x: Floats,
    area: Floats,
    heights: Floats,
    through: Floats,
    links: int,
    slack: float,
    longest: float,
    limit: float,
    caution: float,
    alive: Flags,
) -> float:
    """Give up cells whose every solution costs more than `limit`; returns eps.

    eps bounds what rounding the levels of an optimal solution to nodes can cost. It shrinks
    as cells are given up, so this repeats while it helps.
    """
    cells = alive.size
    # Bounds are found over groups of cells: a few dozen between two levels are enough.
    most = min(max(cells // (16 * links), 1), 16)
    at_x, at_area = np.empty(cells + 1), np.empty(cells + 1)
    delta, reach = np.empty(cells), np.empty(cells, np.int64)
    tallest = 0.0
    for c in range(cells):
        if alive[c]:
            tallest = max(tallest, heights[c])
    # Before anything is known, an interval may reach across everything.
    eps = caution * 2.0 * tallest * (x[cells] - x[0])
    for _ in range(_PRUNINGS):
        groups = _group(x, area, heights, alive, most, at_x, at_area, delta)
        before = eps
        find_reach(at_x, at_area, delta, groups, min(longest, slack + eps), reach)
        eps = min(eps, caution * rounding_bound(at_x, delta, groups, reach))
        given_up = False
        for c in range(cells):
            if alive[c] and min(through[c], through[c + 1]) - eps > limit:
                alive[c] = False
                given_up = True
        if not given_up and eps > 0.5 * before:
            if most == 1:
                break
            most = 1
    for c in range(cells):
        if alive[c] and heights[c] > 0.0:
            return float(eps)
    # No cell that is left has data inside: nothing is rounded any more.
    return 0.0


@kernel
def _group(
    x: Floats,
    area: Floats,
    heights: Floats,
    alive: Flags,
    most: int,
    at_x: Floats,
    at_area: Floats,
    delta: Floats,
) -> int:
    """Join up to `most` neighbours that may hold a level; returns the number of groups.

    `at_x` and `at_area` are the curve at the groups' ends, delta[g] the largest height in group
    g. A cell that holds no level stays apart: it may be a wide gap.
    """
    groups, size = 0, 0
    at_x[0], at_area[0] = x[0], area[0]
    for c in range(alive.size):
        height = heights[c] if alive[c] else 0.0
        if 0 < size < most and height > 0.0 and delta[groups - 1] > 0.0:
            delta[groups - 1] = max(delta[groups - 1], height)
            size += 1
        else:
            delta[groups] = height
            groups, size = groups + 1, 1
        at_x[groups], at_area[groups] = x[c + 1], area[c + 1]
    return groups


@kernel
def find_price(
    x: Floats,
    area: Floats,
    first: Floats,
    last: Floats,
    links: int,
    hunt: Hunt,
    more: int,
    f: Floats,
    few: Ints,
    many: Ints,
    path: Ints,
) -> Hunt:
    """A price at which the best node path has `links` links, of the order of that path's cost.

    Where ties leave no such price, the path is spliced from the optimal ones on either side.

    Parameters
    ----------
    hunt
        How far it has come; it stops after `more` passes.
    few, many
        In and out: the paths with fewer and with more links, shape (m,).
    f, path
        In and out: once it is done, f[v] is the priced cost of reaching node v, and `path`, its
        first links + 1 entries, the path found.

    Returns
    -------
    Hunt
        Once it is done: `passes` made (0: nothing was found), the price, `total`, the priced
        cost of the best path of any number of links, and the plain cost of `path`.
    """
    m = x.size
    reached, back, work = np.empty(m), np.empty(m, np.int64), np.empty(m, np.int64)
    few_links, many_links = hunt.few_links, hunt.many_links
    low, high, price = hunt.low, hunt.high, hunt.price
    found, found_price = hunt.found, hunt.found_price
    found_total, found_cost = hunt.total, hunt.cost
    total = 0.0
    passes = hunt.passes
    last_pass = passes + more
    while passes < _MAX_SEARCH:
        if passes == last_pass:
            return Hunt(
                passes,
                price,
                low,
                high,
                few_links,
                many_links,
                found,
                found_price,
                found_total,
                found_cost,
                False,
            )
        passes += 1
        priced_paths(x, area, first, price, reached, back)
        total, end = np.inf, 1
        for v in range(1, m - 1):
            if reached[v] + last[v] < total:
                total, end = reached[v] + last[v], v
        total += price
        count = trace(back, end, work)
        ratio = count / links
        if count == links:
            cost = path_cost(x, area, first, last, work, links)
            for i in range(links + 1):
                path[i] = work[i]
            for v in range(m):
                f[v] = reached[v]
            found, found_price, found_total, found_cost = passes, price, total, cost
            # A price far above the cost would drown it in rounding. Some price up to the cost
            # itself has as many links, since one more link cannot save more than all of it.
            if price <= _DEAREST * cost or cost <= 0.0:
                break
            high = price
            guess = max(2.0 * cost / links, _between(low, high))
        else:
            if count > links:
                low, many_links = price, count
            else:
                high, few_links = price, count
            side = many if count > links else few
            for i in range(count + 1):
                side[i] = work[i]
            # The number of links goes like price^(-1/3); bisect once that stops helping.
            guess = price * ratio * ratio * ratio
            if passes > _POWER_STEPS or not low < guess < high:
                guess = 2.0 * low if high == np.inf else _between(low, high)
        if not low < guess < high:
            break
        price = guess
    if found > 0:
        price, total, cost = found_price, found_total, found_cost
    elif few_links > 0 and many_links > 0 and _splice(few, few_links, many, links, path):
        for v in range(m):
            f[v] = reached[v]
        cost = path_cost(x, area, first, last, path, links)
    else:
        passes, total, cost = 0, 0.0, 0.0
    return Hunt(
        passes, price, low, high, few_links, many_links, found, found_price, total, cost, True
    )


@kernel
def _between(low: float, high: float) -> float:
    """Halfway: by ratio while the two are far apart, by difference near the end."""
    if low <= 0.0:
        return 1e-3 * high
    return math.sqrt(low) * math.sqrt(high) if high > 2.0 * low else 0.5 * (low + high)


@kernel
def _splice(few: Ints, few_links: int, many: Ints, links: int, path: Ints) -> bool:
    """A path of exactly `links` links from two optimal ones with fewer and with more.

    Both are optimal at one price, so where a link of `few` spans a link of `many` at the right
    offset, following `many` to there and `few` from there on is optimal too.
    """
    shift = links - few_links
    for i in range(few_links):
        j = i + shift
        if few[i] <= many[j] and many[j + 1] <= few[i + 1]:
            for place in range(links + 1):
                path[place] = many[place] if place <= j else few[place - shift]
            return True
    return False


@kernel
def path_cost(
    x: Floats, area: Floats, first: Floats, last: Floats, path: Ints, links: int
) -> float:
    """The objective of a path of links >= 2 links."""
    cost = float(first[path[1]] + last[path[links - 1]])
    for i in range(1, links - 1):
        k, j = path[i], path[i + 1]
        cost += x[j] * area[k] - x[k] * area[j]
    return cost


@kernel
def priced_paths(
    x: Floats, area: Floats, first: Floats, price: float, f: Floats, back: Ints
) -> None:
    """Fill f[j] and back[j] for the inner nodes j = 1 .. m - 2; O(m log m).

    f[j] is the least cost of a path from node 0 to j, `price` per link included; back[j]
    its last node before j. `first[j]` is the cost of the link (0, j).
    """
    m = x.size
    end = m - 2
    # From starts[i] on, queue[i] is the best predecessor; entries before `head` are past.
    queue = np.empty(m, np.int64)
    starts = np.empty(m, np.int64)
    queue[0], starts[0] = 0, 1
    head, size = 0, 1
    f[0] = f[m - 1] = 0.0
    for j in range(1, end + 1):
        while head + 1 < size and starts[head + 1] <= j:
            head += 1
        k = queue[head]
        xj, aj = x[j], area[j]
        # The first link uses its exact cost: cost~ from a far outlier would drown the rest.
        fj = first[j] if k == 0 else f[k] + (xj * area[k] - x[k] * aj)
        fj += price
        f[j] = fj
        back[j] = k
        old = -1
        at = j + 1
        while size > head:
            old = queue[size - 1]
            at = max(starts[size - 1], j + 1)
            if at > end:
                break
            mine = fj + (x[at] * aj - xj * area[at])
            theirs = first[at] if old == 0 else f[old] + (x[at] * area[old] - x[old] * area[at])
            if mine > theirs:
                break
            size -= 1
        if size == head:
            queue[size], starts[size] = j, j + 1
            size += 1
            continue
        # Gallop, then bisect, for the first place where j beats the last in the queue.
        xo, ao, fo = x[old], area[old], f[old]
        low, high, step = at, end + 1, 1
        galloping = True
        while high - low > 1:
            probe = low + step if galloping else (low + high) // 2
            if probe >= high:
                galloping = False
                continue
            mine = fj + (x[probe] * aj - xj * area[probe])
            theirs = first[probe] if old == 0 else fo + (x[probe] * ao - xo * area[probe])
            if mine > theirs:
                low = probe
                step *= 2
            else:
                high = probe
                galloping = False
        if high <= end:
            queue[size], starts[size] = j, high
            size += 1


@kernel
def trace(back: Ints, end: int, path: Ints) -> int:
    """Write the path that ends with the link (end, last node), first node first.

    Returns
    -------
    int
        Its number of links; the nodes are path[:links + 1], so `path` needs m places.
    """
    links = 1
    k = end
    while k > 0:
        links += 1
        k = back[k]
    path[links] = back.size - 1
    k = end
    for place in range(links - 1, 0, -1):
        path[place] = k
        k = back[k]
    path[0] = 0
    return links


@kernel
def _chord_heights(x: Floats, slope: Floats, inside: Floats, area: Floats, index: Ints) -> Floats:
    """How far each cell's chord may lie above the curve: the triangle of its end slopes."""
    heights = np.zeros(index.size - 1)
    for c in range(heights.size):
        low, high = index[c], index[c + 1]
        if high - low == 1 and inside[low] == 0.0:
            continue
        after, before = slope[low], slope[high - 1] + inside[high - 1]
        width = x[high] - x[low]
        chord = (area[high] - area[low]) / width
        # Slopes that agree in all digits but the last say nothing about their difference.
        unsure = _ROUNDING * (abs(after) + abs(before) + (area[low] + area[high]) / width)
        rise = max(chord - after, 0.0) + unsure
        fall = max(before - chord, 0.0) + unsure
        heights[c] = width * rise * fall / max(rise + fall, 1e-300)
    return heights


@kernel
def find_reach(
    x: Floats, area: Floats, delta: Floats, cells: int, limit: float, reach: Ints
) -> None:
    """reach[c]: the last cell that an interval which starts in cell c can cover, in part; O(m).

    An interval that one more level improves by more than `limit` is in no optimal solution.
    The improvement grows with the interval, so two pointers do; any middle node gives a bound.
    Where delta is 0 a cell holds no level inside: intervals start and end at its nodes.
    """
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
def rounding_bound(x: Floats, delta: Floats, cells: int, reach: Ints) -> float:
    """Most that rounding all levels of an optimal solution to nodes can cost; O(m).

    That cost is at most the sum over intervals of (delta at both ends) * length. Every
    stretch of the axis is charged the largest delta of the cells from which, and of those to
    which, an interval can span it: two sliding maxima over a queue of falling values.
    """
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


@kernel
def _divide(index: Ints, alive: Flags, keep: Flags, parts: int) -> tuple[Ints, Flags]:
    """The next nodes: kept ones, and alive cells cut into `parts` by rank; 0 parts end them all.

    A dropped node has no alive cell beside it, so the stretch across it is dead.
    """
    most = max(parts, 1) * index.size
    merged, still = np.empty(most, np.int64), np.empty(most, np.bool_)
    size = 0
    for c in range(index.size):
        if not keep[c]:
            continue
        merged[size] = index[c]
        still[size] = parts > 0 and c < alive.size and alive[c]
        size += 1
        if not still[size - 1]:
            continue
        low, width = index[c], index[c + 1] - index[c]
        for part in range(1, parts):
            cut = low + width * part // parts
            if cut > merged[size - 1]:
                merged[size], still[size] = cut, True
                size += 1
    return merged[:size], still[: size - 1]


@kernel
def first_nodes(x: Floats, slope: Floats, links: int) -> tuple[float, Ints]:
    """Point indices about where levels will be, both ends included, and a first price.

    Optimal levels have density proportional to the cube root of the data's, so nodes are
    spread evenly in the cells' weight^(1/3) width^(2/3), over a sample of points half evenly
    by rank and half evenly by value. A level's window spans about sqrt(2 s) cells, so nodes
    must be denser than that between levels. The outermost points are all nodes: a wide cell
    with a few of them inside would blur the bounds of all others.
    """
    n = x.size
    count = min(max(_MIN_NODES, int(2.0 * (links + 1) ** 1.5)), n)
    sample = _sample(x, 4 * count)
    measure = np.empty(sample.size - 1)
    total = 0.0
    for c in range(measure.size):
        low, high = sample[c], sample[c + 1]
        width = x[high] - x[low]
        measure[c] = np.cbrt(max(slope[high] - slope[low], 0.0) * width * width)
        total += measure[c]
    # A stretch that holds more than its part (the gap before an outlier) counts as one part, so
    # that it takes no nodes from the others.
    for _ in range(_MAX_ROUNDS):
        part = total / count
        total, largest = 0.0, 0.0
        for c in range(measure.size):
            largest = max(largest, measure[c])
            total += min(measure[c], part)
        if largest <= 2.0 * part:
            break
        for c in range(measure.size):
            measure[c] = min(measure[c], part)
    total = 0.0
    for c in range(measure.size):
        total += measure[c]
    step = total / count
    edge = min(_EXTREMES, n)
    index = np.empty(sample.size + count + 2 * edge, np.int64)
    size = 0
    for i in range(edge):
        index[size] = i
        size += 1
    law = 0.0
    for c in range(measure.size):
        before = math.floor(law / step) if step > 0.0 else 0.0
        law += measure[c]
        due = int(math.floor(law / step) - before) if step > 0.0 else 1
        low, width = sample[c], sample[c + 1] - sample[c]
        for part in range(1, due + 1):
            node = low + width * part // due
            if index[size - 1] < node < n - edge:
                index[size] = node
                size += 1
    for i in range(max(index[size - 1] + 1, n - edge), n):
        index[size] = i
        size += 1
    share = total / links
    return share * share * share / 3.0, index[:size]


@kernel
def _sample(x: Floats, count: int) -> Ints:
    """About 2 * count indices of the ascending `x`, half evenly by rank and half by value."""
    n = x.size
    if n <= 2 * count:
        return np.arange(n)
    sample = np.empty(2 * count + 1, np.int64)
    sample[0] = 0
    size, by_rank, by_value = 1, 1, 1
    place = 0
    while by_rank <= count:
        rank = by_rank * (n - 1) // count
        # By value: the first point at or above; `place` moves on by bisection.
        value = x[0] + (x[n - 1] - x[0]) * (by_value / count)
        if by_value < count and x[place] < value:
            low, high = place, n - 1
            while high - low > 1:
                middle = (low + high) // 2
                if x[middle] < value:
                    low = middle
                else:
                    high = middle
            place = high
        if by_value < count and place <= rank:
            by_value += 1
            chosen = place
        else:
            by_rank += 1
            chosen = rank
        if chosen > sample[size - 1]:
            sample[size] = chosen
            size += 1
    return sample[:size]
