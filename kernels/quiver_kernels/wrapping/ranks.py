"""Values of given ranks, as if a vector were sorted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import widen
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import checkpoint, parts

# Longer vectors are not put in order, which nothing could stop half-way.
_SHORT = 1 << 20
_DIGIT, _DIGITS = 16, 1 << 16
# Tables of counts that are there at a time.
_TABLES = 8


def values_at(flat: NDArray[Any], ranks: Sequence[int], short: int = _SHORT) -> list[float]:
    """The values at ascending `ranks`, from 0, of flat, finite `flat`, sorted. O(n).

    Parameters
    ----------
    short
        Vectors of up to so many values are put in order as far as needed; of longer ones digits of
        16 bits are counted, in 2 passes for each rank, in 4 of float64 values.
    """
    if flat.size > short:
        first = _counts(flat, 0, 0)
        return [_value_at(flat, rank, first) for rank in ranks]
    ordered = np.array(widen(flat))
    found = []
    # One rank at a time: NumPy finds a single one much faster than several. What is before the
    # next higher one is before it for good.
    end = ordered.size
    for rank in reversed(ranks):
        ordered[:end].partition(rank)
        found.append(float(ordered[rank]))
        end = rank + 1
    return found[::-1]


def _value_at(flat: NDArray[Any], rank: int, first: NDArray[np.int64]) -> float:
    """`first`: how often each first digit occurs."""
    kind = widen(flat[:1]).dtype
    prefix, counts = 0, first
    for level in range(8 * kind.itemsize // _DIGIT):
        if level:
            counts = _counts(flat, level, prefix)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[digit] - counts[digit])
        prefix = prefix << _DIGIT | digit
    top = 1 << (8 * kind.itemsize - 1)
    bits = prefix ^ top if prefix & top else prefix ^ (2 * top - 1)
    unsigned = np.uint32 if kind.itemsize == 4 else np.uint64
    return float(np.array([bits], unsigned).view(kind)[0])


def _counts(flat: NDArray[Any], level: int, prefix: int) -> NDArray[np.int64]:
    """How often each digit of a level follows the digits of `prefix`."""
    every = parts(flat.size)
    groups = [every[start::_TABLES] for start in range(min(_TABLES, len(every)))]

    def count(group: list[slice]) -> NDArray[np.int64]:
        total = np.zeros(_DIGITS, np.int64)
        for part in group:
            checkpoint()
            keys = _ascending(widen(flat[part]))
            shift = 8 * keys.itemsize - _DIGIT * (level + 1)
            if level:
                keys = keys[keys >> keys.dtype.type(shift + _DIGIT) == prefix]
            digits = (keys >> keys.dtype.type(shift)).astype(np.uint16)
            total += np.bincount(digits, minlength=_DIGITS)
        return total

    found: NDArray[np.int64] = np.sum(run_parts(groups, count), axis=0)
    return found


def _ascending(values: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers in the order of the values."""
    flat = np.ascontiguousarray(values)
    # Negative numbers have all bits turned, others the sign alone.
    if flat.itemsize == 4:
        narrow = flat.view(np.int32)
        return (narrow ^ (narrow >> 31 | np.int32(-(2**31)))).view(np.uint32)
    wide = flat.view(np.int64)
    return (wide ^ (wide >> 63 | np.int64(-(2**63)))).view(np.uint64)
