"""Levels of whole vectors and of blocks: which solver, over which chunks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells, may_be_loose
from quiver_kernels.checks import Range, finite_range, given_table, require_values
from quiver_kernels.cpu import approx, chunking, exact
from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.cpu.sorting import ascending
from quiver_kernels.cpu.streaming import (
    ChunkStream,
    Stream,
    best_of_cells,
    outline_cells,
    streamed_levels,
)
from quiver_kernels.cpu.survey import Plan, Survey, Surveyed, first_pass
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, widen, wire_name
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.packing import num_blocks
from quiver_kernels.partition import layout_of
from quiver_kernels.stopping import STEP, checkpoint, slices

# Blocks up to this length are solved many at a time, longer ones by a call for each.
_SHORT = 4096


def plan_of(
    size: int, dtype: np.dtype[Any], options: QuantizeOptions, *, weighted: bool = False
) -> Plan:
    """What `solve` can use of a first pass over a vector, besides its range."""
    one_table = options.block_size is None and options.levels is None and options.num_levels > 2
    streams = options.method in ("exact", "approx") and not options.spaces_evenly
    if weighted or not one_table or not streams or options.sorts(size):
        return Plan()
    if options.method == "approx":
        return Plan(_approx_cells(options), False, options.num_levels)
    layout = layout_of(dtype)
    cells = outline_cells(size, options.num_levels)
    if cells is None:
        return Plan()
    return Plan(cells, may_be_loose(layout, weighted=False), options.num_levels)


def survey_for(flat: NDArray[Any], options: QuantizeOptions) -> Survey:
    """A survey of what `surveyed` finds in a vector."""
    return Survey(flat, plan_of(flat.size, flat.dtype, options))


def surveyed(
    x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None = None
) -> Surveyed:
    """The range of `x`, and what else of a pass over it is of use; errors as of `finite_range`."""
    if x.size <= chunking.CHUNK:
        # A second pass over it finds it in the processor's cache.
        return Surveyed(finite_range(x))
    require_values(x, "vector")
    plan = plan_of(x.size, x.dtype, options, weighted=weights is not None)
    return first_pass(x.reshape(-1), plan)


def solve(
    x: NDArray[Any],
    bounds: Range,
    options: QuantizeOptions,
    weights: Floats,
    known: Cells | None = None,
) -> NDArray[Any]:
    """Level table(s) of `x` in its levels' type: shape (s,), or (blocks, s) with a block size.

    `known`: cells that were counted when the range was found.
    """
    name = wire_name(x.dtype)
    if options.levels is not None:
        return given_table(options.levels, name, bounds, weighted=weights.size > 0)
    weights = scaled(weights)
    if options.block_size is None:
        table = _table_levels(x.reshape(-1), bounds, options, weights, known)[np.newaxis, :]
    else:
        table = _block_levels(x.reshape(-1), options, weights)
    levels = snapped(table, name)
    return levels[0] if options.block_size is None else levels


def snapped(table: Floats, dtype: str) -> NDArray[Any]:
    """Levels as values of the vector's own type: decoding is then exact, and unbiased.

    Zero is written without a sign: which of -0 and 0 is the least is a matter of their order.
    """
    levels = chunking.converted(table, WIRE_DTYPES[dtype], levels_dtype(dtype))
    for part in slices(len(levels), max(1, STEP // levels.shape[1])):
        np.add(levels[part], 0.0, out=levels[part])
    return levels


def scaled(weights: Floats) -> Floats:
    """Weights times a power of two: no optimum changes, and no sum leaves float64."""
    if weights.size == 0:
        return weights
    largest = max(float(weights[part].max()) for part in slices(weights.size))
    exponent = -math.frexp(largest)[1]
    found = np.empty(weights.size)
    for part in slices(weights.size):
        np.ldexp(weights[part], exponent, out=found[part])
    return found


def _table_levels(
    flat: NDArray[Any],
    bounds: Range,
    options: QuantizeOptions,
    weights: Floats,
    known: Cells | None = None,
) -> Floats:
    """Levels of one table over all of `flat`."""
    if options.num_levels == 2 and options.method != "uniform":
        return np.array([bounds.low, bounds.high])
    if options.sorts(flat.size):
        return _sorted_levels(flat, bounds, options, weights)
    few = _few_distinct(flat, options.num_levels)
    if few is not None:
        return few
    if options.method == "uniform":
        return approx.grid_points(bounds, options.num_levels)
    if options.method == "approx" and options.grid == "uniform":
        return _grid_levels(flat, bounds, options, weights)
    levels = streamed(flat, bounds, options, weights, known)
    return _sorted_levels(flat, bounds, options, weights) if levels is None else levels


def streamed(
    flat: NDArray[Any],
    bounds: Range,
    options: QuantizeOptions,
    weights: Floats,
    known: Cells | None = None,
) -> Floats | None:
    """Levels by ``exact`` or ``approx`` in passes over the values; None where the proof fails."""
    return stream_levels(stream_of(flat, bounds, weights, known), options)


def stream_levels(stream: Stream, options: QuantizeOptions) -> Floats | None:
    """As `streamed`, of a vector wherever it lies."""
    if options.method == "approx":
        return best_of_cells(stream.count(_approx_cells(options)), options.num_levels)
    found = streamed_levels(stream, options.num_levels)
    if found is None or not exact.accepted(found.certificate):
        return None
    return exact.padded(np.unique(found.levels), options.num_levels)


def _approx_cells(options: QuantizeOptions) -> int:
    """Cells whose ends are the candidates of ``approx``."""
    return 2 * options.bins


def stream_of(
    flat: NDArray[Any], bounds: Range, weights: Floats, known: Cells | None = None
) -> ChunkStream:
    """A vector as the streaming solver takes it, with cells that were counted before."""
    chunks = chunking.Chunks(flat, weights)
    layout = layout_of(flat.dtype)
    return ChunkStream(chunks, flat.size, bounds, layout, weights.size > 0, known)


def _few_distinct(flat: NDArray[Any], num_levels: int) -> Floats | None:
    """The distinct values, the last repeated, if there are at most `num_levels`."""
    levels = np.empty(num_levels)
    count = 0
    for _, part in chunking.chunks(flat):
        count = approx.few_distinct(part, levels, count)
        if count < 0:
            return None
    levels[count:] = levels[count - 1]
    return levels


def _grid_levels(
    flat: NDArray[Any], bounds: Range, options: QuantizeOptions, weights: Floats
) -> Floats:
    """The best levels on a uniform grid (Apx. QUIVER)."""
    grid = np.zeros(options.bins + 1)
    for start, part in chunking.chunks(flat):
        part_weights = chunking.slice_weights(weights, start, part.size)
        approx.add_to_grid(part, part_weights, bounds.low, bounds.high, bounds.unit, grid)
    return levels_on_grid(grid, bounds, options)


def levels_on_grid(grid: Floats, bounds: Range, options: QuantizeOptions) -> Floats:
    """The best levels among the points of a uniform grid with these weights."""
    points = np.arange(grid.size, dtype=np.float64)
    unit = 0.5 ** math.frexp(options.bins)[1]
    chosen = exact.solve_row(points, grid, unit, options.num_levels, accelerated=False)
    return approx.grid_points(bounds, grid.size)[chosen.astype(np.int64)]


def _rows_on_grid(
    rows: NDArray[Any], weights: Floats, options: QuantizeOptions, levels: Floats
) -> None:
    """Levels of many short rows by ``approx`` or ``uniform``, without a call for each."""
    rows = np.require(widen(rows), requirements="A")
    points = options.bins + 1 if options.method == "approx" else 0
    # The programme over the grid takes longest, where there is one.
    work = points * options.num_levels if points else rows.shape[1]
    for part in slices(len(rows), max(1, exact.LARGE_WORK // work)):
        count = len(rows[part])
        ends, grids, done = np.empty((count, 2)), np.empty((count, points)), np.empty(count, bool)
        approx.split_rows(
            frozen(rows[part]), frozen(weights[part]), ends, grids, levels[part], done
        )
        low, high = ends[~done, :1], ends[~done, 1:]
        if points:
            places = np.tile(np.arange(points, dtype=np.float64), (int((~done).sum()), 1))
            chosen = np.empty((len(places), options.num_levels))
            exact.solve_small_rows(frozen(places), frozen(grids[~done]), False, chosen)
            share = chosen / options.bins
        else:
            share = np.arange(options.num_levels) / (options.num_levels - 1)
        levels[part][~done] = approx.between(low, high, share)


def _sorted_levels(
    flat: NDArray[Any], bounds: Range, options: QuantizeOptions, weights: Floats
) -> Floats:
    values, weights = ascending(flat, weights)
    checkpoint()
    return ordered_levels(values, bounds, options, weights)


def ordered_levels(
    values: NDArray[Any], bounds: Range, options: QuantizeOptions, weights: Floats
) -> Floats:
    """Levels of ascending `values`, float32 or float64, with their weights (empty: ones)."""
    accelerated = options.method == "accelerated"
    return exact.solve_row(
        frozen(values), frozen(weights), bounds.unit, options.num_levels, accelerated
    )


def _block_levels(flat: NDArray[Any], options: QuantizeOptions, weights: Floats) -> Floats:
    """Levels of every block: shape (blocks, s)."""
    assert options.block_size is not None
    levels = np.empty((num_blocks(flat.size, options.block_size), options.num_levels))
    size = min(options.block_size, flat.size)
    small = size * options.num_levels <= exact.SMALL_WORK
    for start, rows in chunking.block_rows(flat, options.block_size):
        first = start // options.block_size
        out = levels[first : first + len(rows)]
        row_weights = chunking.slice_weights(weights, start, rows.size).reshape(len(rows), -1)
        if options.sorts(size) and small:
            _solve_sorted_rows(rows, row_weights, options, out)
            continue
        if size <= _SHORT and options.spaces_evenly:
            _rows_on_grid(rows, row_weights, options, out)
            continue
        for row, row_weight, target in zip(rows, row_weights, out, strict=True):
            checkpoint()
            bounds = _row_range(row)
            target[:] = _table_levels(row, bounds, options, row_weight)
    return levels


def _solve_sorted_rows(
    rows: NDArray[Any], weights: Floats, options: QuantizeOptions, levels: Floats
) -> None:
    """Levels of short rows, as many at a time as take some 10 ms."""
    accelerated = options.method == "accelerated"
    step = max(1, exact.LARGE_WORK // (rows.shape[1] * options.num_levels))
    for part in slices(len(rows), step):
        ordered, in_order = _sorted_rows(rows[part], weights[part])
        exact.solve_small_rows(
            frozen(ordered.astype(np.float64)), in_order, accelerated, levels[part]
        )


def _row_range(row: NDArray[Any]) -> Range:
    if row.size > chunking.CHUNK:
        return finite_range(row)
    return Range(float(row.min()), float(row.max()))


def _sorted_rows(rows: NDArray[Any], weights: Floats) -> tuple[NDArray[Any], Floats]:
    """Every row ascending, as float32 or float64, with its weights in the same order."""
    rows = widen(rows)
    if weights.size:
        order = np.argsort(rows, axis=1, kind="stable")
        ordered = np.take_along_axis(rows, order, axis=1)
        return frozen(ordered), frozen(np.take_along_axis(weights, order, axis=1))
    return frozen(np.sort(rows, axis=1)), frozen(weights)
