"""The passes over a vector on a device: arguments of the kernels, sizes of their grids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range
from quiver_kernels.dlpack import Lent
from quiver_kernels.dtypes import WIRE_DTYPES, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.gpu.device import Buffer, Device, Download, Launch
from quiver_kernels.packing import packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rounding import RoundingTable
from quiver_kernels.strata import Strata

# As in the sources: threads of a block, blocks of a looping kernel per multiprocessor, lanes of
# the sum of errors and values that its lanes add up.
_THREADS = 256
_BLOCKS_PER_PROCESSOR = 8
_TILE = 512
_MOST_NEAR = 256
_CHUNK = 1 << 18
_GROUP = 8
_NONE = 2**64 - 1


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

    def to_host(self, device: Device) -> NDArray[Any]:
        """A copy of the values on the host, flat."""
        host = np.empty(self.size, WIRE_DTYPES[self.dtype])
        device.download(self.values, host)
        return host


def borrowed(device: Device, lent: Lent) -> Vector:
    """The values of an array that lies on the device; copied there if they are not in C order."""
    if lent.contiguous:
        return Vector(device.borrow(lent.address, lent.nbytes, lent.owner), lent.dtype, lent.size)
    layout = device.upload(np.array([*lent.shape, *lent.strides], np.int64))
    out = device.allocate(lent.nbytes)
    arguments = (
        device.borrow(lent.address, lent.itemsize, lent.owner),
        np.uint64(lent.size),
        layout,
        np.uint32(len(lent.shape)),
        out,
    )
    grid = looping_grid(device, lent.size, _THREADS)
    device.launch(Launch("gather", f"gather_{8 * lent.itemsize}", grid, _THREADS, arguments))
    return Vector(out, lent.dtype, lent.size)


class _RangeSearch:
    """Ranges of parts of a vector, found side by side and read once."""

    def __init__(self, device: Device, dtype: str, most_parts: int) -> None:
        self._device = device
        self._dtype = dtype
        self._itemsize = WIRE_DTYPES[dtype].itemsize
        self._starts: list[int] = []
        nothing = np.array([[_NONE, 0, _NONE]] * most_parts, np.uint64)
        self._found = device.upload(nothing)

    def add(self, part: Buffer, start: int) -> None:
        """Launch the search of the values of `part`, which begins at a byte of the vector."""
        size = part.nbytes // self._itemsize
        found = self._device.part(self._found, 24 * len(self._starts), 24)
        grid = looping_grid(self._device, size, _THREADS)
        arguments = (part, np.uint64(size), found)
        self._device.launch(Launch("range", f"range_{self._dtype}", grid, _THREADS, arguments))
        self._starts.append(start // self._itemsize)

    def result(self, vector: Vector) -> Range:
        """The range of all parts, which are `vector`."""
        ends = np.empty((len(self._starts), 3), np.uint64)
        self._device.download(self._found, ends)
        bad = np.flatnonzero(ends[:, 2] != _NONE)
        if bad.size:
            # Parts are in order, so the first of them has the first value.
            index = self._starts[bad[0]] + int(ends[bad[0], 2])
            raise InvalidInput(
                f"vector must be finite; got {_at(self._device, vector, index)} at index {index}",
                code="non_finite",
                field="vector",
            )
        keys = np.array([ends[:, 0].min(), ends[:, 1].max()])
        low, high = values_of_keys(keys, self._dtype).tolist()
        return Range(low, high)


def finite_range(device: Device, vector: Vector) -> Range:
    """As `checks.finite_range`, of a vector that is not empty."""
    search = _RangeSearch(device, vector.dtype, 1)
    search.add(vector.values, 0)
    return search.result(vector)


def upload_with_range(device: Device, x: NDArray[Any]) -> tuple[Vector, Range]:
    """`Vector.upload` and `finite_range`: parts are searched while others are on their way."""
    name = wire_name(x.dtype)
    flat = np.ascontiguousarray(x.reshape(-1), WIRE_DTYPES[name])
    search = _RangeSearch(device, name, -(-flat.nbytes // device.part_bytes))
    vector = Vector(device.upload(flat, search.add), name, flat.size)
    return vector, search.result(vector)


def _at(device: Device, vector: Vector, index: int) -> float:
    """One value; for texts of errors."""
    dtype = WIRE_DTYPES[vector.dtype]
    host = np.empty(1, dtype)
    size = dtype.itemsize
    device.download(device.part(vector.values, size * index, size), host)
    return float(host[0])


def values_of_keys(keys: NDArray[np.uint64], dtype: str) -> NDArray[np.float64]:
    """The values of order-preserving keys (`KeyOf` in common.cuh), as `range.cu` finds them."""
    bits = 64 if dtype == "float64" else 32
    top = np.uint64(1 << (bits - 1))
    raw = np.where(keys & top, keys ^ top, keys ^ np.uint64((1 << bits) - 1))
    values = raw.astype(f"<u{bits // 8}").view(f"<f{bits // 8}")
    return values.astype(np.float64)


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
    grid = looping_grid(device, vector.size, _THREADS)
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
        codes,
    )
    entry = 8 if table.narrow else 24
    device.launch(
        Launch(
            "encode",
            f"encode_{vector.dtype}",
            looping_grid(device, groups, _THREADS),
            _THREADS,
            arguments,
            shared=_THREADS * _GROUP + entry * table.num_levels,
        )
    )
    return codes


@dataclass(frozen=True, slots=True)
class ErrorSums:
    """Errors and norms of pieces of a vector, shape (pieces, 2) of float64 on a device."""

    sums: Buffer
    pieces: int

    def empty(self) -> NDArray[np.float64]:
        """Memory of the host for them."""
        return np.empty((self.pieces, 2))


def total_errors(found: NDArray[np.float64]) -> tuple[float, float]:
    """Expected squared error and squared norm of the whole, from downloaded `ErrorSums`."""
    return math.fsum(found[:, 0].tolist()), math.fsum(found[:, 1].tolist())


def errors(device: Device, vector: Vector, row: int, table: Table, unit: float) -> ErrorSums:
    """Expected squared errors and squared norms, times the squared unit; the CPU's, bit for bit.

    The arguments are `encode`'s; `unit` is of `checks.Range`.
    """
    return _errors(device, vector, row, table.levels, table.num_levels, unit)


def errors_of_levels(
    device: Device, vector: Vector, levels: NDArray[np.float64], unit: float
) -> ErrorSums:
    """As `errors`, of rounding a float64 vector to a table of float64."""
    table = device.upload(np.ascontiguousarray(levels))
    return _errors(device, vector, vector.size, table, levels.size, unit)


def _errors(
    device: Device, vector: Vector, row: int, levels: Buffer, num_levels: int, unit: float
) -> ErrorSums:
    full, rest = divmod(vector.size, row)
    pieces = full * -(-row // _CHUNK) + -(-rest // _CHUNK)
    sums = device.allocate(16 * pieces)
    arguments = (
        vector.values,
        np.uint64(vector.size),
        np.uint64(row),
        levels,
        np.uint32(num_levels),
        np.float64(unit),
        sums,
    )
    threads = min(_TILE, -(-row // 32) * 32)
    kernel = f"errors_{vector.dtype}"
    near = num_levels if num_levels <= _MOST_NEAR else 0
    shared = 16 * _TILE + (8 if vector.dtype == "float64" else 4) * near
    device.launch(Launch("errors", kernel, pieces, threads, arguments, shared=shared))
    return ErrorSums(sums, pieces)


def decode(device: Device, q: QuantizedVector, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The decoded vector, in the shape and dtype of the original; in `out` if that is given.

    Raises
    ------
    InvalidInput
        A code points beyond the level table (``invalid_codes``).
    """
    dtype = WIRE_DTYPES[q.dtype]
    values = device.allocate(q.size * dtype.itemsize)
    beyond = _launch_decode(device, q, values)
    found = np.empty(q.shape, dtype) if out is None else out
    largest = np.empty(1, np.uint32)
    device.download_all([Download(values, found), Download(beyond, largest)])
    check_codes(q, largest)
    return found


def decode_to(device: Device, q: QuantizedVector, out: Buffer) -> None:
    """As `decode`, to memory of the device that has room for the values."""
    largest = np.empty(1, np.uint32)
    device.download(_launch_decode(device, q, out), largest)
    check_codes(q, largest)


def _launch_decode(device: Device, q: QuantizedVector, out: Buffer) -> Buffer:
    dtype = WIRE_DTYPES[q.dtype]
    tables = np.ascontiguousarray(np.atleast_2d(q.levels).astype(dtype))
    shared = q.num_levels * dtype.itemsize
    return _read_codes(device, f"decode_{8 * dtype.itemsize}", q, tables, out, shared)


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
    grid = looping_grid(device, q.size, _THREADS)
    device.launch(Launch(module, kernel, grid, _THREADS, arguments, shared=shared))
    return beyond


def check_codes(q: QuantizedVector, largest: NDArray[np.uint32]) -> None:
    """Refuse codes (``invalid_codes``) if the largest one beyond the table is not 0."""
    if largest[0]:
        raise InvalidInput(
            f"codes must be below num_levels={q.num_levels}; got {largest[0]}",
            code="invalid_codes",
            field="codes",
        )


def looping_grid(device: Device, items: int, threads: int) -> int:
    """Blocks of a kernel whose threads go on to further items."""
    return min(-(-items // threads), device.processors * _BLOCKS_PER_PROCESSOR)
