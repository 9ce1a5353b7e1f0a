"""Codes back to values, and sums of decoded vectors, for any range of elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel


@kernel
def unpack_pairs(packed: NDArray[np.uint8], pairs: NDArray[np.uint16]) -> None:
    """Unpack codes of 4 bits that lie without a gap: a byte is two, the first in the low byte."""
    for i in range(packed.size):
        byte = np.uint16(packed[i])
        pairs[i] = (byte & np.uint16(0x0F)) | (byte & np.uint16(0xF0)) << np.uint16(4)


@kernel
def unpack_eights(packed: NDArray[np.uint8], bits: int, eights: NDArray[np.uint64]) -> None:
    """Unpack codes of `bits` bits that lie without a gap: `bits` bytes are eight.

    Fours move apart, then pairs, then neighbours; the first code ends in the low byte.
    """
    for g in range(eights.size):
        eights[g] = 0
    for i in range(bits):
        column = packed[i::bits]
        for g in range(column.size):
            eights[g] |= np.uint64(column[g]) << np.uint64(8 * i)
    one, two, four = np.uint64(8 - bits), np.uint64(16 - 2 * bits), np.uint64(32 - 4 * bits)
    mask = np.uint64((1 << bits) - 1)
    ones = mask * np.uint64(0x0001000100010001)
    twos = ((mask << np.uint64(bits)) | mask) * np.uint64(0x0000000100000001)
    fours = np.uint64((1 << 4 * bits) - 1)
    for g in range(eights.size):
        w = eights[g]
        w = (w & fours) | ((w & ~fours) << four)
        w = (w & twos) | ((w & ~twos) << two)
        w = (w & ones) | ((w & ~ones) << one)
        eights[g] = w


@kernel
def unpack_blocks(
    packed: NDArray[np.uint8],
    bits: int,
    block_size: int,
    start: int,
    codes: NDArray[np.uint8],
) -> None:
    """Unpack the elements from `start` on where blocks end within a byte."""
    mask = np.uint64((1 << bits) - 1)
    stride = (block_size * bits + 7) // 8
    for i in range(codes.size):
        bit = (start + i) % block_size * bits
        place = (start + i) // block_size * stride + bit // 8
        word = np.uint64(packed[place])
        if bit % 8 + bits > 8:
            word |= np.uint64(packed[place + 1]) << np.uint64(8)
        codes[i] = np.uint8((word >> np.uint64(bit % 8)) & mask)


@kernel
def look_up(
    codes: NDArray[np.uint8], tables: NDArray[Any], block_size: int, start: int, out: NDArray[Any]
) -> None:
    """Write out[i] = tables[block of element start + i, codes[i]]; codes are in range."""
    at = 0
    while at < codes.size:
        block = (start + at) // block_size
        end = min((block + 1) * block_size - start, codes.size)
        piece, target = codes[at:end], out[at:end]
        for i in range(piece.size):
            target[i] = tables[block, piece[i]]
        at = end


@kernel
def add_up(
    codes: NDArray[np.uint8], tables: NDArray[Any], block_size: int, start: int, total: NDArray[Any]
) -> None:
    """Add what `look_up` would write to `total`."""
    at = 0
    while at < codes.size:
        block = (start + at) // block_size
        end = min((block + 1) * block_size - start, codes.size)
        piece, target = codes[at:end], total[at:end]
        for i in range(piece.size):
            target[i] += tables[block, piece[i]]
        at = end


@kernel
def sum_errors(
    x: Floats,
    block_size: int,
    levels: Floats,
    inner: Floats,
    cells: Floats,
    guess: NDArray[np.uint8],
    first_step: int,
    weights: Floats,
    unit: float,
    places: NDArray[np.uint16],
    codes: NDArray[np.uint8],
    found: Floats,
    sums: Floats,
) -> None:
    """Sums over consecutive blocks of errors (above - x)(x - below) and of squares.

    Values outside the levels count with their (negative) product, so callers check the range
    first. What comes first is found as in `encode.encode_blocks`.

    Parameters
    ----------
    x
        Values of whole blocks (the last may be shorter), or a piece of one block.
    block_size
        Values per table.
    levels
        Tables, one row per block.
    inner, cells, guess, first_step
        An `IntervalTable` of the same rows.
    weights
        One per value, or none.
    unit
        Power of two that keeps squares of the values within float64.
    places, codes, found
        Space to work in: as many columns as a tile has values; found has 4 rows.
    sums
        Out: sums[b] = (weighted error, error, squared norm) of block b, in squared units; the
        first is 0 without weights.
    """
    cell_count = float(guess.shape[1] - 1)
    for b in range(levels.shape[0]):
        start = b * block_size
        stop = min(start + block_size, x.size)
        used = min(codes.size, stop - start)
        lanes = found[1:]
        for i in range(used):
            lanes[0, i], lanes[1, i], lanes[2, i] = 0.0, 0.0, 0.0
        for tile in range(start, stop, codes.size):
            values = x[tile : min(tile + codes.size, stop)]
            if guess.shape[1] > 1:
                low, cell_scale = cells[b, 0], cells[b, 1]
                for i in range(values.size):
                    place = (values[i] - low) * cell_scale
                    places[i] = np.int32(min(max(place, 0.0), cell_count))
                for i in range(values.size):
                    codes[i] = guess[b, places[i]]
            else:
                for i in range(values.size):
                    codes[i] = 0
            if first_step == 0:
                for j in range(1, levels.shape[1] - 1):
                    for i in range(values.size):
                        codes[i] += np.uint8(values[i] >= levels[b, j])
            step = first_step
            while step > 0:
                ahead = inner[b, step:]
                for i in range(values.size):
                    k = codes[i]
                    codes[i] = k + np.uint8(step) if values[i] >= ahead[k] else k
                step //= 2

            errors = found[0]
            for i in range(values.size):
                v = values[i] * unit
                below = levels[b, codes[i]] * unit
                above = levels[b, codes[i] + np.uint64(1)] * unit
                errors[i] = (above - v) * (v - below)
            for i in range(values.size):
                v = values[i] * unit
                lanes[1, i] += errors[i]
                lanes[2, i] += v * v
            if weights.size > 0:
                share = weights[tile:]
                for i in range(values.size):
                    lanes[0, i] += share[i] * errors[i]

        while used > 1:
            half = (used + 1) // 2
            for k in range(3):
                for i in range(used - half):
                    lanes[k, i] += lanes[k, half + i]
            used = half
        for k in range(3):
            sums[b, k] = lanes[k, 0]
