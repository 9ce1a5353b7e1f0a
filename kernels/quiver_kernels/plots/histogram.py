"""How many values lie where, counted chunk by chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput

MAX_BARS = 4096
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values in equal parts of a range.

    Attributes
    ----------
    low, high
        Least and greatest value, in the vector's units.
    counts
        Values in each part, int64, shape (parts,); `high` itself counts to the last.
    """

    low: float
    high: float
    counts: NDArray[np.int64]


def histogram(x: NDArray[Any], low: float, high: float, bars: int) -> Histogram:
    """Count the finite values of `x` from `low` to `high` in `bars` equal parts.

    Parameters
    ----------
    x
        Any real type and shape; values beyond the range, NaN and infinities are not counted.
    low, high
        The range; may be one point, whose values are then all in the first part.
    bars
        Number of parts, 1..4096.

    Raises
    ------
    InvalidInput
        `bars` is out of range, or `low` is above `high`, or one of them is not finite.

    Notes
    -----
    O(n) time; memory of one chunk in float64.
    """
    if not 1 <= bars <= MAX_BARS:
        raise _invalid(f"bars must be 1..{MAX_BARS}; got {bars}", "bars")
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise _invalid(f"low must be at most high, both finite; got {low}, {high}", "low")
    counts = np.zeros(bars, np.int64)
    flat = x.reshape(-1)
    for begin in range(0, flat.size, _CHUNK):
        values = flat[begin : begin + _CHUNK].astype(np.float64)
        values = values[(values >= low) & (values <= high)]
        counts += np.bincount(columns(values, low, high, bars), minlength=bars)
    return Histogram(float(low), float(high), counts)


def weighted_histogram(
    values: NDArray[Any], counts: NDArray[np.int64], low: float, high: float, bars: int
) -> Histogram:
    """`histogram` of `values` that occur `counts` times each, both of shape (n,)."""
    found = np.zeros(bars, np.int64)
    np.add.at(found, columns(values.astype(np.float64), low, high, bars), counts)
    return Histogram(float(low), float(high), found)


def shares(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """How far each value is from `low` to `high`, 0..1; 0 where these are one point."""
    # Neither the width nor a distance may overflow.
    scale = 1.0 if math.isfinite(high - low) else 0.25
    width = high * scale - low * scale
    if width == 0:
        return np.zeros(values.shape)
    found: NDArray[np.float64] = (values * scale - low * scale) / width
    return found


def columns(values: NDArray[np.float64], low: float, high: float, bars: int) -> NDArray[np.int64]:
    """Which of `bars` equal parts of the range each value is in; those beyond, in the last ones."""
    return np.clip((shares(values, low, high) * bars).astype(np.int64), 0, bars - 1)


def _invalid(detail: str, field: str) -> InvalidInput:
    return InvalidInput(detail, code="invalid_option", field=field)
