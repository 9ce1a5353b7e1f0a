"""Counting values into cells, and finding those of some cells again.

A tile of values is first located (integer and floating lanes, no branch), then added to a table
of one row per cell. What a row holds are integers: see `quiver_kernels.cells`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import SHORT_OFFSET, Cells, Cut, ascending, normal, replaced
from quiver_kernels.cpu.compile import Floats, Ints, frozen, kernel
from quiver_kernels.partition import Partition
from quiver_kernels.stopping import checkpoint

_TILE = 512
# Offsets have 45 bits at most, so this many of them, and a rest, add up within 63.
_SETTLE = 1 << 17
_NO_OFFSET = 1 << 62

Chunks = Iterable[tuple[NDArray[Any], Floats]]


@kernel
def locate(
    x: NDArray[Any],
    bits: NDArray[Any],
    scale: float,
    top: int,
    index: NDArray[Any],
    offset: NDArray[Any],
) -> int:
    """Cell `index` and `offset` of every value; returns the least cell of a magnitude, less one.

    Cell 0 is left out of that minimum.

    Parameters
    ----------
    x, bits
        Values, and the same memory as signed integers.
    scale
        1 over the width of the outer cells.
    top
        Integer of the magnitude where these begin.
    """
    integer = bits.dtype.type
    real = x.dtype.type
    narrow = bits.itemsize == 4
    low = 0xFFFF if narrow else 0x1FFFFFFFFFFF
    positive = 0x7FFFFFFF if narrow else 0x7FFFFFFFFFFFFFFF
    unit = real(1 << 16) if narrow else real(1 << 45)
    ahead = integer(((top >> 16) if narrow else (top >> 45)) - 128)
    least: int = integer(positive - 1)
    for i in range(x.size):
        b = integer(bits[i] & positive)
        y = abs(x[i]) * scale
        whole = integer(y)
        rest = integer((y - real(whole)) * unit)
        outer = b >= top
        # Shifts by constants, so that all lanes keep the width of the values.
        key = integer(b >> 16) if narrow else integer(b >> 45)
        cell = integer(whole + ahead) if outer else key
        offset[i] = rest if outer else integer(b & low)
        least = min(least, integer(integer(cell - 1) & integer(positive)))
        # The comparison is false for -0.0, which is counted as 0.
        index[i] = integer(~cell) if x[i] < 0 else cell
    return least


@kernel
def tally(index: NDArray[Any], offset: NDArray[Any], size: int, base: int, table: Ints) -> None:
    """Add values to the rows of their cells: number, sum, least and largest offset."""
    for i in range(size):
        row = np.uint64(np.int64(index[i]) - base)
        place = np.int64(offset[i])
        table[row, 0] += 1
        table[row, 1] += place
        table[row, 2] = min(table[row, 2], place)
        table[row, 3] = max(table[row, 3], place)


@kernel
def open_rows(table: NDArray[Any], blank: NDArray[Any], base: int, first: int, stop: int) -> None:
    """Make the rows of cells with magnitudes from cell `first` to `stop` ready, of both signs."""
    rows = table.shape[0]
    for begin, end in ((first - base, stop - base), (~(stop - 1) - base, ~first + 1 - base)):
        for row in range(max(begin, 0), min(end, rows)):
            for column in range(table.shape[1]):
                table[row, column] = blank[column]


@kernel
def count_cells(
    x: NDArray[Any],
    bits: NDArray[Any],
    scale: float,
    top: int,
    base: int,
    blank: Ints,
    table: Ints,
    opened: Ints,
    index: NDArray[Any],
    offset: NDArray[Any],
) -> None:
    """Add the values of a chunk to `table`, whose row 0 is cell `base`.

    Rows are made ready when a value comes near them: a table spans many binades that no value
    may hit. ``opened[0]`` is the least magnitude's cell that is ready; cell 0 always is.
    """
    tile = index.size
    for start in range(0, x.size, tile):
        size = min(tile, x.size - start)
        part = slice(start, start + size)
        least = locate(x[part], bits[part], scale, top, index[:size], offset[:size]) + 1
        if least < opened[0]:
            open_rows(table, blank, base, least, opened[0])
            opened[0] = least
        tally(index, offset, size, base, table)


@kernel
def weigh_cells(
    x: NDArray[Any],
    bits: NDArray[Any],
    weights: Floats,
    scale: float,
    top: int,
    base: int,
    blank: Floats,
    table: Floats,
    opened: Ints,
    index: NDArray[Any],
    offset: NDArray[Any],
) -> None:
    """As `count_cells`, adding the weights and the products of weight and offset."""
    tile = index.size
    for start in range(0, x.size, tile):
        size = min(tile, x.size - start)
        part = slice(start, start + size)
        least = locate(x[part], bits[part], scale, top, index[:size], offset[:size]) + 1
        if least < opened[0]:
            open_rows(table, blank, base, least, opened[0])
            opened[0] = least
        for i in range(size):
            row = np.uint64(np.int64(index[i]) - base)
            table[row, 0] += weights[start + i]
            table[row, 1] += weights[start + i] * np.float64(offset[i])


@kernel
def pick_rows(
    x: NDArray[Any],
    bits: NDArray[Any],
    scale: float,
    top: int,
    base: int,
    wanted: NDArray[np.uint8],
    begin: Ints,
    nearest: Ints,
    farthest: Ints,
    picked: Ints,
    rows: Ints,
    places: Ints,
    index: NDArray[Any],
    offset: NDArray[Any],
) -> int:
    """Find the values that lie in some rows, given by cell and offset; returns how many.

    Parameters
    ----------
    wanted
        Which cells, counted from `base`, have rows.
    begin, nearest, farthest
        Rows begin[c] to begin[c + 1] are those of cell c, ascending in offset.
    picked, rows, places
        Out: position in `x`, row and offset of each value found.
    """
    tile = index.size
    near = np.empty(tile, np.int64)
    count = 0
    for start in range(0, x.size, tile):
        size = min(tile, x.size - start)
        part = slice(start, start + size)
        locate(x[part], bits[part], scale, top, index[:size], offset[:size])
        # Unsigned, as the cell: a number that may be negative is checked for it at every use.
        found = np.uint64(0)
        for i in range(size):
            near[found] = i
            found += np.uint64(wanted[np.uint64(np.int64(index[i]) - base)])
        for k in range(np.int64(found)):
            i = near[k]
            cell = np.int64(index[i]) - base
            place = np.int64(offset[i])
            low, high = begin[cell], begin[cell + 1]
            while high - low > 1:
                middle = (low + high) // 2
                if nearest[middle] <= place:
                    low = middle
                else:
                    high = middle
            # A row ends at values of the vector that was counted; others may lie beyond.
            if nearest[low] <= place <= farthest[low]:
                picked[count], rows[count], places[count] = start + i, low, place
                count += 1
    return count


@kernel
def tally_pieces(
    rows: Ints,
    places: Ints,
    size: int,
    first: Ints,
    nearest: Ints,
    shift: Ints,
    table: Ints,
) -> None:
    """`tally` for the pieces that rows are cut into; see `quiver_kernels.cells.Cut`."""
    for i in range(size):
        row, place = rows[i], places[i]
        piece = first[row] + ((place - nearest[row]) >> shift[row])
        table[piece, 0] += 1
        table[piece, 1] += place
        table[piece, 2] = min(table[piece, 2], place)
        table[piece, 3] = max(table[piece, 3], place)


class _Locator:
    """A partition over the range of a vector as the kernels take it, and room for a tile."""

    def __init__(self, partition: Partition, low: float, high: float) -> None:
        layout = partition.layout
        self.integer = layout.integer
        self.real = layout.dtype
        self.scale = layout.dtype.type(np.ldexp(1.0, -partition.exponent))
        self.top = layout.integer.type(partition.first_outer << layout.offset_bits)
        self.tile = np.empty(_TILE, layout.integer), np.empty(_TILE, layout.integer)
        first, last = self.locate(np.array([low, high]))[0].tolist()
        self.base = first
        self.size = last - first + 1
        self.largest = max(last, ~first)

    def views(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values, and the same memory as integers."""
        values = np.ascontiguousarray(values, self.real)
        return frozen(values), frozen(values.view(self.integer))

    def locate(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Cells and offsets of all `values`."""
        index, offset = np.empty(values.size, self.integer), np.empty(values.size, self.integer)
        locate(*self.views(values), self.scale, self.top, index, offset)
        return index, offset


class _Table:
    """Rows of a partition's cells that are made ready as values come near them."""

    def __init__(self, at: _Locator, blank: NDArray[Any]) -> None:
        self.at = at
        self.blank = frozen(blank)
        self.rows = np.empty((at.size, blank.size), blank.dtype)
        self.opened = np.array([at.largest + 1])
        open_rows(self.rows, self.blank, at.base, 0, 1)

    def ready(self) -> list[slice]:
        """The rows that are ready, as ascending pieces."""
        base, size, opened = self.at.base, self.at.size, int(self.opened[0])
        pieces = ((0, ~opened - base + 1), (-1 - base, 1 - base), (opened - base, size))
        return [slice(max(a, 0), min(b, size)) for a, b in pieces if max(a, 0) < min(b, size)]


class Counter:
    """Counts a vector, chunk by chunk, into the cells of a partition over its range.

    With weights, values that weigh nothing are left out, but for the vector's ends.
    """

    def __init__(
        self, partition: Partition, low: float, high: float, *, weighted: bool = False
    ) -> None:
        self.partition = partition
        self._at = _Locator(partition, low, high)
        self._bits = partition.layout.offset_bits
        self._table = _Table(self._at, _blank(self._bits))
        self._sums = _Table(self._at, np.zeros(2)) if weighted else None
        if weighted:
            self._count(np.array([low, high]))
            for piece in self._table.ready():
                self._table.rows[piece, :2] = 0

    def add(self, values: NDArray[Any], weights: Floats) -> None:
        """Count `values`; `weights` has their shape, or none where there are none."""
        for start in range(0, values.size, _SETTLE):
            part = values[start : start + _SETTLE]
            if self._sums is not None:
                heavy = weights[start : start + _SETTLE]
                if not heavy.all():
                    part, heavy = part[heavy > 0], heavy[heavy > 0]
                self._weigh(part, heavy)
            self._count(part)

    def _count(self, part: NDArray[Any]) -> None:
        at, table = self._at, self._table
        count_cells(
            *at.views(part),
            at.scale,
            at.top,
            at.base,
            table.blank,
            table.rows,
            table.opened,
            *at.tile,
        )
        for piece in table.ready():
            _settle(table.rows[piece], self._bits)

    def _weigh(self, part: NDArray[Any], weights: Floats) -> None:
        assert self._sums is not None
        at, table = self._at, self._sums
        weigh_cells(
            *at.views(part),
            frozen(weights),
            at.scale,
            at.top,
            at.base,
            table.blank,
            table.rows,
            table.opened,
            *at.tile,
        )

    def cells(self) -> Cells:
        """The cells that values fell into."""
        pieces = self._table.ready()
        rows = np.concatenate([self._table.rows[piece] for piece in pieces])
        number = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
        found = np.flatnonzero(rows[:, 3] >= 0)
        rows, number = rows.take(found, axis=0), number[found]
        sums = None
        if self._sums is not None:
            # A vector's end that weighs nothing has a row here and none there.
            sums = np.zeros((number.size, 2))
            heavy = rows[:, 0] > 0
            sums[heavy] = self._sums.rows[number[heavy]]
        return _cells(self.partition, self._at.base + number, rows, sums)


def _blank(offset_bits: int) -> NDArray[np.int64]:
    """An empty row; with a last column for what is carried where sums may outgrow their own."""
    row = np.array([0, 0, _NO_OFFSET, -1, 0])
    return row if offset_bits > SHORT_OFFSET else row[:4].copy()


def _settle(rows: Ints, offset_bits: int) -> None:
    """Carry sums of offsets, so that as many values as one chunk has can be added again."""
    if rows.shape[1] > 4:
        rows[:, 4] += rows[:, 1] >> offset_bits
        rows[:, 1] &= (1 << offset_bits) - 1


def _cells(partition: Partition, index: Ints, rows: Ints, sums: Floats | None) -> Cells:
    """Cells from rows of a table."""
    carried = rows[:, 4] if rows.shape[1] > 4 else np.zeros(len(rows), np.int64)
    whole, part = normal(carried, rows[:, 1].copy(), partition.layout.offset_bits)
    return Cells(
        partition=partition,
        index=index,
        count=rows[:, 0].copy(),
        whole=whole,
        part=part,
        nearest=rows[:, 2].copy(),
        farthest=rows[:, 3].copy(),
        weight=None if sums is None else sums[:, 0].copy(),
        moment=None if sums is None else sums[:, 1].copy(),
    )


def count(
    chunks: Chunks, partition: Partition, low: float, high: float, *, weighted: bool = False
) -> Cells:
    """The cells of a vector from `low` to `high`, given as chunks with their weights; one pass.

    The chunks are of the partition's type. Without weights their place is taken by an empty
    array, and the result is exact.
    """
    counter = Counter(partition, low, high, weighted=weighted)
    for values, weights in chunks:
        counter.add(values, weights)
    return counter.cells()


def collect(chunks: Chunks, cells: Cells, chosen: NDArray[np.bool_]) -> tuple[NDArray[Any], Floats]:
    """The values in the `chosen` rows of `cells`, and their weights (none without); one pass."""
    cut = Cut.of(cells, chosen, 0)
    found = [(part, heavy) for part, heavy, _, _ in _picked(chunks, cut)]
    values, weights = zip(*found, strict=True)
    return np.concatenate(values), np.concatenate(weights)


def refine(chunks: Chunks, cells: Cells, chosen: NDArray[np.bool_], bits: int) -> Cells:
    """The cells with each `chosen` row cut into up to ``2**bits`` pieces of a width; one pass."""
    cut = Cut.of(cells, chosen, bits)
    pieces = count_pieces(chunks, cut, weighted=cells.weight is not None)
    checkpoint()
    return replaced(cells, chosen, pieces)


def count_pieces(chunks: Chunks, cut: Cut, *, weighted: bool = False) -> Cells:
    """The pieces of a cut that values fall into, by row and offset; one pass.

    The values must lie within the cut's range.
    """
    bits = cut.partition.layout.offset_bits
    first = cut.first_piece
    blank = _blank(bits)
    rows = np.tile(blank, (int(first[-1]), 1))
    sums = np.zeros((len(rows), 2)) if weighted else None
    if weighted:
        # The ends of the vector have their place even if they weigh nothing.
        index, offset = cut.partition.locate(np.array([cut.low, cut.high]))
        row = cut.rows_of(index, offset)
        row, offset = row[row >= 0], offset[row >= 0]
        piece = cut.pieces_of(row, offset)
        np.minimum.at(rows[:, 2], piece, offset)
        np.maximum.at(rows[:, 3], piece, offset)
    shift, nearest = frozen(cut.shift), frozen(cut.nearest)
    for _, heavy, row, offset in _picked(chunks, cut):
        for start in range(0, row.size, _SETTLE):
            part = slice(start, start + _SETTLE)
            size = row[part].size
            tally_pieces(row[part], offset[part], size, first, nearest, shift, rows)
            _settle(rows, bits)
        if sums is not None:
            piece = cut.pieces_of(row, offset)
            sums[:, 0] += np.bincount(piece, heavy, len(rows))
            sums[:, 1] += np.bincount(piece, heavy * offset, len(rows))
    checkpoint()
    found = rows[:, 3] >= 0
    index = np.repeat(cut.index, np.diff(first))
    sums = None if sums is None else sums[found]
    pieces = _cells(cut.partition, index[found], rows[found], sums)
    checkpoint()
    return ascending(pieces)


def _picked(chunks: Chunks, cut: Cut) -> Iterator[tuple[NDArray[Any], Floats, Ints, Ints]]:
    """Of each chunk the values in the cut's rows, with weight, row and offset of each.

    Values that weigh nothing are left out.
    """
    at = _Locator(cut.partition, cut.low, cut.high)
    order = np.lexsort((cut.nearest, cut.index))
    cell = cut.index[order] - at.base
    wanted = np.zeros(at.size, np.uint8)
    wanted[cell] = 1
    rows_of = frozen(wanted), np.searchsorted(cell, np.arange(at.size + 1))
    ends = frozen(cut.nearest[order]), frozen(cut.farthest[order])
    for values, weights in chunks:
        picked, rows, places = (np.empty(values.size, np.int64) for _ in range(3))
        count = pick_rows(
            *at.views(values),
            at.scale,
            at.top,
            at.base,
            *rows_of,
            *ends,
            picked,
            rows,
            places,
            *at.tile,
        )
        picked, rows, places = picked[:count], order[rows[:count]], places[:count]
        if weights.size:
            heavy = weights[picked] > 0
            picked, rows, places = picked[heavy], rows[heavy], places[heavy]
        yield values[picked], weights[picked] if weights.size else weights, rows, places
