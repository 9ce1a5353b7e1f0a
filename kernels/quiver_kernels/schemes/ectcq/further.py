"""Numbers of different widths as bits without a gap, lowest first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def packed(numbers: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The lowest ``widths[i]`` (at least one) bits of each number; the last byte is filled up."""
    bits = np.repeat(numbers, widths) >> _within(widths)
    return np.packbits((bits & 1).astype(np.uint8), bitorder="little")


def unpacked(data: NDArray[np.uint8], start: int, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of these widths (at least one number) from bit `start` of `data` on."""
    total = int(widths.sum())
    first = start // 8
    bits = np.unpackbits(data[first : -(-(start + total) // 8)], bitorder="little")
    used = bits[start - 8 * first :][:total].astype(np.int64)
    found: NDArray[np.int64] = np.add.reduceat(used << _within(widths), np.cumsum(widths) - widths)
    return found


def _within(widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each bit in its number."""
    starts = np.cumsum(widths) - widths
    return np.arange(int(widths.sum())) - np.repeat(starts, widths)
