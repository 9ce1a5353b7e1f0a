"""Kernels of tables with scales: nearest codes, what saturates, and errors.

Each tile of values goes through one short loop per stage, which the compiler can vectorise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel

_TILE = 512
# Up to so many thresholds, a comparison with each is fastest.
_COUNTED = 24


@kernel
def place_nearest(
    x: NDArray[Any],
    block_size: int,
    limits: NDArray[Any],
    rows: NDArray[Any],
    unit: float,
    codes: NDArray[np.uint8],
    sums: Floats,
) -> None:
    """Write how many thresholds of its block are at or below each value, and what that costs.

    Parameters
    ----------
    x
        Values of whole blocks (the last may be shorter), or a piece of one.
    limits
        Ascending thresholds, one row per block, of the type of `x`.
    rows
        What codes decode to, one row per block, of the type of `x`.
    unit
        Power of two that keeps squares within float64.
    codes
        Out.
    sums
        Out: sums[b] = (squared error, squared norm) of block b, in squared units.
    """
    count = limits.shape[1]
    first_step = 1
    while first_step * 2 <= count:
        first_step *= 2
    # Infinities end a search.
    ahead = np.full(2 * first_step + count, np.inf, x.dtype)
    found = np.empty(_TILE, x.dtype)
    lanes = np.empty((2, _TILE))
    for b in range(limits.shape[0]):
        start = b * block_size
        stop = min(start + block_size, x.size)
        used = min(_TILE, stop - start)
        for i in range(used):
            lanes[0, i], lanes[1, i] = 0.0, 0.0
        if count > _COUNTED:
            ahead[:count] = limits[b]
        for tile in range(start, stop, _TILE):
            end = min(tile + _TILE, stop)
            values, code = x[tile:end], codes[tile:end]
            for i in range(values.size):
                code[i] = 0
            if count <= _COUNTED:
                for j in range(count):
                    limit = limits[b, j]
                    for i in range(values.size):
                        code[i] += np.uint8(values[i] >= limit)
            else:
                step = first_step
                while step > 0:
                    inner = ahead[step - 1 :]
                    for i in range(values.size):
                        k = code[i]
                        code[i] = k + np.uint8(step) if values[i] >= inner[k] else k
                    step //= 2
            row = rows[b]
            for i in range(values.size):
                found[i] = row[code[i]]
            for i in range(values.size):
                v = np.float64(values[i]) * unit
                e = np.float64(found[i]) * unit - v
                lanes[0, i] += e * e
                lanes[1, i] += v * v
        while used > 1:
            half = (used + 1) // 2
            for i in range(used - half):
                lanes[0, i] += lanes[0, half + i]
                lanes[1, i] += lanes[1, half + i]
            used = half
        sums[b, 0], sums[b, 1] = lanes[0, 0], lanes[1, 0]


@kernel
def saturate(
    x: NDArray[Any],
    block_size: int,
    rows: NDArray[Any],
    unit: float,
    inside: NDArray[Any],
    sums: Floats,
) -> None:
    """Write values moved to their block's row, what that costs, and their squared norm."""
    last = rows.shape[1] - 1
    lanes = np.empty((2, _TILE))
    for b in range(rows.shape[0]):
        start = b * block_size
        stop = min(start + block_size, x.size)
        low, high = rows[b, 0], rows[b, last]
        used = min(_TILE, stop - start)
        for i in range(used):
            lanes[0, i], lanes[1, i] = 0.0, 0.0
        for tile in range(start, stop, _TILE):
            end = min(tile + _TILE, stop)
            values, moved = x[tile:end], inside[tile:end]
            for i in range(values.size):
                moved[i] = min(max(values[i], low), high)
            for i in range(values.size):
                v = np.float64(values[i]) * unit
                e = v - np.float64(moved[i]) * unit
                lanes[0, i] += e * e
                lanes[1, i] += v * v
        while used > 1:
            half = (used + 1) // 2
            for i in range(used - half):
                lanes[0, i] += lanes[0, half + i]
                lanes[1, i] += lanes[1, half + i]
            used = half
        sums[b, 0], sums[b, 1] = lanes[0, 0], lanes[1, 0]
