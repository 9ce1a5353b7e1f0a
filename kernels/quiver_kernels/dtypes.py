"""Element types: the one place that maps wire names to NumPy types."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput

WIRE_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
"""Wire name to little-endian NumPy type; a closed set, never fed to ``np.dtype``."""

LEAF_DTYPES: dict[str, np.dtype[Any]] = {
    **WIRE_DTYPES,
    "int8": np.dtype("<i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("<u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "bool": np.dtype(np.bool_),
}
"""The same for leaves of a tree, which may also be integers and booleans."""

# NumPy makes the name of a type anew whenever it is asked, which takes microseconds.
_NAMES = {dtype: name for name, dtype in WIRE_DTYPES.items()}


def from_wire(name: str, field: str = "dtype") -> np.dtype[Any]:
    """NumPy type of a wire name; `InvalidInput` for any name but the four."""
    try:
        return WIRE_DTYPES[name]
    except KeyError:
        raise InvalidInput(
            f"{field} must be one of {', '.join(WIRE_DTYPES)}; got {name[:40]!r}",
            code="unsupported_dtype",
            field=field,
        ) from None


def wire_name(dtype: np.dtype[Any], field: str = "vector") -> str:
    """Wire name of a NumPy floating type, whatever its byte order."""
    known = _NAMES.get(dtype)
    if known is not None:
        return known
    name = dtype.name
    if name not in WIRE_DTYPES:
        raise InvalidInput(
            f"{field} must hold one of {', '.join(WIRE_DTYPES)}; got {name}",
            code="unsupported_dtype",
            field=field,
        )
    return name


def leaf_dtype(name: str, field: str = "dtype") -> np.dtype[Any]:
    """NumPy type of a leaf of a tree; `InvalidInput` for any name not in `LEAF_DTYPES`."""
    try:
        return LEAF_DTYPES[name]
    except KeyError:
        raise InvalidInput(
            f"{field} must be one of {', '.join(LEAF_DTYPES)}; got {name[:40]!r}",
            code="unsupported_dtype",
            field=field,
        ) from None


def levels_dtype(name: str) -> np.dtype[Any]:
    """Type of the level table for vectors of wire type `name`."""
    return WIRE_DTYPES["float64" if name == "float64" else "float32"]


def widen(x: NDArray[Any]) -> NDArray[Any]:
    """`x` as native float32 or float64, exactly; 16-bit types become float32."""
    return np.asarray(x, dtype=np.float64 if x.dtype.itemsize == 8 else np.float32)
