"""Codes to bytes and back in plain NumPy: `bits` per value, least significant bit first.

The layout equals ``numpy.packbits(..., bitorder="little")`` of the codes' bits. Every
block starts on a byte. The compiled backends write the same bytes faster.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def packed_size(size: int, bits: int, block_size: int | None = None) -> int:
    """Bytes of `size` codes of `bits` bits in blocks of `block_size` values (None: one block)."""
    if block_size is None or block_size >= size:
        return (size * bits + 7) // 8
    full, rest = divmod(size, block_size)
    return full * ((block_size * bits + 7) // 8) + (rest * bits + 7) // 8


def num_blocks(size: int, block_size: int | None) -> int:
    """Number of level tables of a vector of `size` values."""
    return 1 if block_size is None else -(-size // block_size)


def pack_codes(
    codes: NDArray[np.uint8], bits: int, block_size: int | None = None
) -> NDArray[np.uint8]:
    """Pack one code per element, shape (d,), into bytes, shape (packed_size,)."""
    if block_size is None or block_size >= codes.size:
        return _pack_run(codes, bits)
    runs = [
        _pack_run(codes[start : start + block_size], bits)
        for start in range(0, codes.size, block_size)
    ]
    return np.concatenate(runs)


def unpack_codes(
    packed: NDArray[np.uint8], size: int, bits: int, block_size: int | None = None
) -> NDArray[np.uint8]:
    """Inverse of `pack_codes`: `size` codes, one per element."""
    if block_size is None or block_size >= size:
        return _unpack_rows(packed[np.newaxis, :], size, bits).reshape(-1)
    full, rest = divmod(size, block_size)
    stride = (block_size * bits + 7) // 8
    head = packed[: full * stride].reshape(full, stride)
    codes = _unpack_rows(head, block_size, bits).reshape(-1)
    if rest:
        tail = _unpack_rows(packed[np.newaxis, full * stride :], rest, bits)
        codes = np.concatenate([codes, tail.reshape(-1)])
    return codes


def _pack_run(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return codes.copy()
    return np.packbits(_to_bits(codes, bits).reshape(-1), bitorder="little")


def _to_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    return np.unpackbits(codes[:, np.newaxis], axis=1, count=bits, bitorder="little")


def _unpack_rows(rows: NDArray[np.uint8], per_row: int, bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return rows[:, :per_row].copy()
    flat = np.unpackbits(rows, axis=1, count=per_row * bits, bitorder="little")
    return np.packbits(flat.reshape(-1, bits), axis=1, bitorder="little").reshape(len(rows), -1)
