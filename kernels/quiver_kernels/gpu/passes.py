"""The passes over a vector on a device: arguments of the kernels, sizes of their grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells
from quiver_kernels.checks import Range
from quiver_kernels.dtypes import WIRE_DTYPES, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.gpu.device import Buffer, Device, Launch
from quiver_kernels.packing import packed_size
from quiver_kernels.partition import Partition, layout_of
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rounding import RoundingTable
from quiver_kernels.strata import Strata

# As in the sources: threads of a block, blocks of a looping kernel per multiprocessor, lanes of
# the sum of errors and values that its lanes add up.
_THREADS = 256
_BLOCKS_PER_PROCESSOR = 8
_TILE = 512
_CHUNK = 1 << 18
_GROUP = 8
_NONE = 2**64 - 1
# 64-bit numbers of a cell, and bits of an offset that are added up in the first of two sums.
_COLUMNS = 5
_HALF = 32

MOST_COUNTED = (1 << 32) - 1
"""Values whose offsets' sums do not overflow."""


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector on a device.

    Attributes
    ----------
    values
        Its bytes, C order, little-endian.
    dtype
        Wire name of the type.
    size
        Number of values, at least one.
    """

    values: Buffer
    dtype: str
    size: int

    @classmethod
    def upload(cls, device: Device, x: NDArray[Any]) -> Vector:
        """A copy of `x`, of any layout and byte order, on the device."""
        name = wire_name(x.dtype)
        flat = np.ascontiguousarray(x.reshape(-1), WIRE_DTYPES[name])
        return cls(device.upload(flat), name, flat.size)


def finite_range(device: Device, vector: Vector) -> Range:
    """As `checks.finite_range`, of a vector that is not empty."""
    found = device.upload(np.array([_NONE, 0, _NONE], np.uint64))
    grid = _looping_grid(device, vector.size, _THREADS)
    arguments = (vector.values, np.uint64(vector.size), found)
    device.launch(Launch("range", f"range_{vector.dtype}", grid, _THREADS, arguments))
    ends = np.empty(3, np.uint64)
    device.download(found, ends)
    least, most, first_bad = ends.tolist()
    if first_bad != _NONE:
        raise InvalidInput(
            f"vector must be finite; got {_at(device, vector, first_bad)} at index {first_bad}",
            code="non_finite",
            field="vector",
        )
    wide = vector.dtype == "float64"
    return Range(_from_key(least, wide=wide), _from_key(most, wide=wide))


def _at(device: Device, vector: Vector, index: int) -> float:
    """One value; for texts of errors."""
    host = np.empty(vector.size, WIRE_DTYPES[vector.dtype])
    device.download(vector.values, host)
    return float(host[index])


def _from_key(key: int, *, wide: bool) -> float:
    """The value of an order-preserving key (`KeyOf` in common.cuh)."""
    bits = 64 if wide else 32
    top = 1 << (bits - 1)
    raw = key ^ top if key & top else key ^ (1 << bits) - 1
    value = np.array([raw], f"<u{bits // 8}").view(f"<f{bits // 8}")
    return float(value[0])


def count_cells(device: Device, vector: Vector, bounds: Range, most: int) -> Cells:
    """The vector's cells, those of `cpu.streaming.Stream.count`.

    Parameters
    ----------
    vector
        Of at most `MOST_COUNTED` values.
    bounds
        Its range.
    most
        Outer cells, as in `Partition.of`.
    """
    partition = Partition.of(bounds.low, bounds.high, most, layout_of(WIRE_DTYPES[vector.dtype]))
    layout = partition.layout
    ends = np.array([bounds.low, bounds.high], layout.dtype)
    base, last = partition.locate(ends)[0].tolist()
    rows = last - base + 1
    cells = device.allocate(8 * _COLUMNS * rows)
    clear = (cells, np.uint64(rows))
    grid = _looping_grid(device, rows, _THREADS)
    device.launch(Launch("cells", "cells_clear", grid, _THREADS, clear))
    arguments = (
        vector.values,
        np.uint64(vector.size),
        np.float64(np.ldexp(1.0, -partition.exponent)),
        np.int64(partition.first_outer << layout.offset_bits),
        np.int64(base),
        cells,
    )
    grid = _looping_grid(device, vector.size, _THREADS)
    device.launch(Launch("cells", f"cells_{vector.dtype}", grid, _THREADS, arguments))
    found = np.empty((rows, _COLUMNS), np.uint64)
    device.download(cells, found)
    index = np.flatnonzero(found[:, 0])
    number, low, high, nearest, farthest = found[index].T.copy()
    whole, part = _carried(low, high, layout.offset_bits)
    return Cells(
        partition=partition,
        index=index + base,
        count=number.astype(np.int64),
        whole=whole.astype(np.int64),
        part=part.astype(np.int64),
        nearest=nearest.astype(np.int64),
        farthest=farthest.astype(np.int64),
    )


def _carried(
    low: NDArray[np.uint64], high: NDArray[np.uint64], bits: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Sums of two halves of offsets as ``whole * 2**bits + part``."""
    if bits <= _HALF:
        return low >> np.uint64(bits), low & np.uint64((1 << bits) - 1)
    high = high + (low >> np.uint64(_HALF))
    rest = np.uint64(bits - _HALF)
    part = (high & np.uint64((1 << bits - _HALF) - 1)) << np.uint64(_HALF)
    return high >> rest, part | (low & np.uint64((1 << _HALF) - 1))


@dataclass(frozen=True, slots=True)
class Table:
    """A `RoundingTable` on a device: rows of `num_levels` levels."""

    levels: Buffer
    inverse: Buffer
    scale: Buffer | None
    num_levels: int

    @classmethod
    def upload(cls, device: Device, table: RoundingTable) -> Table:
        """A copy of `table` on the device."""
        scale = None if table.narrow else device.upload(np.ascontiguousarray(table.scale))
        return cls(
            device.upload(np.ascontiguousarray(table.levels)),
            device.upload(np.ascontiguousarray(table.inverse)),
            scale,
            table.levels.shape[1],
        )

    @property
    def narrow(self) -> bool:
        """Whether probabilities are computed in float32."""
        return self.scale is None


def widened(device: Device, vector: Vector) -> Vector:
    """The same values as float64: what a wide table is for."""
    if vector.dtype == "float64":
        return vector
    out = device.allocate(8 * vector.size)
    grid = _looping_grid(device, vector.size, _THREADS)
    arguments = (vector.values, np.uint64(vector.size), out)
    device.launch(Launch("widen", f"widen_{vector.dtype}", grid, _THREADS, arguments))
    return Vector(out, "float64", vector.size)


def encode(
    device: Device,
    vector: Vector,
    row: int,
    table: Table,
    bits: int,
    seed: int,
    strata: Strata | None,
) -> Buffer:
    """Packed codes of a vector, on the device.

    Parameters
    ----------
    vector
        Float64 for a wide table; any other type for a narrow one.
    row
        Values that share a row of the table, at most the vector's size.
    """
    full, rest = divmod(vector.size, row)
    groups = full * -(-row // _GROUP) + -(-rest // _GROUP)
    size = packed_size(vector.size, bits, row)
    codes = device.allocate(size)
    shifts = None if strata is None else device.upload(np.ascontiguousarray(strata.shifts))
    arguments = (
        vector.values,
        np.uint64(vector.size),
        np.uint64(row),
        table.levels,
        table.inverse,
        table.scale,
        np.uint32(table.num_levels),
        np.uint32(bits),
        np.uint64(seed),
        np.uint64(0 if strata is None else strata.shared_seed),
        shifts,
        np.uint32(0 if strata is None else strata.shifts.size),
        np.uint32(1 if strata is None else strata.world_size),
        np.uint64(groups),
        np.uint64(size),
        codes,
    )
    entry = 8 if table.narrow else 24
    device.launch(
        Launch(
            "encode",
            f"encode_{vector.dtype}",
            _looping_grid(device, groups, _THREADS),
            _THREADS,
            arguments,
            shared=_THREADS * _GROUP + entry * table.num_levels,
        )
    )
    return codes


def errors(
    device: Device, vector: Vector, row: int, table: Table, unit: float
) -> tuple[float, float]:
    """Expected squared error and squared norm, times the squared unit; the CPU's, bit for bit.

    The arguments are `encode`'s; `unit` is of `checks.Range`.
    """
    full, rest = divmod(vector.size, row)
    pieces = full * -(-row // _CHUNK) + -(-rest // _CHUNK)
    sums = device.allocate(16 * pieces)
    arguments = (
        vector.values,
        np.uint64(vector.size),
        np.uint64(row),
        table.levels,
        np.uint32(table.num_levels),
        np.float64(unit),
        sums,
    )
    threads = min(_TILE, -(-row // 32) * 32)
    kernel = f"errors_{vector.dtype}"
    device.launch(Launch("errors", kernel, pieces, threads, arguments, shared=16 * _TILE))
    found = np.empty((pieces, 2))
    device.download(sums, found)
    return math.fsum(found[:, 0].tolist()), math.fsum(found[:, 1].tolist())


def decode(device: Device, q: QuantizedVector) -> NDArray[Any]:
    """The decoded vector, in the shape and dtype of the original.

    Raises
    ------
    InvalidInput
        A code points beyond the level table (``invalid_codes``).
    """
    dtype = WIRE_DTYPES[q.dtype]
    tables = np.ascontiguousarray(np.atleast_2d(q.levels).astype(dtype))
    out = device.allocate(q.size * dtype.itemsize)
    shared = q.num_levels * dtype.itemsize
    beyond = _read_codes(device, f"decode_{8 * dtype.itemsize}", q, tables, out, shared)
    found = np.empty(q.size, dtype)
    device.download(out, found)
    _check_codes(device, q, beyond)
    return found.reshape(q.shape)


def mean(
    device: Device, vectors: Sequence[QuantizedVector], shares: Sequence[float]
) -> NDArray[np.float64]:
    """Sum of share times decoded vector, flat; terms are added in the vectors' order.

    Raises
    ------
    InvalidInput
        As for `decode`.
    """
    total = np.zeros(vectors[0].size)
    totals = device.upload(total)
    beyond = [
        _read_codes(
            device, "mean_add", q, share * np.atleast_2d(q.levels).astype(np.float64), totals
        )
        for q, share in zip(vectors, shares, strict=True)
    ]
    device.download(totals, total)
    for q, found in zip(vectors, beyond, strict=True):
        _check_codes(device, q, found)
    return total


def _read_codes(
    device: Device,
    kernel: str,
    q: QuantizedVector,
    tables: NDArray[Any],
    out: Buffer,
    shared: int = 0,
) -> Buffer:
    """Launch a kernel that looks codes up in `tables`; the largest code beyond them, or 0."""
    beyond = device.upload(np.zeros(1, np.uint32))
    arguments = (
        device.upload(np.ascontiguousarray(q.codes)),
        np.uint64(q.size),
        np.uint64(q.size if q.block_size is None else min(q.block_size, q.size)),
        device.upload(np.ascontiguousarray(tables)),
        np.uint32(q.num_levels),
        np.uint32(q.bits),
        out,
        beyond,
    )
    module = kernel.partition("_")[0]
    grid = _looping_grid(device, q.size, _THREADS)
    device.launch(Launch(module, kernel, grid, _THREADS, arguments, shared=shared))
    return beyond


def _check_codes(device: Device, q: QuantizedVector, beyond: Buffer) -> None:
    largest = np.empty(1, np.uint32)
    device.download(beyond, largest)
    if largest[0]:
        raise InvalidInput(
            f"codes must be below num_levels={q.num_levels}; got {largest[0]}",
            code="invalid_codes",
            field="codes",
        )


def _looping_grid(device: Device, items: int, threads: int) -> int:
    """Blocks of a kernel whose threads go on to further items."""
    return min(-(-items // threads), device.processors * _BLOCKS_PER_PROCESSOR)
