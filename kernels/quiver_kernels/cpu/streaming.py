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

from quiver_kernels.cells import Cells, may_be_loose
from quiver_kernels.checks import Range
from quiver_kernels.cpu import cells as counting
from quiver_kernels.cpu.compile import Floats, Ints, frozen
from quiver_kernels.cpu.exact import padded, programme
from quiver_kernels.cpu.narrowing import Progress, narrowed_levels, search
from quiver_kernels.cpu.ordered import Ordered
from quiver_kernels.cpu.outline import outline
from quiver_kernels.cpu.summary import Flags, Summary, summarize_rows
from quiver_kernels.partition import KEY_BITS, Layout, Partition
from quiver_kernels.stopping import checkpoint

# Cells by levels: windows of levels span more of them where levels are many. More cells than the
# processor's cache holds take longer to count into than another pass does.
CELLS = ((8, 1 << 15), (32, 1 << 17), (256, 1 << 19))
_VALUES_PER_CELL = 8
# Loose cells by levels, and the values that each should have on average: what lies in the few
# that are left is collected, and if that is much, as of values that are often the same, tight
# cells say more.
OUTLINES = ((16, 1 << 15),)
OUTLINED = 64
_LEAST_CELLS = 4096
# Values that are collected at once, and pieces that cells are cut into.
COLLECTED = 1 << 19
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

    def outline(self, cells: int) -> Cells:
        """The vector's cells, loose where they may be; one pass."""
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
    known
        Cells that were counted when the range was found.
    """

    chunks: counting.Chunks
    size: int
    bounds: Range
    layout: Layout
    weighted: bool
    known: Cells | None = None

    def count(self, cells: int) -> Cells:
        """See `Stream`."""
        low, high = self.bounds.low, self.bounds.high
        partition = Partition.of(low, high, cells, self.layout)
        known = self._known(partition, loose=False)
        if known is not None:
            return known
        return counting.count(self.chunks, partition, low, high, weighted=self.weighted)

    def outline(self, cells: int) -> Cells:
        """See `Stream`."""
        if not may_be_loose(self.layout, weighted=self.weighted):
            return self.count(cells)
        low, high = self.bounds.low, self.bounds.high
        partition = Partition.of(low, high, cells, self.layout)
        known = self._known(partition, loose=True)
        return outline(self.chunks, partition, low, high) if known is None else known

    def _known(self, partition: Partition, *, loose: bool) -> Cells | None:
        known = self.known
        if known is None or known.loose != loose or known.partition != partition:
            return None
        return known

    def collect(self, cells: Cells, chosen: Flags) -> tuple[NDArray[Any], Floats]:
        """See `Stream`."""
        return counting.collect(self.chunks, cells, chosen)

    def refine(self, cells: Cells, chosen: Flags, bits: int) -> Cells:
        """See `Stream`."""
        return counting.refine(self.chunks, cells, chosen, bits)


def summary_of(cells: Cells, unit: float) -> Summary:
    """What is known of a vector, or a part of it, from its cells."""
    exponent = int(np.frexp(unit)[1]) - 1
    if may_be_loose(cells.partition.layout, weighted=cells.weight is not None):
        return _short_summary(cells, unit, exponent)
    minimum, maximum = cells.minimum, cells.maximum
    checkpoint()
    return Summary(
        minimum,
        maximum,
        cells.mass,
        cells.above(exponent),
        cells.below(exponent),
        cells.known,
        unit,
    )


def _short_summary(cells: Cells, unit: float, exponent: int) -> Summary:
    """`summary_of` cells without weights whose products of numbers and offsets have 63 bits."""
    partition, size = cells.partition, cells.index.size
    minimum, maximum, weight, lower, upper = (np.empty(size) for _ in range(5))
    summarize_rows(
        frozen(cells.index),
        frozen(cells.count),
        frozen(cells.whole),
        frozen(cells.part),
        frozen(cells.nearest),
        frozen(cells.farthest),
        KEY_BITS,
        partition.layout.offset_bits,
        1 - partition.layout.bias,
        partition.exponent,
        exponent,
        minimum,
        maximum,
        weight,
        lower,
        upper,
    )
    return Summary(minimum, maximum, weight, lower, upper, cells.known, unit)


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


def outline_cells(size: int, num_levels: int) -> int | None:
    """Cells whose outline `streamed_levels` begins with; None: it begins with tight cells."""
    for levels, cells in OUTLINES:
        if num_levels <= levels and size >= OUTLINED * cells:
            return cells
    return None


def streamed_levels(stream: Stream, num_levels: int) -> Progress | None:
    """Optimal `num_levels` >= 3 levels; None where ties defeat the search."""
    outlined = outline_cells(stream.size, num_levels)
    if outlined is not None:
        found = _levels_from(stream, stream.outline(outlined), num_levels)
        if found is not None:
            return found
    most = next(cells for levels, cells in CELLS if num_levels <= levels)
    cells = stream.count(min(most, max(stream.size // _VALUES_PER_CELL, _LEAST_CELLS)))
    return _levels_from(stream, cells, num_levels)


def _levels_from(stream: Stream, cells: Cells, num_levels: int) -> Progress | None:
    """`streamed_levels` from some cells on.

    None, too, where these are loose and leave many values to be looked at.
    """
    unit = stream.bounds.unit
    collected: Ordered | None = None

    def look(summary: Summary, wanted: Ints) -> Summary | None:
        nonlocal cells, collected
        if collected is not None:
            return collected.look(summary, wanted)
        minimum = cells.minimum
        chosen = np.zeros(minimum.size, np.bool_)
        chosen[np.searchsorted(minimum, summary.minimum[wanted])] = True
        if int(cells.count[chosen].sum()) <= COLLECTED:
            values, weights = stream.collect(cells, chosen)
            if weights.size:
                return _with_ends(_distinct(values, weights, unit), summary, wanted)
            # No cell is undecided later that is not now.
            collected = Ordered(np.sort(values), weights, unit)
            return collected.look(summary, wanted)
        if cells.loose:
            return None
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
    place = np.searchsorted(summary.minimum[wanted], cells.minimum, side="right") - 1
    within: Flags = (place >= 0) & (cells.maximum <= summary.maximum[wanted][place])
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
