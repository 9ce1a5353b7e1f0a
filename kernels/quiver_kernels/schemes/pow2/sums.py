"""Sums of vectors of powers of two in integers: exact, whatever the order. Plain NumPy.

In units of a block's least power a decoded value is a whole number, a shifted 1. Integers add
without rounding, so the sum does not depend on who came first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes import scaled
from quiver_kernels.schemes.pow2 import exponents
from quiver_kernels.stopping import checkpoint
from quiver_kernels.wrapping.around import require_plain

_ROOM = 62
_FAR = 1 << 20


@dataclass(frozen=True, eq=False, slots=True)
class PowerSum:
    """A sum of vectors.

    Attributes
    ----------
    sums
        Whole numbers, flat, int64.
    units
        For each block the exponent of the power of two that 1 stands for.
    block
        Values per block.
    """

    sums: NDArray[np.int64]
    units: NDArray[np.int64]
    block: int

    def values(self) -> NDArray[np.float64]:
        """The sum in float64: rounded once, exact up to 2^53 units."""
        out = np.empty(self.sums.size)
        for start, stop in scaled.spans(out.size, self.block, 2):
            units = self.units[np.arange(start, stop) // self.block]
            own = self.sums[start:stop].astype(np.float64)
            out[start:stop] = np.ldexp(own, units.astype(np.int32))
        return out


def power_sum(vectors: Sequence[QuantizedVector]) -> PowerSum:
    """The sum of vectors of one shape and block size, encoded by ``pow2``.

    Parameters
    ----------
    vectors
        At least one; types, bits and top exponents may differ.

    Raises
    ------
    InvalidInput
        Another method, shapes or blocks that differ, or exponents so far apart that the sum would
        not fit int64.
    """
    if not vectors:
        raise InvalidInput(
            "vectors must hold at least one quantized vector; got none",
            code="empty_vector",
            field="vectors",
        )
    first = vectors[0]
    for number, q in enumerate(vectors):
        name = f"vectors[{number}]"
        method = q.method if q.is_scheme else f"{q.method} without parameters"
        scaled.require(method == "pow2", name, "must be of method pow2", method)
        require_plain(q, name)
        same = (q.shape, q.block_size) == (first.shape, first.block_size)
        scaled.require(same, name, "must have the shape and block size of the first", list(q.shape))
    block = scaled.block_of(first.size, first.block_size)
    used = [_used(q, block) for q in vectors]
    tops = [q.side[exponents.TOPS].astype(np.int64) for q in vectors]
    # Blocks of zeros count with any exponent.
    most = np.maximum.reduce(
        [np.where(some, top, -_FAR) for top, some in zip(tops, used, strict=True)]
    )
    units = np.minimum.reduce(
        [
            np.where(some, top - exponents.magnitudes(q.num_levels) + 1, _FAR)
            for q, top, some in zip(vectors, tops, used, strict=True)
        ]
    )
    units = np.where(most > -_FAR, units, 0)
    most = np.maximum(most, units)
    width = int((most - units).max()) + (len(vectors) - 1).bit_length()
    scaled.require(
        width <= _ROOM,
        "vectors",
        f"must have exponents whose sum fits {_ROOM} bits",
        width,
        "invalid_codes",
    )
    total = np.zeros(first.size, np.int64)
    for q, top in zip(vectors, tops, strict=True):
        _add(q, top, units, block, total)
    return PowerSum(total, units, block)


def _used(q: QuantizedVector, block: int) -> NDArray[np.bool_]:
    """For each block whether it holds anything but zeros."""
    found = np.zeros(q.side[exponents.TOPS].size, np.bool_)
    signs, _ = exponents.signs_and_offsets(q.num_levels)
    for start, codes in _codes(q, block):
        found[(start + np.flatnonzero(signs[codes])) // block] = True
    return found


def _add(
    q: QuantizedVector,
    tops: NDArray[np.int64],
    units: NDArray[np.int64],
    block: int,
    total: NDArray[np.int64],
) -> None:
    signs, offsets = exponents.signs_and_offsets(q.num_levels)
    whole = signs.astype(np.int64)
    for start, codes in _codes(q, block):
        blocks = np.arange(start, start + codes.size) // block
        power = offsets[codes] + tops[blocks]
        # What lies below the least number of the vector's type is decoded to zero.
        counted = np.where(power >= exponents.least(q.dtype), whole[codes], 0)
        shifts = np.where(counted != 0, power - units[blocks], 0)
        total[start : start + codes.size] += counted << shifts


def _codes(q: QuantizedVector, block: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    packing = scaled.Bits(q.bits)
    for start, stop in scaled.spans(q.size, block, q.num_levels):
        checkpoint()
        yield start, packing.unpack(q.codes, start, stop, block)
