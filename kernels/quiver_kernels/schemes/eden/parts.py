"""Side information of `eden` messages: names, checks, and numbers with their exponent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import levels_dtype
from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes.eden.layout import Layout

if TYPE_CHECKING:
    from quiver_kernels.schemes.contract import Coded

SCALES = "scales"
"""One for each block, of the type of level tables, in units of 2 to the exponent."""
EXPONENT = "exponent"
"""One int16: the power of two above the largest magnitude of the vector."""

# A level times a scale: largest for a block with one value that is not 0, and kept values that
# stand for 2**32 others.
_MOST = 2.0**42
_EXPONENTS = (-1100, 1024)


def check(coded: Coded, layout: Layout) -> None:
    """Refuse side information or a payload of another type, size or range than `layout` has."""
    _require(
        set(coded.side) == {SCALES, EXPONENT},
        "side",
        f"must be {SCALES} and {EXPONENT}",
        coded.side,
    )
    scales, exponent = coded.side[SCALES], coded.side[EXPONENT]
    _check_array(scales, SCALES, levels_dtype(coded.dtype), layout.blocks)
    _check_array(exponent, EXPONENT, np.dtype(np.int16), 1)
    _require(
        coded.codes.size == layout.payload(),
        "codes",
        f"must have {layout.payload()} bytes",
        coded.codes.size,
    )
    _require(coded.levels.size == 0, "levels", "must be empty", coded.levels.size)
    with np.errstate(invalid="ignore"):
        inside = bool(((scales >= 0) & (scales <= _MOST)).all())
    _require(inside, f"side.{SCALES}", "must be 0..2**42", "others", "invalid_levels")
    low, high = _EXPONENTS
    _require(
        low <= int(exponent[0]) <= high,
        f"side.{EXPONENT}",
        f"must be {low}..{high}",
        int(exponent[0]),
        "invalid_levels",
    )


def _check_array(array: NDArray[Any], name: str, dtype: np.dtype[Any], size: int) -> None:
    fits = array.dtype == dtype and array.size == size
    _require(
        fits,
        f"side.{name}",
        f"must have {size} numbers of {dtype.name}",
        f"{array.size} of {array.dtype.name}",
    )


def _require(holds: bool, name: str, limit: str, got: object, code: str = "size_mismatch") -> None:
    if not holds:
        raise InvalidInput(f"{name} {limit}; got {got!s:.80}", code=code, field=name)
