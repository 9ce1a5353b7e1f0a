"""Entropy coding of a payload: its codes, or its bytes, where that pays."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.packing import pack_codes, packed_size, unpack_codes
from quiver_kernels.schemes import entropy
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import checkpoint
from quiver_kernels.wrapping.parts import CODES, Packed

# More than the message's key and map take.
_ROOM = 64
# Symbols as the entropy coder takes them, codes of one byte, and packed ones.
_BYTES_PER_SYMBOL = 5


def coded(
    codes: NDArray[np.uint8], size: int, bits: int, block_size: int | None
) -> tuple[NDArray[np.uint8], Packed] | None:
    """The payload of `size` codes in fewer bytes, as a stream; None if that makes no message less.

    Parameters
    ----------
    codes
        Any payload. If it has as many bytes as packed codes of so many bits, those are coded;
        else its bytes are.
    """
    symbols = _as_codes(codes, size, bits, block_size)
    how = Packed("bytes", codes.size) if symbols is None else Packed("codes", codes.size)
    walk = _walk(how, bits)
    wide = (codes if symbols is None else symbols).astype(np.uint16)
    checkpoint()
    counts = entropy.count(wide, walk)
    if entropy.table_cost(counts) + _ROOM > codes.size:
        return None
    stream = entropy.encode(wide, walk, counts=counts)
    return (stream, how) if stream.size + _ROOM <= codes.size else None


def check(
    stream: NDArray[np.uint8], how: Packed, size: int, bits: int, block_size: int | None, where: str
) -> None:
    """Refuse a stream whose sizes do not fit; takes no more memory than it has bytes.

    `where` prefixes field names in errors.
    """
    if how.symbols == CODES:
        expected = packed_size(size, bits, block_size)
        if how.size != expected:
            field = f"{where}wrap.entropy.size"
            raise InvalidInput(
                f"{field} must be {expected} for {size} codes of {bits} bits; got {how.size}",
                code="size_mismatch",
                field=field,
            )
    _open(stream, how, size, bits, f"{where}codes")


def payload(
    stream: NDArray[np.uint8], how: Packed, size: int, bits: int, block_size: int | None
) -> NDArray[np.uint8]:
    """What `coded` was given; the parts of a stream are decoded by idle threads, too.

    Raises
    ------
    InvalidInput
        ``invalid_codes``: `coded` never makes such a stream.
    """
    check(stream, how, size, bits, block_size, "")
    opened = _open(stream, how, size, bits, "codes")
    symbols = np.empty(opened.size, np.uint8)

    def decode_span(span: tuple[int, int]) -> None:
        start = span[0] * opened.chunk
        part = opened.decode(*span)
        symbols[start : start + part.size] = part

    run_parts(opened.spans(), decode_span)
    if how.symbols == CODES:
        return _packed(symbols, bits, block_size)
    return symbols


def working_bytes(size: int, payload_bytes: int) -> int:
    """Bytes that either direction takes beside its result; an upper bound."""
    return _BYTES_PER_SYMBOL * max(size, payload_bytes) + (1 << 20)


def _open(
    stream: NDArray[np.uint8], how: Packed, size: int, bits: int, field: str
) -> entropy.Stream:
    count = size if how.symbols == CODES else how.size
    return entropy.open_stream(stream, count, _walk(how, bits), field)


def _walk(how: Packed, bits: int) -> entropy.Walk:
    return entropy.Walk.single(1 << bits if how.symbols == CODES else 256)


def _as_codes(
    packed: NDArray[np.uint8], size: int, bits: int, block_size: int | None
) -> NDArray[np.uint8] | None:
    """The codes of a payload; None if it is something else."""
    if packed.size != packed_size(size, bits, block_size):
        return None
    codes = _unpacked(packed, size, bits, block_size)
    # Schemes may have bits behind the last code of a block.
    return codes if np.array_equal(_packed(codes, bits, block_size), packed) else None


def _unpacked(
    packed: NDArray[np.uint8], size: int, bits: int, block_size: int | None
) -> NDArray[np.uint8]:
    kernels = _kernels()
    if kernels is None:
        return unpack_codes(packed, size, bits, block_size)
    block = min(block_size or size, size)
    found: NDArray[np.uint8] = kernels.unpack_part(packed, size, block, bits)
    return found


def _packed(codes: NDArray[np.uint8], bits: int, block_size: int | None) -> NDArray[np.uint8]:
    kernels = _kernels()
    if kernels is None:
        return pack_codes(codes, bits, block_size)
    block = min(block_size or codes.size, codes.size)
    # The kernel reads eight codes at a time.
    padded = np.zeros(-(-codes.size // 8) * 8, np.uint8)
    padded[: codes.size] = codes
    out = np.empty(packed_size(codes.size, bits, block_size), np.uint8)
    kernels.pack_part(padded, codes.size, block, bits, out)
    return out


def _kernels() -> Any:
    """The CPU's packing, or None where Numba is not installed."""
    # By name: kernels stand above what reads messages.
    if importlib.util.find_spec("numba") is None:
        return None
    return importlib.import_module("quiver_kernels.schemes.scaled_coding")
