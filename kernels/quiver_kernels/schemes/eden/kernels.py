"""Kernels of `eden`: nearest levels, sums of blocks, and levels of codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel

# Partial sums of a block: as many as vector units can keep apart.
LANES = 64
# Up to so many levels are compared with one after the other.
FEW = 16


@kernel
def sum_products(a: Floats, b: Floats, sums: Floats) -> None:
    """Write the sum of a * b of each row, added in `LANES` lanes, these then halved.

    Rows shorter than that have a power of two of lanes that is long enough.
    """
    n = a.shape[1]
    used = 1
    while used < min(n, LANES):
        used *= 2
    lanes = np.empty(LANES)
    for r in range(a.shape[0]):
        left, right = a[r], b[r]
        for i in range(used):
            lanes[i] = 0.0
        whole = n // LANES * LANES
        for start in range(0, whole, LANES):
            for i in range(LANES):
                lanes[i] += left[start + i] * right[start + i]
        for i in range(n - whole):
            lanes[i] += left[whole + i] * right[whole + i]
        count = used
        while count > 1:
            count //= 2
            for i in range(count):
                lanes[i] += lanes[count + i]
        sums[r] = lanes[0]


@kernel
def find_nearest(
    x: Floats,
    factors: Floats,
    thresholds: Floats,
    table: Floats,
    low: float,
    cells: float,
    guess: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    levels: Floats,
) -> None:
    """Find the nearest level of every value times its row's factor.

    Parameters
    ----------
    x, factors
        Values, shape (m, n); one factor for each row.
    thresholds, table
        Ascending; a value on a threshold belongs to the upper level.
    low, cells, guess
        A grid from `low` on, `cells` to 1: thresholds below each cell. No two share a cell.
    codes, levels
        Out: number of the level and the level itself, shape (m, n).
    """
    last = np.float64(guess.size - 1)
    places = np.empty(512, np.int32)
    for r in range(x.shape[0]):
        factor = factors[r]
        for tile in range(0, x.shape[1], 512):
            values = x[r, tile : tile + 512]
            code, level = codes[r, tile : tile + 512], levels[r, tile : tile + 512]
            if table.size <= FEW:
                for i in range(values.size):
                    code[i] = 0
                for j in range(thresholds.size):
                    threshold = thresholds[j]
                    for i in range(values.size):
                        code[i] += np.uint8(values[i] * factor >= threshold)
            else:
                for i in range(values.size):
                    place = (values[i] * factor - low) * cells
                    places[i] = np.int32(min(max(place, 0.0), last))
                for i in range(values.size):
                    k = guess[places[i]]
                    code[i] = k + np.uint8(
                        k < thresholds.size and values[i] * factor >= thresholds[k]
                    )
            for i in range(values.size):
                level[i] = table[code[i]]


@kernel
def look_up(codes: NDArray[np.uint8], table: Floats, scales: Floats, values: Floats) -> None:
    """Write the level of every code times its row's scale; codes are in range."""
    for r in range(codes.shape[0]):
        scale = scales[r]
        code, value = codes[r], values[r]
        for i in range(code.size):
            value[i] = table[code[i]] * scale
