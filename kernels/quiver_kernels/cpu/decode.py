"""Codes back to values, and sums of decoded vectors, for any range of elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel


@kernel
def unpack_range(
    packed: NDArray[np.uint8],
    bits: int,
    block_size: int,
    start: int,
    stop: int,
    codes: NDArray[np.uint8],
) -> None:
    """Write the codes of elements start <= i < stop, one a byte; eight are `bits` bytes."""
    mask = np.uint64((1 << bits) - 1)
    stride = (block_size * bits + 7) // 8
    at = start
    while at < stop:
        block = at // block_size
        begin = block * block_size
        end = min(begin + block_size, stop)
        # Whole groups of eight from the first at or before `at`.
        for group in range((at - begin) // 8, (end - begin + 7) // 8):
            place = block * stride + group * bits
            left = min(bits, (block + 1) * stride - place, packed.size - place)
            word = np.uint64(0)
            for i in range(left):
                word |= np.uint64(packed[place + i]) << np.uint64(8 * i)
            first = begin + 8 * group
            for i in range(max(at - first, 0), min(end - first, 8)):
                codes[first + i - start] = np.uint8((word >> np.uint64(i * bits)) & mask)
        at = end


@kernel
def look_up(
    codes: NDArray[np.uint8], tables: NDArray[Any], block_size: int, start: int, out: NDArray[Any]
) -> None:
    """Write out[i] = tables[block of element start + i, codes[i]]; codes are in range."""
    at = 0
    while at < codes.size:
        block = (start + at) // block_size
        end = min((block + 1) * block_size - start, codes.size)
        row = tables[block]
        for i in range(at, end):
            out[i] = row[codes[i]]
        at = end


@kernel
def add_scaled(
    codes: NDArray[np.uint8],
    tables: Floats,
    weight: float,
    block_size: int,
    start: int,
    total: Floats,
) -> None:
    """Add weight * (what `look_up` would write) to `total`, in float64."""
    at = 0
    while at < codes.size:
        block = (start + at) // block_size
        end = min((block + 1) * block_size - start, codes.size)
        row = tables[block]
        for i in range(at, end):
            total[i] += weight * row[codes[i]]
        at = end


@kernel
def sum_errors(
    x: NDArray[Any], levels: Floats, weights: Floats, unit: float
) -> tuple[float, float]:
    """Weighted sums of (above - x)(x - below) and x squared, both in squared units, for one table.

    The error uses the weights (empty: ones), the squared norm does not. Values outside the
    levels count with their (negative) product, so callers check the range first.
    """
    s = levels.size
    error, norm = 0.0, 0.0
    weighted = weights.size > 0
    for i in range(x.size):
        value = np.float64(x[i])
        low, size = 0, s - 1
        while size > 1:
            half = size // 2
            low = low + half if value >= levels[low + half] else low
            size -= half
        v = value * unit
        w = np.float64(weights[i]) if weighted else 1.0
        error += w * ((levels[low + 1] * unit - v) * (v - levels[low] * unit))
        norm += v * v
    return error, norm
