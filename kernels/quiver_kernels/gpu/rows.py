"""Level tables of many short rows on a device, one block of threads for each: `source/rows.cu`.

Rows are blocks of a vector that have a table each, or whole short vectors. What a block of threads
cannot hold, and what the CPU solves by other means, has no mode here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.exact import SMALL_WORK
from quiver_kernels.gpu import sources
from quiver_kernels.gpu.device import Buffer, Device, Launch
from quiver_kernels.options import QuantizeOptions

# As in the source: threads of a block, what they tell each other, slots of 8 bytes for distinct
# values, float64 numbers for each point of a curve, levels.
_THREADS = 128
_FOUND = 568
_SLOTS = 1024
_NUMBERS = 7
_BLOCKS_PER_PROCESSOR = 8

MOST_SHARED = 64 << 10
"""Bytes of shared memory that a block of every card may have."""

MOST_POINTS = (MOST_SHARED - _FOUND) // (8 * _NUMBERS)
LONGEST = 1 << 16
"""Values of a row; more are too many for one block of threads."""

# Rows that the CPU, too, solves many at a time.
_SHORT = 4096

EVEN, GRID, SORTED = range(3)


@dataclass(frozen=True, slots=True)
class Rows:
    """A vector whose rows are to be solved.

    Attributes
    ----------
    size
        How many values it has.
    row
        Values that share a table; the last row may be shorter.
    num_levels
        Of each table.
    mode, points
        `EVEN`, `GRID` with so many points, or `SORTED`.
    """

    size: int
    row: int
    num_levels: int
    mode: int
    points: int

    @classmethod
    def of(cls, options: QuantizeOptions, size: int) -> Rows | None:
        """The rows of a vector, or None where its levels are not found here.

        With weights those of blocks only: the CPU adds up the weights of equal values of a single
        table in another order.
        """
        blocks = options.block_size is not None
        row = size if options.block_size is None else min(options.block_size, size)
        s, points, mode = options.num_levels, 0, EVEN
        if options.levels is not None or row > LONGEST:
            return None
        if options.spaces_evenly and options.method != "uniform":
            mode, points = GRID, options.bins + 1
            # With more work than this the CPU leaves a single table to another solver.
            if not (blocks and row <= _SHORT) and points * s > SMALL_WORK:
                return None
        elif options.method != "uniform":
            mode, points = SORTED, row
            ordered = options.sorts(row) and options.method != "accelerated"
            if not ordered or row * s > SMALL_WORK:
                return None
        if points > MOST_POINTS:
            return None
        return cls(size, row, s, mode, points)

    @property
    def count(self) -> int:
        """Number of tables."""
        return -(-self.size // self.row)


def launch(
    device: Device,
    values: Buffer,
    dtype: str,
    parts: Sequence[Rows],
    weights: Buffer | None = None,
    starts: Sequence[int] = (0,),
) -> Buffer:
    """Have the tables of all rows solved for; float64, one vector's after the other's.

    Parameters
    ----------
    values
        Of the wire type `dtype`, finite.
    parts
        At least one.
    weights
        One float64 number for each of the values, or None for ones.
    starts
        Where each of the vectors begins among the values.
    """
    counts = np.array([one.count for one in parts], np.uint64)
    levels = np.array([one.num_levels for one in parts], np.uint64)
    tasks = np.empty((len(parts), 8), np.uint64)
    tasks[:, 0] = starts
    tasks[:, 1] = [one.size for one in parts]
    tasks[:, 2] = [one.row for one in parts]
    tasks[:, 3] = np.cumsum(counts) - counts
    tasks[:, 4] = np.cumsum(counts * levels) - counts * levels
    tasks[:, 5] = levels
    tasks[:, 6] = [one.points for one in parts]
    tasks[:, 7] = [one.mode for one in parts]
    rows = int(counts.sum())
    out = device.allocate(8 * int((counts * levels).sum()))
    grid = min(rows, device.processors * _BLOCKS_PER_PROCESSOR)
    room = max(one.points * max(one.num_levels - 3, 0) for one in parts)
    most = max(one.points for one in parts)
    arguments = (
        values,
        np.uint32(sources.number_of(dtype)),
        weights,
        device.upload(tasks),
        np.uint32(len(parts)),
        np.uint64(rows),
        device.allocate(2 * grid * room) if room else None,
        np.uint64(room),
        out,
    )
    shared = _FOUND + max(8 * _NUMBERS * most, 8 * _SLOTS)
    device.launch(Launch("rows", "rows_solve", grid, _THREADS, arguments, shared=shared))
    return out


def solve(
    device: Device, values: Buffer, dtype: str, part: Rows, weights: Buffer | None = None
) -> NDArray[np.float64]:
    """Tables of a vector's rows, shape (rows, s), before they are rounded to its type."""
    found = np.empty((part.count, part.num_levels))
    device.download(launch(device, values, dtype, [part], weights), found)
    return found
