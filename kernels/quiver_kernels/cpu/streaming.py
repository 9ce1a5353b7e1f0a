"""Levels of a vector in a few passes over its chunks, without sorting or keeping it.

Pass one counts the values into cells (`cells.count`). Their minima and maxima are points where
the curve S is known exactly, so the search over them tells which cells can hold a level of an
optimal solution. Further passes cut those cells up, and in the end collect the few values left
in them (docs/numerics.md, "Cells").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells
from quiver_kernels.checks import Range
from quiver_kernels.cpu import cells as counting
from quiver_kernels.cpu.compile import Floats, Ints
from quiver_kernels.cpu.exact import padded, programme
from quiver_kernels.cpu.narrowing import Progress, narrowed_levels, search
from quiver_kernels.cpu.summary import Flags, Summary
from quiver_kernels.partition import Layout, Partition
from quiver_kernels.stopping import checkpoint

# Cells by levels: windows of levels span more of them where levels are many. More cells than the
# processor's cache holds take longer to count into than another pass does.
CELLS = ((8, 1 << 15), (32, 1 << 17), (256, 1 << 19))
_VALUES_PER_CELL = 8
_LEAST_CELLS = 4096
# Values that are collected at once, and pieces that cells are cut into.
COLLECTED = 1 << 18
_MAX_PIECES = 1 << 18
_MAX_BITS = 8


class Stream(Protocol):
    """A vector that can be gone through more than once, on whatever device it lies."""

    @property
    def size(self) -> int:
        """Number of its values."""
        ...

    @property
    def bounds(self) -> Range:
        """Their range."""
        ...

    def count(self, cells: int) -> Cells:
        """The vector's cells; one pass."""
        ...

    def collect(self, cells: Cells, chosen: Flags) -> tuple[NDArray[Any], Floats]:
        """The values in the `chosen` rows of its cells, and their weights, in any order; one pass.

        Equal values with weights keep their order.
        """
        ...

    def refine(self, cells: Cells, chosen: Flags, bits: int) -> Cells:
        """Its cells, each `chosen` row cut into up to ``2**bits`` pieces of a width; one pass."""
        ...


@dataclass(frozen=True, slots=True)
class ChunkStream:
    """A `Stream` in host memory, chunk by chunk.

    Attributes
    ----------
    chunks
        Its chunks, of the layout's type, with their weights (empty: ones).
    size, bounds
        Number of its values, and their range.
    layout
        The type its values are counted in.
    weighted
        Whether there are weights.
    """

    chunks: counting.Chunks
    size: int
    bounds: Range
    layout: Layout
    weighted: bool

    def count(self, cells: int) -> Cells:
        """See `Stream`."""
        low, high = self.bounds.low, self.bounds.high
        partition = Partition.of(low, high, cells, self.layout)
        return counting.count(self.chunks, partition, low, high, weighted=self.weighted)

    def collect(self, cells: Cells, chosen: Flags) -> tuple[NDArray[Any], Floats]:
        """See `Stream`."""
        return counting.collect(self.chunks, cells, chosen)

    def refine(self, cells: Cells, chosen: Flags, bits: int) -> Cells:
        """See `Stream`."""
        return counting.refine(self.chunks, cells, chosen, bits)


def summary_of(cells: Cells, unit: float) -> Summary:
    """What is known of a vector, or a part of it, from its cells."""
    minimum, maximum = cells.minimum, cells.maximum
    checkpoint()
    exponent = int(np.frexp(unit)[1]) - 1
    pair = cells.count <= 2
    if cells.weight is not None:
        # An end of the vector may weigh nothing; it is not counted then.
        pair[0] = pair[-1] = False
    return Summary(
        minimum,
        maximum,
        cells.mass,
        cells.above(exponent),
        cells.below(exponent),
        pair | (minimum == maximum),
        unit,
    )


def best_of_cells(cells: Cells, num_levels: int) -> Floats:
    """The best `num_levels` levels among the cells' minima and maxima, the last repeated."""
    checkpoint()
    summary = _whole_summary(cells)
    checkpoint()
    if num_levels == 2:
        return np.array([summary.minimum[0], summary.maximum[-1]])
    found = search(summary, num_levels)
    if found is not None:
        return padded(np.unique(found.levels), num_levels)
    points, curve = summary.curve()
    return padded(np.unique(points[programme(curve, num_levels)]), num_levels)


def _whole_summary(cells: Cells) -> Summary:
    return summary_of(cells, Range(float(cells.minimum[0]), float(cells.maximum[-1])).unit)


def undecided_cells(cells: Cells, num_levels: int) -> Flags:
    """Which cells may hold a level of an optimal solution inside; none: `best_of_cells` is one."""
    undecided = np.zeros(cells.index.size, np.bool_)
    if num_levels == 2:
        return undecided
    summary = _whole_summary(cells)
    found = search(summary, num_levels)
    undecided[~summary.known if found is None else found.undecided] = True
    return undecided


def streamed_levels(stream: Stream, num_levels: int) -> Progress | None:
    """Optimal `num_levels` >= 3 levels; None where ties defeat the search."""
    unit = stream.bounds.unit
    most = next(cells for levels, cells in CELLS if num_levels <= levels)
    cells = stream.count(min(most, max(stream.size // _VALUES_PER_CELL, _LEAST_CELLS)))

    def look(summary: Summary, wanted: Ints) -> Summary:
        nonlocal cells
        minimum = cells.minimum
        chosen = np.zeros(minimum.size, np.bool_)
        chosen[np.searchsorted(minimum, summary.minimum[wanted])] = True
        if int(cells.count[chosen].sum()) <= COLLECTED:
            found = _distinct(*stream.collect(cells, chosen), unit)
            return _with_ends(found, summary, wanted)
        bits = int(np.log2(_MAX_PIECES / wanted.size))
        cells = stream.refine(cells, chosen, min(max(bits, 1), _MAX_BITS))
        checkpoint()
        finer = summary_of(cells[_within(cells, summary, wanted)], unit)
        checkpoint()
        return _with_ends(finer, summary, wanted)

    checkpoint()
    return narrowed_levels(summary_of(cells, unit), num_levels, look)


def _with_ends(finer: Summary, summary: Summary, wanted: Ints) -> Summary:
    """With the vector's ends, which are levels even where they weigh nothing."""
    ends = [summary.minimum[0]] if wanted[0] == 0 else []
    if wanted[-1] == summary.minimum.size - 1:
        ends.append(summary.maximum[-1])
    missing = np.setdiff1d(ends, [finer.minimum[:1], finer.maximum[-1:]])
    if missing.size == 0:
        return finer
    return finer.with_cells(Summary.of_values(missing, np.zeros(missing.size), finer.unit))


def _within(cells: Cells, summary: Summary, wanted: Ints) -> Flags:
    """Rows of `cells` that lie in the wanted cells of a summary."""
    minimum = cells.minimum
    place = np.searchsorted(summary.minimum[wanted], minimum, side="right") - 1
    within: Flags = (place >= 0) & (minimum <= summary.maximum[wanted][place])
    return within


def _distinct(values: NDArray[Any], weights: Floats, unit: float) -> Summary:
    """A summary of a few values in any order."""
    order = np.argsort(values) if weights.size else None
    values = np.sort(values) if order is None else values[order]
    starts = np.concatenate([[0], 1 + np.flatnonzero(values[1:] != values[:-1])])
    if order is None:
        masses = np.diff(starts, append=values.size).astype(np.float64)
    else:
        masses = np.add.reduceat(weights[order], starts)
    return Summary.of_values(values[starts].astype(np.float64), masses, unit)
