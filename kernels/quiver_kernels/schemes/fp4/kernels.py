"""Kernels of E2M1 blocks: greatest magnitudes, nearest codes, decoded values.

`scaled` gives the same values from a row of numbers for each block, which takes longer where blocks
are short.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel


@kernel
def block_tops(x: NDArray[Any], block: int, tops: Floats) -> None:
    """Write the greatest magnitude of each block of `x`; the last may be shorter."""
    for b in range(tops.size):
        top = x.dtype.type(0)
        for i in range(b * block, min((b + 1) * block, x.size)):
            top = max(top, abs(x[i]))
        tops[b] = top


@kernel
def encode_blocks(
    x: NDArray[Any],
    block: int,
    magnitudes: Floats,
    scales: Floats,
    largest: float,
    unit: float,
    packed: NDArray[np.uint8],
    sums: Floats,
) -> None:
    """Write the codes of the nearest decoded values, two a byte, and what that costs.

    Parameters
    ----------
    x
        Values of whole blocks (the last may be shorter), or a piece of one.
    magnitudes
        The eight of E2M1, ascending.
    scales
        Of the blocks.
    largest
        Number of the type of `x`; decoded values are no larger.
    unit
        Power of two that keeps squares within float64.
    packed
        Out; each block begins on a byte.
    sums
        Out: sums[b] = (squared error, squared norm) of block b, in squared units.
    """
    row = np.empty(8, x.dtype)
    middles = np.empty(7)
    at = 0
    for b in range(scales.size):
        for k in range(8):
            row[k] = min(magnitudes[k] * scales[b], largest)
        for k in range(7):
            low, high = np.float64(row[k]), np.float64(row[k + 1])
            both = low + high
            middles[k] = 0.5 * both if both < np.inf else 0.5 * low + 0.5 * high
        start = b * block
        stop = min(start + block, x.size)
        error, norm = 0.0, 0.0
        byte = np.uint8(0)
        for i in range(start, stop):
            v = np.float64(x[i])
            a = abs(v)
            # Ties go to the even code.
            code = (
                np.uint8(a > middles[0])
                + np.uint8(a >= middles[1])
                + np.uint8(a > middles[2])
                + np.uint8(a >= middles[3])
                + np.uint8(a > middles[4])
                + np.uint8(a >= middles[5])
                + np.uint8(a > middles[6])
            )
            e = a * unit - np.float64(row[code]) * unit
            error += e * e
            norm += (a * unit) * (a * unit)
            # -0 is not written.
            full = np.uint8(code + (8 if v < 0.0 and code > 0 else 0))
            if (i - start) % 2 == 0:
                byte = full
            else:
                packed[at] = byte | full << 4
                at += 1
        if (stop - start) % 2 == 1:
            packed[at] = byte
            at += 1
        sums[b, 0], sums[b, 1] = error, norm


@kernel
def decode_blocks(
    packed: NDArray[np.uint8],
    block: int,
    numbers: Floats,
    scales: Floats,
    largest: float,
    out: NDArray[Any],
) -> None:
    """Write what the codes of whole blocks, or of a piece of one, stand for.

    `numbers`: of the sixteen codes. Zeros have no sign.
    """
    row = np.empty(16, out.dtype)
    zero = out.dtype.type(0)
    at = 0
    for b in range(scales.size):
        for k in range(16):
            row[k] = min(max(numbers[k] * scales[b], -largest), largest)
            row[k] += zero
        start = b * block
        stop = min(start + block, out.size)
        for i in range(start, stop - 1, 2):
            byte = packed[at]
            out[i] = row[byte & 15]
            out[i + 1] = row[byte >> 4]
            at += 1
        if (stop - start) % 2 == 1:
            out[stop - 1] = row[packed[at] & 15]
            at += 1
