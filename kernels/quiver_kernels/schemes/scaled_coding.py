"""Tables with scales on the CPU: parts of a vector to codes and back, by kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu import chunking
from quiver_kernels.cpu import decode as lookup
from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.cpu.encode import DRAWN, MOST_PLACED, TILE, encode_blocks
from quiver_kernels.cpu.intervals import interval_table
from quiver_kernels.cpu.pack import pack_blocks, pack_eights, pack_pairs
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.rounding import rounding_table
from quiver_kernels.schemes.scaled import (
    Packing,
    closed,
    decoded_rows,
    spans,
    sums_of,
    thresholds,
)
from quiver_kernels.schemes.scaled_kernels import place_nearest, saturate
from quiver_kernels.sharing import run_parts

Rows = Callable[[slice], NDArray[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Job:
    """A vector to be rounded to rows of levels.

    Attributes
    ----------
    x, block, num_levels, unit
        The vector, flat; values per row; entries of a row; `scaled.unit_of`.
    rows_of
        The decoded rows of some blocks.
    packing
        Of the codes.
    """

    x: NDArray[Any]
    block: int
    num_levels: int
    unit: float
    rows_of: Rows
    packing: Packing

    def payload(self) -> NDArray[np.uint8]:
        """Room for the packed codes."""
        return np.empty(self.packing.size(self.x.size, self.block), np.uint8)

    def spans(self) -> list[tuple[int, int]]:
        """Parts that fit in memory."""
        return spans(self.x.size, self.block, self.num_levels)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Decoded rows of the blocks of a part."""
        return self.rows_of(slice(start // self.block, -(-stop // self.block)))


def encode_nearest(job: Job, ties_up: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], float, float]:
    """Codes of the nearest levels, packed; squared error and norm."""
    packed = job.payload()

    def encode_span(span: tuple[int, int]) -> Floats:
        start, stop = span
        rows = frozen(job.rows(start, stop))
        values = chunking.piece(job.x, start, stop)
        size = min(job.block, values.size)
        codes = np.empty(-(-values.size // 8) * 8, np.uint8)
        codes[values.size :] = 0
        limits = frozen(thresholds(rows, ties_up))
        sums = np.empty((len(rows), 2))
        place_nearest(values, size, limits, rows, job.unit, codes, sums)
        job.packing.pack(codes, values.size, start, job.block, packed)
        return closed(sums)

    return packed, *sums_of(run_parts(job.spans(), encode_span))


def encode_at_random(job: Job, seed: int) -> tuple[NDArray[np.uint8], float, float]:
    """Codes of neighbouring levels by the elements' random words, packed; error and norm."""
    packed = job.payload()

    def encode_span(span: tuple[int, int]) -> Floats:
        start, stop = span
        rows = frozen(job.rows(start, stop))
        values = chunking.piece(job.x, start, stop)
        size = min(job.block, values.size)
        inside, lost = np.empty(values.size, values.dtype), np.empty((len(rows), 2))
        saturate(values, size, rows, job.unit, inside, lost)
        codes = np.empty(-(-values.size // 8) * 8, np.uint8)
        codes[values.size :] = 0
        lost[:, 0] += round_rows(inside, size, start, rows, job.unit, seed, codes)
        job.packing.pack(codes, values.size, start, job.block, packed)
        return closed(lost)

    return packed, *sums_of(run_parts(job.spans(), encode_span))


def round_rows(
    inside: NDArray[Any],
    block: int,
    first_index: int,
    rows: NDArray[Any],
    unit: float,
    seed: int,
    codes: NDArray[np.uint8],
) -> Floats:
    """Round values within `rows` without bias; the expected squared error of each block.

    Parameters
    ----------
    inside
        Values of whole blocks of `block` values, or a piece of one, of the type of `rows`.
    first_index
        Of the first value in the vector: its random word's number.
    codes
        Out: one a byte.
    """
    table = rounding_table(rows)
    values = inside if table.narrow else inside.astype(np.float64)
    guessed = 1 if table.narrow and rows.shape[1] <= MOST_PLACED else block
    intervals = interval_table(table.levels, guessed)
    sums = np.empty((len(rows), 2))
    encode_blocks(
        frozen(values),
        block,
        first_index,
        frozen(table.levels),
        frozen(table.inverse),
        None if table.narrow else frozen(table.scale),
        intervals.inner,
        intervals.cells,
        intervals.guess,
        intervals.first_step,
        np.uint64(seed),
        np.uint64(0),
        frozen(np.empty(0, np.uint32)),
        1,
        unit,
        np.empty((2, TILE + DRAWN), np.uint32),
        np.empty(TILE, np.uint16),
        np.empty((4, TILE), values.dtype),
        np.empty((2, TILE)),
        codes,
        sums,
    )
    # A row whose entries coincide has no error, but for rounding.
    return np.maximum(sums[:, 0], 0.0)


def pack_part(
    codes: NDArray[np.uint8], size: int, piece: int, bits: int, out: NDArray[np.uint8]
) -> None:
    """Pack `size` codes of whole blocks of `piece` values into `out`; spoils them.

    `codes` has room for a multiple of 8, zeros behind the last.
    """
    if bits == 8:
        out[:] = codes[:size]
    elif piece * bits % 8 and size > piece:
        pack_blocks(codes[:size], piece, bits, out)
    elif bits == 4:
        pack_pairs(codes.view(np.uint16), out)
    else:
        pack_eights(codes.view(np.uint64), bits, out)


def unpack_part(packed: NDArray[np.uint8], size: int, piece: int, bits: int) -> NDArray[np.uint8]:
    """The `size` codes that `pack_part` packed."""
    if bits == 8:
        return packed
    if piece * bits % 8 and size > piece:
        codes = np.empty(size, np.uint8)
        lookup.unpack_blocks(frozen(packed), bits, piece, 0, codes)
        return codes
    eights = np.empty(-(-size // 8), np.uint64)
    if bits == 4:
        lookup.unpack_pairs(frozen(packed), eights.view(np.uint16))
    else:
        lookup.unpack_eights(frozen(packed), bits, eights)
    return eights.view(np.uint8)[:size]


def look_up(
    codes: NDArray[np.uint8], rows: NDArray[Any], offset: int, block: int, out: NDArray[Any]
) -> None:
    """Write what codes that begin at element `offset` of the first row's block decode to."""
    # Entries are moved as bits, so that bfloat16, unknown to Numba, needs no kernel of its own.
    raw = np.dtype(f"u{out.dtype.itemsize}")
    tables = frozen(rows.astype(out.dtype).view(raw))
    lookup.look_up(frozen(codes), tables, block, offset, out.view(raw))


def warm_up(table: Floats, packing: Packing) -> None:
    """Compile all kernels for vectors of every type; tables of any length share them."""
    for dtype in WIRE_DTYPES.values():
        x = np.linspace(-1.0, 1.0, 9).astype(dtype)

        def rows_of(part: slice, name: str = dtype.name) -> NDArray[Any]:
            return decoded_rows(table, np.ones(part.stop - part.start), name)

        # Blocks that end within a byte are packed by a kernel of their own.
        for block in (x.size, 3):
            job = Job(x, block, table.size, 1.0, rows_of, packing)
            encode_at_random(job, 1)
            codes, _, _ = encode_nearest(job, np.ones(table.size - 1, np.bool_))
            packing.unpack(codes, 0, x.size, block)
            rows = job.rows(0, x.size)
            look_up(np.zeros(x.size, np.uint8), rows, 0, block, np.empty_like(x))
    # Tables whose gaps leave float32's middle range are rounded in float64.
    tiny = np.array([[-1e-40, 0, 1e-40]], np.float32)
    round_rows(np.zeros(3, np.float32), 3, 0, tiny, 1.0, 1, np.zeros(8, np.uint8))
