"""The rounding rule: when a value between two levels goes up. One rule for every device.

A value x between neighbours L[k] and L[k+1] gets code k+1 with probability
p = (x - L[k]) / (L[k+1] - L[k]), else k. The random word r is 32 bits, so

    up  iff  r < floor(p * 2**32)  or  x >= L[k+1]

and values on a level are never moved. p is computed in one of two ways, chosen by the
level table alone:

narrow
    float32: (x - L[k]) * inverse[k], inverse[k] = float32(1 / gap). Used for float32
    tables whose gaps all lie within 2**-100 .. 2**100 (or are 0), where nothing over- or
    underflows; the relative error of p is below 2**-22.
wide
    float64: (x * scale[k] - L[k] * scale[k]) * inverse[k], with scale[k] the power of two
    that brings the gap near 1. Used for float64 tables and for extreme float32 ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.stopping import STEP, slices

_NARROW_LOW, _NARROW_HIGH = 2.0**-100, 2.0**100
_MAX_EXPONENT = 1000


@dataclass(frozen=True, slots=True)
class RoundingTable:
    """What the encoders need of level tables, rows of s levels.

    Attributes
    ----------
    levels
        Shape (blocks, s); float32 when narrow, float64 when wide.
    inverse
        Shape (blocks, s - 1), of the same type; 0 where two levels coincide.
    scale
        Shape (blocks, s - 1), powers of two, float64; shape (blocks, 0) when narrow.
    """

    levels: NDArray[Any]
    inverse: NDArray[Any]
    scale: NDArray[np.float64]

    @property
    def narrow(self) -> bool:
        """Whether probabilities are computed in float32."""
        return self.levels.dtype == np.float32


def rounding_table(levels: NDArray[Any]) -> RoundingTable:
    """Prepare ascending `levels`, shape (blocks, s), float32 or float64; O(blocks * s)."""
    blocks, s = levels.shape
    rows = max(1, STEP // s)
    if levels.dtype == np.float32:
        narrow = np.empty((blocks, s - 1), np.float32)
        for part in slices(blocks, rows):
            gaps = np.diff(levels[part].astype(np.float64), axis=1)
            if not ((gaps == 0) | ((gaps >= _NARROW_LOW) & (gaps <= _NARROW_HIGH))).all():
                break
            narrow[part] = _inverse(gaps, np.float32)
        else:
            return RoundingTable(np.ascontiguousarray(levels), narrow, np.empty((blocks, 0)))
    exact, inverse, scale = np.empty((blocks, s)), *(np.empty((blocks, s - 1)) for _ in range(2))
    for part in slices(blocks, rows):
        exact[part] = levels[part]
        inverse[part], scale[part] = _wide(exact[part])
    return RoundingTable(exact, inverse, scale)


def _wide(exact: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Inverse and scale of float64 levels."""
    # Halves first: the gap of two float64 levels may exceed the largest float64.
    half_gaps = np.diff(exact * 0.5, axis=1)
    with np.errstate(over="ignore"):
        half_gaps = np.where(half_gaps > 0, half_gaps, np.diff(exact, axis=1))
    exponent = np.frexp(half_gaps)[1]
    scale = np.ldexp(1.0, np.clip(-exponent, -_MAX_EXPONENT, _MAX_EXPONENT))
    return _inverse(exact[:, 1:] * scale - exact[:, :-1] * scale, np.float64), scale


def _inverse(gaps: NDArray[np.float64], dtype: type[np.floating[Any]]) -> NDArray[Any]:
    safe = np.where(gaps > 0, gaps, 1.0)
    return np.where(gaps > 0, 1.0 / safe, 0.0).astype(dtype)
