"""Loose cells of a vector: how many values lie in each, and their sum, but not the outermost.

Where levels may lie is seen as well from the edges of cells as from values at them. A cell that
keeps no outermost values takes one number, half the memory of a row of `cells.count`, and one
addition a value. That is for values of 32 bits: a sum of offsets of 45 bits leaves no room beside
it.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells
from quiver_kernels.cpu.cells import Adder, Chunks, Rows, add_all, cells_of_rows
from quiver_kernels.cpu.compile import Ints, frozen, kernel
from quiver_kernels.partition import Partition

_TILE = 512
# A row: the number of values above so many bits, the sum of their offsets below. Both have room
# for so many values.
_NUMBER = 39
_FULL = 1 << 23
_OFFSET_BITS = 16


@kernel
def add_values(
    x: NDArray[np.float32],
    bits: NDArray[np.int32],
    scale: np.float32,
    top: np.int32,
    base: np.int32,
    table: Ints,
    row: NDArray[np.int32],
    offset: NDArray[np.int32],
) -> None:
    """Add `x` to the rows of a table; `cells.locate` says what the cells are.

    Parameters
    ----------
    x, bits
        Values, and the same memory as integers.
    scale, top
        1 over the width of the outer cells, and the integer of the magnitude where they begin.
    base
        Cell of row 0.
    row, offset
        Space to work in: a tile.
    """
    integer, real = np.int32, np.float32
    ahead = integer((top >> 16) - 128)
    one = np.int64(1 << _NUMBER)
    for start in range(0, x.size, row.size):
        size = min(row.size, x.size - start)
        values, keys = x[start : start + size], bits[start : start + size]
        for i in range(size):
            b = integer(keys[i] & 0x7FFFFFFF)
            y = abs(values[i]) * scale
            whole = integer(y)
            rest = integer((y - real(whole)) * real(1 << 16))
            outer = b >= top
            cell = integer(whole + ahead) if outer else integer(b >> 16)
            offset[i] = rest if outer else integer(b & 0xFFFF)
            # The comparison is false for -0.0, which is counted as 0.
            row[i] = integer((integer(~cell) if values[i] < 0 else cell) - base)
        for i in range(size):
            table[np.uint64(np.uint32(row[i]))] += np.int64(offset[i]) + one


@kernel
def move_sums(table: Ints, numbers: Ints, sums: Ints) -> None:
    """Add the rows of a table to their `numbers` and `sums`, and empty them."""
    for r in range(table.size):
        numbers[r] += table[r] >> _NUMBER
        sums[r] += table[r] & ((1 << _NUMBER) - 1)
        table[r] = 0


@kernel
def list_rows(numbers: Ints, sums: Ints, base: int, found: Ints) -> int:
    """Rows with values, as those of `cells.take_rows`, loose; returns how many.

    A row with a single value, or with all of them at its near edge, is not loose.
    """
    size = 0
    for r in range(numbers.size):
        if numbers[r] == 0:
            continue
        found[size, 0], found[size, 1] = base + r, numbers[r]
        found[size, 2], found[size, 3] = 0, 1 << _OFFSET_BITS
        if numbers[r] == 1 or sums[r] == 0:
            found[size, 2] = found[size, 3] = sums[r]
        found[size, 4] = sums[r] & ((1 << _OFFSET_BITS) - 1)
        found[size, 5] = sums[r] >> _OFFSET_BITS
        size += 1
    return size


class _Totals:
    """What all tables add up to."""

    def __init__(self, size: int) -> None:
        self.numbers = np.zeros(size, np.int64)
        self.sums = np.zeros(size, np.int64)
        self._lock = threading.Lock()

    def add(self, table: Ints) -> None:
        """Move what a table holds here, from any thread."""
        with self._lock:
            move_sums(table, self.numbers, self.sums)


class _Outliner:
    """Adds chunks of a vector to a table of its own; one thread at a time."""

    def __init__(self, at: Rows, totals: _Totals) -> None:
        self._at = at
        self._totals = totals
        self._table = np.zeros(at.size, np.int64)
        self._tile = np.empty(_TILE, np.int32), np.empty(_TILE, np.int32)
        self._taken = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Add at most `_FULL` values; the totals get what the table has no room for."""
        at = self._at
        if self._taken + values.size > _FULL:
            self.finish()
        self._taken += values.size
        base = np.int32(at.base)
        add_values(*at.views(values), at.scale, at.top, base, self._table, *self._tile)

    def finish(self) -> None:
        """Move all that was added to the totals."""
        self._totals.add(self._table)
        self._taken = 0


class Outlining:
    """As `cells.Counting`, for loose cells."""

    def __init__(self, partition: Partition, low: float, high: float) -> None:
        self._at = Rows(partition, low, high)
        self._totals = _Totals(self._at.size)

    def adder(self) -> Adder:
        """A table."""
        return _Outliner(self._at, self._totals)

    def rows(self) -> Ints:
        """What finished tables hold together, as rows of `cells.take_rows`."""
        totals = self._totals
        found = np.empty((int(np.count_nonzero(totals.numbers)), 6), np.int64)
        list_rows(frozen(totals.numbers), frozen(totals.sums), self._at.base, found)
        return found


def outline(chunks: Chunks, partition: Partition, low: float, high: float) -> Cells:
    """The loose cells of a float32 vector from `low` to `high`, without weights; one pass.

    They are `cells.loosened` of what `cells.count` finds: numbers and sums are exact, and the
    vector's own ends are values.
    """
    outlining = Outlining(partition, low, high)
    add_all(chunks, partition, outlining.adder)
    return cells_between(cells_of_rows(partition, outlining.rows(), loose=True), low, high)


def cells_between(cells: Cells, low: float, high: float) -> Cells:
    """Loose cells with the ends of their vector in them."""
    index, offset = cells.partition.locate(np.array([low, high]))
    # The nearest offset of a negative row is its maximum.
    (cells.farthest if index[0] < 0 else cells.nearest)[0] = offset[0]
    (cells.nearest if index[1] < 0 else cells.farthest)[-1] = offset[1]
    return cells
