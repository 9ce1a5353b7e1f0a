"""Exact sums value by value: raw values into planes, and planes over a divisor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, Ints, inlined, kernel

_SPLITTER = 134217729.0
# That of `doubles`; a kernel's constants are in its own file.
_SLACK = 2.0**-97


@kernel
def extent(values: NDArray[Any]) -> tuple[float, float]:
    """Least magnitude above 0 (infinity if there is none) and the largest; NaN if one is NaN."""
    least, most, wrong = np.inf, 0.0, 0.0
    for i in range(values.size):
        size = abs(np.float64(values[i]))
        most = max(most, size)
        # 0 times a finite number is 0, and NaN otherwise.
        wrong += 0.0 * size
        least = min(least, size if size > 0.0 else np.inf)
    return least, most + wrong


@kernel
def add_scaled(values: NDArray[Any], factor: float, total: Ints) -> None:
    """Add ``values * factor``, which are integers below 2^62, to `total`."""
    for i in range(values.size):
        total[i] += np.int64(np.float64(values[i]) * factor)


@kernel
def add_cut(values: NDArray[Any], factor: float, cut: float, high: Ints, low: Ints) -> None:
    """See `dispatch.Backend`."""
    for i in range(values.size):
        scaled = np.float64(values[i]) * factor
        whole = np.int64(scaled)
        high[i] += whole
        low[i] += np.int64((scaled - np.float64(whole)) * cut)


@inlined
def _sum_error(a: float, b: float, total: float) -> float:
    other = total - a
    return (a - (total - other)) + (b - other)


@kernel
def divide(
    numbers: Ints,
    scales: Floats,
    wide: float,
    tail: float,
    out: Floats,
    unclear: NDArray[np.bool_],
) -> None:
    """See `doubles.divide`; numbers of shape (planes, n)."""
    scaled_wide = wide * _SPLITTER
    wide_high = scaled_wide - (scaled_wide - wide)
    wide_low = wide - wide_high
    for i in range(out.size):
        high, low, lost = 0.0, 0.0, 0.0
        for k in range(scales.size):
            whole = numbers[k, i]
            leading = np.float64(whole)
            rest = np.float64(whole - np.int64(leading))
            for half in range(2):
                part = (leading if half == 0 else rest) * scales[k]
                total = high + part
                error = _sum_error(high, part, total)
                high = total
                total = low + error
                lost += abs(_sum_error(low, error, total))
                low = total
        total = high + low
        low = _sum_error(high, low, total)
        high = total
        lost *= 2.0
        if wide > 1.0:
            first = high / wide
            product = first * wide
            scaled = first * _SPLITTER
            first_high = scaled - (scaled - first)
            first_low = first - first_high
            error = (
                (first_high * wide_high - product) + first_high * wide_low + first_low * wide_high
            ) + first_low * wide_low
            second = (((high - product) - error) + low - first * tail) / wide
            lost = lost / wide + abs(first) * _SLACK
            high = first + second
            low = _sum_error(first, second, high)
        out[i] = high
        unclear[i] = high + (low + lost) != high or high + (low - lost) != high
