"""Codes of one byte each packed without gaps, and packed blocks that end within a byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import kernel


@kernel
def pack_pairs(pairs: NDArray[np.uint16], packed: NDArray[np.uint8]) -> None:
    """Pack codes of 4 bits without a gap: two, the first in the low byte, are one byte."""
    for i in range(packed.size):
        packed[i] = np.uint8(pairs[i] | pairs[i] >> np.uint16(4))


@kernel
def pack_eights(eights: NDArray[np.uint64], bits: int, packed: NDArray[np.uint8]) -> None:
    """Pack codes of `bits` bits without a gap: eight, the first in the low byte, are `bits` bytes.

    Neighbours move together, then pairs of them, then fours. Spoils `eights`.
    """
    one, two, four = np.uint64(8 - bits), np.uint64(16 - 2 * bits), np.uint64(32 - 4 * bits)
    for g in range(eights.size):
        w = eights[g]
        w = (w & np.uint64(0x00FF00FF00FF00FF)) | ((w & np.uint64(0xFF00FF00FF00FF00)) >> one)
        w = (w & np.uint64(0x0000FFFF0000FFFF)) | ((w & np.uint64(0xFFFF0000FFFF0000)) >> two)
        w = (w & np.uint64(0x00000000FFFFFFFF)) | ((w & np.uint64(0xFFFFFFFF00000000)) >> four)
        eights[g] = w
    for i in range(bits):
        column = packed[i::bits]
        for g in range(column.size):
            column[g] = np.uint8(eights[g] >> np.uint64(8 * i))


@kernel
def pack_blocks(
    codes: NDArray[np.uint8], block_size: int, bits: int, packed: NDArray[np.uint8]
) -> None:
    """Pack blocks that end within a byte: each begins on a byte of its own."""
    stride = (block_size * bits + 7) // 8
    for place in range(packed.size):
        packed[place] = 0
    for i in range(codes.size):
        bit = i % block_size * bits
        place = i // block_size * stride + bit // 8
        word = np.uint64(codes[i]) << np.uint64(bit % 8)
        packed[place] |= np.uint8(word)
        if bit % 8 + bits > 8:
            packed[place + 1] |= np.uint8(word >> np.uint64(8))
