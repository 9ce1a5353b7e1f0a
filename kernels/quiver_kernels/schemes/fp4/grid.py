"""The numbers of E2M1, and how codes of them are packed.

A code is sign, two bits of exponent, one of mantissa, as hardware has it: 0..7 are 0, .5, 1, 1.5,
2, 3, 4, 6, and 8..15 their negatives. Code 8 is -0; it is read as 0 and never written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes import scaled

TOP = 6.0
BITS = 4
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, TOP)


def by_code() -> NDArray[np.float64]:
    """What each of the 16 codes stands for; zeros have no sign."""
    magnitudes = np.array(_MAGNITUDES)
    return np.concatenate([magnitudes, 0.0 - magnitudes])


def ascending() -> NDArray[np.float64]:
    """The 15 numbers, ascending, shape (15,)."""
    magnitudes = np.array(_MAGNITUDES)
    return np.concatenate([-magnitudes[:0:-1], magnitudes])


def ties_up() -> NDArray[np.bool_]:
    """Whether midpoints of neighbours among `ascending` go up: to the even mantissa.

    Magnitudes of even codes have mantissa 0. So do counts from the lowest, -6 being the seventh.
    """
    return scaled.ties_to_even(ascending().size, first=1 - len(_MAGNITUDES))


def _codes() -> NDArray[np.uint8]:
    """The code of each of `ascending`, and zeros behind: room that packing may fill."""
    half = len(_MAGNITUDES)
    negative = np.arange(2 * half - 1, half, -1)
    return np.concatenate([negative, np.arange(half)]).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class E2M1:
    """Places among `ascending`, packed as codes of four bits, the first in the low half."""

    def size(self, count: int, block_size: int | None) -> int:
        """See `scaled.Packing`."""
        return self._bits.size(count, block_size)

    def pack(
        self, codes: NDArray[np.uint8], size: int, start: int, block: int, packed: NDArray[np.uint8]
    ) -> None:
        """See `scaled.Packing`."""
        codes[:size] = _codes()[codes[:size]]
        self._bits.pack(codes, size, start, block, packed)

    def unpack(
        self, packed: NDArray[np.uint8], start: int, stop: int, block: int
    ) -> NDArray[np.uint8]:
        """The codes themselves, places among `by_code`."""
        return self._bits.unpack(packed, start, stop, block)

    @property
    def _bits(self) -> scaled.Bits:
        return scaled.Bits(BITS)
