"""Ascending integers in few bytes: gaps as varints, seven bits a byte, least significant first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput

# Gaps are below 2^42: positions in a vector of at most 2^40 values.
_MAX_BYTES = 6


def encode_ascending(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The first index, then each distance from the one before less 1, as varints; uint8."""
    gaps = np.diff(indices, prepend=np.int64(-1)) - 1
    places = np.arange(_MAX_BYTES)
    groups = (gaps[:, np.newaxis] >> (7 * places)) & 0x7F
    used = np.maximum(1, (gaps[:, np.newaxis] >> (7 * places) > 0).sum(axis=1))
    more = places < used[:, np.newaxis] - 1
    encoded = (groups | (more << 7)).astype(np.uint8)
    return np.ascontiguousarray(encoded[places < used[:, np.newaxis]])


def decode_ascending(
    data: memoryview, count: int, size: int, field: str = "indices"
) -> NDArray[np.int64]:
    """The `count` indices below `size` that `encode_ascending` wrote; O(bytes).

    Raises
    ------
    InvalidInput
        Not exactly `count` varints, one longer than needed, or an index not below `size`.
    """
    flat = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(flat < 0x80)
    if ends.size != count or count > size or (count and ends[-1] != flat.size - 1):
        raise InvalidInput(
            f"{field} must hold {count} varints, one for each value, at most {size}; "
            f"got {ends.size} in {flat.size} bytes",
            code="size_mismatch",
            field=field,
        )
    lengths = np.diff(ends, prepend=np.int64(-1))
    # The last byte of a longer one is not 0: there is one way to write a number.
    if count and (lengths.max() > _MAX_BYTES or bool(((flat[ends] == 0) & (lengths > 1)).any())):
        raise InvalidInput(
            f"{field} must be varints of the fewest bytes, at most {_MAX_BYTES}; got a longer one",
            code="invalid_option",
            field=field,
        )
    starts = ends - lengths + 1
    shifts = 7 * (np.arange(flat.size) - np.repeat(starts, lengths))
    gaps = np.add.reduceat((flat & 0x7F).astype(np.int64) << shifts, starts) if count else ends
    # In float64 first: their sum may not fit 63 bits.
    if float(gaps.sum(dtype=np.float64)) + count > size:
        raise InvalidInput(
            f"{field} must be below {size}; got one beyond", code="invalid_option", field=field
        )
    found: NDArray[np.int64] = np.cumsum(gaps + 1) - 1
    return found
