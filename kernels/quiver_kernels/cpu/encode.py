"""Unbiased codes: look up the interval, round by the element's Philox word, pack.

Each tile of values goes through one short loop per stage, so that the compiler can
vectorise every stage by itself. The rule is `quiver_kernels.rounding`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, inlined, kernel

TILE = 512
_TWO_32 = 4294967296.0


@inlined
def _round(
    c0: np.uint32, c1: np.uint32, c2: np.uint32, c3: np.uint32, k0: np.uint32, k1: np.uint32
) -> tuple[np.uint32, np.uint32, np.uint32, np.uint32]:
    p0 = np.uint64(c0) * np.uint64(0xD2511F53)
    p1 = np.uint64(c2) * np.uint64(0xCD9E8D57)
    return (
        np.uint32(np.uint32(p1 >> np.uint64(32)) ^ c1 ^ k0),
        np.uint32(p1),
        np.uint32(np.uint32(p0 >> np.uint64(32)) ^ c3 ^ k1),
        np.uint32(p0),
    )


@kernel
def fill_random(seed: np.uint64, first_group: int, words: NDArray[np.uint32]) -> None:
    """Fill `words`, uint32 of a multiple of 4, with the groups from `first_group` on.

    A run-time loop over rounds would be ten times slower, so they stand one by one.
    """
    w0, w1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
    key0, key1 = np.uint32(seed), np.uint32(seed >> np.uint64(32))
    for g in range(words.size // 4):
        group = np.uint64(first_group) + np.uint64(g)
        c0, c1 = np.uint32(group), np.uint32(group >> np.uint64(32))
        c2, c3 = np.uint32(0), np.uint32(0)
        k0, k1 = key0, key1
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        words[4 * g] = c0
        words[4 * g + 1] = c1
        words[4 * g + 2] = c2
        words[4 * g + 3] = c3


@kernel
def encode_blocks(
    x: NDArray[Any],
    block_size: int,
    first_index: int,
    levels: NDArray[Any],
    inverse: NDArray[Any],
    scale: Floats,
    bits: int,
    seed: np.uint64,
    unit: float,
    packed: NDArray[np.uint8],
    sums: Floats,
) -> None:
    """Encode consecutive blocks.

    Parameters
    ----------
    x
        float32 (narrow) or float64 (wide), the values of whole blocks; the last may be short.
    block_size
        Values per block.
    first_index
        Index of x[0] in the vector, for the random numbers; a multiple of 8 if a block
        is continued.
    levels, inverse, scale
        Rows of a `RoundingTable`, one per block.
    bits, seed
        Bits per code; key of the random numbers.
    unit
        Power of two that keeps squares of the values within float64.
    packed
        Out: the bytes of these blocks, each starting on a byte.
    sums
        Out: sums[b] = (expected squared error, squared norm) of block b, in squared units.
    """
    codes = np.empty(TILE, np.uint8)
    words = np.empty(TILE + 8, np.uint32)
    stride = (block_size * bits + 7) // 8
    for b in range(levels.shape[0]):
        start = b * block_size
        stop = min(start + block_size, x.size)
        error, norm = 0.0, 0.0
        for tile in range(start, stop, TILE):
            end = min(tile + TILE, stop)
            index = first_index + tile
            skip = index % 4
            count = end - tile
            fill_random(seed, index // 4, words[: (skip + count + 3) // 4 * 4])
            e, n = _encode_tile(
                x[tile:end],
                levels[b],
                inverse[b],
                scale[b],
                words[skip : skip + count],
                unit,
                codes,
            )
            error += e
            norm += n
            _pack(codes, count, bits, packed, b * stride + (tile - start) * bits // 8)
        sums[b, 0] = error
        sums[b, 1] = norm


@kernel
def _encode_tile(
    x: NDArray[Any],
    levels: NDArray[Any],
    inverse: NDArray[Any],
    scale: Floats,
    words: NDArray[np.uint32],
    unit: float,
    codes: NDArray[np.uint8],
) -> tuple[float, float]:
    """Codes of one tile; returns its expected squared error and squared norm."""
    s = levels.size
    count = x.size
    # Binary search for the last level at or below each value, but one halving after the other
    # for the whole tile, which the compiler vectorises.
    for i in range(count):
        codes[i] = 0
    size = s - 1
    while size > 1:
        half = size // 2
        for i in range(count):
            at = codes[i] + half
            codes[i] = at if x[i] >= levels[at] else codes[i]
        size -= half

    error, norm = 0.0, 0.0
    wide = scale.size > 0
    for i in range(count):
        k = codes[i]
        value, below, above = x[i], levels[k], levels[k + 1]
        if wide:
            p = (value * scale[k] - below * scale[k]) * inverse[k]
        else:
            p = (value - below) * inverse[k]
        threshold = np.int64(p * np.float32(_TWO_32)) if not wide else np.int64(p * _TWO_32)
        up = (np.int64(words[i]) < threshold) | (value >= above)
        codes[i] = k + np.uint8(up)
        v = np.float64(value) * unit
        error += (np.float64(above) * unit - v) * (v - np.float64(below) * unit)
        norm += v * v
    return error, norm


@kernel
def _pack(
    codes: NDArray[np.uint8], count: int, bits: int, packed: NDArray[np.uint8], place: int
) -> None:
    """Write codes[:count] from byte `place` on: eight codes are exactly `bits` bytes."""
    whole = count // 8
    for g in range(whole):
        word = np.uint64(0)
        for i in range(8):
            word |= np.uint64(codes[8 * g + i]) << np.uint64(i * bits)
        for i in range(bits):
            packed[place + g * bits + i] = np.uint8(word >> np.uint64(8 * i))
    rest = count - 8 * whole
    if rest > 0:
        word = np.uint64(0)
        for i in range(rest):
            word |= np.uint64(codes[8 * whole + i]) << np.uint64(i * bits)
        for i in range((rest * bits + 7) // 8):
            packed[place + whole * bits + i] = np.uint8(word >> np.uint64(8 * i))
