"""Sorting long vectors in pieces that are merged, so that it can be stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, frozen, kernel
from quiver_kernels.dtypes import widen
from quiver_kernels.stopping import checkpoint

# Values that are sorted at once: alone, and with weights, which takes seven times as long and
# is slower than merging from about here on.
_ALONE, _WEIGHTED = 1 << 21, 1 << 17
# Values merged between two looks whether to go on.
_MERGED = 1 << 19


def ascending(flat: NDArray[Any], weights: Floats) -> tuple[NDArray[Any], Floats]:
    """Values in order, as float32 or float64, with their weights (empty: none).

    Equal values with weights keep their order, so sums of these do not depend on how it is done.
    """
    size = _WEIGHTED if weights.size else _ALONE
    values = np.empty(flat.size, np.float64 if flat.dtype.itemsize == 8 else np.float32)
    heavy = np.empty(flat.size if weights.size else 0)
    for start in range(0, flat.size, size):
        checkpoint()
        piece = slice(start, start + size)
        part = widen(flat[piece])
        if weights.size:
            order = np.argsort(part, kind="stable")
            values[piece], heavy[piece] = part[order], weights[piece][order]
        else:
            values[piece] = part
            values[piece].sort()
    while size < flat.size:
        values, heavy = merged_pairs(values, heavy, size)
        size *= 2
    return values, heavy


def merged_pairs(values: NDArray[Any], weights: Floats, size: int) -> tuple[NDArray[Any], Floats]:
    """Every two neighbouring pieces of `size` ascending values as one."""
    out, out_weights = np.empty_like(values), np.empty_like(weights)
    for start in range(0, values.size, 2 * size):
        left, right = start, min(start + size, values.size)
        middle, stop = right, min(start + 2 * size, values.size)
        for at in range(start, stop, _MERGED):
            checkpoint()
            end = min(at + _MERGED, stop)
            left, right = merge(
                frozen(values),
                frozen(weights),
                left,
                middle,
                right,
                stop,
                at,
                end,
                out,
                out_weights,
            )
    return out, out_weights


@kernel
def merge(
    values: NDArray[Any],
    weights: Floats,
    left: int,
    middle: int,
    right: int,
    stop: int,
    at: int,
    end: int,
    out: NDArray[Any],
    out_weights: Floats,
) -> tuple[int, int]:
    """Write out[at:end] from values[left:middle] and values[right:stop], both ascending.

    Of equal values the left ones come first. Returns where to go on with either.
    """
    weighted = weights.size > 0
    for k in range(at, end):
        from_left = right >= stop or (left < middle and values[left] <= values[right])
        source = left if from_left else right
        out[k] = values[source]
        if weighted:
            out_weights[k] = weights[source]
        left += from_left
        right += 1 - from_left
    return left, right
