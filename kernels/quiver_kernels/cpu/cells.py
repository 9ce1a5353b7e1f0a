"""Counting values into cells, and finding those of some cells again.

A tile of values is first located (integer and floating lanes, no branch), then added to a table
of one row per cell. What a row holds are integers: see `quiver_kernels.cells`. So threads may
count chunks into tables of their own, and the sums of these do not depend on who counted what.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from quiver_kernels.cells import (
    PIECE_TABLES,
    SHORT_OFFSET,
    TABLES,
    Cells,
    Cut,
    ascending,
    normal,
    replaced,
)
from quiver_kernels.cpu.compile import Floats, Ints, frozen, kernel
from quiver_kernels.cpu.windows import Windows, can_pick
from quiver_kernels.partition import Partition
from quiver_kernels.sharing import Scratch, run_parts
from quiver_kernels.stopping import checkpoint

_TILE = 512
# Offsets have 45 bits at most, so this many of them, and a rest, add up within 63.
_SETTLE = 1 << 17
_NO_OFFSET = 1 << 62
# Where the number of values begins in a packed sum, and so many values that both have room there.
_NUMBER = 39
_FULL = 1 << 23
# Offsets of more than 32 bits are added up in two parts.
_HALF = 32
# The first bits of a value, which all values of a cell share.
_KEYS = 1 << 16


class Chunks(Protocol):
    """The chunks of a vector, each with its weights; made when asked for."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, number: int, /) -> tuple[NDArray[Any], Floats]:
        """One of them."""
        ...


class Adder(Protocol):
    """A table that values are added to, by one thread at a time."""

    def add(self, values: NDArray[Any], /) -> None:
        """Add a chunk's values."""
        ...

    def finish(self) -> None:
        """Hand over all that was added."""
        ...


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


def _add_value(
    context: Any,  # noqa: ARG001
    table: Any,
    row: Any,
    offset: Any,
    place: Any,
) -> Any:
    """An instruction for kernels: add the value at offset[place] to a row of a table.

    All that a row holds lies in one vector and is loaded, changed and stored at once::

        offsets of int32    number * 2**39 + sum (int64) | ~least | largest
        offsets of int64    sum of the low halves | number * 2**39 + sum of the high ones
                            | ~least | largest

    The complement makes a minimum a maximum, and never overflows.
    """
    signature = types.void(table, row, offset, place)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        proxy: Any = cgutils.create_struct_proxy
        rows, offsets = (
            proxy(signature.args[at])(context, builder, arguments[at]).data for at in (0, 2)
        )
        bits = signature.args[2].dtype.bitwidth
        lanes = ir.VectorType(ir.IntType(bits), 4)
        most = 1 << (bits - 1)
        undefined = ir.Constant(lanes, ir.Undefined)
        one = builder.load(builder.gep(offsets, [arguments[3]]))
        first = ir.Constant(ir.IntType(32), 0)
        four = builder.shuffle_vector(
            builder.insert_element(undefined, one, first),
            undefined,
            ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4),
        )
        if bits == 32:
            sums, number = ir.VectorType(ir.IntType(64), 2), 1 << (_NUMBER - 32)
            parts = builder.and_(four, ir.Constant(lanes, [-1, 0, 0, 0]))
        else:
            sums, number = lanes, 1 << _NUMBER
            parts = builder.and_(
                builder.lshr(four, ir.Constant(lanes, [0, _HALF, 0, 0])),
                ir.Constant(lanes, [(1 << _HALF) - 1, -1, 0, 0]),
            )
        added = builder.or_(parts, ir.Constant(lanes, [0, number, 0, 0]))
        ends = builder.xor(
            builder.and_(four, ir.Constant(lanes, [0, 0, -1, -1])),
            ir.Constant(lanes, [-most, -most, -1, 0]),
        )
        begin = builder.mul(arguments[1], ir.Constant(ir.IntType(64), bits // 16))
        pointer = builder.bitcast(builder.gep(rows, [begin]), sums.as_pointer())
        row = builder.add(builder.load(pointer, align=8), builder.bitcast(added, sums))
        row = builder.bitcast(row, lanes)
        row = builder.select(builder.icmp_signed(">", ends, row), ends, row)
        builder.store(builder.bitcast(row, sums), pointer, align=8)
        return context.get_dummy_value()

    return signature, generate


add_value: Any = intrinsic(_add_value)


@kernel
def tally(index: NDArray[Any], offset: NDArray[Any], size: int, base: int, table: Ints) -> None:
    """Add values to the rows of their cells; see `add_value`."""
    for i in range(size):
        add_value(table, np.int64(index[i]) - base, offset, i)


@kernel
def take_rows(
    table: Ints, blank: Ints, first: int, stop: int, base: int, offset_bits: int, found: Ints
) -> int:
    """Move the rows of a table that values fell into to `found`; returns how many.

    Parameters
    ----------
    first, stop
        Which rows; they are blank afterwards.
    base
        Cell of row 0.
    found
        Out: cell, number, least and largest offset, and the sum of the offsets as what is below
        ``2**offset_bits`` and how often that.
    """
    short = table.shape[1] == 2
    low, rest = (1 << _NUMBER) - 1, (1 << offset_bits) - 1
    size = 0
    for r in range(first, stop):
        if short:
            largest = table[r, 1] >> 32
            if largest < 0:
                continue
            number, part, whole = table[r, 0] >> _NUMBER, table[r, 0] & low, 0
            least = ~np.int64(np.int32(table[r, 1]))
        else:
            largest = table[r, 3]
            if largest < 0:
                continue
            number, high = table[r, 1] >> _NUMBER, table[r, 1] & low
            part = table[r, 0] + ((high << _HALF) & rest)
            whole = high >> (offset_bits - _HALF)
            least = ~table[r, 2]
        found[size, 0], found[size, 1] = base + r, number
        found[size, 2], found[size, 3] = least, largest
        found[size, 4], found[size, 5] = part & rest, whole + (part >> offset_bits)
        size += 1
        for column in range(table.shape[1]):
            table[r, column] = blank[column]
    return size


@kernel
def join_rows(a: Ints, b: Ints, offset_bits: int, out: Ints) -> int:
    """Rows as of `take_rows`, cells ascending, as those of the union; returns how many. O(m)."""
    i, j, size = 0, 0, 0
    while i < len(a) or j < len(b):
        from_a = j == len(b) or (i < len(a) and a[i, 0] <= b[j, 0])
        from_b = i == len(a) or (j < len(b) and b[j, 0] <= a[i, 0])
        if from_a and from_b:
            part = a[i, 4] + b[j, 4]
            out[size, 0], out[size, 1] = a[i, 0], a[i, 1] + b[j, 1]
            out[size, 2], out[size, 3] = min(a[i, 2], b[j, 2]), max(a[i, 3], b[j, 3])
            out[size, 4] = part & ((1 << offset_bits) - 1)
            out[size, 5] = a[i, 5] + b[j, 5] + (part >> offset_bits)
        elif from_a:
            out[size] = a[i]
        else:
            out[size] = b[j]
        i, j, size = i + from_a, j + from_b, size + 1
    return size


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
def find_keys(
    bits: NDArray[Any], start: int, stop: int, flags: NDArray[np.uint8], near: Ints, found: np.int64
) -> np.int64:
    """Append to near[:found] where the values from `start` to `stop` with flagged keys are."""
    # A constant shift for each type. Unsigned, since a place that may be negative is checked for
    # it at every use.
    narrow, count = bits.itemsize == 4, np.uint64(found)
    for i in range(np.uint64(start), np.uint64(stop)):
        near[count] = i
        key = np.uint16(bits[i] >> 16) if narrow else np.uint16(bits[i] >> 48)
        count += np.uint64(flags[key])
    return np.int64(count)


@kernel
def pick_rows(
    x: NDArray[Any],
    bits: NDArray[Any],
    scale: float,
    top: int,
    base: int,
    flags: NDArray[np.uint8],
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
    flags
        Of values with these first 16 bits some may lie in a row.
    begin, nearest, farthest
        Rows begin[c] to begin[c + 1] are those of cell c, counted from `base`, ascending in
        offset.
    picked, rows, places
        Out: position in `x`, row and offset of each value found.
    """
    room = index.size
    near = np.empty(room, np.int64)
    few, few_bits = np.empty(room, x.dtype), np.empty(room, bits.dtype)
    close, count = np.int64(0), 0
    for start in range(0, x.size, room // 2):
        stop = min(start + room // 2, x.size)
        close = find_keys(bits, start, stop, flags, near, close)
        # Most tiles have only a few: they are located together.
        if close < room // 2 and stop < x.size:
            continue
        for k in range(close):
            few[k], few_bits[k] = x[near[k]], bits[near[k]]
        locate(few[:close], few_bits[:close], scale, top, index[:close], offset[:close])
        for k in range(close):
            cell = np.int64(index[k]) - base
            place = np.int64(offset[k])
            low, high = begin[cell], begin[cell + 1]
            while high - low > 1:
                middle = (low + high) // 2
                if nearest[middle] <= place:
                    low = middle
                else:
                    high = middle
            # A row ends at values of the vector that was counted; others may lie beyond.
            if low < high and nearest[low] <= place <= farthest[low]:
                picked[count], rows[count], places[count] = near[k], low, place
                count += 1
        close = np.int64(0)
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


class Rows:
    """A partition over the range of a vector as the kernels take it: cell `base` is row 0."""

    def __init__(self, partition: Partition, low: float, high: float) -> None:
        layout = partition.layout
        self.integer = layout.integer
        self.real = layout.dtype
        self.scale = layout.dtype.type(np.ldexp(1.0, -partition.exponent))
        self.top = layout.integer.type(partition.first_outer << layout.offset_bits)
        first, last = self.locate(np.array([low, high]))[0].tolist()
        self.base = first
        self.size = last - first + 1
        self.largest = max(last, ~first)

    def tile(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Room for the cells and offsets of some values."""
        return np.empty(_TILE, self.integer), np.empty(_TILE, self.integer)

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

    def __init__(self, at: Rows, blank: NDArray[Any]) -> None:
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


class _Counter:
    """Counts chunks of a vector into a table of its own; one thread at a time."""

    def __init__(self, at: Rows, totals: _Totals) -> None:
        self._at = at
        self._totals = totals
        # The outermost offsets of no value: each gives way to any other.
        none = np.array([0, 0, -1 << (8 * at.integer.itemsize - 1), -1], at.integer)
        self._table = _Table(at, none.view(np.int64))
        self._tile = at.tile()
        self._taken = 0

    def add(self, values: NDArray[Any]) -> None:
        """Count `values`; the totals get what the table has no room for."""
        at, table = self._at, self._table
        for start in range(0, values.size, _FULL):
            part = values[start : start + _FULL]
            if self._taken + part.size > _FULL:
                self.finish()
            self._taken += part.size
            count_cells(
                *at.views(part),
                at.scale,
                at.top,
                at.base,
                table.blank,
                table.rows,
                table.opened,
                *self._tile,
            )

    def finish(self) -> None:
        """Add all that was counted to the totals."""
        self._totals.add(self.take())

    def take(self) -> Ints:
        """What was counted, as rows of `take_rows`; the table has no value any more."""
        table, bits, self._taken = self._table, self._totals.offset_bits, 0
        pieces = table.ready()
        found = np.empty((sum(piece.stop - piece.start for piece in pieces), 6), np.int64)
        size = 0
        for piece in pieces:
            size += take_rows(
                table.rows, table.blank, piece.start, piece.stop, self._at.base, bits, found[size:]
            )
        return found[:size]


class _Totals:
    """What the tables add up to: rows of `take_rows`, from any thread."""

    def __init__(self, offset_bits: int) -> None:
        self.offset_bits = offset_bits
        self.rows = np.empty((0, 6), np.int64)
        self._lock = threading.Lock()

    def add(self, rows: Ints) -> None:
        """Add the rows of a table."""
        with self._lock:
            if self.rows.size == 0:
                self.rows = rows
                return
            out = np.empty((len(self.rows) + len(rows), 6), np.int64)
            self.rows = out[: join_rows(self.rows, rows, self.offset_bits, out)]


class Counting:
    """Tables that values from `low` to `high` are counted into, each by one thread at a time."""

    def __init__(self, partition: Partition, low: float, high: float) -> None:
        self._at = Rows(partition, low, high)
        self._totals = _Totals(partition.layout.offset_bits)

    def adder(self) -> Adder:
        """A table."""
        return _Counter(self._at, self._totals)

    def rows(self) -> Ints:
        """What finished tables hold together, as rows of `take_rows`."""
        return self._totals.rows


class _Weigher:
    """Adds up weights by cell, and the products of weight and offset; in the order of values."""

    def __init__(self, at: Rows) -> None:
        self._at = at
        self._table = _Table(at, np.zeros(2))
        self._tile = at.tile()

    def add(self, values: NDArray[Any], weights: Floats) -> None:
        """Add values with weights above 0."""
        at, table = self._at, self._table
        weigh_cells(
            *at.views(values),
            frozen(weights),
            at.scale,
            at.top,
            at.base,
            table.blank,
            table.rows,
            table.opened,
            *self._tile,
        )

    def take(self, rows: Ints) -> Floats:
        """Weight and moment of each of some rows of `take_rows`."""
        # A vector's end that weighs nothing has a row there and none here.
        sums = np.zeros((len(rows), 2))
        heavy = rows[:, 1] > 0
        sums[heavy] = self._table.rows[rows[heavy, 0] - self._at.base]
        return sums


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
    array, idle threads help, and the result is exact. With weights, values that weigh nothing
    are left out, but for the vector's ends.
    """
    if weighted:
        at, totals = Rows(partition, low, high), _Totals(partition.layout.offset_bits)
        sums = _weigh(chunks, at, totals, np.array([low, high]))
        return cells_of_rows(partition, totals.rows, sums.take(totals.rows))
    counting = Counting(partition, low, high)
    add_all(chunks, partition, counting.adder)
    return cells_of_rows(partition, counting.rows())


def add_all(chunks: Chunks, partition: Partition, make: Callable[[], Adder]) -> None:
    """Have every chunk added to one of a few tables, with the help of idle threads; one pass."""
    adders = Scratch(TABLES[partition.layout.integer.itemsize], make)

    def add(number: int) -> None:
        values, _ = chunks[number]
        with adders.one() as adder:
            adder.add(values)

    run_parts(range(len(chunks)), add)
    for adder in adders.made:
        checkpoint()
        adder.finish()


def _weigh(chunks: Chunks, at: Rows, totals: _Totals, ends: Floats) -> _Weigher:
    """`count` with weights: numbers and outermost offsets to `totals`, the sums returned."""
    counter, weigher = _Counter(at, totals), _Weigher(at)
    counter.add(ends)
    rows = counter.take()
    # The ends have their place, but are not counted.
    rows[:, [1, 4, 5]] = 0
    totals.add(rows)
    for number in range(len(chunks)):
        checkpoint()
        values, weights = chunks[number]
        if not weights.all():
            values, weights = values[weights > 0], weights[weights > 0]
        weigher.add(values, weights)
        counter.add(values)
    counter.finish()
    return weigher


def cells_of_rows(
    partition: Partition, rows: Ints, sums: Floats | None = None, *, loose: bool = False
) -> Cells:
    """Cells from rows of `take_rows` and sums of their weights and moments."""
    index, number, least, largest, part, whole = rows.T.copy()
    return Cells(
        partition=partition,
        index=index,
        count=number,
        whole=whole,
        part=part,
        nearest=least,
        farthest=largest,
        weight=None if sums is None else sums[:, 0].copy(),
        moment=None if sums is None else sums[:, 1].copy(),
        loose=loose,
    )


def collect(chunks: Chunks, cells: Cells, chosen: NDArray[np.bool_]) -> tuple[NDArray[Any], Floats]:
    """The values in the `chosen` rows of `cells`, and their weights (none without); one pass."""
    if cells.partition.layout.name == "float32" and cells.weight is None and can_pick():
        windows = Windows.of(cells, chosen)
        if windows is not None:
            inside = run_parts(range(len(chunks)), lambda number: windows.pick(chunks[number][0]))
            return np.concatenate(inside), np.empty(0)
    picker = _Picker(Cut.of(cells, chosen, 0))

    def pick(number: int) -> tuple[NDArray[Any], Floats]:
        values, weights, _, _ = picker.pick(*chunks[number])
        return values, weights

    values, weights = zip(*run_parts(range(len(chunks)), pick), strict=True)
    return np.concatenate(values), np.concatenate(weights)


def refine(chunks: Chunks, cells: Cells, chosen: NDArray[np.bool_], bits: int) -> Cells:
    """The cells with each `chosen` row cut into up to ``2**bits`` pieces of a width; one pass."""
    cut = Cut.of(cells, chosen, bits)
    pieces = count_pieces(chunks, cut, weighted=cells.weight is not None)
    checkpoint()
    return replaced(cells, chosen, pieces)


def count_pieces(chunks: Chunks, cut: Cut, *, weighted: bool = False) -> Cells:
    """The pieces of a cut that values fall into, by row and offset; one pass.

    The values must lie within the cut's range. As in `count`, idle threads help without weights.
    """
    bits = cut.partition.layout.offset_bits
    picker, counters = _Picker(cut), Scratch(PIECE_TABLES, lambda: _PieceCounter(cut))
    sums = None
    if weighted:
        with counters.one() as counter:
            sums = _weigh_pieces(chunks, picker, counter)
    else:

        def add(number: int) -> None:
            with counters.one() as counter:
                _, _, row, offset = picker.pick(*chunks[number])
                counter.add(row, offset)

        run_parts(range(len(chunks)), add)
    checkpoint()
    rows = counters.made[0].rows
    for counter in counters.made[1:]:
        _join(rows, counter.rows, bits)
        checkpoint()
    found = rows[:, 3] >= 0
    index = np.repeat(cut.index, np.diff(cut.first_piece))
    sums = None if sums is None else sums[found]
    pieces = _cells(cut.partition, index[found], rows[found], sums)
    checkpoint()
    return ascending(pieces)


def _weigh_pieces(chunks: Chunks, picker: _Picker, counter: _PieceCounter) -> Floats:
    """Count pieces, and add up weights and products of weight and offset by piece."""
    cut, rows = picker.cut, counter.rows
    sums = np.zeros((len(rows), 2))
    # The ends of the vector have their place even if they weigh nothing.
    index, offset = cut.partition.locate(np.array([cut.low, cut.high]))
    row = cut.rows_of(index, offset)
    row, offset = row[row >= 0], offset[row >= 0]
    piece = cut.pieces_of(row, offset)
    np.minimum.at(rows[:, 2], piece, offset)
    np.maximum.at(rows[:, 3], piece, offset)
    for number in range(len(chunks)):
        checkpoint()
        _, heavy, row, offset = picker.pick(*chunks[number])
        counter.add(row, offset)
        piece = cut.pieces_of(row, offset)
        sums[:, 0] += np.bincount(piece, heavy, len(rows))
        sums[:, 1] += np.bincount(piece, heavy * offset, len(rows))
    return sums


class _PieceCounter:
    """Counts values into the pieces of a cut; one thread at a time."""

    def __init__(self, cut: Cut) -> None:
        self._bits = cut.partition.layout.offset_bits
        self._first = cut.first_piece
        self._shift, self._nearest = frozen(cut.shift), frozen(cut.nearest)
        self.rows = np.tile(_blank(self._bits), (int(self._first[-1]), 1))

    def add(self, row: Ints, offset: Ints) -> None:
        """Count values at an `offset` in a `row`."""
        for start in range(0, row.size, _SETTLE):
            part = slice(start, start + _SETTLE)
            tally_pieces(
                row[part],
                offset[part],
                row[part].size,
                self._first,
                self._nearest,
                self._shift,
                self.rows,
            )
            _settle(self.rows, self._bits)


def _join(rows: Ints, others: Ints, offset_bits: int) -> None:
    """Add the numbers and sums of other counted pieces."""
    for column in (0, 1, *range(4, rows.shape[1])):
        rows[:, column] += others[:, column]
    np.minimum(rows[:, 2], others[:, 2], out=rows[:, 2])
    np.maximum(rows[:, 3], others[:, 3], out=rows[:, 3])
    _settle(rows, offset_bits)


class _Picker:
    """Finds the values that lie in the rows of a cut; in any thread."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self._at = at = Rows(cut.partition, cut.low, cut.high)
        self._order = np.lexsort((cut.nearest, cut.index))
        cell = cut.index[self._order] - at.base
        self._begin = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=at.size))])
        self._ends = frozen(cut.nearest[self._order]), frozen(cut.farthest[self._order])
        self._flags = frozen(_flags(cut))

    def pick(
        self, values: NDArray[Any], weights: Floats
    ) -> tuple[NDArray[Any], Floats, Ints, Ints]:
        """Of a chunk the values in the cut's rows, with weight, row and offset of each.

        Values that weigh nothing are left out.
        """
        at = self._at
        picked, rows, places = (np.empty(values.size, np.int64) for _ in range(3))
        count = pick_rows(
            *at.views(values),
            at.scale,
            at.top,
            at.base,
            self._flags,
            self._begin,
            *self._ends,
            picked,
            rows,
            places,
            *at.tile(),
        )
        picked, rows, places = picked[:count], self._order[rows[:count]], places[:count].copy()
        if weights.size:
            heavy = weights[picked] > 0
            picked, rows, places = picked[heavy], rows[heavy], places[heavy]
        return values[picked], weights[picked] if weights.size else weights, rows, places


def _flags(cut: Cut) -> NDArray[np.uint8]:
    """The first 16 bits of the values in the cut's cells; all of a cell share them."""
    layout = cut.partition.layout
    values = cut.partition.value(cut.index, cut.nearest).astype(layout.dtype)
    flags = np.zeros(_KEYS, np.uint8)
    flags[values.view(f"u{layout.dtype.itemsize}") >> (8 * layout.dtype.itemsize - 16)] = 1
    # Cell 0 holds -0 too.
    flags[_KEYS // 2] |= flags[0]
    return flags
