"""Vectors to points and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import levels_dtype, wire_name
from quiver_kernels.packing import pack_codes, packed_size, unpack_codes
from quiver_kernels.schemes.tcq.points import (
    Floats,
    assigned,
    codes_of,
    fitted,
    indices_of,
    tally,
)
from quiver_kernels.schemes.trellis.machine import Machine
from quiver_kernels.sharing import run_parts

CHUNK = 1 << 12
"""Values after which the trellis begins anew, where no block size says otherwise."""
# Values of a part, unless a chunk is larger.
_PART = 1 << 15
# Values of a chunk, whatever the block size: parts are to be bounded.
MAX_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """How a vector is cut.

    Attributes
    ----------
    bits
        Of a code.
    block_size
        As the message says: blocks begin on a byte, and the trellis begins anew.
    machine
        The trellis.
    """

    bits: int
    block_size: int | None
    machine: Machine

    @property
    def chunk(self) -> int:
        """Values after which the trellis begins anew."""
        return CHUNK if self.block_size is None else min(self.block_size, MAX_CHUNK)

    def spans(self, size: int) -> list[tuple[int, int]]:
        """Parts of whole chunks."""
        width = max(1, _PART // self.chunk) * self.chunk
        return [(start, min(start + width, size)) for start in range(0, size, width)]

    def bytes_before(self, start: int) -> int:
        """Bytes of the codes of the chunks before value `start`."""
        return start // self.chunk * ((self.chunk * self.bits + 7) // 8)


def encode(
    x: NDArray[Any], unit: float, layout: Layout
) -> tuple[NDArray[Any], NDArray[np.uint8], float]:
    """Points, packed codes, and squared error over squared norm, of a vector that is not zero.

    Each point is the mean of its values, so the error is below the norm as soon as one of them is
    not zero.
    """
    count = 2 << layout.bits
    first = fitted(x, count, unit, layout.machine)
    points, codes, found = _encoded(x, first, unit, layout)
    if found >= 1:
        # Points next to zero: the path follows the signs, so that the means are not zero.
        points, codes, found = _encoded(x, np.linspace(-1e-6, 1e-6, count), unit, layout)
    return points, codes, found


def decode(
    codes: NDArray[np.uint8], size: int, points: NDArray[Any], layout: Layout, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """The decoded vector, flat: points rounded once to its type."""
    decoded = np.empty(size, dtype)
    with np.errstate(over="ignore"):
        table = points.astype(dtype)

    def decode_span(span: tuple[int, int]) -> None:
        start, stop = span
        part = codes[layout.bytes_before(start) :]
        found = unpack_codes(
            part[: packed_size(stop - start, layout.bits, layout.chunk)],
            stop - start,
            layout.bits,
            layout.chunk,
        )
        decoded[start:stop] = table[indices_of(found, layout.chunk, layout.machine)]

    run_parts(layout.spans(size), decode_span)
    return decoded


def packed_rows(codes: NDArray[np.uint8], bits: int, chunk: int) -> NDArray[np.uint8]:
    """As `packing.pack_codes`, all chunks at once."""
    full = codes.size // chunk
    rows = codes[: full * chunk].reshape(full, chunk, 1)
    spread = np.unpackbits(rows, axis=2, count=bits, bitorder="little").reshape(full, chunk * bits)
    head = np.packbits(spread, axis=1, bitorder="little").reshape(-1)
    rest = codes[full * chunk :]
    return np.concatenate([head, pack_codes(rest, bits)]) if rest.size else head


def _encoded(
    x: NDArray[Any], first: Floats, unit: float, layout: Layout
) -> tuple[NDArray[Any], NDArray[np.uint8], float]:
    """Codes by the points `first`, then points at the means of their values, and the error."""
    indices = np.empty(x.size, np.uint16)
    packed = np.empty(packed_size(x.size, layout.bits, layout.chunk), np.uint8)

    def place(span: tuple[int, int]) -> tuple[Floats, Floats]:
        start, stop = span
        values = x[start:stop].astype(np.float64) * unit
        part = assigned(values, first, layout.chunk, layout.machine)
        indices[start:stop] = part
        row = packed_rows(codes_of(part), layout.bits, layout.chunk)
        begin = layout.bytes_before(start)
        packed[begin : begin + row.size] = row
        return tally(values, part, first.size)

    sums = run_parts(layout.spans(x.size), place)
    counts = np.sum([count for count, _ in sums], axis=0)
    means = np.sum([total for _, total in sums], axis=0) / np.maximum(counts, 1)
    # A point that no value has is as good as any: nothing is sent of it.
    kept = levels_dtype(wire_name(x.dtype))
    points = (np.where(counts > 0, means, 0.0) / unit).astype(kept)
    decoded = points.astype(x.dtype).astype(np.float64) * unit

    def errors_of(span: tuple[int, int]) -> tuple[float, float]:
        values = x[slice(*span)].astype(np.float64) * unit
        off = values - decoded[indices[slice(*span)]]
        return float(np.square(off).sum()), float(np.square(values).sum())

    errors = run_parts(layout.spans(x.size), errors_of)
    norm = math.fsum(norm for _, norm in errors)
    return points, packed, math.fsum(error for error, _ in errors) / norm
