"""Whether a device finds in a vector what the CPU finds there: what levels are computed from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells
from quiver_kernels.checks import Range
from quiver_kernels.cpu import approx, chunking, solving, sorting
from quiver_kernels.cpu.streaming import Stream
from quiver_kernels.dtypes import widen
from quiver_kernels.gpu import ordering
from quiver_kernels.gpu.device import Device
from quiver_kernels.gpu.grid import weights_on_grid
from quiver_kernels.gpu.passes import Vector, finite_range
from quiver_kernels.gpu.stream import DeviceStream
from quiver_kernels.gpu.weighing import WeighedStream, weighed_on_grid
from quiver_kernels.partition import Floats

_CELLS = 512
_POINTS = 100
_BITS = 2
# Values that are weighed: a stand-in for a device takes long over each. They are in no order.
_FEW = 300
_FEW_CELLS = 8
_STEP, _OTHER_STEP = 0.5**0.5, 0.2**0.5


def kernels_agree(device: Device, x: NDArray[Any]) -> bool:
    """Whether order, grid, cells, values and pieces of cells are the CPU's, also with weights.

    Parameters
    ----------
    x
        Flat, finite, of a wire type, with two different values at least.
    """
    vector = Vector.upload(device, x)
    bounds = finite_range(device, vector)
    agree = np.array_equal(ordering.ascending(device, vector), np.sort(widen(x)))
    ours = weights_on_grid(device, vector, bounds, _POINTS)
    agree &= np.array_equal(ours, _weights_on_grid(x, bounds))
    agree &= _streams_agree(DeviceStream(device, vector, bounds), x, chunking.NO_WEIGHTS)
    return agree and weighed_agree(device, x.dtype)


def weighed_agree(device: Device, dtype: np.dtype[Any]) -> bool:
    """As `kernels_agree`, with weights, whose sums show in what order they were made.

    The values, of a wire type, lie in few cells, so that each has many of them.
    """
    numbers = np.arange(_FEW, dtype=np.float64)
    x = (4.0 + 0.2 * np.modf(numbers * _OTHER_STEP)[0]).astype(dtype)
    vector = Vector.upload(device, x)
    bounds = finite_range(device, vector)
    weights: Floats = np.modf(numbers * _STEP)[0]
    heavy = device.upload(weights)
    pairs = ordering.ascending_pairs(device, vector, heavy), sorting.ascending(x, weights)
    agree = all(np.array_equal(a, b) for a, b in zip(*pairs, strict=True))
    ours = weighed_on_grid(device, vector, heavy, bounds, _POINTS)
    agree &= np.array_equal(ours, _weights_on_grid(x, bounds, weights))
    return agree & _streams_agree(WeighedStream(device, vector, bounds, heavy), x, weights)


def _weights_on_grid(
    x: NDArray[Any], bounds: Range, weights: Floats = chunking.NO_WEIGHTS
) -> Floats:
    grid = np.zeros(_POINTS)
    for start, part in chunking.chunks(x):
        heavy = chunking.slice_weights(weights, start, part.size)
        approx.add_to_grid(part, heavy, bounds.low, bounds.high, bounds.unit, grid)
    return grid


def _streams_agree(ours: Stream, x: NDArray[Any], weights: Floats) -> bool:
    theirs = solving.stream_of(x, ours.bounds, weights)
    most = _FEW_CELLS if weights.size else _CELLS
    cells = theirs.count(most)
    chosen = np.arange(cells.index.size) % 3 < 2
    found, expected = (one.collect(cells, chosen) for one in (ours, theirs))
    # Without weights values come in any order.
    order = np.sort if weights.size == 0 else np.asarray
    same = np.array_equal(order(found[0]), order(expected[0]))
    same &= np.array_equal(found[1], expected[1])
    pieces = (one.refine(cells, chosen, _BITS) for one in (ours, theirs))
    return _same(ours.count(most), cells) and same and _same(*pieces)


def _same(ours: Cells, theirs: Cells) -> bool:
    pairs = zip(ours.columns(), theirs.columns(), strict=True)
    return all(a is b or np.array_equal(a, b) for a, b in pairs)
