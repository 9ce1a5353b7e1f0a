"""Top exponents: what they may be, how they travel, and the values that codes stand for."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype
from quiver_kernels.schemes import scaled

TOPS = "tops"
"""The part of a message's side information that holds the top exponents."""

# What int8 holds is enough but for float64.
_LEAST_OF_BYTE = -128


def side_dtype(dtype: str) -> np.dtype[Any]:
    """Type of the top exponents for vectors of wire type `dtype`."""
    return np.dtype("<i2") if dtype == "float64" else np.dtype("<i1")


def limits(dtype: str) -> tuple[int, int]:
    """The least and the greatest top exponent for wire type `dtype`: of its powers of two."""
    most = int(np.frexp(scaled.largest(dtype))[1]) - 1
    low = least(dtype)
    return (low if dtype == "float64" else max(low, _LEAST_OF_BYTE)), most


def least(dtype: str) -> int:
    """Exponent of the least positive number of wire type `dtype`."""
    info: Any = ml_dtypes.finfo
    return int(np.frexp(float(info(WIRE_DTYPES[dtype]).smallest_subnormal))[1]) - 1


def magnitudes(num_levels: int) -> int:
    """K: powers of two in a block's table."""
    return num_levels // 2 - 1


def signs_and_offsets(num_levels: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each code its sign (0 for zero), and its exponent less the top one."""
    half = num_levels // 2
    steps = np.arange(num_levels) % half
    signs = np.where(steps == 0, 0.0, np.where(np.arange(num_levels) < half, 1.0, -1.0))
    return signs, steps - magnitudes(num_levels)


def decoded_rows(tops: NDArray[Any], num_levels: int, dtype: str) -> NDArray[Any]:
    """What each code of each block decodes to, shape (blocks, num_levels), in the levels' type."""
    signs, offsets = signs_and_offsets(num_levels)
    exponents = tops.astype(np.int64)[:, np.newaxis] + offsets
    values = np.ldexp(signs, exponents.astype(np.int32))
    # Powers below the type's least number become 0 or that number; zeros have no sign.
    rows: NDArray[Any] = values.astype(WIRE_DTYPES[dtype]).astype(levels_dtype(dtype))
    unsigned: NDArray[Any] = rows + rows.dtype.type(0)
    return unsigned
