"""Codes back to values, and sums of decoded vectors, for any range of elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, inlined, kernel


@inlined
def _code(packed: NDArray[np.uint8], base: int, i: int, bits: int, mask: int) -> np.int64:
    # A code spans at most two bytes; the second exists whenever the code reaches into it.
    bit = i * bits
    byte = base + (bit >> 3)
    shift = bit & 7
    word = np.uint32(packed[byte])
    if shift + bits > 8:
        word |= np.uint32(packed[byte + 1]) << np.uint32(8)
    return np.int64((word >> np.uint32(shift)) & np.uint32(mask))


@kernel
def decode_range(
    packed: NDArray[np.uint8],
    bits: int,
    block_size: int,
    tables: NDArray[Any],
    start: int,
    stop: int,
    out: NDArray[Any],
) -> int:
    """Write out[i - start] = tables[block of i, code of i] for start <= i < stop.

    Returns
    -------
    int
        The largest code met. Codes beyond a table's last entry read that entry.
    """
    mask = (1 << bits) - 1
    top = tables.shape[1] - 1
    stride = (block_size * bits + 7) // 8
    largest = 0
    at = start
    while at < stop:
        block = at // block_size
        begin = block * block_size
        end = min(begin + block_size, stop)
        for i in range(at - begin, end - begin):
            code = _code(packed, block * stride, i, bits, mask)
            largest = max(largest, int(code))
            out[begin + i - start] = tables[block, min(code, top)]
        at = end
    return largest


@kernel
def add_range(
    packed: NDArray[np.uint8],
    bits: int,
    block_size: int,
    tables: Floats,
    weight: float,
    start: int,
    stop: int,
    total: Floats,
) -> int:
    """Add weight * decoded value to total[i - start] in float64; returns the largest code."""
    mask = (1 << bits) - 1
    top = tables.shape[1] - 1
    stride = (block_size * bits + 7) // 8
    largest = 0
    at = start
    while at < stop:
        block = at // block_size
        begin = block * block_size
        end = min(begin + block_size, stop)
        for i in range(at - begin, end - begin):
            code = _code(packed, block * stride, i, bits, mask)
            largest = max(largest, int(code))
            total[begin + i - start] += weight * tables[block, min(code, top)]
        at = end
    return largest


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
