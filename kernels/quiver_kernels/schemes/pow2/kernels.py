"""Kernels of powers of two: counts by exponent, the best top exponent, codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, Ints, kernel

# Exponents of a float64.
_FIELD = 52
_BIAS = 1023
_FRACTION = (1 << _FIELD) - 1
_TWO_32 = 4294967296.0
# A top exponent so far below the greatest value's saves nothing: that value alone loses more than
# 2^48 values could gain.
DEPTH = 24


@kernel
def add_bins(x: NDArray[Any], factor: float, split: int, bins: Floats, space: Floats) -> None:
    """Add values to counts and sums by exponent.

    Parameters
    ----------
    x
        Values, the greatest magnitude of which times `factor` lies in [1, 2).
    split
        Fraction bits of a float64 from which a value is nearer to the next power.
    bins
        bins[k, h] = (count, sum, sum of squares) of magnitudes at exponent -k, below (h = 0) or
        above the split; exponents beyond are left out.
    space
        To work in, any length.
    """
    bits = space.view(np.int64)
    for begin in range(0, x.size, space.size):
        part = x[begin : begin + space.size]
        for i in range(part.size):
            space[i] = abs(np.float64(part[i])) * factor
        for i in range(part.size):
            k = _BIAS - (bits[i] >> _FIELD)
            if k < bins.shape[0]:
                h = np.int64((bits[i] & _FRACTION) >= split)
                bins[k, h, 0] += 1.0
                bins[k, h, 1] += space[i]
                bins[k, h, 2] += space[i] * space[i]


@kernel
def best_top(bins: Floats, count: int, low: int, high: int) -> int:
    """The top exponent from `low` to `high` with the least squared error among `count` powers.

    All exponents are relative to the bins'.
    """
    if low >= high:
        return high
    depth = bins.shape[0]
    # levels[i] is two to the power of 1 - i.
    levels = np.empty(depth + 2)
    levels[0] = 2.0
    for i in range(1, levels.size):
        levels[i] = 0.5 * levels[i - 1]
    best, least = high, np.inf
    for top in range(high, low - 1, -1):
        floor = top - count + 1
        error, beyond = 0.0, 0.0
        for k in range(depth):
            for h in range(2):
                level = 0.0
                if -k >= floor - 1:
                    level = levels[1 - max(min(h - k, top), floor)]
                lost = level * (level * bins[k, h, 0] - 2.0 * bins[k, h, 1]) + bins[k, h, 2]
                error += lost
                beyond += lost if h - k > top else 0.0
        if error < least:
            best, least = top, error
        # With a lower top what saturates loses more.
        if beyond >= least:
            break
    return best


@kernel
def search_tops(
    x: NDArray[Any],
    block_size: int,
    exponents: Ints,
    split: int,
    count: int,
    low: int,
    high: int,
    tops: Ints,
) -> None:
    """Write the best top exponent of each whole block; `exponents` are of the greatest values."""
    bins = np.empty((DEPTH + count + 2, 2, 3))
    space = np.empty(256)
    for b in range(tops.size):
        bins[:] = 0.0
        start = b * block_size
        e = exponents[b]
        shift = min(max(-e, -1000), 1000)
        add_bins(
            x[start : min(start + block_size, x.size)], np.ldexp(1.0, shift), split, bins, space
        )
        most = max(min(1, high - e), low - e)
        tops[b] = e + best_top(bins, count, min(max(-DEPTH, low - e), most), most)


@kernel
def encode_powers(
    x: NDArray[Any],
    block_size: int,
    tops: Ints,
    count: int,
    split: int,
    least: int,
    words: NDArray[np.uint32],
    unit: float,
    codes: NDArray[np.uint8],
    sums: Floats,
) -> None:
    """Write codes, and sums[b] = (squared error, squared norm) of block b, in squared units.

    Parameters
    ----------
    x
        Values of whole blocks (the last may be shorter), or a piece of one.
    tops
        Top exponent of each block.
    count
        Powers per block, K.
    split
        Fraction bits from which a value goes to the next power.
    least
        Exponent of the least number of the vector's type; lower powers are not used.
    words
        Random words of the values, for unbiased rounding; empty: nearest.
    unit
        Power of two that keeps squares within float64.
    codes, sums
        Out.
    """
    tile = 512
    space, levels = np.empty(tile), np.empty(tile)
    bits, fields = space.view(np.int64), levels.view(np.int64)
    lanes = np.empty((2, tile))
    for b in range(tops.size):
        start = b * block_size
        stop = min(start + block_size, x.size)
        # Values are brought near 1; what remains of the top exponent is `top`.
        shift = min(max(-tops[b], -1000), 1000)
        factor, top = np.ldexp(1.0, shift), tops[b] + shift
        floor = max(top - count + 1, least + shift)
        bottom, ceiling = np.ldexp(1.0, floor), np.ldexp(1.0, top)
        used = min(tile, stop - start)
        for i in range(used):
            lanes[0, i], lanes[1, i] = 0.0, 0.0
        for begin in range(start, stop, tile):
            values, code = x[begin : min(begin + tile, stop)], codes[begin:]
            for i in range(values.size):
                space[i] = abs(np.float64(values[i])) * factor
            if words.size > 0:
                drawn = words[begin:]
                for i in range(values.size):
                    v = space[i]
                    e = (bits[i] >> _FIELD) - _BIAS
                    fields[i] = bits[i] & ~_FRACTION
                    low = 0.0 if e < floor else min(levels[i], ceiling)
                    high = bottom if e < floor else 2.0 * low
                    # r < floor(p 2^32) for a whole r is r + 1 <= p 2^32.
                    up = np.float64(drawn[i]) + 1.0 <= (v - low) / (high - low) * _TWO_32
                    power = max(min(e, top), floor - 1) + np.int64(up and e < top)
                    gap = (v - low) * (v - low)
                    lanes[0, i] += gap if e >= top else (high - v) * (v - low)
                    lanes[1, i] += v * v
                    whole = power - floor + 1
                    step = whole + (floor - 1 - top + count) if whole > 0 else 0
                    code[i] = np.uint8(step + (count + 1 if values[i] < 0 and step > 0 else 0))
            else:
                for i in range(values.size):
                    v = space[i]
                    e = (bits[i] >> _FIELD) - _BIAS
                    power = min(e + np.int64((bits[i] & _FRACTION) >= split), top)
                    power = max(power, floor) if e >= floor - 1 else floor - 1
                    fields[i] = (power + _BIAS) << _FIELD
                    gap = (levels[i] if power >= floor else 0.0) - v
                    lanes[0, i] += gap * gap
                    lanes[1, i] += v * v
                    step = power - top + count if power >= floor else 0
                    code[i] = np.uint8(step + (count + 1 if values[i] < 0 and step > 0 else 0))
        while used > 1:
            half = (used + 1) // 2
            for i in range(used - half):
                lanes[0, i] += lanes[0, half + i]
                lanes[1, i] += lanes[1, half + i]
            used = half
        scale = unit * np.ldexp(1.0, -shift)
        sums[b, 0] = lanes[0, 0] * scale * scale
        sums[b, 1] = lanes[1, 0] * scale * scale
