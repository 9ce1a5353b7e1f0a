"""Codes of a vector and back: encoding, decoding, means and errors, chunk by chunk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range, mean_dtype
from quiver_kernels.cpu import chunking, decode, simba
from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.cpu.encode import DRAWN, MOST_PLACED, TILE, encode_blocks
from quiver_kernels.cpu.intervals import interval_table
from quiver_kernels.cpu.pack import pack_blocks, pack_eights, pack_pairs
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import MAX_LEVELS, SIMBA, QuantizeOptions
from quiver_kernels.packing import packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rounding import rounding_table
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import STEP, checkpoint, slices
from quiver_kernels.strata import Strata


def encode(
    x: NDArray[Any], bounds: Range, options: QuantizeOptions, levels: NDArray[Any], seed: int
) -> tuple[NDArray[np.uint8], float, float]:
    """Packed codes, expected squared error and squared norm (both times the squared unit)."""
    if options.method == SIMBA:
        return _encode_to_sets(x, bounds, options, levels, seed)
    block = chunking.block_size(x, options)
    packed, sums = encode_part(x.reshape(-1), 0, block, bounds, options, levels, seed)
    error, norm = column_sums(sums)
    return packed, error, norm


def encode_part(
    flat: NDArray[Any],
    first: int,
    block: int,
    bounds: Range,
    options: QuantizeOptions,
    levels: NDArray[Any],
    seed: int,
) -> tuple[NDArray[np.uint8], list[Floats]]:
    """Packed codes of some consecutive values, and for `column_sums` each chunk's two sums.

    Parameters
    ----------
    flat
        Values of whole blocks, or of one block alone whole chunks but for its last.
    first
        Index in the vector of the first of them, a multiple of ``chunking.CHUNK``.
    block
        Values of the vector that share a table.
    bounds
        Range of the whole vector.
    levels
        A table for each block, shape (blocks, s).
    """
    table = rounding_table(levels)
    strata = Strata.of(options)
    shifts = frozen(np.empty(0, np.uint32) if strata is None else strata.shifts)
    bits = options.bits
    stride = (block * bits + 7) // 8
    packed = np.empty(packed_size(flat.size, bits, options.block_size), np.uint8)
    # Values that are placed at once need no guesses of where they lie.
    guessed = 1 if table.narrow and levels.shape[1] <= MOST_PLACED else block
    shared = interval_table(table.levels, min(guessed, block)) if len(levels) == 1 else None

    def encode_span(span: tuple[int, int]) -> Floats:
        start, stop = span
        rows = slice(start // block, -(-stop // block))
        values = chunking.piece(flat, start, stop)
        if not table.narrow:
            values = frozen(values.astype(np.float64))
        size = min(block, values.size)
        intervals = shared or interval_table(table.levels[rows], min(guessed, size))
        begin = (start // block) * stride + (start % block) * bits // 8
        out = packed[begin : begin + packed_size(values.size, bits, block)]
        # Codes of 8 bits are packed as they are; others in eights, zeros behind the last.
        codes = out if bits == 8 else np.empty(-(-values.size // 8) * 8, np.uint8)
        codes[values.size :] = 0
        sums = np.empty((rows.stop - rows.start, 2))
        encode_blocks(
            values,
            size,
            first + start,
            frozen(table.levels[rows]),
            frozen(table.inverse[rows]),
            None if table.narrow else frozen(table.scale[rows]),
            intervals.inner,
            intervals.cells,
            intervals.guess,
            intervals.first_step,
            np.uint64(seed),
            np.uint64(0 if strata is None else strata.shared_seed),
            shifts,
            1 if strata is None else strata.world_size,
            bounds.unit,
            np.empty((2, TILE + DRAWN), np.uint32),
            np.empty(TILE, np.uint16),
            np.empty((4, TILE), values.dtype),
            np.empty((2, TILE)),
            codes,
            sums,
        )
        if bits < 8:
            _pack(codes, values.size, block, bits, out)
        return sums

    return packed, run_parts(chunking.block_spans(flat.size, block), encode_span)


def _encode_to_sets(
    x: NDArray[Any], bounds: Range, options: QuantizeOptions, levels: NDArray[Any], seed: int
) -> tuple[NDArray[np.uint8], float, float]:
    bits = options.bits
    packed = np.empty(packed_size(x.size, bits, None), np.uint8)

    def pack(codes: NDArray[np.uint8], start: int, stop: int) -> None:
        size = stop - start
        out = packed[start * bits // 8 : start * bits // 8 + packed_size(size, bits, None)]
        if bits == 8:
            out[:] = codes[:size]
        else:
            _pack(codes, size, size, bits, out)

    return packed, *simba.encode_to_sets(x, bounds, options, levels, seed, pack)


def column_sums(sums: list[Floats]) -> list[float]:
    """Sums over all rows of all chunks, each rounded once."""
    return [
        math.fsum(itertools.chain.from_iterable(_column(sums, number)))
        for number in range(sums[0].shape[1])
    ]


def _column(sums: list[Floats], number: int) -> Iterator[list[float]]:
    for part in sums:
        checkpoint()
        yield part[:, number].tolist()


def _pack(
    codes: NDArray[np.uint8], size: int, block: int, bits: int, packed: NDArray[np.uint8]
) -> None:
    """Pack `size` codes, one a byte, of whole blocks or of a piece of one; spoils them."""
    if block * bits % 8 and size > block:
        pack_blocks(codes[:size], block, bits, packed)
    elif bits == 4:
        pack_pairs(codes.view(np.uint16), packed)
    else:
        pack_eights(codes.view(np.uint64), bits, packed)


def dequantize(q: QuantizedVector, target: NDArray[Any] | None = None) -> NDArray[Any]:
    """The decoded vector, in the shape and dtype of the original; in `target` if that is given."""
    dtype = WIRE_DTYPES[q.dtype]
    # Entries are moved as bits, so that bfloat16, unknown to Numba, needs no kernel of its own.
    raw = np.dtype(f"u{dtype.itemsize}")
    tables = chunking.converted(np.atleast_2d(q.levels), dtype).view(raw)
    out = np.empty(q.size, dtype=dtype) if target is None else target.reshape(-1)
    block = _values_per_table(q)

    def decode_span(span: tuple[int, int]) -> None:
        start, stop = span
        codes = codes_of(q, start, stop)
        if q.level_sets is not None:
            simba.look_up(q, codes, start, frozen(tables), out.view(raw)[start:stop])
            return
        decode.look_up(codes, frozen(tables), block, start, out.view(raw)[start:stop])

    run_parts(chunking.spans(q.size), decode_span)
    return out.reshape(q.shape) if target is None else target


def mean(
    vectors: Sequence[QuantizedVector],
    shares: Sequence[float],
    dtype: np.dtype[Any],
    target: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Sum of share times decoded vector, accumulated in float64; in `target` if that is given."""
    out = np.empty(vectors[0].size, dtype=dtype) if target is None else target.reshape(-1)
    low, high = _all_ends(vectors)
    tables = [_shared_table(q, share) for q, share in zip(vectors, shares, strict=True)]

    def mean_of_span(span: tuple[int, int]) -> None:
        start, stop = span
        total = np.zeros(stop - start)
        for q, table in zip(vectors, tables, strict=True):
            checkpoint()
            codes = codes_of(q, start, stop)
            if q.level_sets is None:
                decode.add_up(codes, table, _values_per_table(q), start, total)
            else:
                simba.add_up(q, codes, start, table, total)
        # Shares add up to 1 but for rounding, which must not leave the levels' range.
        out[start:stop] = np.clip(total, low, high, out=total)

    run_parts(chunking.spans(out.size), mean_of_span)
    return out.reshape(vectors[0].shape) if target is None else target


def within_levels(
    total: Floats, vectors: Sequence[QuantizedVector], target: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The mean of `vectors` from the sum of share times decoded vector, flat; spoils it."""
    np.clip(total, *_all_ends(vectors), out=total)
    if target is None:
        return total.astype(mean_dtype(vectors)).reshape(vectors[0].shape)
    target.reshape(-1)[:] = total
    return target


def _all_ends(vectors: Sequence[QuantizedVector]) -> tuple[float, float]:
    """The least and the greatest level of all vectors."""
    ends = [_ends(q.levels) for q in vectors]
    return min(least for least, _ in ends), max(most for _, most in ends)


def _shared_table(q: QuantizedVector, share: float) -> Floats:
    """The levels of a vector times its share of the mean."""
    levels = np.atleast_2d(q.levels)
    if levels.size <= STEP:
        return frozen(share * levels.astype(np.float64))
    table = np.empty(levels.shape)
    for part in slices(len(levels), max(1, STEP // levels.shape[1])):
        table[part] = share * levels[part].astype(np.float64)
    return frozen(table)


def _ends(levels: NDArray[Any]) -> tuple[float, float]:
    """The least and the greatest level of all tables."""
    if levels.size <= STEP:
        return float(levels.min()), float(levels.max())
    flat = levels.reshape(-1)
    ends = [(float(flat[part].min()), float(flat[part].max())) for part in slices(flat.size)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def errors(
    x: NDArray[Any],
    bounds: Range,
    levels: NDArray[Any],
    block: int,
    weights: Floats,
) -> tuple[float, float, float]:
    """Weighted and plain expected squared error, and squared norm; the first in true units."""
    flat = x.reshape(-1)

    def sum_span(span: tuple[int, int]) -> Floats:
        start, stop = span
        rows = slice(start // block, -(-stop // block))
        if levels.shape[1] > MAX_LEVELS:
            given = chunking.slice_weights(weights, start, stop - start)
            return _errors_of_long_table(flat[start:stop], levels[0], given, bounds.unit)
        table = levels[rows].astype(np.float64)
        size = min(block, stop - start)
        intervals = interval_table(table, size)
        sums = np.empty((len(table), 3))
        decode.sum_errors(
            frozen(chunking.piece(flat, start, stop).astype(np.float64)),
            size,
            frozen(table),
            intervals.inner,
            intervals.cells,
            intervals.guess,
            intervals.first_step,
            chunking.slice_weights(weights, start, stop - start),
            bounds.unit,
            np.empty(TILE, np.uint16),
            np.empty(TILE, np.uint8),
            np.empty((4, TILE)),
            sums,
        )
        return sums

    sums = run_parts(chunking.block_spans(x.size, block), sum_span)
    weighted, plain, norm = column_sums(sums)
    total = weighted if weights.size else plain
    return total / bounds.unit / bounds.unit, plain, norm


def _errors_of_long_table(
    x: NDArray[Any], levels: NDArray[Any], weights: Floats, unit: float
) -> Floats:
    """As `decode.sum_errors` of a piece of one block, for more levels than codes number."""
    values, table = x.astype(np.float64), levels.astype(np.float64)
    k = np.clip(np.searchsorted(table, values, side="right") - 1, 0, table.size - 2)
    scaled = values * unit
    error = (table[k + 1] * unit - scaled) * (scaled - table[k] * unit)
    weighted = float(np.sum(weights * error)) if weights.size else 0.0
    return np.array([[weighted, float(np.sum(error)), float(np.sum(scaled * scaled))]])


def _values_per_table(q: QuantizedVector) -> int:
    return q.size if q.block_size is None else min(q.block_size, q.size)


def codes_of(q: QuantizedVector, start: int, stop: int) -> NDArray[np.uint8]:
    """Codes of the elements from `start` to `stop`, checked against the table's length."""
    size, block, bits = stop - start, _values_per_table(q), q.bits
    if bits == 8:
        codes = q.codes[start:stop]
    elif block * bits % 8 and q.size > block:
        codes = np.empty(size, np.uint8)
        decode.unpack_blocks(frozen(q.codes), bits, block, start, codes)
    else:
        eights = np.empty(-(-size // 8), np.uint64)
        packed = frozen(q.codes[start * bits // 8 : -(-stop * bits // 8)])
        if bits == 4:
            decode.unpack_pairs(packed, eights.view(np.uint16))
        else:
            decode.unpack_eights(packed, bits, eights)
        codes = eights.view(np.uint8)[:size]
    largest = int(codes.max())
    if largest >= q.num_levels:
        raise InvalidInput(
            f"codes must be below num_levels={q.num_levels}; got {largest}",
            code="invalid_codes",
            field="codes",
        )
    return frozen(codes)


def add_codes(
    q: QuantizedVector,
    start: int,
    stop: int,
    tables: Sequence[NDArray[np.int64]],
    totals: Sequence[NDArray[np.int64]],
) -> None:
    """See `dispatch.Backend`."""
    # Codes that are packed without a gap are unpacked from a whole byte on.
    first = start - start % 8
    codes = codes_of(q, first, stop)[start - first :]
    if q.level_sets is not None:
        for table, total in zip(tables, totals, strict=True):
            simba.add_up(q, codes, start, frozen(table), total)
        return
    for table, total in zip(tables, totals, strict=True):
        decode.add_up(codes, frozen(table), _values_per_table(q), start, total)
