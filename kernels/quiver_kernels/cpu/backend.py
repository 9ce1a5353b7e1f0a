"""The CPU backend: checks a vector, then drives the kernels over it chunk by chunk.

A chunk is where 16-bit values are widened, unaligned input is aligned and sums are closed.
Its size is fixed, so results do not depend on who calls or on how many threads there are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import (
    Range,
    check_aggregate,
    check_levels,
    check_weights,
    finite_range,
    mean_dtype,
)
from quiver_kernels.cpu import approx, decode, encode, exact, streaming
from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, widen, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import METHODS, QuantizeOptions
from quiver_kernels.packing import num_blocks, packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rounding import rounding_table
from quiver_kernels.wire import LevelsResult

CHUNK = 1 << 18
# Blocks up to this length are solved many at a time, longer ones by a call for each.
_SHORT = 4096
_NO_WEIGHTS = np.empty(0)


class CpuBackend:
    """Numba kernels on one thread per call; calls may run side by side."""

    name = "cpu"

    def solve_levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        bounds = finite_range(x)
        return self._solve(x, bounds, options, check_weights(x, weights))

    def levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        """See `dispatch.Backend`."""
        bounds = finite_range(x)
        flat_weights = check_weights(x, weights)
        levels = self._solve(x, bounds, options, flat_weights)
        block = _block_size(x, options)
        error, plain, norm = _errors(x, bounds, np.atleast_2d(levels), block, flat_weights)
        return LevelsResult(
            levels=levels,
            num_levels=options.num_levels,
            method=options.method,
            expected_mse=error / x.size,
            vnmse=_ratio(plain, norm),
            device=self.name,
        )

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """See `dispatch.Backend`."""
        options = options.with_seed()
        assert options.seed is not None  # with_seed gives one
        begun = time.perf_counter()
        bounds = finite_range(x)
        levels = self._solve(x, bounds, options, check_weights(x, weights))
        solved = time.perf_counter()
        codes, error, norm = _encode(x, bounds, options, np.atleast_2d(levels), options.seed)
        done = time.perf_counter()
        return QuantizedVector(
            method=options.method,
            bits=options.bits,
            num_levels=options.num_levels,
            shape=x.shape,
            dtype=wire_name(x.dtype),
            block_size=options.block_size,
            seed=options.seed,
            levels=levels,
            codes=codes,
            vnmse=_ratio(error, norm),
            device=self.name,
            timings_ms={
                "levels": round(1e3 * (solved - begun), 3),
                "encode": round(1e3 * (done - solved), 3),
            },
        )

    def expected_mse(
        self, x: NDArray[Any], levels: NDArray[Any], weights: NDArray[Any] | None
    ) -> float:
        """See `dispatch.Backend`."""
        bounds = finite_range(x)
        table = check_levels(levels, bounds)[np.newaxis, :]
        return _errors(x, bounds, table, x.size, check_weights(x, weights))[0] / x.size

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        dtype = WIRE_DTYPES[q.dtype]
        # Entries are moved as bits, so that bfloat16, unknown to Numba, needs no kernel of its own.
        raw = np.dtype(f"u{dtype.itemsize}")
        tables = np.atleast_2d(q.levels).astype(dtype).view(raw)
        out = np.empty(q.size, dtype=dtype)
        block = _values_per_table(q)
        for start in range(0, q.size, CHUNK):
            stop = min(start + CHUNK, q.size)
            codes = _codes(q, start, stop)
            decode.look_up(codes, frozen(tables), block, start, out.view(raw)[start:stop])
        return out.reshape(q.shape)

    def aggregate(
        self, vectors: Sequence[QuantizedVector], weights: Sequence[float] | None
    ) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        shares = check_aggregate(vectors, weights)
        out = np.empty(vectors[0].size, dtype=mean_dtype(vectors))
        tables = [frozen(np.atleast_2d(q.levels).astype(np.float64)) for q in vectors]
        low, high = min(t.min() for t in tables), max(t.max() for t in tables)
        for start in range(0, out.size, CHUNK):
            stop = min(start + CHUNK, out.size)
            total = np.zeros(stop - start)
            for q, table, share in zip(vectors, tables, shares, strict=True):
                codes = _codes(q, start, stop)
                decode.add_scaled(codes, table, share, _values_per_table(q), start, total)
            # Shares add up to 1 but for rounding, which must not leave the levels' range.
            out[start:stop] = np.clip(total, low, high)
        return out.reshape(vectors[0].shape)

    def warm_up(self) -> None:
        """See `dispatch.Backend`."""
        # Enough values that every solver has its turn.
        values = np.sinh(np.linspace(-3.0, 3.0, exact.SMALL_WORK // 4))
        weights = np.ones(values.size)
        for dtype in WIRE_DTYPES.values():
            x = values.astype(dtype)
            for method in METHODS:
                options = QuantizeOptions.create(bits=3, method=method, seed=1)
                q = self.quantize(x, options, weights)
                self.quantize(x, replace(options, block_size=64), None)
                self.levels(x, options, weights)
            self.dequantize(q)
            self.aggregate([q], None)
        exactly = QuantizeOptions.create(bits=3)
        for given in (_NO_WEIGHTS, weights):
            _streamed_levels(values, finite_range(values), exactly, given)
        # Levels too far apart for float32 arithmetic take the float64 path.
        extreme = np.array([-3e38, 0, 3e38], np.float32)
        self.quantize(extreme, replace(options, num_levels=2, bits=1), None)

    def _solve(
        self,
        x: NDArray[Any],
        bounds: Range,
        options: QuantizeOptions,
        weights: Floats,
    ) -> NDArray[Any]:
        name = wire_name(x.dtype)
        weights = _scaled(weights)
        if options.block_size is None:
            table = _table_levels(x.reshape(-1), bounds, options, weights)[np.newaxis, :]
        else:
            table = _block_levels(x.reshape(-1), options, weights)
        # Levels must be values of the vector's own type: decoding is then exact, and unbiased.
        snapped = table.astype(WIRE_DTYPES[name]).astype(levels_dtype(name))
        return snapped[0] if options.block_size is None else snapped


def _scaled(weights: Floats) -> Floats:
    """Weights times a power of two: no optimum changes, and no sum leaves float64."""
    if weights.size == 0:
        return weights
    exponent = -math.frexp(float(weights.max()))[1]
    return np.ldexp(weights, exponent)


def _table_levels(
    flat: NDArray[Any], bounds: Range, options: QuantizeOptions, weights: Floats
) -> Floats:
    """Levels of one table over all of `flat`."""
    streamed = options.streams(flat.size)
    if options.method in ("exact", "accelerated") and not streamed:
        return _sorted_levels(flat, options, weights)
    levels = np.empty(options.num_levels)
    count = 0
    for _, part in _chunks(flat):
        count = approx.few_distinct(part, levels, count)
        if count < 0:
            break
    if count > 0:
        levels[count:] = levels[count - 1]
        return levels
    if streamed:
        return _streamed_levels(flat, bounds, options, weights)
    if options.method == "uniform":
        return approx.grid_points(bounds, options.num_levels)
    grid = np.zeros(options.bins + 1)
    for start, part in _chunks(flat):
        part_weights = _slice(weights, start, part.size)
        approx.add_to_grid(part, part_weights, bounds.low, bounds.high, bounds.unit, grid)
    points = np.arange(grid.size, dtype=np.float64)
    chosen = exact.solve_row(points, grid, options.num_levels, accelerated=False)
    return approx.grid_points(bounds, grid.size)[chosen.astype(np.int64)]


def _grid_levels(
    rows: NDArray[Any], weights: Floats, options: QuantizeOptions, levels: Floats
) -> None:
    """Levels of many short rows by ``approx`` or ``uniform``, without a call for each."""
    points = options.bins + 1 if options.method == "approx" else 0
    step = max(1, CHUNK // max(points, 1))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        count = len(rows[part])
        ends, grids, done = np.empty((count, 2)), np.empty((count, points)), np.empty(count, bool)
        approx.split_rows(
            frozen(rows[part]), frozen(weights[part]), ends, grids, levels[part], done
        )
        low, high = ends[~done, :1], ends[~done, 1:]
        if points:
            places = np.tile(np.arange(points, dtype=np.float64), (int((~done).sum()), 1))
            chosen = np.empty((len(places), options.num_levels))
            exact.solve_small_rows(frozen(places), frozen(grids[~done]), False, chosen)
            share = chosen / options.bins
        else:
            share = np.arange(options.num_levels) / (options.num_levels - 1)
        levels[part][~done] = approx.between(low, high, share)


def _sorted_levels(flat: NDArray[Any], options: QuantizeOptions, weights: Floats) -> Floats:
    rows, row_weights = _sorted_rows(flat[np.newaxis, :], weights[np.newaxis, :])
    accelerated = options.method == "accelerated"
    return exact.solve_row(rows[0], row_weights[0], options.num_levels, accelerated)


def _streamed_levels(
    flat: NDArray[Any], bounds: Range, options: QuantizeOptions, weights: Floats
) -> Floats:
    if options.num_levels == 2:
        return np.array([bounds.low, bounds.high])
    parts = (part for _, part in _chunks(flat))
    found = streaming.streamed_levels(
        lambda: _sorted_chunks(flat, weights),
        streaming.take_sample(parts, flat.size, options.num_levels),
        bounds.unit,
        options.num_levels,
    )
    if found is None or not exact.accepted(found[1]):
        return _sorted_levels(flat, options, weights)
    return found[0]


def _block_levels(flat: NDArray[Any], options: QuantizeOptions, weights: Floats) -> Floats:
    """Levels of every block: shape (blocks, s)."""
    assert options.block_size is not None
    levels = np.empty((num_blocks(flat.size, options.block_size), options.num_levels))
    small = min(options.block_size, flat.size) * options.num_levels <= exact.SMALL_WORK
    for start, rows in _block_rows(flat, options.block_size):
        first = start // options.block_size
        out = levels[first : first + len(rows)]
        row_weights = _slice(weights, start, rows.size).reshape(len(rows), -1)
        if options.method in ("exact", "accelerated") and small:
            ordered = _sorted_rows(rows, row_weights)
            exact.solve_small_rows(*ordered, options.method == "accelerated", out)
            continue
        if options.method not in ("exact", "accelerated") and rows.shape[1] <= _SHORT:
            _grid_levels(rows, row_weights, options, out)
            continue
        for row, row_weight, target in zip(rows, row_weights, out, strict=True):
            bounds = Range(float(row.min()), float(row.max()))
            target[:] = _table_levels(row, bounds, options, row_weight)
    return levels


def _sorted_rows(rows: NDArray[Any], weights: Floats) -> tuple[Floats, Floats]:
    """Every row ascending, as float64, with its weights in the same order."""
    if weights.size:
        order = np.argsort(rows, axis=1, kind="stable")
        ordered = np.take_along_axis(rows, order, axis=1)
        weights = np.take_along_axis(weights, order, axis=1)
    else:
        # Sorting before widening to float64 is twice as fast.
        ordered = np.sort(widen(rows), axis=1)
    return frozen(ordered.astype(np.float64)), frozen(weights)


def _sorted_chunks(flat: NDArray[Any], weights: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Chunks of `flat`, each ascending as float64, with their weights in the same order."""
    for start, part in _chunks(flat):
        rows, row_weights = _sorted_rows(
            part[np.newaxis, :], _slice(weights, start, part.size)[np.newaxis, :]
        )
        yield rows[0], row_weights[0]


def _encode(
    x: NDArray[Any], bounds: Range, options: QuantizeOptions, levels: NDArray[Any], seed: int
) -> tuple[NDArray[np.uint8], float, float]:
    table = rounding_table(levels)
    flat = x.reshape(-1)
    block = _block_size(x, options)
    packed = np.empty(packed_size(x.size, options.bits, options.block_size), np.uint8)
    errors: list[float] = []
    norms: list[float] = []
    stride = (block * options.bits + 7) // 8
    for start, part in _block_chunks(flat, block):
        rows = slice(start // block, -(-(start + part.size) // block))
        values = part if table.narrow else part.astype(np.float64)
        place = (start // block) * stride + (start % block) * options.bits // 8
        sums = np.empty((rows.stop - rows.start, 2))
        encode.encode_blocks(
            frozen(values),
            min(block, values.size),
            start,
            frozen(table.levels[rows]),
            frozen(table.inverse[rows]),
            frozen(table.scale[rows]),
            options.bits,
            np.uint64(seed),
            bounds.unit,
            packed[place:],
            sums,
        )
        errors.extend(sums[:, 0].tolist())
        norms.extend(sums[:, 1].tolist())
    return packed, math.fsum(errors), math.fsum(norms)


def _errors(
    x: NDArray[Any],
    bounds: Range,
    levels: NDArray[Any],
    block: int,
    weights: Floats,
) -> tuple[float, float, float]:
    """Weighted and plain expected squared error, and squared norm; the first in true units."""
    weighted: list[float] = []
    plain: list[float] = []
    norms: list[float] = []
    for start, part in _block_chunks(x.reshape(-1), block):
        for offset in range(0, part.size, block):
            run = part[offset : offset + block]
            table = frozen(levels[(start + offset) // block].astype(np.float64))
            error, norm = decode.sum_errors(run, table, frozen(_NO_WEIGHTS), bounds.unit)
            plain.append(error)
            norms.append(norm)
            if weights.size:
                run_weights = frozen(_slice(weights, start + offset, run.size))
                weighted.append(decode.sum_errors(run, table, run_weights, bounds.unit)[0])
    total = math.fsum(weighted) if weights.size else math.fsum(plain)
    return total / bounds.unit / bounds.unit, math.fsum(plain), math.fsum(norms)


def _chunks(flat: NDArray[Any], size: int = CHUNK) -> Iterator[tuple[int, NDArray[Any]]]:
    """Offsets and pieces of `flat`: native float32 or float64, aligned, read-only."""
    for start in range(0, flat.size, size):
        yield start, frozen(np.require(widen(flat[start : start + size]), requirements="A"))


def _block_chunks(flat: NDArray[Any], block: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Chunks of whole blocks; a block larger than a chunk is cut into chunks of its own."""
    if block < CHUNK:
        yield from _chunks(flat, CHUNK // block * block)
        return
    for first in range(0, flat.size, block):
        for start, part in _chunks(flat[first : first + block], CHUNK):
            yield first + start, part


def _block_rows(flat: NDArray[Any], block: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Whole blocks as rows, some at a time, and last a shorter one if there is a rest."""
    whole = flat.size // block * block
    step = max(1, CHUNK // block) * block
    for start in range(0, whole, step):
        part = np.require(widen(flat[start : min(start + step, whole)]), requirements="A")
        yield start, part.reshape(-1, block)
    if whole < flat.size:
        yield whole, np.require(widen(flat[whole:]), requirements="A").reshape(1, -1)


def _slice(weights: Floats, start: int, size: int) -> Floats:
    return frozen(weights[start : start + size] if weights.size else _NO_WEIGHTS)


def _block_size(x: NDArray[Any], options: QuantizeOptions) -> int:
    return x.size if options.block_size is None else min(options.block_size, x.size)


def _ratio(error: float, norm: float) -> float:
    """Error over norm; 0 for a vector of zeros, whose error is 0 too."""
    return max(error, 0.0) / norm if norm > 0 else 0.0


def _values_per_table(q: QuantizedVector) -> int:
    return q.size if q.block_size is None else min(q.block_size, q.size)


def _codes(q: QuantizedVector, start: int, stop: int) -> NDArray[np.uint8]:
    """Codes of the elements from `start` to `stop`, checked against the table's length."""
    codes = np.empty(stop - start, np.uint8)
    decode.unpack_range(frozen(q.codes), q.bits, _values_per_table(q), start, stop, codes)
    largest = int(codes.max())
    if largest >= q.num_levels:
        raise InvalidInput(
            f"codes must be below num_levels={q.num_levels}; got {largest}",
            code="invalid_codes",
            field="codes",
        )
    return frozen(codes)
