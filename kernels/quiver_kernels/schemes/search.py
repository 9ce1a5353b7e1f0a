"""The scale with the least squared error for each block: a global optimum, by branch and bound.

With u = 1 / scale and the codes c(u) of nearest rounding, the squared error of a block is
``|x|^2 - phi(u) / u^2``, where ``phi(u) = max over codes of 2 u <x, t_c> - <t_c, t_c>`` is convex
and piecewise linear: a chord of phi is never below it. So over an interval of u the error is
bounded from below by a formula, an interval that cannot hold the optimum is dropped, and the
others are halved. Sums over sorted values give phi at any u in O(s log d).

Blocks of up to `SORTED` values are sorted. Longer ones are first summed up in cells of equal
leading bits of float32, 512 per power of two, and each cell counts as so many values at
its mean; the error found is then at most a few millionths above the least.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import widen
from quiver_kernels.packing import num_blocks
from quiver_kernels.schemes import magnitudes
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import STEP, slices

Floats = NDArray[np.float64]
SORTED = 1 << 17
"""Values of the longest block that is sorted."""
# Blocks between two looks at whether to stop.
_ROWS = 256
# float32 numbers are cut to sign, exponent and nine bits.
_DROPPED = 14
_CELLS = 1 << (32 - _DROPPED)


def best_scales(x: NDArray[Any], block: int, table: Floats) -> Floats:
    """The scale of least squared error for each block of flat, finite `x`. Needs Numba.

    Parameters
    ----------
    x
        At least one value.
    block
        Values that share a scale.
    table
        Ascending, shape (s,); decoded values are its entries times the scale.

    Returns
    -------
    ndarray
        Shape (blocks,), float64; 0 for blocks of zeros. The error is within 1e-9 of the squared
        norm of the least (blocks of up to `SORTED` values). O(d log d).
    """
    return best_scales_and_gains(x, block, table)[0]


def best_scales_and_gains(x: NDArray[Any], block: int, table: Floats) -> tuple[Floats, Floats]:
    """As `best_scales`, and the part of each block's squared norm that it saves, up to a factor.

    The factor depends on the block's greatest magnitude alone.
    """
    tops = magnitudes.tops(x, block)
    scale = magnitudes.exponents(tops)
    found = np.zeros((2, tops.size))
    if block > SORTED:
        for number in range(tops.size):
            own = slice(number * block, (number + 1) * block)
            found[:, number] = _best_of_one(x[own], scale[number : number + 1], table)
        return magnitudes.shifted(found[0], scale), found[1]
    step = min(_ROWS, STEP // block) * block
    whole = x.size // block * block

    def search(start: int) -> None:
        part = x[start : min(start + step, whole)].reshape(-1, block)
        own = slice(start // block, start // block + len(part))
        found[:, own] = _best_of_sorted(part, scale[own], table)

    run_parts(range(0, whole, step), search)
    if whole < x.size:
        found[:, -1] = _best_of_one(x[whole:], scale[-1:], table)
    return magnitudes.shifted(found[0], scale), found[1]


def working_bytes(size: int, block: int) -> int:
    """Bytes that `best_scales` takes; an upper bound."""
    return 64 * min(size, STEP) + 64 * num_blocks(size, block) + 64 * _CELLS + (1 << 20)


def warm_up() -> None:
    """Compile what `best_scales` uses."""
    for dtype in (np.float32, np.float64):
        x, scale = np.ones(3, dtype), np.zeros(1, np.int64)
        _best_of_sorted(x[np.newaxis, :], scale, np.array([-1.0, 0.0, 1.0]))
        _best_of_cells(x, 0, np.array([-1.0, 0.0, 1.0]))


def _best_of_one(x: NDArray[Any], scale: NDArray[np.int64], table: Floats) -> Floats:
    if x.size > SORTED:
        return _best_of_cells(x, int(scale[0]), table)
    return _best_of_sorted(x[np.newaxis, :], scale, table)[:, 0]


def _best_of_sorted(rows: NDArray[Any], scale: NDArray[np.int64], table: Floats) -> Floats:
    from quiver_kernels.cpu.compile import frozen
    from quiver_kernels.schemes.search_kernels import search_rows

    ordered = np.sort(widen(rows), axis=1).astype(np.float64)
    ordered = magnitudes.shifted(ordered, -scale[:, np.newaxis])
    found = np.empty((2, len(rows)))
    search_rows(frozen(ordered), frozen(np.empty(0)), frozen(table), found[0], found[1])
    return found


def _best_of_cells(x: NDArray[Any], scale: int, table: Floats) -> Floats:
    from quiver_kernels.cpu.chunking import piece
    from quiver_kernels.cpu.compile import frozen
    from quiver_kernels.schemes.search_kernels import search_rows, sum_cells

    counts, sums = np.zeros(_CELLS), np.zeros(_CELLS)
    singles = np.empty(min(x.size, STEP), np.float32)
    for part in slices(x.size):
        values = piece(x, part.start, part.stop)
        factor = 2.0**-scale
        sum_cells(values, factor, _DROPPED, counts, sums, singles, singles.view(np.uint32))
    used = counts > 0
    counts, means = counts[used], sums[used] / counts[used]
    # Rounding may have put the means of neighbouring cells out of order.
    order = np.argsort(means, kind="stable")
    found = np.empty((2, 1))
    rows, weights = frozen(means[np.newaxis, order]), frozen(counts[order])
    search_rows(rows, weights, frozen(table), found[0], found[1])
    return found[:, 0]
