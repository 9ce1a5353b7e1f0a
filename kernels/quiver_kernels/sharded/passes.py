"""Levels and codes of a vector in shards: which steps, in which order, and what joins them.

The solver is the one of vectors in memory (`streaming.streamed_levels`), over a `Stream` whose
passes are steps at all shards. It sees the same integers, so it finds the same levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells, Cut, loosened, replaced
from quiver_kernels.checks import Range, given_table
from quiver_kernels.cpu import approx, chunking, coding, exact, solving
from quiver_kernels.cpu.compile import Floats
from quiver_kernels.cpu.sorting import ascending
from quiver_kernels.cpu.summary import Flags
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.partition import Partition, layout_of
from quiver_kernels.sharded import steps
from quiver_kernels.sharded.holders import Handle, Progress, Shards, Step
from quiver_kernels.sharded.steps import Extent


@dataclass(frozen=True, slots=True)
class Crew:
    """The shards, and who is told of what is done to them."""

    shards: Shards
    progress: Progress

    def started(
        self, step: Step | Sequence[Step | None], beside: Sequence[Any] | None = None
    ) -> list[tuple[Handle, ...]]:
        """Begin a step at every shard."""
        count = len(self.shards)
        work = list(step) if isinstance(step, Sequence) else [step] * count
        return self.shards.run(work, [()] * count if beside is None else beside)

    def fetched(self, stage: str, handles: Sequence[Handle]) -> list[Any]:
        """Their results here."""
        self._wait(stage, handles)
        return self.shards.fetch(handles)

    def joined(self, stage: str, step: Step, join: Callable[[list[Any]], Any]) -> Any:
        """A step's results at all shards, joined in a tree."""
        parts = [handle for (handle,) in self.started(step)]
        joined = self.shards.join(join, parts)
        self._wait(stage, parts)
        return self.shards.fetch([joined])[0]

    def _wait(self, stage: str, handles: Sequence[Handle]) -> None:
        count = len(handles)
        self.shards.wait(handles, lambda done: self.progress(stage, done, count))

    def measured(self, most: int) -> list[Extent]:
        """Every shard's `Extent`."""
        handles = [handle for (handle,) in self.started(steps.Measure(most))]
        return self.fetched("measure", handles)

    def gathered(self, size: int) -> NDArray[Any]:
        """The vector, here."""
        step = steps.Take(0, size)
        values: NDArray[Any] = self.joined("collect", step, steps.JoinValues())
        return values


@dataclass(frozen=True, slots=True)
class ShardStream:
    """A `streaming.Stream` of a vector in shards."""

    crew: Crew
    whole: Extent

    @property
    def size(self) -> int:
        """See `Stream`."""
        return self.whole.size

    @property
    def bounds(self) -> Range:
        """See `Stream`."""
        return Range(self.whole.low, self.whole.high)

    def count(self, cells: int) -> Cells:
        """See `Stream`."""
        low, high = self.whole.low, self.whole.high
        layout = layout_of(WIRE_DTYPES[self.whole.dtype])
        partition = Partition.of(low, high, cells, layout)
        found: Cells = self.crew.joined(
            "count", steps.Count(partition, low, high), steps.JoinCells()
        )
        _require_same(found.size, self.whole.size)
        return found

    def outline(self, cells: int) -> Cells:
        """See `Stream`."""
        return loosened(self.count(cells))

    def collect(self, cells: Cells, chosen: Flags) -> tuple[NDArray[Any], Floats]:
        """See `Stream`."""
        step = steps.Collect(cells, chosen)
        values: NDArray[Any] = self.crew.joined("collect", step, steps.JoinValues())
        _require_same(values.size, int(cells.count[chosen].sum()))
        return values, chunking.NO_WEIGHTS

    def refine(self, cells: Cells, chosen: Flags, bits: int) -> Cells:
        """See `Stream`."""
        cut = Cut.of(cells, chosen, bits)
        pieces = self.crew.joined("refine", steps.Refine(cut), steps.JoinPieces(cut))
        _require_same(pieces.size, int(cells.count[chosen].sum()))
        return replaced(cells, chosen, pieces)


def whole_of(extents: Sequence[Extent], most: int) -> Extent:
    """The vector's extent, with at most `most` distinct values."""
    return steps.JoinExtents(most)(extents)


def solve(
    crew: Crew,
    extents: Sequence[Extent],
    whole: Extent,
    options: QuantizeOptions,
    most_gathered: int,
) -> NDArray[Any]:
    """The level table as `solving.solve` finds it, in its type, shape (s,)."""
    bounds = Range(whole.low, whole.high)
    if options.levels is not None:
        return given_table(options.levels, whole.dtype, bounds, weighted=False)
    table = _levels(crew, extents, whole, options, most_gathered)
    snapped: NDArray[Any] = solving.snapped(table[np.newaxis, :], whole.dtype)[0]
    return snapped


def _levels(
    crew: Crew,
    extents: Sequence[Extent],
    whole: Extent,
    options: QuantizeOptions,
    most_gathered: int,
) -> Floats:
    bounds, uniform = Range(whole.low, whole.high), options.method == "uniform"
    if options.num_levels == 2 and not uniform:
        return np.array([whole.low, whole.high])
    if options.sorts(whole.size):
        return _sorted_levels(crew, extents, bounds, options)
    if whole.distinct is not None:
        return exact.padded(np.array(whole.distinct), options.num_levels)
    if uniform:
        return approx.grid_points(bounds, options.num_levels)
    if options.method == "approx" and options.grid == "uniform":
        share = steps.Share(bounds.low, bounds.high, options.bins + 1)
        return solving.levels_on_grid(
            crew.joined("share", share, steps.JoinShares()), bounds, options
        )
    levels = solving.stream_levels(ShardStream(crew, whole), options)
    if levels is not None:
        return levels
    if whole.size > most_gathered:
        raise InvalidInput(
            f"shards: the search for levels met ties, and only vectors of up to {most_gathered} "
            f"values may be sorted here (most_gathered); got {whole.size}: use method approx",
            code="too_many_elements",
            field="most_gathered",
        )
    return _sorted_levels(crew, extents, bounds, options)


def _sorted_levels(
    crew: Crew, extents: Sequence[Extent], bounds: Range, options: QuantizeOptions
) -> Floats:
    """Of few values: they are brought here."""
    flat = crew.gathered(max(extent.size for extent in extents))
    _require_same(flat.size, sum(extent.size for extent in extents))
    values, weights = ascending(flat, chunking.NO_WEIGHTS)
    return solving.ordered_levels(values, bounds, options, weights)


def encode(
    crew: Crew,
    extents: Sequence[Extent],
    whole: Extent,
    options: QuantizeOptions,
    table: NDArray[Any],
) -> tuple[list[Handle], float]:
    """Handles of the packed codes, in order, and the expected error over the squared norm.

    A chunk of the vector is encoded where it begins. So codes end on a byte at every shard, and
    the sums are those of the chunks of one vector.
    """
    plan = cut_at_chunks([extent.size for extent in extents])
    work = [
        steps.Encode(
            part.lends,
            part.first,
            whole.size,
            whole.low,
            whole.high,
            options,
            table,
            _seed_of(options),
        )
        if part.encodes
        else None
        for part in plan
    ]
    results = _with_what_is_lent(crew, plan, work)
    sums = crew.fetched("encode", [sums for _, sums in results])
    _require_same(
        sum(len(rows) for rows in sums), -(-whole.size // chunking.CHUNK), "chunks encoded"
    )
    return [codes for codes, _ in results], _ratio(sums)


def quantize_blocks(
    crew: Crew, extents: Sequence[Extent], whole: Extent, options: QuantizeOptions
) -> tuple[list[Handle], float, NDArray[Any]]:
    """Handles of the packed codes, the expected error over the squared norm, and all tables.

    A block is quantized where it begins, so each one is seen whole in one place.
    """
    assert options.block_size is not None
    block = min(options.block_size, whole.size)
    plan = cut_at_chunks([extent.size for extent in extents], block)
    work = [
        steps.QuantizeBlocks(
            part.lends, part.first, whole.size, whole.low, whole.high, options, _seed_of(options)
        )
        if part.encodes
        else None
        for part in plan
    ]
    results = _with_what_is_lent(crew, plan, work)
    sums = crew.fetched("encode", [sums for _, sums, _ in results])
    tables = np.concatenate(crew.shards.fetch([levels for _, _, levels in results]))
    _require_same(len(tables), -(-whole.size // block), "blocks quantized")
    return [codes for codes, _, _ in results], _ratio(sums), tables


def _with_what_is_lent(
    crew: Crew, plan: Sequence[Part], work: Sequence[Step | None]
) -> list[tuple[Handle, ...]]:
    """Results of the shards where something begins."""
    takes = [steps.Take(0, part.lends) if part.lends else None for part in plan]
    lent = crew.started(takes)
    beside = [[lent[number][0] for number in part.borrows] for part in plan]
    return [found for found in crew.started(work, beside) if found]


def _ratio(sums: list[Floats]) -> float:
    error, norm = coding.column_sums(sums)
    return max(error, 0.0) / norm if norm > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """A shard's part in encoding.

    Attributes
    ----------
    lends
        Values at its begin that belong to a chunk of a shard before it.
    first
        Index in the vector of the value behind these.
    encodes
        Whether a chunk begins in it.
    borrows
        Shards that hold the rest of its last chunk, in order.
    """

    lends: int
    first: int
    encodes: bool
    borrows: tuple[int, ...]


def cut_at_chunks(sizes: Sequence[int], chunk: int = chunking.CHUNK) -> list[Part]:
    """Who encodes what of shards of these sizes; each chunk is encoded where it begins."""
    stops = np.cumsum(sizes, dtype=object).tolist()
    parts = []
    for number, (size, stop) in enumerate(zip(sizes, stops, strict=True)):
        start = stop - size
        first = -(-start // chunk) * chunk
        lends = min(first - start, size)
        encodes = first < stop
        borrows = []
        if encodes:
            end = -(-stop // chunk) * chunk
            behind = number + 1
            while behind < len(sizes) and stops[behind] - sizes[behind] < end:
                borrows.append(behind)
                behind += 1
        parts.append(Part(lends, first, encodes, tuple(borrows)))
    return parts


def _require_same(got: int, wanted: int, what: str = "values found") -> None:
    if got != wanted:
        raise InvalidInput(
            f"shards must not change while they are quantized: {what} must be {wanted}; got {got}",
            code="size_mismatch",
            field="shards",
        )


def _seed_of(options: QuantizeOptions) -> int:
    assert options.seed is not None  # the caller drew one
    return options.seed
