"""Arrays on the wire: a map ``{"dtype", "shape", "data"}`` with C-order little-endian data."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES, from_wire, wire_name
from quiver_kernels.errors import InvalidInput

MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**40


class TensorMessage(msgspec.Struct, forbid_unknown_fields=True):
    """The tensor map as it stands on the wire, before any check of its values."""

    dtype: str
    shape: list[int]
    data: memoryview


def tensor_fields(array: NDArray[Any], field: str = "vector") -> dict[str, Any]:
    """The tensor map of `array`; ``data`` is a view of it where its layout allows."""
    name = wire_name(array.dtype, field)
    flat = np.ascontiguousarray(array, dtype=WIRE_DTYPES[name]).reshape(-1)
    return {"dtype": name, "shape": list(array.shape), "data": byte_view(flat)}


def byte_view(flat: NDArray[Any]) -> memoryview:
    """The bytes of a one-dimensional contiguous array, read-only and uncopied."""
    return flat.view(np.uint8).data.toreadonly()


def to_array(message: TensorMessage, field: str = "vector") -> NDArray[Any]:
    """The array of a tensor map, sharing the message's memory (perhaps unaligned).

    Raises
    ------
    InvalidInput
        Unknown dtype, bad shape, or data whose length is not shape times item size.
    """
    dtype = from_wire(message.dtype, f"{field}.dtype")
    shape = check_shape(message.shape, f"{field}.shape")
    expected = math.prod(shape) * dtype.itemsize
    if message.data.nbytes != expected:
        raise InvalidInput(
            f"{field}.data must have {expected} bytes for shape {list(shape)} of "
            f"{message.dtype}; got {message.data.nbytes}",
            code="size_mismatch",
            field=f"{field}.data",
        )
    return np.frombuffer(message.data, dtype=np.uint8).view(dtype).reshape(shape)


def check_shape(shape: list[int], field: str) -> tuple[int, ...]:
    """`shape` as a tuple, after checking rank, signs and the number of elements."""
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidInput(
            f"{field} must have at most {MAX_DIMENSIONS} dimensions; got {len(shape)}",
            code="size_mismatch",
            field=field,
        )
    if any(n < 0 for n in shape):
        raise InvalidInput(
            f"{field} must not be negative; got {shape}", code="size_mismatch", field=field
        )
    if math.prod(shape) > MAX_ELEMENTS or any(n > MAX_ELEMENTS for n in shape):
        raise InvalidInput(
            f"{field} must have at most {MAX_ELEMENTS} elements; got {shape}",
            code="too_many_elements",
            field=field,
        )
    return tuple(shape)


def vector_from_bin(data: memoryview, field: str = "vector") -> NDArray[Any]:
    """A bare bin as a float32 vector, sharing its memory."""
    if data.nbytes % 4:
        raise InvalidInput(
            f"{field} given as bare bin holds float32 values, a multiple of 4 bytes; "
            f"got {data.nbytes}",
            code="size_mismatch",
            field=field,
        )
    return np.frombuffer(data, dtype=np.uint8).view(WIRE_DTYPES["float32"])
