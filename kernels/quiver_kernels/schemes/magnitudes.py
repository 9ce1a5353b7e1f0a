"""Greatest and mean magnitude of each block, without overflow. Plain NumPy, in parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import widen
from quiver_kernels.packing import num_blocks
from quiver_kernels.stopping import STEP, slices

Floats = NDArray[np.float64]
# Of an exponent whose power of two and its inverse are normal numbers.
_MOST = 1000


def tops(x: NDArray[Any], block: int) -> Floats:
    """The greatest magnitude of each block of flat, finite `x`, shape (blocks,). O(d)."""
    found = np.zeros(num_blocks(x.size, block))
    for first, part in _native_rows(x, block):
        own = found[first : first + len(part)]
        np.maximum(own, np.abs(part).max(axis=1), out=own)
    return found


def exponents(tops: Floats) -> NDArray[np.int64]:
    """Powers of two that bring each block's greatest magnitude near 1 when divided by."""
    powers: NDArray[np.int64] = np.clip(np.frexp(tops)[1].astype(np.int64), -_MOST, _MOST)
    return powers


def means(x: NDArray[Any], block: int, tops: Floats) -> Floats:
    """The mean magnitude of each block, summed in float64; `tops` as above. O(d)."""
    scale = exponents(tops)
    sums = np.zeros(tops.size)
    for first, part in blocks_as_rows(x, block):
        own = slice(first, first + len(part))
        sums[own] += shifted(np.abs(part), -scale[own, np.newaxis]).sum(axis=1)
    counts = np.full(tops.size, block)
    counts[-1] = x.size - (tops.size - 1) * block
    return shifted(sums / counts, scale)


def shifted(values: Floats, by: NDArray[np.int64]) -> Floats:
    """`values` times two to the power of `by`, which `exponents` limits; may be infinite."""
    with np.errstate(over="ignore"):
        return values * np.ldexp(1.0, by)


def blocks_as_rows(x: NDArray[Any], block: int) -> Iterator[tuple[int, Floats]]:
    """Numbers of first blocks, and blocks as rows in float64; a row may be a piece of a block."""
    for first, part in _native_rows(x, block):
        yield first, part.astype(np.float64)


def _native_rows(x: NDArray[Any], block: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """As `blocks_as_rows`, in float64 for float64 alone, else in float32."""
    if block >= STEP:
        for first in range(0, x.size, block):
            for part in slices(min(block, x.size - first)):
                piece = x[first + part.start : first + part.stop]
                yield first // block, widen(piece)[np.newaxis, :]
        return
    whole = x.size // block * block
    for part in slices(whole, STEP // block * block):
        yield part.start // block, widen(x[part]).reshape(-1, block)
    if whole < x.size:
        yield whole // block, widen(x[whole:])[np.newaxis, :]
