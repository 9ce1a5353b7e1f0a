"""Levels of a vector on a device: which solver, and what the device does for it.

Passes over the values and sorting are the device's; the search, over few cells or sorted values, is
the CPU's own code, so the levels are the CPU's bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells
from quiver_kernels.checks import Range, given_table
from quiver_kernels.cpu import approx, exact, solving
from quiver_kernels.cpu.chunking import NO_WEIGHTS
from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.cpu.streaming import Stream, best_of_cells
from quiver_kernels.dtypes import WIRE_DTYPES, widen
from quiver_kernels.gpu import ordering, rows
from quiver_kernels.gpu.device import Device
from quiver_kernels.gpu.grid import weights_on_grid
from quiver_kernels.gpu.passes import Vector, finite_range
from quiver_kernels.gpu.stream import MOST_COUNTED, DeviceStream
from quiver_kernels.gpu.weighing import WeighedStream, weighed_on_grid
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.stopping import checkpoint

# Shorter vectors are solved for by the CPU sooner than the device is asked.
SORT_FROM = 1 << 14
# Values looked at first for whether they are few distinct ones; then cells, cut up so often.
_SAMPLE = 1 << 12
_CELLS = 1 << 12
_BITS = 8


def solve(
    device: Device,
    vector: Vector,
    bounds: Range,
    options: QuantizeOptions,
    host: Callable[[], NDArray[Any]],
    weights: Floats = NO_WEIGHTS,
) -> NDArray[Any]:
    """Level table(s) of a vector, as `cpu.solving.solve` has them.

    Parameters
    ----------
    vector, bounds
        The values on the device, all finite, and their range.
    host
        Gives a copy of the vector in the host's memory; called where the CPU does all.
    weights
        One for each value, in the host's memory; or empty for ones.
    """
    if options.levels is not None:
        return given_table(options.levels, vector.dtype, bounds, weighted=weights.size > 0)
    if options.block_size is None:
        levels = _table(device, vector, bounds, options, weights)
        if levels is not None:
            return np.asarray(solving.snapped(levels[np.newaxis, :], vector.dtype)[0])
    elif (parts := rows.Rows.of(options, vector.size)) is not None:
        heavy = None
        if weights.size and parts.mode != rows.EVEN:
            heavy = device.upload(solving.scaled(weights))
        tables = rows.solve(device, vector.values, vector.dtype, parts, heavy)
        return np.asarray(solving.snapped(tables, vector.dtype))
    return solving.solve(host(), bounds, options, weights)


def _table(
    device: Device, vector: Vector, bounds: Range, options: QuantizeOptions, weights: Floats
) -> Floats | None:
    """Levels of one table, not yet rounded to the vector's type; None: the CPU's to find."""
    if options.num_levels == 2 and options.method != "uniform":
        return np.array([bounds.low, bounds.high])
    if options.sorts(vector.size):
        if vector.size < SORT_FROM or (weights.size and vector.size > MOST_COUNTED):
            return None
        return _sorted(device, vector, bounds, options, weights)
    if vector.size > MOST_COUNTED:
        return None
    stream = DeviceStream(device, vector, bounds)
    if options.method == "approx" and options.grid == "robust" and weights.size == 0:
        return _of_cells(stream, options)
    few = few_distinct(stream, options.num_levels)
    if few is not None:
        return few
    if options.method == "uniform":
        return approx.grid_points(bounds, options.num_levels)
    if options.method == "approx" and options.grid == "uniform":
        return solving.levels_on_grid(_on_grid(stream, options, weights), bounds, options)
    found: Stream = stream
    if weights.size:
        found = WeighedStream(device, vector, bounds, device.upload(solving.scaled(weights)))
    levels = solving.stream_levels(found, options)
    return _sorted(device, vector, bounds, options, weights) if levels is None else levels


def _on_grid(stream: DeviceStream, options: QuantizeOptions, weights: Floats) -> Floats:
    """Weights of the points of a uniform grid."""
    device, vector, points = stream.device, stream.vector, options.bins + 1
    if weights.size == 0:
        return weights_on_grid(device, vector, stream.bounds, points)
    heavy = device.upload(solving.scaled(weights))
    return weighed_on_grid(device, vector, heavy, stream.bounds, points)


def run_kernels(device: Device, vector: Vector) -> None:
    """Run every kernel that finding levels of a vector of this type may take, to warm up."""
    ordering.ascending(device, vector)
    bounds = finite_range(device, vector)
    weights_on_grid(device, vector, bounds, 2)
    blocks = QuantizeOptions.create(bits=1, method="uniform", block_size=8)
    solve(device, vector, bounds, blocks, lambda: vector.to_host(device))
    stream = DeviceStream(device, vector, bounds)
    cells = stream.count(_CELLS)
    every = np.ones(cells.index.size, np.bool_)
    stream.collect(cells, every)
    stream.refine(cells, every, 1)
    ones = device.upload(np.ones(vector.size))
    ordering.ascending_pairs(device, vector, ones)
    weighed_on_grid(device, vector, ones, bounds, 2)
    weighed = WeighedStream(device, vector, bounds, ones)
    cells = weighed.count(_CELLS)
    weighed.collect(cells, every)
    weighed.refine(cells, every, 1)


def _of_cells(stream: Stream, options: QuantizeOptions) -> Floats:
    """Levels by ``approx`` on the robust grid."""
    cells = stream.count(2 * options.bins)
    few = few_of_cells(stream, cells, options.num_levels)
    return best_of_cells(cells, options.num_levels) if few is None else few


def _sorted(
    device: Device, vector: Vector, bounds: Range, options: QuantizeOptions, weights: Floats
) -> Floats:
    """Levels by way of all values in order."""
    heavy = NO_WEIGHTS
    if weights.size:
        uploaded = device.upload(solving.scaled(weights))
        values, heavy = ordering.ascending_pairs(device, vector, uploaded)
    else:
        values = ordering.ascending(device, vector)
    checkpoint()
    return solving.ordered_levels(values, bounds, options, heavy)


def few_distinct(stream: DeviceStream, num_levels: int) -> Floats | None:
    """The distinct values, ascending, the last repeated, if there are at most `num_levels`."""
    sample = np.empty(min(stream.size, _SAMPLE), WIRE_DTYPES[stream.vector.dtype])
    stream.device.download(stream.vector.values, sample)
    levels = np.empty(num_levels)
    count = approx.few_distinct(frozen(widen(sample)), levels, 0)
    if count < 0:
        return None
    if sample.size == stream.size:
        return exact.padded(levels[:count], num_levels)
    return few_of_cells(stream, stream.count(_CELLS), num_levels)


def few_of_cells(stream: Stream, cells: Cells, num_levels: int) -> Floats | None:
    """As `few_distinct`, from the vector's cells: those that may hold several values are cut up."""
    while True:
        several = cells.nearest != cells.farthest
        if cells.index.size + int(several.sum()) > num_levels:
            return None
        unknown = several & (cells.count > 2)
        if not unknown.any():
            values = np.unique(np.concatenate([cells.minimum, cells.maximum]))
            return exact.padded(values, num_levels)
        checkpoint()
        cells = stream.refine(cells, unknown, _BITS)
