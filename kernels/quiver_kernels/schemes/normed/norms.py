"""Norms of blocks, and what is known of the values over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import levels_dtype, wire_name
from quiver_kernels.packing import num_blocks
from quiver_kernels.schemes import magnitudes
from quiver_kernels.schemes.normed.statistics import Statistics

Floats = NDArray[np.float64]

NORMS = ("l2", "linf")


def norms_of(x: NDArray[Any], block: int, kind: str) -> NDArray[Any]:
    """The norm of each block as it travels: never below its greatest magnitude.

    It is rounded up to the levels' type; a Euclidean norm beyond that type becomes its
    largest number.
    """
    dtype = levels_dtype(wire_name(x.dtype))
    tops = magnitudes.tops(x, block)
    exact = tops if kind == "linf" else _euclidean(x, block, tops)
    with np.errstate(over="ignore"):
        near = exact.astype(dtype)
        up = np.where(near < exact, np.nextafter(near, dtype.type(np.inf)), near)
    largest = np.finfo(dtype).max
    finite: NDArray[Any] = np.minimum(up, largest)
    return finite


def statistics_of(x: NDArray[Any], block: int, norms: NDArray[Any]) -> Statistics:
    """Mean and variance of the values of each block over its norm. O(d)."""
    wide = norms.astype(np.float64)
    sums, squares = (np.zeros(norms.size) for _ in range(2))
    # Zeros stay zeros.
    divisors = np.where(wide > 0, wide, 1.0)
    for first, rows in magnitudes.blocks_as_rows(x, block):
        own = slice(first, first + len(rows))
        ratios = rows / divisors[own, np.newaxis]
        sums[own] += ratios.sum(axis=1)
        squares[own] += (ratios * ratios).sum(axis=1)
    counts = counts_of(x.size, block)
    means = sums / counts
    return Statistics(means, np.maximum(squares / counts - means * means, 0.0), wide)


def counts_of(size: int, block: int) -> NDArray[np.int64]:
    """Values of each block."""
    counts = np.full(num_blocks(size, block), block)
    counts[-1] = size - (counts.size - 1) * block
    return counts


def _euclidean(x: NDArray[Any], block: int, tops: Floats) -> Floats:
    scale = magnitudes.exponents(tops)
    sums = np.zeros(tops.size)
    for first, rows in magnitudes.blocks_as_rows(x, block):
        own = slice(first, first + len(rows))
        near_one = magnitudes.shifted(rows, -scale[own, np.newaxis])
        sums[own] += (near_one * near_one).sum(axis=1)
    with np.errstate(over="ignore"):
        # Rounding must not bring it below the one value that it may consist of.
        return np.maximum(magnitudes.shifted(np.sqrt(sums), scale), tops)
