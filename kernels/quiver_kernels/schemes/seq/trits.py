"""Ternary codes, five to a byte: 1.6 bits per value. Plain NumPy.

A byte is ``c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4``, below 243; each block begins on a byte, and what
its last byte lacks counts as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.scaled import require

_PER_BYTE = 5
_POWERS = (1, 3, 9, 27, 81)
_BYTES = 243

Codes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Trits:
    """See `scaled.Packing`."""

    def size(self, count: int, block_size: int | None) -> int:
        """See `scaled.Packing`."""
        if block_size is None or block_size >= count:
            return -(-count // _PER_BYTE)
        full, rest = divmod(count, block_size)
        return full * -(-block_size // _PER_BYTE) + -(-rest // _PER_BYTE)

    def pack(self, codes: Codes, size: int, start: int, block: int, packed: Codes) -> None:
        """See `scaled.Packing`."""
        piece = min(block, size)
        begin = _begin(start, block)
        full, rest = divmod(size, piece)
        stride = -(-piece // _PER_BYTE)
        end = begin + full * stride
        packed[begin:end] = _bytes(codes[: full * piece].reshape(full, piece))
        if rest:
            tail = codes[np.newaxis, full * piece : size]
            packed[end : end + -(-rest // _PER_BYTE)] = _bytes(tail)

    def unpack(self, packed: Codes, start: int, stop: int, block: int) -> Codes:
        """See `scaled.Packing`.

        Raises
        ------
        InvalidInput
            A byte is no five codes (``invalid_codes``).
        """
        size = stop - start
        piece = min(block, size)
        begin = _begin(start, block)
        full, rest = divmod(size, piece)
        stride = -(-piece // _PER_BYTE)
        own = packed[begin : begin + full * stride + -(-rest // _PER_BYTE)]
        most = int(own.max())
        require(most < _BYTES, "codes", f"must be bytes below {_BYTES}", most, "invalid_codes")
        fives: Codes = _fives()[own]
        rows = fives[: full * stride].reshape(full, stride * _PER_BYTE)
        head: Codes = rows[:, :piece].reshape(-1)
        if not rest:
            return head
        return np.concatenate([head, fives[full * stride :].reshape(-1)[:rest]])


def _begin(start: int, block: int) -> int:
    """Where the byte of element `start` is; within a block a multiple of five."""
    return start // block * -(-block // _PER_BYTE) + start % block // _PER_BYTE


def _bytes(rows: Codes) -> Codes:
    """Bytes of codes in rows, each from a byte of its own on."""
    lack = -rows.shape[1] % _PER_BYTE
    if lack:
        rows = np.concatenate([rows, np.zeros((len(rows), lack), np.uint8)], axis=1)
    fives = rows.reshape(-1, _PER_BYTE)
    out = fives[:, 0].copy()
    for place in range(1, _PER_BYTE):
        out += fives[:, place] * np.uint8(_POWERS[place])
    return out


def _fives() -> Codes:
    """The codes of each byte, shape (243, 5)."""
    digits = np.arange(_BYTES)[:, np.newaxis] // np.array(_POWERS) % 3
    fives: Codes = digits.astype(np.uint8)
    return fives
