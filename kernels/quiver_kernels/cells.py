"""What is known of a vector, cell by cell: how many values, their exact sum, and the outermost.

All statistics are integers, so they do not depend on the order in which values or parts are
added. NumPy alone does to merge them; `cpu.cells` counts values into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.partition import Floats, Ints, Layout, Partition

# Fewer values than this make up a vector, and so many parts at most: sums stay within 63 bits.
MAX_SIZE = 1 << 40
MAX_PARTS = 1 << 16
# Sums of offsets of up to so many bits stay there without being carried.
SHORT_OFFSET = 22
# Tables that a vector is counted into side by side, by the bytes of a value, and those that the
# pieces of cells are counted into: at most, since memory is reckoned with them.
TABLES = {4: 4, 8: 2}
PIECE_TABLES = 2


@dataclass(frozen=True, eq=False, slots=True)
class Cells:
    """The non-empty cells of a vector, ascending; a refined cell stands as several rows.

    A row is a set of values between its `minimum` and `maximum`, both among them, and apart
    from those of all other rows. Of *loose* rows less is known: their values lie between these
    two, which may be the edges of the cell, one of them its neighbour's too.

    Attributes
    ----------
    partition
        Cells that the rows belong to.
    index
        Cell of each row.
    count
        Number of values; 0 is possible with weights, where the vector's ends weigh nothing.
    whole, part
        Exact sum of the offsets, ``whole * 2**offset_bits + part`` with
        ``0 <= part < 2**offset_bits``.
    nearest, farthest
        Least and largest offset, counted from 0: of negative values the nearest is the maximum.
        Of loose rows bounds of these, up to the cell's far edge at ``2**offset_bits``.
    weight, moment
        Sums of the weights, and of weight times offset; None without weights.
    loose
        Whether some rows may be loose.
    """

    partition: Partition
    index: Ints
    count: Ints
    whole: Ints
    part: Ints
    nearest: Ints
    farthest: Ints
    weight: Floats | None = None
    moment: Floats | None = None
    loose: bool = field(default=False, kw_only=True)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.count.sum())

    @property
    def minimum(self) -> Floats:
        """Smallest value of each row."""
        negative = self.index < 0
        return self.partition.value(self.index, np.where(negative, self.farthest, self.nearest))

    @property
    def maximum(self) -> Floats:
        """Largest value of each row."""
        negative = self.index < 0
        return self.partition.value(self.index, np.where(negative, self.nearest, self.farthest))

    @property
    def refined(self) -> bool:
        """Whether some cell stands as several rows."""
        return bool((self.index[1:] == self.index[:-1]).any())

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether all values of a row are its minimum or maximum."""
        known: NDArray[np.bool_] = self.nearest == self.farthest
        if self.loose:
            return known
        pairs = self.count <= 2
        if self.weight is not None:
            # The vector's ends may weigh nothing, and are not counted then.
            pairs[[0, -1]] = False
        known |= pairs
        return known

    @property
    def mass(self) -> Floats:
        """Weight of each row: of its values, or their number."""
        return self.count.astype(np.float64) if self.weight is None else self.weight

    @property
    def low(self) -> float:
        """Smallest value of all."""
        return float(self[:1].minimum[0])

    @property
    def high(self) -> float:
        """Largest value of all."""
        return float(self[-1:].maximum[0])

    def above(self, exponent: int = 0) -> Floats:
        """Sum of ``w * (x - minimum)`` over each row, times ``2**exponent``.

        Within two units in the last place, or, with weights, within rounding of the weight
        times the cell's width.
        """
        return self._distances(self.index >= 0, exponent)

    def below(self, exponent: int = 0) -> Floats:
        """Sum of ``w * (maximum - x)`` over each row, times ``2**exponent``; as `above`."""
        return self._distances(self.index < 0, exponent)

    def _distances(self, outward: NDArray[np.bool_], exponent: int) -> Floats:
        """Sums of the distances from the nearest value where `outward`, else to the farthest."""
        bits = self.partition.layout.offset_bits
        sign = np.where(outward, 1, -1)
        end = np.where(outward, self.nearest, self.farthest)
        if self.weight is None or self.moment is None:
            whole, part = times(self.count, end, bits)
            whole, part = normal(sign * (self.whole - whole), sign * (self.part - part), bits)
            widths = whole + part * 2.0**-bits
        else:
            distance = np.maximum(sign * (self.moment - self.weight * end), 0.0)
            widths = np.where(self.nearest == self.farthest, 0.0, distance) * 2.0**-bits
        shift = self.partition.width_exponent(self.index) + exponent
        return np.ldexp(widths, shift.astype(np.int32))

    def columns(self) -> tuple[Any, ...]:
        """The arrays of the rows, in the order of the attributes."""
        return (
            self.index,
            self.count,
            self.whole,
            self.part,
            self.nearest,
            self.farthest,
            self.weight,
            self.moment,
        )

    def __getitem__(self, rows: NDArray[Any] | slice) -> Cells:
        """Some of the rows."""
        some: tuple[Any, ...] = tuple(None if a is None else a[rows] for a in self.columns())
        return Cells(self.partition, *some, loose=self.loose)


def may_be_loose(layout: Layout, *, weighted: bool) -> bool:
    """Whether rows that need not be tight are loose: those of 32 bits, without weights."""
    return layout.offset_bits <= SHORT_OFFSET and not weighted


def loosened(cells: Cells) -> Cells:
    """The rows as `cpu.outline` counts them, without the outermost values but the vector's own.

    Whoever counts more tells the solver no more, so that it finds the same levels.
    """
    if not may_be_loose(cells.partition.layout, weighted=cells.weight is not None):
        return cells
    edge = 1 << cells.partition.layout.offset_bits
    single = (cells.count == 1) | ((cells.whole == 0) & (cells.part == 0))
    nearest = np.where(single, cells.nearest, 0)
    farthest = np.where(single, cells.nearest, edge)
    first = farthest if cells.index[0] < 0 else nearest
    first[0] = cells.farthest[0] if cells.index[0] < 0 else cells.nearest[0]
    last = nearest if cells.index[-1] < 0 else farthest
    last[-1] = cells.nearest[-1] if cells.index[-1] < 0 else cells.farthest[-1]
    return replace(cells, nearest=nearest, farthest=farthest, loose=True)


def times(count: Ints, factor: Ints, bits: int) -> tuple[Ints, Ints]:
    """``count * factor`` as ``whole * 2**bits + part``, for counts to 2**40 - 1; exact.

    The product may take 40 + 45 bits: then each half of the factor is multiplied by itself.
    """
    if bits <= SHORT_OFFSET:
        return normal(np.zeros_like(count), count * factor, bits)
    half = bits // 2
    low = count * (factor & ((1 << half) - 1))
    high = count * (factor >> half) + (low >> half)
    rest = bits - half
    part = ((high & ((1 << rest) - 1)) << half) | (low & ((1 << half) - 1))
    return high >> rest, part


def normal(whole: Ints, part: Ints, bits: int) -> tuple[Ints, Ints]:
    """The same ``whole * 2**bits + part`` with ``0 <= part < 2**bits``."""
    return whole + (part >> bits), part & ((1 << bits) - 1)


def coarsen(cells: Cells, partition: Partition) -> Cells:
    """The rows summed up over the cells of `partition`, which must cover the present one; exact."""
    old, bits = cells.partition, partition.layout.offset_bits
    # By magnitude: the near edge of the first negative cell is 0, which is no value of it.
    sign = cells.index >> 63
    index, nearest = partition.locate(old.value(cells.index ^ sign, cells.nearest))
    index ^= sign
    # A cell lies in one binade with the one it becomes part of: offsets change by a shift and
    # by the offset of the old cell's edge.
    finer = partition.width_exponent(index) - old.width_exponent(cells.index)
    edge = nearest - (cells.nearest >> finer)
    low = (cells.whole & ((np.int64(1) << finer) - 1)) << (bits - finer)
    whole, part = times(cells.count, edge, bits)
    whole, part = normal(whole + (cells.whole >> finer), part + low + (cells.part >> finer), bits)
    farthest = edge + (cells.farthest >> finer)
    moved = replace(
        cells,
        partition=partition,
        index=index,
        whole=whole,
        part=part,
        nearest=nearest,
        farthest=farthest,
    )
    return summed(moved)


def summed(rows: Cells, key: Ints | None = None) -> Cells:
    """One row per `key` (default: the cell) from rows in any order, keys ascending.

    Exact but for the sums of weights, which are added in the order of the rows.
    """
    key = rows.index if key is None else key
    if key.size == 0:
        return rows
    order = np.argsort(key, kind="stable")
    rows, key = rows[order], key[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    # Parts are below 2**45, so fewer than 2**18 rows of a key add up within 63 bits.
    whole, part = normal(
        np.add.reduceat(rows.whole, starts),
        np.add.reduceat(rows.part, starts),
        rows.partition.layout.offset_bits,
    )
    weights = (
        None if column is None else np.add.reduceat(column, starts)
        for column in (rows.weight, rows.moment)
    )
    return Cells(
        rows.partition,
        rows.index[starts],
        np.add.reduceat(rows.count, starts),
        whole,
        part,
        np.minimum.reduceat(rows.nearest, starts),
        np.maximum.reduceat(rows.farthest, starts),
        *weights,
    )


def stacked(parts: Sequence[Cells]) -> Cells:
    """The rows of all `parts`, one after the other; they must have one partition."""
    columns = zip(*(part.columns() for part in parts), strict=True)
    joined: tuple[Any, ...] = tuple(None if a[0] is None else np.concatenate(a) for a in columns)
    return Cells(parts[0].partition, *joined, loose=any(part.loose for part in parts))


def merge(parts: Sequence[Cells]) -> Cells:
    """The cells of the union of vectors, from theirs (without weights); refinement is undone.

    The result does not depend on how the vector was cut into parts, or on their order.
    """
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    first = parts[0].partition
    partition = Partition.of(low, high, first.cells, first.layout)
    return summed(stacked([coarsen(part, partition) for part in parts]))


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """Rows of some cells, each to be cut into pieces of equal width.

    Attributes
    ----------
    partition
        Of the cells.
    low, high
        Range of the whole vector.
    index, nearest, farthest
        The rows, as in `Cells`, ascending.
    bits
        A row becomes ``2**bits`` pieces at most.
    """

    partition: Partition
    low: float
    high: float
    index: Ints
    nearest: Ints
    farthest: Ints
    bits: int

    @classmethod
    def of(cls, cells: Cells, chosen: NDArray[np.bool_], bits: int) -> Cut:
        """The `chosen` rows of `cells`."""
        return cls(
            partition=cells.partition,
            low=cells.low,
            high=cells.high,
            index=cells.index[chosen],
            nearest=cells.nearest[chosen],
            farthest=cells.farthest[chosen],
            bits=bits,
        )

    @property
    def shift(self) -> Ints:
        """Bits of an offset, from the row's nearest on, that do not choose the piece."""
        length = np.frexp((self.farthest - self.nearest).astype(np.float64))[1]
        return np.maximum(length.astype(np.int64) - self.bits, 0)

    @property
    def first_piece(self) -> Ints:
        """Number of the first piece of each row, and last the number of all pieces."""
        pieces = ((self.farthest - self.nearest) >> self.shift) + 1
        return np.concatenate([[0], np.cumsum(pieces)])

    def rows_of(self, index: Ints, offset: Ints) -> Ints:
        """Row that each value lies in, given its cell and offset; -1 for none."""
        if self.index.size == 0:
            return np.full(index.size, -1)
        value, nearest, farthest = (
            self.partition.value(*place)
            for place in (
                (index, offset),
                (self.index, self.nearest),
                (self.index, self.farthest),
            )
        )
        row = np.searchsorted(np.minimum(nearest, farthest), value, side="right") - 1
        inside = (row >= 0) & (value <= np.maximum(nearest, farthest)[row])
        return np.where(inside, row, -1)

    def pieces_of(self, row: Ints, offset: Ints) -> Ints:
        """Piece of each value, given its row and offset."""
        return self.first_piece[row] + ((offset - self.nearest[row]) >> self.shift[row])

    def holds(self, rows: Cells) -> bool:
        """Whether each of `rows` lies within a piece."""
        row = self.rows_of(rows.index, rows.nearest)
        if (row < 0).any() or (row != self.rows_of(rows.index, rows.farthest)).any():
            return False
        nearest, farthest = (self.pieces_of(row, at) for at in (rows.nearest, rows.farthest))
        return bool((nearest == farthest).all())


def merge_details(cut: Cut, parts: Sequence[Cells]) -> Cells:
    """The pieces of a cut over the union of vectors, from theirs."""
    rows = stacked(parts)
    row = cut.rows_of(rows.index, rows.nearest)
    return ascending(summed(rows, cut.pieces_of(row, rows.nearest)))


def replaced(cells: Cells, chosen: NDArray[np.bool_], pieces: Cells) -> Cells:
    """The cells with `pieces` in the place of the `chosen` rows."""
    return ascending(stacked([cells[~chosen], pieces]))


def ascending(rows: Cells) -> Cells:
    """The rows in the order of their values."""
    return rows[np.argsort(rows.minimum, kind="stable")]
