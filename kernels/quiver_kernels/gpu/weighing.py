"""Sums of weights of a vector on a device, in the order of its values: the CPU's, bit for bit.

A float64 sum depends on its order, and the CPU's is that of the values. So the device sorts keys of
row and place, a slice of the vector after the other, and adds each row up by one lane of a warp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells, Cut, ascending, replaced
from quiver_kernels.checks import Range
from quiver_kernels.cpu.chunking import CHUNK
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import DeviceFailed
from quiver_kernels.gpu import ordering, sources
from quiver_kernels.gpu.device import Argument, Buffer, Device, Launch
from quiver_kernels.gpu.passes import Vector, looping_grid
from quiver_kernels.gpu.stream import Flags, cells_of, ends_of, picked
from quiver_kernels.partition import Floats, Ints, Partition, layout_of
from quiver_kernels.stopping import checkpoint

SLICE = 1 << 22
"""Values that are sorted at once: whole chunks of the CPU's, and at most half a key's places."""

# As in the sources: threads of a block, bits of a place, shared bytes.
_THREADS = 256
_PLACE_BITS = 24
_SUMS_SHARED = 20 * _THREADS
_POINTS_SHARED = 8 * _THREADS
_CHUNK_BITS = CHUNK.bit_length() - 1
# A row: a cell's five integers, and its two sums.
_ROW = np.dtype([("cell", np.uint64, 5), ("sums", np.float64, 2)])
_NOTHING = np.uint64(2**64 - 1)


@dataclass(frozen=True, slots=True)
class WeighedStream:
    """A `cpu.streaming.Stream` of a vector with weights on a device; its cells are the CPU's.

    Attributes
    ----------
    device, vector, bounds
        As of `gpu.stream.DeviceStream`.
    weights
        One float64 number for each value, on the device; none negative.
    """

    device: Device
    vector: Vector
    bounds: Range
    weights: Buffer

    @property
    def size(self) -> int:
        """See `Stream`."""
        return self.vector.size

    def count(self, cells: int) -> Cells:
        """See `Stream`."""
        low, high = self.bounds.low, self.bounds.high
        partition = Partition.of(low, high, cells, layout_of(WIRE_DTYPES[self.vector.dtype]))
        base, last = ends_of(partition, low, high)
        placing = _placing(partition)
        found = self._sums("weigh", "weigh_cells", placing, (np.int64(base),), last - base + 1)
        # The ends have their place, even if they weigh nothing.
        index, offset = partition.locate(np.array([low, high]))
        _extend(found, index - base, offset)
        kept = np.flatnonzero(found["cell"][:, 3] != _NOTHING)
        return _weighed_cells(partition, kept + base, found[kept])

    def outline(self, cells: int) -> Cells:
        """See `Stream`; cells with weights are not loose."""
        return self.count(cells)

    def collect(self, cells: Cells, chosen: Flags) -> tuple[NDArray[Any], Floats]:
        """See `Stream`; in the order of the vector, without those that weigh nothing."""
        room = int(cells.count[chosen].sum())
        places = self.device.allocate(8 * room)
        taken = self.device.upload(np.zeros(1, np.uint64))
        cut = Cut.of(cells, chosen, 0)
        arguments = (
            *self._values(0, self.size),
            *_placing(cut.partition),
            *self._rows_of(cut),
            places,
            np.uint64(room),
            taken,
        )
        self._launch("pick", "pick_find", self.size, arguments)
        number = np.empty(1, np.uint64)
        self.device.download(taken, number)
        if int(number[0]) != room:
            raise DeviceFailed(
                f"device gpu: {int(number[0])} values lie in cells that were counted to have {room}"
            )
        if room:
            self.device.sort(places, np.dtype(np.uint64))
        return ordering.taken(self.device, self.vector, self.weights, places, None, room)

    def refine(self, cells: Cells, chosen: Flags, bits: int) -> Cells:
        """See `Stream`."""
        cut = Cut.of(cells, chosen, bits)
        found = self._sums(
            "pick",
            "pick_pieces",
            _placing(cut.partition),
            self._rows_of(cut),
            int(cut.first_piece[-1]),
            chunk_bits=_CHUNK_BITS,
        )
        index, offset = cut.partition.locate(np.array([cut.low, cut.high]))
        row = cut.rows_of(index, offset)
        row, offset = row[row >= 0], offset[row >= 0]
        _extend(found, cut.pieces_of(row, offset), offset)
        kept = found["cell"][:, 3] != _NOTHING
        index = np.repeat(cut.index, np.diff(cut.first_piece))[kept]
        pieces = _weighed_cells(cut.partition, index, found[kept])
        return replaced(cells, chosen, ascending(pieces))

    def _sums(
        self,
        module: str,
        kernel: str,
        placing: tuple[Argument, ...],
        rows_of: tuple[Argument, ...],
        count: int,
        *,
        chunk_bits: int = _PLACE_BITS,
    ) -> NDArray[Any]:
        """Sums of `count` rows, shape (count,) of `_ROW`: what `kernel` makes keys for."""
        table = self.device.allocate(_ROW.itemsize * count)
        self._launch("weigh", "weigh_clear", count, (table, np.uint64(count)))
        keys = self.device.allocate(8 * min(SLICE, self.size))
        for start, size in _slices(self.size):
            checkpoint()
            part = self.device.part(keys, 0, 8 * size)
            x, dtype, weights, _ = values = self._values(start, size)
            self._launch(module, kernel, size, (*values, *placing, *rows_of, part))
            self.device.sort(part, np.dtype(np.uint64))
            arguments = (
                *(x, dtype, weights, part, np.uint64(size), *placing),
                *(np.uint32(chunk_bits), table),
            )
            self._launch("weigh", "weigh_rows", size, arguments, shared=_SUMS_SHARED)
        found = np.empty(count, _ROW)
        self.device.download(table, found)
        return found

    def _values(self, start: int, size: int) -> tuple[Argument, ...]:
        """What kernels take first: some of the values, and their weights."""
        return _part(self.device, self.vector, self.weights, start, size)

    def _rows_of(self, cut: Cut) -> tuple[Argument, ...]:
        """The rows of a cut, for kernels that look for them."""
        base, last = ends_of(cut.partition, cut.low, cut.high)
        flags, rows = picked(cut, base, last)
        uploaded = (self.device.upload(flags), self.device.upload(rows))
        return (np.int64(base), *uploaded, np.uint32(len(rows)))

    def _launch(
        self,
        module: str,
        kernel: str,
        items: int,
        arguments: tuple[Argument, ...],
        *,
        shared: int = 0,
    ) -> None:
        grid = looping_grid(self.device, items, _THREADS)
        self.device.launch(Launch(module, kernel, grid, _THREADS, arguments, shared=shared))


def weighed_on_grid(
    device: Device, vector: Vector, weights: Buffer, bounds: Range, points: int
) -> Floats:
    """As `cpu.approx.add_to_grid` makes of a vector with weights; O(n log n).

    Parameters
    ----------
    vector, weights
        As of `WeighedStream`.
    bounds
        Its range, of two different values.
    points
        Of the grid, at least two.
    """
    unit = bounds.unit
    base = bounds.low * unit
    grid = (
        np.float64(unit),
        np.float64(base),
        np.float64((points - 1) / (bounds.high * unit - base)),
        np.uint32(points),
    )
    sums = device.upload(np.zeros(points))
    keys = device.allocate(16 * min(SLICE, vector.size))
    for start, size in _slices(vector.size):
        checkpoint()
        part = device.part(keys, 0, 16 * size)
        x, dtype, heavy, count = _part(device, vector, weights, start, size)
        blocks = looping_grid(device, size, _THREADS)
        split = (x, dtype, count, *grid, part)
        device.launch(Launch("weigh", "weigh_shares", blocks, _THREADS, split))
        device.sort(part, np.dtype(np.uint64))
        blocks = looping_grid(device, 2 * size, _THREADS)
        added = (x, dtype, heavy, part, np.uint64(2 * size), *grid, sums)
        device.launch(
            Launch("weigh", "weigh_points", blocks, _THREADS, added, shared=_POINTS_SHARED)
        )
    found = np.empty(points)
    device.download(sums, found)
    return found


def _slices(size: int) -> Iterator[tuple[int, int]]:
    """Begin and size of every slice."""
    return ((start, min(SLICE, size - start)) for start in range(0, size, SLICE))


def _part(
    device: Device, vector: Vector, weights: Buffer, start: int, size: int
) -> tuple[Argument, Argument, Argument, Argument]:
    """Some of the values, their type, their weights and how many they are."""
    itemsize = WIRE_DTYPES[vector.dtype].itemsize
    return (
        device.part(vector.values, start * itemsize, size * itemsize),
        np.uint32(sources.number_of(vector.dtype)),
        device.part(weights, 8 * start, 8 * size),
        np.uint64(size),
    )


def _placing(partition: Partition) -> tuple[Argument, ...]:
    """How kernels find the cells of values."""
    return (
        np.float64(np.ldexp(1.0, -partition.exponent)),
        np.int64(partition.first_outer << partition.layout.offset_bits),
    )


def _extend(found: NDArray[Any], row: Ints, offset: Ints) -> None:
    """Let rows reach to further offsets."""
    cell = found["cell"]
    np.minimum.at(cell[:, 3], row, offset.astype(np.uint64))
    np.maximum.at(cell[:, 4], row, offset.astype(np.uint64))


def _weighed_cells(partition: Partition, index: Ints, found: NDArray[Any]) -> Cells:
    """Cells from rows, with their sums."""
    weight, moment = found["sums"].T.copy()
    return cells_of(partition, index, found["cell"], weight, moment)
