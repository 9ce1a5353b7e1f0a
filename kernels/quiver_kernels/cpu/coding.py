"""Codes of a vector and back: encoding, decoding, means and errors, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range
from quiver_kernels.cpu import chunking, decode
from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.cpu.encode import encode_blocks
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.packing import packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rounding import rounding_table


def encode(
    x: NDArray[Any], bounds: Range, options: QuantizeOptions, levels: NDArray[Any], seed: int
) -> tuple[NDArray[np.uint8], float, float]:
    """Packed codes, expected squared error and squared norm (both times the squared unit)."""
    table = rounding_table(levels)
    flat = x.reshape(-1)
    block = chunking.block_size(x, options)
    packed = np.empty(packed_size(x.size, options.bits, options.block_size), np.uint8)
    errors: list[float] = []
    norms: list[float] = []
    stride = (block * options.bits + 7) // 8
    for start, part in chunking.block_chunks(flat, block):
        rows = slice(start // block, -(-(start + part.size) // block))
        values = part if table.narrow else part.astype(np.float64)
        place = (start // block) * stride + (start % block) * options.bits // 8
        sums = np.empty((rows.stop - rows.start, 2))
        encode_blocks(
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


def dequantize(q: QuantizedVector) -> NDArray[Any]:
    """The decoded vector, in the shape and dtype of the original."""
    dtype = WIRE_DTYPES[q.dtype]
    # Entries are moved as bits, so that bfloat16, unknown to Numba, needs no kernel of its own.
    raw = np.dtype(f"u{dtype.itemsize}")
    tables = np.atleast_2d(q.levels).astype(dtype).view(raw)
    out = np.empty(q.size, dtype=dtype)
    block = _values_per_table(q)
    for start in range(0, q.size, chunking.CHUNK):
        stop = min(start + chunking.CHUNK, q.size)
        codes = _codes(q, start, stop)
        decode.look_up(codes, frozen(tables), block, start, out.view(raw)[start:stop])
    return out.reshape(q.shape)


def mean(
    vectors: Sequence[QuantizedVector], shares: Sequence[float], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Sum of share times decoded vector, accumulated in float64."""
    out = np.empty(vectors[0].size, dtype=dtype)
    tables = [frozen(np.atleast_2d(q.levels).astype(np.float64)) for q in vectors]
    low, high = min(t.min() for t in tables), max(t.max() for t in tables)
    for start in range(0, out.size, chunking.CHUNK):
        stop = min(start + chunking.CHUNK, out.size)
        total = np.zeros(stop - start)
        for q, table, share in zip(vectors, tables, shares, strict=True):
            codes = _codes(q, start, stop)
            decode.add_scaled(codes, table, share, _values_per_table(q), start, total)
        # Shares add up to 1 but for rounding, which must not leave the levels' range.
        out[start:stop] = np.clip(total, low, high)
    return out.reshape(vectors[0].shape)


def errors(
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
    for start, part in chunking.block_chunks(x.reshape(-1), block):
        for offset in range(0, part.size, block):
            run = part[offset : offset + block]
            table = frozen(levels[(start + offset) // block].astype(np.float64))
            error, norm = decode.sum_errors(run, table, frozen(chunking.NO_WEIGHTS), bounds.unit)
            plain.append(error)
            norms.append(norm)
            if weights.size:
                run_weights = frozen(chunking.slice_weights(weights, start + offset, run.size))
                weighted.append(decode.sum_errors(run, table, run_weights, bounds.unit)[0])
    total = math.fsum(weighted) if weights.size else math.fsum(plain)
    return total / bounds.unit / bounds.unit, math.fsum(plain), math.fsum(norms)


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
