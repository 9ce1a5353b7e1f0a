"""Exact levels of a long vector in a few passes, without sorting or keeping it.

Pass one reduces the vector to sums over cells between some thousands of its values. That
gives the curve S exactly at these values, so one certified stage over them tells which cells
can hold a level of an optimal solution. Pass two collects the values in those cells alone, and
the certified search goes on among them (docs/numerics.md). Where these are still too many, some
of each cell become the points of a finer pass one.

Each chunk is sorted by itself, so that finding its values' cells is a walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.area import Curve
from quiver_kernels.cpu.certified import (
    Certificate,
    Nodes,
    certified_path,
    chord_heights,
    run_stage,
    spread,
)
from quiver_kernels.cpu.compile import Floats, Ints, frozen, kernel

SAMPLE = 1 << 19
_CELLS_PER_LEVEL = 4096
_MAX_CELLS = 1 << 17
_MAX_COLLECTED = 1 << 19
_MAX_ROUNDS = 8
_EXTREMES_PER_LEVEL = 256
_MAX_EXTREMES = 1 << 14

Chunks = Callable[[], Iterator[tuple[Floats, Floats]]]


@dataclass(frozen=True, slots=True)
class Cells:
    """A vector reduced to m points of its range and sums over the m - 1 cells between them.

    Attributes
    ----------
    points
        Ascending; the first and last are the vector's minimum and maximum.
    at
        Weight of the values equal to each point.
    inside, count
        Weight and number of the values strictly inside each cell.
    distance, product
        Sums of w * (upper - x) and w * (x - lower) * (upper - x) over these, for x and points
        times `unit`, a power of two.
    """

    points: Floats
    at: Floats
    inside: Floats
    count: Ints
    distance: Floats
    product: Floats
    unit: float

    @classmethod
    def of(cls, chunks: Chunks, points: Floats, unit: float) -> Cells:
        """One pass over ascending chunks of values with their weights (empty: ones)."""
        m = points.size
        cells = cls(
            points=points,
            at=np.zeros(m),
            inside=np.zeros(m - 1),
            count=np.zeros(m - 1, np.int64),
            distance=np.zeros(m - 1),
            product=np.zeros(m - 1),
            unit=unit,
        )
        scaled = frozen(points * unit)
        for values, weights in chunks():
            add_sorted(
                frozen(values),
                frozen(weights),
                scaled,
                unit,
                cells.at,
                cells.inside,
                cells.count,
                cells.distance,
                cells.product,
            )
        return cells

    def curve(self) -> Curve:
        """The curve at the points; O(m), sums of one sign as in `area.build_curve`."""
        # The ends are levels and cost nothing: their weight would only shift the anchor.
        at = self.at.copy()
        at[0] = at[-1] = 0.0
        weight = np.cumsum(at) + np.concatenate([[0.0], np.cumsum(self.inside)])
        anchor = int(np.searchsorted(weight, 0.5 * weight[-1]))
        scaled = self.points * self.unit
        spread_out = max(scaled[-1] - scaled[anchor], scaled[anchor] - scaled[0])
        stretch = 2.0 ** -float(np.frexp(spread_out)[1])
        x = (scaled - scaled[anchor]) * stretch
        h = np.diff(x)
        upper, product = self.distance * stretch, self.product * stretch**2
        lower = np.maximum(self.inside * h - upper, 0.0)
        slope = weight - weight[anchor] + 0.5 * at[anchor]

        area = _outward(slope[:-1] * h + upper, anchor)
        second = np.maximum(upper * h - product, 0.0)
        integral = _outward(area[:-1] * h + 0.5 * (slope[:-1] * h * h + second), anchor)
        potential = x * area - 2.0 * integral

        from_low, to_high = x - x[0], x[-1] - x
        growth = np.cumsum(
            at * from_low + np.concatenate([[0.0], lower + from_low[:-1] * self.inside])
        )
        first = np.cumsum(growth[:-1] * h + product + from_low[:-1] * upper)
        decline = np.cumsum(
            (at * to_high + np.concatenate([upper + to_high[1:] * self.inside, [0.0]]))[::-1]
        )[::-1]
        last = np.cumsum((decline[1:] * h + product + to_high[1:] * lower)[::-1])[::-1]
        return Curve(
            x,
            slope,
            area,
            np.concatenate([[0.0], first]) - potential,
            np.concatenate([last, [0.0]]) + potential,
        )


def _outward(steps: Floats, anchor: int) -> Floats:
    """Running sums of `steps` from `anchor` outwards; to the left with the sign turned."""
    right = np.cumsum(steps[anchor:])
    left = -np.cumsum(steps[:anchor][::-1])[::-1]
    return np.concatenate([left, [0.0], right])


@kernel
def add_sorted(
    values: Floats,
    weights: Floats,
    points: Floats,
    unit: float,
    at: Floats,
    inside: Floats,
    count: Ints,
    distance: Floats,
    product: Floats,
) -> None:
    """Add ascending `values` to the sums of `Cells`; `points` are scaled by `unit`."""
    last = points.size - 1
    weighted = weights.size > 0
    c = 0
    for i in range(values.size):
        v = values[i] * unit
        w = weights[i] if weighted else 1.0
        while c < last and v >= points[c + 1]:
            c += 1
        if v == points[c]:
            at[c] += w
        else:
            above = points[c + 1] - v
            inside[c] += w
            count[c] += 1
            distance[c] += w * above
            product[c] += w * (above * (v - points[c]))


def streamed_levels(
    chunks: Chunks, sample: Floats, unit: float, num_levels: int
) -> tuple[Floats, Certificate] | None:
    """Optimal `num_levels` >= 3 levels of a vector given as ascending chunks.

    It must have more distinct values than levels.

    Parameters
    ----------
    chunks
        Gives the chunks with their weights (empty: ones), once per pass.
    sample
        Some of its values, from `take_sample`.
    unit
        Power of two that keeps squares of the values within float64.

    Returns
    -------
    (levels, certificate) or None
        None where ties defeat the search.
    """
    links = num_levels - 1
    points = _first_points(sample, num_levels)
    if points.size <= num_levels:
        # Nearly all values are equal to one of a few; the rare others are points too.
        cells = Cells.of(chunks, points, unit)
        rare, _ = _inside(chunks, points, cells.count > 0, _steps(cells.count[cells.count > 0]))
        points = np.union1d(points, rare)
    alive = np.ones(points.size - 1, bool)
    price: float | None = None
    for _ in range(_MAX_ROUNDS):
        cells = Cells.of(chunks, points, unit)
        curve = cells.curve()
        if price is None:
            _, law = spread(curve.x, cells.inside + cells.at[1:], links)
            price = law**3 / 3.0 / links**3
        after = curve.slope[:-1]
        heights = chord_heights(curve.x, curve.area, after, after + cells.inside)
        heights[cells.inside == 0] = 0.0
        stage = run_stage(curve, heights, alive, links, price)
        if stage is None:
            return None
        price = stage.price
        undecided = stage.alive & (cells.inside > 0)
        # All values inside undecided cells if they are few, else some of each for a finer look.
        steps = _steps(cells.count[undecided])
        values, weights = _inside(chunks, cells.points, undecided, steps)
        if (steps == 1).all():
            merged, nodes = _with_collected(cells, undecided, stage.alive, values, weights)
            found = certified_path(merged.curve(), links, nodes, price)
            return None if found is None else (merged.points[found[0]], found[1])
        points = np.union1d(cells.points[stage.keep], values)
        alive = stage.alive[np.searchsorted(cells.points, points[:-1], side="right") - 1]
    return None


def _steps(counts: Ints) -> Ints:
    """Which values to take of cells that hold `counts`: all, or every so-manieth of each."""
    if int(counts.sum()) <= _MAX_COLLECTED:
        return np.ones_like(counts)
    return np.maximum(counts // max(2, _MAX_COLLECTED // counts.size), 1)


def _inside(
    chunks: Chunks, points: Floats, chosen: NDArray[np.bool_], steps: Ints
) -> tuple[Floats, Floats]:
    """Values strictly inside the chosen cells, with their weights; one pass.

    Of each cell every so-manieth, by `steps`, counted over all chunks.
    """
    lows, highs = points[:-1][chosen], points[1:][chosen]
    values: list[Floats] = []
    weights: list[Floats] = []
    seen = np.zeros(steps.size, np.int64)
    for chunk, chunk_weights in chunks():
        begin = np.searchsorted(chunk, lows, side="right")
        size = np.maximum(np.searchsorted(chunk, highs, side="left") - begin, 0)
        cell = np.repeat(np.arange(size.size), size)
        rank = np.arange(cell.size) - np.repeat(np.cumsum(size) - size, size)
        taken = (seen[cell] + rank) % steps[cell] == 0
        place = (begin[cell] + rank)[taken]
        seen += size
        values.append(chunk[place])
        weights.append(chunk_weights[place] if chunk_weights.size else np.ones(place.size))
    return np.concatenate(values), np.concatenate(weights)


def take_sample(parts: Iterable[Floats], size: int, num_levels: int) -> Floats:
    """Values to build the first points from, in one pass: every so-manieth, and the outermost.

    The outermost values are all taken: few values in a wide gap at either end would blur the
    bounds for the whole vector.
    """
    step = max(1, size // SAMPLE)
    ends = min(_EXTREMES_PER_LEVEL * num_levels, _MAX_EXTREMES)
    regular: list[Floats] = []
    low, high = np.empty(0), np.empty(0)
    for part in parts:
        regular.append(part[::step].astype(np.float64))
        low = _smallest(low, part, ends)
        high = _smallest(high, -part, ends)
    return np.concatenate([*regular, low, -high])


def _smallest(known: Floats, part: NDArray[Any], count: int) -> Floats:
    """At least the `count` smallest of both, at most twice as many."""
    if known.size >= count:
        part = part[part < known[count - 1]]
    merged = np.concatenate([known, part])
    if merged.size <= 2 * count and known.size >= count:
        return merged
    kept: Floats = np.partition(merged, count - 1)[:count] if merged.size > count else merged
    if kept.size == count:
        largest = int(np.argmax(kept))
        kept[[largest, count - 1]] = kept[[count - 1, largest]]
    return kept


def _first_points(sample: Floats, num_levels: int) -> Floats:
    """Values between which levels are then sought; all that are frequent are among them."""
    points, counts = np.unique(sample, return_counts=True)
    count = min(_CELLS_PER_LEVEL * num_levels, _MAX_CELLS)
    picks, _ = spread(points, counts[1:].astype(np.float64), count)
    frequent = np.flatnonzero(counts > max(3, sample.size // (2 * count)))
    ends = np.arange(min(_EXTREMES_PER_LEVEL * num_levels, _MAX_EXTREMES, points.size))
    chosen = np.concatenate([picks, frequent, ends, points.size - 1 - ends])
    first: Floats = points[np.unique(chosen)]
    return first


def _with_collected(
    cells: Cells,
    chosen: NDArray[np.bool_],
    alive: NDArray[np.bool_],
    values: Floats,
    weights: Floats,
) -> tuple[Cells, Nodes]:
    """The cells with every value inside a chosen one as a point of its own.

    Also returns where the old points are among the new ones, with their `alive` cells.
    """
    found, inverse = np.unique(values, return_inverse=True)
    masses = np.bincount(inverse, weights, minlength=found.size)

    points = np.concatenate([cells.points, found])
    order = np.argsort(points, kind="stable")
    summed = np.concatenate([cells.at, masses])[order]
    # A cell that was not chosen lies between two old points that are still neighbours.
    position = np.empty(points.size, np.int64)
    position[order] = np.arange(points.size)
    old = position[: cells.points.size]
    left = old[:-1][~chosen]
    inside, distance, product = (np.zeros(points.size - 1) for _ in range(3))
    count = np.zeros(points.size - 1, np.int64)
    count[left] = cells.count[~chosen]
    for target, source in (
        (inside, cells.inside),
        (distance, cells.distance),
        (product, cells.product),
    ):
        target[left] = source[~chosen]
    merged = Cells(points[order], summed, inside, count, distance, product, cells.unit)
    return merged, Nodes(old, alive)
