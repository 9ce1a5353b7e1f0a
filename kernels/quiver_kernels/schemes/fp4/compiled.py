"""Blocks of E2M1 numbers by the kernels, for float32 and float64; needs Numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.packing import num_blocks
from quiver_kernels.schemes import scaled
from quiver_kernels.schemes.fp4 import grid
from quiver_kernels.schemes.fp4.kernels import block_tops, decode_blocks, encode_blocks
from quiver_kernels.sharing import run_parts


def takes(dtype: str) -> bool:
    """Whether there are kernels for a wire type."""
    return dtype in ("float32", "float64")


def tops(x: NDArray[Any], block: int) -> Floats:
    """As `magnitudes.tops`."""
    found = np.zeros(num_blocks(x.size, block))

    def span(part: tuple[int, int]) -> tuple[int, Floats]:
        start, stop = part
        own = np.empty(-(-(stop - start) // block))
        block_tops(frozen(x[start:stop]), block, own)
        return start // block, own

    for first, own in run_parts(_spans(x.size, block), span):
        np.maximum(found[first : first + own.size], own, out=found[first : first + own.size])
    return found


def encode(x: NDArray[Any], scales: Floats, block: int, dtype: str, unit: float) -> scaled.Rounded:
    """As `scaled.encode` to the nearest, ties to even."""
    packed = np.empty(grid.E2M1().size(x.size, block), np.uint8)
    magnitudes, largest = frozen(grid.by_code()[:8]), scaled.largest(dtype)

    def span(part: tuple[int, int]) -> Floats:
        start, stop = part
        own = frozen(scales[start // block : -(-stop // block)])
        sums = np.empty((own.size, 2))
        out = packed[_byte(start, block) :]
        encode_blocks(frozen(x[start:stop]), block, magnitudes, own, largest, unit, out, sums)
        return sums

    return scaled.Rounded(packed, *scaled.sums_of(run_parts(_spans(x.size, block), span)))


def decode(codes: NDArray[np.uint8], scales: Floats, block: int, out: NDArray[Any]) -> None:
    """Fill `out`, of float32 or float64."""
    numbers, largest = frozen(grid.by_code()), scaled.largest(out.dtype.name)

    def span(part: tuple[int, int]) -> None:
        start, stop = part
        own = frozen(scales[start // block : -(-stop // block)])
        packed = frozen(codes[_byte(start, block) : _byte(stop - 1, block) + 1])
        decode_blocks(packed, block, numbers, own, largest, out[start:stop])

    run_parts(_spans(out.size, block), span)


def warm_up() -> None:
    """Compile the kernels."""
    for dtype in ("float32", "float64"):
        x = np.ones(3, dtype)
        done = encode(x, tops(x, 2), 2, dtype, 1.0)
        decode(done.codes, np.ones(2), 2, np.empty_like(x))


def _spans(size: int, block: int) -> list[tuple[int, int]]:
    return scaled.spans(size, block, 2)


def _byte(index: int, block: int) -> int:
    """Of a value's code."""
    return index // block * (-(-block // 2)) + index % block // 2
