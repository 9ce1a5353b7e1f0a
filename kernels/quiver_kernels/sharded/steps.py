"""What is done to one shard of a vector, where it lies, and how such results are joined.

Steps and joins are plain values that may be sent to another process. A step gets the shard's
values, and what it asked for of other shards. All sums are integers, or closed per chunk of the
whole vector, so the results do not depend on how the vector was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.api import as_vector
from quiver_kernels.cells import Cells, Cut, merge_details, stacked, summed
from quiver_kernels.checks import Range, finite_range
from quiver_kernels.cpu import approx, chunking, coding, solving
from quiver_kernels.cpu import cells as counting
from quiver_kernels.cpu.compile import Floats
from quiver_kernels.dtypes import wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.partition import Partition

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Extent:
    """What one shard, or several, say of themselves first.

    Attributes
    ----------
    size, dtype
        Number of values, and the wire name of their type.
    low, high
        Least and greatest value.
    distinct
        The distinct values, ascending; None: more than asked for.
    """

    size: int
    dtype: str
    low: float
    high: float
    distinct: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Measure:
    """Step: the shard's `Extent`, with at most `most` distinct values."""

    most: int
    outputs: int = 1

    def __call__(self, shard: Values) -> Extent:
        """One pass."""
        flat = _flat(shard)
        bounds = finite_range(flat, "shard")
        distinct = _distinct(flat, self.most)
        return Extent(flat.size, wire_name(flat.dtype), bounds.low, bounds.high, distinct)


@dataclass(frozen=True, slots=True)
class Count:
    """Step: the shard's `Cells`, of a partition of the whole vector from `low` to `high`."""

    partition: Partition
    low: float
    high: float
    outputs: int = 1

    def __call__(self, shard: Values) -> Cells:
        """One pass."""
        return counting.count(
            _chunks(shard, self.low, self.high), self.partition, self.low, self.high
        )


@dataclass(frozen=True, slots=True)
class Refine:
    """Step: the pieces of a cut that the shard's values fall into."""

    cut: Cut
    outputs: int = 1

    def __call__(self, shard: Values) -> Cells:
        """One pass."""
        return counting.count_pieces(_chunks(shard, self.cut.low, self.cut.high), self.cut)


@dataclass(frozen=True, slots=True)
class Collect:
    """Step: the shard's values in the rows `chosen` of the whole vector's cells."""

    cells: Cells
    chosen: NDArray[np.bool_]
    outputs: int = 1

    def __call__(self, shard: Values) -> Values:
        """One pass."""
        chunks = _chunks(shard, self.cells.low, self.cells.high)
        return counting.collect(chunks, self.cells, self.chosen)[0]


@dataclass(frozen=True, slots=True)
class Share:
    """Step: the weights of a uniform grid's points (`approx.add_to_grid`)."""

    low: float
    high: float
    points: int
    outputs: int = 1

    def __call__(self, shard: Values) -> Floats:
        """One pass."""
        chunks = _chunks(shard, self.low, self.high)
        bounds, grid = Range(self.low, self.high), np.zeros(self.points)
        for number in range(len(chunks)):
            values, weights = chunks[number]
            approx.add_to_grid(values, weights, bounds.low, bounds.high, bounds.unit, grid)
        return grid


@dataclass(frozen=True, slots=True)
class Take:
    """Step: a copy of the shard's values from `start` to `stop`."""

    start: int
    stop: int
    outputs: int = 1

    def __call__(self, shard: Values) -> Values:
        """O(stop - start)."""
        return _flat(shard)[self.start : self.stop].copy()


@dataclass(frozen=True, slots=True)
class Encode:
    """Step: packed codes of the chunks that begin in the shard, and the sums of each chunk.

    Attributes
    ----------
    skip
        Values at the shard's begin that belong to a chunk of a shard before it.
    first
        Index in the vector of the value behind them, a multiple of ``chunking.CHUNK``.
    size
        Values of the vector.
    low, high
        Its range.
    options, levels, seed
        As for `coding.encode`, of one table.
    """

    skip: int
    first: int
    size: int
    low: float
    high: float
    options: QuantizeOptions
    levels: NDArray[Any]
    seed: int
    outputs: int = 2

    def __call__(self, shard: Values, *rests: Values) -> tuple[NDArray[np.uint8], Floats]:
        """`rests`: what the last chunk has in the shards behind this one; one pass."""
        bounds, table = Range(self.low, self.high), np.atleast_2d(self.levels)
        packed, sums = [], []
        for start, values in _pieces(_flat(shard)[self.skip :], rests, chunking.CHUNK):
            part, found = coding.encode_part(
                values, self.first + start, self.size, bounds, self.options, table, self.seed
            )
            packed.append(part)
            sums += found
        whole = packed[0] if len(packed) == 1 else np.concatenate(packed)
        return whole, np.concatenate(sums)


@dataclass(frozen=True, slots=True)
class QuantizeBlocks:
    """Step: packed codes of the blocks that begin in the shard, their sums and their tables.

    Attributes
    ----------
    skip
        Values at the shard's begin that belong to a block of a shard before it.
    first
        Index in the vector of the value behind them, a multiple of the block size.
    size
        Values of the vector.
    low, high
        Its range.
    options, seed
        As for `coding.encode`, with a block size.
    """

    skip: int
    first: int
    size: int
    low: float
    high: float
    options: QuantizeOptions
    seed: int
    outputs: int = 3

    def __call__(self, shard: Values, *rests: Values) -> tuple[NDArray[np.uint8], Floats, Values]:
        """`rests`: what the last block has in the shards behind this one."""
        assert self.options.block_size is not None
        block = min(self.options.block_size, self.size)
        bounds = Range(self.low, self.high)
        packed, sums, tables = [], [], []
        for start, values in _pieces(_flat(shard)[self.skip :], rests, block):
            finite_range(values, "shard")
            levels = solving.solve(values, bounds, self.options, chunking.NO_WEIGHTS)
            part, found = coding.encode_part(
                values, self.first + start, block, bounds, self.options, levels, self.seed
            )
            packed.append(part)
            sums += found
            tables.append(levels)
        return np.concatenate(packed), np.concatenate(sums), np.concatenate(tables)


@dataclass(frozen=True, slots=True)
class JoinExtents:
    """Join: the `Extent` of several shards."""

    most: int

    def __call__(self, parts: Sequence[Extent]) -> Extent:
        """One of `parts` gives the type; the caller has seen that they agree."""
        found: set[float] | None = set()
        for part in parts:
            if found is not None:
                found = None if part.distinct is None else found.union(part.distinct)
        few = found is not None and len(found) <= self.most
        return Extent(
            sum(part.size for part in parts),
            parts[0].dtype,
            min(part.low for part in parts),
            max(part.high for part in parts),
            tuple(sorted(found)) if found is not None and few else None,
        )


@dataclass(frozen=True, slots=True)
class JoinCells:
    """Join: the cells of the union, of one partition."""

    def __call__(self, parts: Sequence[Cells]) -> Cells:
        """Exact, in any order."""
        return summed(stacked(parts))


@dataclass(frozen=True, slots=True)
class JoinPieces:
    """Join: the pieces of a cut over the union."""

    cut: Cut

    def __call__(self, parts: Sequence[Cells]) -> Cells:
        """Exact, in any order."""
        return merge_details(self.cut, parts)


@dataclass(frozen=True, slots=True)
class JoinShares:
    """Join: the weights of grid points added up."""

    def __call__(self, parts: Sequence[Floats]) -> Floats:
        """Exact for up to 2**33 values: shares are multiples of 2**-20."""
        total: Floats = np.sum(parts, axis=0)
        return total


@dataclass(frozen=True, slots=True)
class JoinValues:
    """Join: collected values, one after the other."""

    def __call__(self, parts: Sequence[Values]) -> Values:
        """In the order of the shards."""
        return np.concatenate(parts)


def _flat(shard: Values) -> Values:
    return as_vector(shard, "shard").reshape(-1)


def _pieces(flat: Values, rests: Sequence[Values], unit: int) -> Iterator[tuple[int, Values]]:
    """Offsets and values: whole units where they lie, and a last one copied together."""
    tail = flat.size // unit * unit if rests else flat.size
    if tail:
        yield 0, flat[:tail]
    if rests:
        yield tail, np.concatenate([flat[tail:], *rests])


def _chunks(shard: Values, low: float, high: float) -> chunking.Chunks:
    """The shard's chunks; the kernels trust that its values lie within the range."""
    flat = _flat(shard)
    bounds = finite_range(flat, "shard")
    if bounds.low < low or bounds.high > high:
        raise InvalidInput(
            f"shard must be what it was before, within [{low}, {high}]; "
            f"got [{bounds.low}, {bounds.high}]",
            code="invalid_option",
            field="shard",
        )
    return chunking.Chunks(flat, chunking.NO_WEIGHTS)


def _distinct(flat: Values, most: int) -> tuple[float, ...] | None:
    found = np.empty(most)
    count = 0
    for _, part in chunking.chunks(flat):
        count = approx.few_distinct(part, found, count)
        if count < 0:
            return None
    return tuple(found[:count].tolist())
