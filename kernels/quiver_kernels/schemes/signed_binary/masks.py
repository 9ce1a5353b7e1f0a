"""Which values are kept, as bits: codes of ascending rows, turned round where the sign is minus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.scaled import Bits


@dataclass(frozen=True, eq=False, slots=True)
class Masks:
    """See `scaled.Packing`.

    Attributes
    ----------
    negative
        For each block whether its scale is below zero: its ascending row is (scale, 0).
    """

    negative: NDArray[np.bool_]

    def size(self, count: int, block_size: int | None) -> int:
        """See `scaled.Packing`."""
        return Bits(1).size(count, block_size)

    def pack(
        self, codes: NDArray[np.uint8], size: int, start: int, block: int, packed: NDArray[np.uint8]
    ) -> None:
        """See `scaled.Packing`."""
        codes[:size] ^= self.negative[np.arange(start, start + size) // block]
        Bits(1).pack(codes, size, start, block, packed)

    def unpack(
        self, packed: NDArray[np.uint8], start: int, stop: int, block: int
    ) -> NDArray[np.uint8]:
        """See `scaled.Packing`: bits, 1 for what is kept."""
        return Bits(1).unpack(packed, start, stop, block)
