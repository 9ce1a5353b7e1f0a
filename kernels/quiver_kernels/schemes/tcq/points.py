"""The points of TCQ: a table twice as large as codes can tell apart, in two halves.

Point i is in the half of quantizer q = i mod 2, with lowest bit b = i // 2 mod 2 of its code; the
higher bits of the code are i // 4: points in turn belong to D0, D1, D2, D3 of Ungerboeck.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.tcq.costs import nearest
from quiver_kernels.schemes.trellis.machine import Machine
from quiver_kernels.schemes.trellis.paths import best_paths, quantizers_along
from quiver_kernels.stopping import checkpoint

Floats = NDArray[np.float64]
Indices = NDArray[np.uint16]

_PASSES, _PLAIN, _AHEAD, _CELLS = 16, 4, 1.9, 512
# Of the sample: runs of so many values, so many in all, and for each point.
_RUN, _SAMPLE, _EACH = 512, 1 << 15, 128


def fitted(x: NDArray[np.generic], count: int, unit: float, machine: Machine) -> Floats:
    """`count` ascending points for the values of `x` times `unit`.

    Points and paths in turn, as Lloyd's method: each point becomes the mean of its values.
    O(sample): some passes over 2^15 values of `x`, or 128 for each point.
    """
    sample = _sample_of(x, unit, max(_SAMPLE, _EACH * count))
    points = _begun(sample, count)
    for left in range(_PASSES, 0, -1):
        checkpoint()
        counts, sums = tally(sample, assigned(sample, points, _RUN, machine), count)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), points)
        # Further than to the means while there is time: that is faster.
        ahead = _AHEAD if left > _PLAIN else 1.0
        points = np.maximum.accumulate(points + ahead * (means - points))
    return points


def assigned(values: Floats, points: Floats, chunk: int, machine: Machine) -> Indices:
    """The points along the path of least squared error."""
    costs, picks = nearest(values, points)
    subsets = best_paths(costs, chunk, machine)
    found: Indices = picks[np.arange(values.size), subsets]
    return found


def tally(values: Floats, indices: Indices, count: int) -> tuple[Floats, Floats]:
    """How many values each of `count` points has, and their sums."""
    counts = np.bincount(indices, minlength=count).astype(np.float64)
    sums = np.bincount(indices, weights=values, minlength=count)
    return counts, sums.astype(np.float64)


def codes_of(indices: Indices) -> NDArray[np.uint8]:
    """Codes of points, without which half they are of."""
    return ((indices >> 1 & 1) | (indices >> 2) << 1).astype(np.uint8)


def indices_of(codes: NDArray[np.uint8], chunk: int, machine: Machine) -> Indices:
    """Points of the codes of whole chunks."""
    bits = codes & np.uint8(1)
    halves = quantizers_along(bits, chunk, machine).astype(np.uint16)
    higher = (codes >> 1).astype(np.uint16)
    return (halves | bits.astype(np.uint16) << 1 | higher << 2).astype(np.uint16)


def _begun(sample: Floats, count: int) -> Floats:
    """Points as dense as the cube root of the density, which is best for fine quantizers.

    The density is that of cells of equally many values: the integral of its cube root over a cell
    of width w is in proportion to w^(2/3).
    """
    ordered = np.sort(sample)
    cells = max(1, min(_CELLS, sample.size // 16))
    ends = ordered[np.linspace(0, sample.size - 1, cells + 1).astype(np.int64)]
    above = np.concatenate([np.zeros(1), np.cumsum(np.cbrt(np.diff(ends)) ** 2)])
    wanted = (np.arange(count) + 0.5) / count * above[-1]
    points: Floats = np.interp(wanted, above, ends)
    return points


def _sample_of(x: NDArray[np.generic], unit: float, size: int) -> Floats:
    if x.size <= size:
        return x.astype(np.float64) * unit
    starts = np.linspace(0, x.size - _RUN, size // _RUN).astype(np.int64)
    return np.concatenate([x[start : start + _RUN].astype(np.float64) for start in starts]) * unit
