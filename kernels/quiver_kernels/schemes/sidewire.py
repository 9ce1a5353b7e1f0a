"""Parameters and side information of a scheme in a message: two maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import LEAF_DTYPES, leaf_dtype
from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes.contract import MAX_SIDE_PARTS, MAX_TEXT, Value
from quiver_kernels.tensors import byte_view

# What an array of a NumPy type is called.
_NAMES = {dtype: name for name, dtype in LEAF_DTYPES.items()}


def fields(parameters: Mapping[str, Value], side: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The keys ``parameters`` and ``side`` of a message; large arrays are views."""
    parts = {
        name: [_NAMES[array.dtype], byte_view(np.ascontiguousarray(array))]
        for name, array in side.items()
    }
    return {"parameters": dict(parameters), "side": parts}


def arrays(side: Mapping[str, tuple[str, memoryview]], where: str) -> dict[str, NDArray[Any]]:
    """The arrays of side information, sharing the message's memory.

    Raises
    ------
    InvalidInput
        Too many, a name too long, an unknown type, or bytes that are no whole number of items.
    """
    name = f"{where}side"
    if len(side) > MAX_SIDE_PARTS or any(not 0 < len(key) <= MAX_TEXT for key in side):
        raise InvalidInput(
            f"{name} must have at most {MAX_SIDE_PARTS} parts with names of 1..{MAX_TEXT} "
            f"characters; got {len(side)}",
            code="invalid_option",
            field=name,
        )
    return {key: _array(*part, f"{name}.{key}") for key, part in side.items()}


def _array(kind: str, data: memoryview, name: str) -> NDArray[Any]:
    dtype = leaf_dtype(kind, f"{name}[0]")
    if data.nbytes % dtype.itemsize:
        raise InvalidInput(
            f"{name} must hold whole {kind} numbers of {dtype.itemsize} bytes; "
            f"got {data.nbytes} bytes",
            code="size_mismatch",
            field=name,
        )
    return np.frombuffer(data, dtype=np.uint8).view(dtype)
