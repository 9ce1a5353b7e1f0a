"""Levels of whole vectors and of blocks: which solver, over which chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range
from quiver_kernels.cpu import approx, chunking, exact, streaming
from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, widen, wire_name
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.packing import num_blocks

# Blocks up to this length are solved many at a time, longer ones by a call for each.
_SHORT = 4096


def solve(
    x: NDArray[Any], bounds: Range, options: QuantizeOptions, weights: Floats
) -> NDArray[Any]:
    """Level table(s) of `x` in its levels' type: shape (s,), or (blocks, s) with a block size."""
    name = wire_name(x.dtype)
    weights = _scaled(weights)
    if options.block_size is None:
        table = _table_levels(x.reshape(-1), bounds, options, weights)[np.newaxis, :]
    else:
        table = _block_levels(x.reshape(-1), options, weights)
    # Levels must be values of the vector's own type: decoding is then exact, and unbiased.
    snapped = table.astype(WIRE_DTYPES[name]).astype(levels_dtype(name))
    return snapped[0] if options.block_size is None else snapped


def _scaled(weights: Floats) -> Floats:
    """Weights times a power of two: no optimum changes, and no sum leaves float64."""
    if weights.size == 0:
        return weights
    exponent = -math.frexp(float(weights.max()))[1]
    return np.ldexp(weights, exponent)


def _table_levels(
    flat: NDArray[Any], bounds: Range, options: QuantizeOptions, weights: Floats
) -> Floats:
    """Levels of one table over all of `flat`."""
    streamed = options.streams(flat.size)
    if options.method in ("exact", "accelerated") and not streamed:
        return _sorted_levels(flat, options, weights)
    levels = np.empty(options.num_levels)
    count = 0
    for _, part in chunking.chunks(flat):
        count = approx.few_distinct(part, levels, count)
        if count < 0:
            break
    if count > 0:
        levels[count:] = levels[count - 1]
        return levels
    if streamed:
        return streamed_levels(flat, bounds, options, weights)
    if options.method == "uniform":
        return approx.grid_points(bounds, options.num_levels)
    grid = np.zeros(options.bins + 1)
    for start, part in chunking.chunks(flat):
        part_weights = chunking.slice_weights(weights, start, part.size)
        approx.add_to_grid(part, part_weights, bounds.low, bounds.high, bounds.unit, grid)
    points = np.arange(grid.size, dtype=np.float64)
    chosen = exact.solve_row(points, grid, options.num_levels, accelerated=False)
    return approx.grid_points(bounds, grid.size)[chosen.astype(np.int64)]


def _grid_levels(
    rows: NDArray[Any], weights: Floats, options: QuantizeOptions, levels: Floats
) -> None:
    """Levels of many short rows by ``approx`` or ``uniform``, without a call for each."""
    points = options.bins + 1 if options.method == "approx" else 0
    step = max(1, chunking.CHUNK // max(points, 1))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
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


def _sorted_levels(flat: NDArray[Any], options: QuantizeOptions, weights: Floats) -> Floats:
    rows, row_weights = _sorted_rows(flat[np.newaxis, :], weights[np.newaxis, :])
    accelerated = options.method == "accelerated"
    return exact.solve_row(rows[0], row_weights[0], options.num_levels, accelerated)


def streamed_levels(
    flat: NDArray[Any], bounds: Range, options: QuantizeOptions, weights: Floats
) -> Floats:
    """Exact levels of a vector that is too long to sort."""
    if options.num_levels == 2:
        return np.array([bounds.low, bounds.high])
    parts = (part for _, part in chunking.chunks(flat))
    found = streaming.streamed_levels(
        lambda: _sorted_chunks(flat, weights),
        streaming.take_sample(parts, flat.size, options.num_levels),
        bounds.unit,
        options.num_levels,
    )
    if found is None or not exact.accepted(found[1]):
        return _sorted_levels(flat, options, weights)
    return found[0]


def _block_levels(flat: NDArray[Any], options: QuantizeOptions, weights: Floats) -> Floats:
    """Levels of every block: shape (blocks, s)."""
    assert options.block_size is not None
    levels = np.empty((num_blocks(flat.size, options.block_size), options.num_levels))
    small = min(options.block_size, flat.size) * options.num_levels <= exact.SMALL_WORK
    for start, rows in chunking.block_rows(flat, options.block_size):
        first = start // options.block_size
        out = levels[first : first + len(rows)]
        row_weights = chunking.slice_weights(weights, start, rows.size).reshape(len(rows), -1)
        if options.method in ("exact", "accelerated") and small:
            ordered = _sorted_rows(rows, row_weights)
            exact.solve_small_rows(*ordered, options.method == "accelerated", out)
            continue
        if options.method not in ("exact", "accelerated") and rows.shape[1] <= _SHORT:
            _grid_levels(rows, row_weights, options, out)
            continue
        for row, row_weight, target in zip(rows, row_weights, out, strict=True):
            bounds = Range(float(row.min()), float(row.max()))
            target[:] = _table_levels(row, bounds, options, row_weight)
    return levels


def _sorted_rows(rows: NDArray[Any], weights: Floats) -> tuple[Floats, Floats]:
    """Every row ascending, as float64, with its weights in the same order."""
    if weights.size:
        order = np.argsort(rows, axis=1, kind="stable")
        ordered = np.take_along_axis(rows, order, axis=1)
        weights = np.take_along_axis(weights, order, axis=1)
    else:
        # Sorting before widening to float64 is twice as fast.
        ordered = np.sort(widen(rows), axis=1)
    return frozen(ordered.astype(np.float64)), frozen(weights)


def _sorted_chunks(flat: NDArray[Any], weights: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Chunks of `flat`, each ascending as float64, with their weights in the same order."""
    for start, part in chunking.chunks(flat):
        rows, row_weights = _sorted_rows(
            part[np.newaxis, :], chunking.slice_weights(weights, start, part.size)[np.newaxis, :]
        )
        yield rows[0], row_weights[0]
