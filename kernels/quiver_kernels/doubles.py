"""Quotients in twice float64's digits, with a proven bound of their error; in NumPy.

`cpu.exact_sum` has the same, value by value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Relative to the quotient: second-order terms left out and roundings of the correction, each at
# most 2^-103, a dozen of them.
_SLACK = 2.0**-97
_SPLITTER = 134217729.0


def divide(
    numbers: Sequence[NDArray[np.int64]],
    scales: Sequence[float],
    wide: float,
    tail: float,
    out: Floats,
    unclear: NDArray[np.bool_],
) -> None:
    """Sums of scaled integers over ``wide + tail``, rounded to nearest, and where that is open.

    Parameters
    ----------
    numbers
        Arrays of shape (n,), magnitudes below 2^63.
    scales
        A power of two for each, the largest 1, none below 2^-900.
    wide, tail
        The divisor: 1 and 0; or ``wide`` in 2^1..2^53 and what is lost of it, 0 <= tail < 1 and
        0 if ``wide`` is below 2^52.
    out
        Out: the quotients, shape (n,): correctly rounded, but for the unclear ones.
    unclear
        Out: where the error may reach across a midpoint of two float64 numbers, shape (n,).
    """
    high, low, lost = np.zeros(out.size), np.zeros(out.size), np.zeros(out.size)
    for values, scale in zip(numbers, scales, strict=True):
        leading = values.astype(np.float64)
        rest = (values - leading.astype(np.int64)).astype(np.float64)
        for part in (leading, rest):
            high, error = _two_sum(high, part * scale)
            low, error = _two_sum(low, error)
            lost += np.abs(error)
    high, low = _two_sum(high, low)
    # Its own additions were rounded.
    lost *= 2.0
    if wide > 1.0:
        first = high / wide
        product, error = _two_product(first, wide)
        second = (((high - product) - error) + low - first * tail) / wide
        lost = lost / wide + np.abs(first) * _SLACK
        high, low = _two_sum(first, second)
    out[:] = high
    unclear[:] = (high + (low + lost) != high) | (high + (low - lost) != high)


def _two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Sum of a and b, rounded, and what rounding took away (Knuth)."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def _two_product(a: Floats, b: float) -> tuple[Floats, Floats]:
    """Product of a and b, rounded, and what rounding took away (Dekker)."""
    product = a * b
    scaled = a * _SPLITTER
    a_high = scaled - (scaled - a)
    a_low = a - a_high
    b_scaled = b * _SPLITTER
    b_high = b_scaled - (b_scaled - b)
    b_low = b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error
