"""A vector on a device, gone through as the streaming solver asks: cells, pieces, few values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells, Cut, ascending, loosened, replaced
from quiver_kernels.checks import Range
from quiver_kernels.dtypes import WIRE_DTYPES, widen
from quiver_kernels.errors import DeviceFailed
from quiver_kernels.gpu.device import Argument, Buffer, Device, Launch
from quiver_kernels.gpu.passes import Vector
from quiver_kernels.partition import Floats, Ints, Partition, layout_of

# As in the sources: threads of a block, and blocks of a looping kernel per multiprocessor.
_THREADS = 256
_BLOCKS_PER_PROCESSOR = 8
# The counting kernel's: threads, blocks, and its slots in shared memory, which all cards have
# room for. A block should count more values than it has slots to clear and to add up.
_COUNTING = 512
_COUNTING_BLOCKS = 4
_SLOTS = 3072
_SLOT_BYTES = 16
_VALUES_PER_SLOT = 8
# Cells of a binade, as far as their width follows the magnitude.
_OCTAVE = 1 << 7
# 64-bit numbers of a cell, and bits of an offset that are added up in the first of two sums.
_COLUMNS = 5
_HALF = 32

MOST_COUNTED = (1 << 32) - 1
"""Values whose offsets' sums do not overflow."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DeviceStream:
    """A `cpu.streaming.Stream` of a vector on a device; its cells are the CPU's.

    Attributes
    ----------
    device, vector
        Where it lies; of at most `MOST_COUNTED` values, without weights.
    bounds
        Its range.
    """

    device: Device
    vector: Vector
    bounds: Range

    @property
    def size(self) -> int:
        """See `Stream`."""
        return self.vector.size

    def count(self, cells: int) -> Cells:
        """See `Stream`."""
        low, high = self.bounds.low, self.bounds.high
        partition = Partition.of(low, high, cells, layout_of(WIRE_DTYPES[self.vector.dtype]))
        base, last = ends_of(partition, low, high)
        rows = last - base + 1
        window = Window.of(partition.first_outer, base, last, _SLOTS)
        blocks = -(-self.size // max(4 * _COUNTING, _VALUES_PER_SLOT * window.slots))
        table = self._empty_rows(rows)
        arguments = (
            *self._placing(partition, base),
            np.uint32(window.negatives),
            np.uint32(window.skipped),
            np.uint32(window.slots),
            table,
        )
        self.device.launch(
            Launch(
                "cells",
                f"cells_{self.vector.dtype}",
                min(blocks, _COUNTING_BLOCKS * self.device.processors),
                _COUNTING,
                arguments,
                shared=_SLOT_BYTES * window.slots,
            )
        )
        found = self._rows(table, rows)
        index = np.flatnonzero(found[:, 0])
        return cells_of(partition, index + base, found[index])

    def outline(self, cells: int) -> Cells:
        """See `Stream`."""
        return loosened(self.count(cells))

    def collect(self, cells: Cells, chosen: Flags) -> tuple[NDArray[Any], Floats]:
        """See `Stream`; the values in any order."""
        room = int(cells.count[chosen].sum())
        dtype = WIRE_DTYPES[self.vector.dtype]
        values = self.device.allocate(room * dtype.itemsize)
        taken = self.device.upload(np.zeros(1, np.uint64))
        self._pick("collect", Cut.of(cells, chosen, 0), values, np.uint64(room), taken)
        number, out = np.empty(1, np.uint64), np.empty(room, dtype)
        self.device.download(taken, number)
        if int(number[0]) != room:
            raise DeviceFailed(
                f"device gpu: {int(number[0])} values lie in cells that were counted to have {room}"
            )
        self.device.download(values, out)
        return widen(out), np.empty(0)

    def refine(self, cells: Cells, chosen: Flags, bits: int) -> Cells:
        """See `Stream`."""
        cut = Cut.of(cells, chosen, bits)
        pieces = int(cut.first_piece[-1])
        table = self._empty_rows(pieces)
        self._pick("refine", cut, table)
        found = self._rows(table, pieces)
        index = np.repeat(cut.index, np.diff(cut.first_piece))
        full = found[:, 0] > 0
        return replaced(cells, chosen, ascending(cells_of(cut.partition, index[full], found[full])))

    def _pick(self, kernel: str, cut: Cut, *results: Argument) -> None:
        """Launch a kernel over the values in the rows of a cut."""
        base, last = ends_of(cut.partition, cut.low, cut.high)
        flags, rows = picked(cut, base, last)
        arguments = (
            *self._placing(cut.partition, base),
            self.device.upload(flags),
            self.device.upload(rows),
            np.uint32(len(rows)),
            *results,
        )
        self._launch("pick", f"{kernel}_{self.vector.dtype}", self.size, arguments)

    def _placing(self, partition: Partition, base: int) -> tuple[Argument, ...]:
        """What kernels take first: the values, and where each belongs."""
        return (
            self.vector.values,
            np.uint64(self.size),
            np.float64(np.ldexp(1.0, -partition.exponent)),
            np.int64(partition.first_outer << partition.layout.offset_bits),
            np.int64(base),
        )

    def _empty_rows(self, count: int) -> Buffer:
        """Rows of no values, on the device."""
        table = self.device.allocate(8 * _COLUMNS * count)
        self._launch("cells", "cells_clear", count, (table, np.uint64(count)))
        return table

    def _rows(self, table: Buffer, count: int) -> NDArray[np.uint64]:
        found = np.empty((count, _COLUMNS), np.uint64)
        self.device.download(table, found)
        return found

    def _launch(
        self, module: str, kernel: str, items: int, arguments: tuple[Argument, ...]
    ) -> None:
        blocks = min(-(-items // _THREADS), _BLOCKS_PER_PROCESSOR * self.device.processors)
        self.device.launch(Launch(module, kernel, blocks, _THREADS, arguments))


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows of a table of cells are counted in shared memory.

    Attributes
    ----------
    negatives
        The first rows: the outermost negative values.
    skipped
        Rows after these that are not among them, near 0; all rows if too many would be.
    slots
        How many are.
    """

    negatives: int
    skipped: int
    slots: int

    @classmethod
    def of(cls, first_outer: int, base: int, last: int, most: int) -> Window:
        """The outer cells and as many binades below them as go with at most `most` slots.

        Parameters
        ----------
        first_outer
            Of the partition: magnitudes from this cell on have cells of one width.
        base, last
            Cells of the first and of the last row.
        """
        below = np.arange(0, first_outer + _OCTAVE, _OCTAVE)
        nearest = np.maximum(first_outer - below, 0)
        negatives = np.maximum(np.minimum(~nearest, last) - base + 1, 0)
        slots = negatives + np.maximum(last - np.maximum(nearest, base) + 1, 0)
        fitting = np.flatnonzero(slots <= most)
        rows = last - base + 1
        if fitting.size == 0:
            return cls(0, rows, 0)
        number, used = int(negatives[fitting[-1]]), int(slots[fitting[-1]])
        return cls(number, rows - used, used)


def ends_of(partition: Partition, low: float, high: float) -> tuple[int, int]:
    """Cells of the smallest and of the largest value."""
    ends = np.array([low, high], partition.layout.dtype)
    base, last = partition.locate(ends)[0].tolist()
    return base, last


def picked(cut: Cut, base: int, last: int) -> tuple[NDArray[np.uint32], Ints]:
    """A bit for every cell that a row of the cut is in, and the rows as pick.cu has them."""
    order = np.lexsort((cut.nearest, cut.index))
    cell = cut.index - base
    columns = (cell, cut.nearest, cut.farthest, cut.first_piece[:-1], cut.shift)
    flagged = np.zeros((last - base) // 32 * 32 + 32, np.uint8)
    flagged[cell] = 1
    flags = np.packbits(flagged, bitorder="little").view(np.uint32)
    return flags, np.stack(columns, axis=1)[order]


def cells_of(
    partition: Partition,
    index: Ints,
    rows: NDArray[np.uint64],
    weight: Floats | None = None,
    moment: Floats | None = None,
) -> Cells:
    """Cells from rows that values fell into."""
    number, low, high, nearest, farthest = rows.T.copy()
    whole, part = carried(low, high, partition.layout.offset_bits)
    return Cells(
        partition=partition,
        index=index,
        count=number.astype(np.int64),
        whole=whole.astype(np.int64),
        part=part.astype(np.int64),
        nearest=nearest.astype(np.int64),
        farthest=farthest.astype(np.int64),
        weight=weight,
        moment=moment,
    )


def carried(
    low: NDArray[np.uint64], high: NDArray[np.uint64], bits: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Sums ``low + high * 2**32`` as ``whole * 2**bits + part``."""
    if bits <= _HALF:
        whole = (low >> np.uint64(bits)) + (high << np.uint64(_HALF - bits))
        return whole, low & np.uint64((1 << bits) - 1)
    high = high + (low >> np.uint64(_HALF))
    rest = np.uint64(bits - _HALF)
    part = (high & np.uint64((1 << bits - _HALF) - 1)) << np.uint64(_HALF)
    return high >> rest, part | (low & np.uint64((1 << _HALF) - 1))
