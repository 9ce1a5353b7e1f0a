"""Whether a device finds in a vector what the CPU finds there: what levels are computed from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells
from quiver_kernels.checks import Range
from quiver_kernels.cpu import approx, chunking, solving
from quiver_kernels.dtypes import widen
from quiver_kernels.gpu import ordering
from quiver_kernels.gpu.device import Device
from quiver_kernels.gpu.grid import weights_on_grid
from quiver_kernels.gpu.passes import Vector, finite_range
from quiver_kernels.gpu.stream import DeviceStream
from quiver_kernels.partition import Floats

_CELLS = 512
_POINTS = 100
_BITS = 2


def kernels_agree(device: Device, x: NDArray[Any]) -> bool:
    """Whether order, grid, cells, values and pieces of cells are the CPU's.

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
    return agree & _streams_agree(DeviceStream(device, vector, bounds), x)


def _weights_on_grid(x: NDArray[Any], bounds: Range) -> Floats:
    grid = np.zeros(_POINTS)
    for _, part in chunking.chunks(x):
        approx.add_to_grid(part, chunking.NO_WEIGHTS, bounds.low, bounds.high, bounds.unit, grid)
    return grid


def _streams_agree(ours: DeviceStream, x: NDArray[Any]) -> bool:
    theirs = solving.stream_of(x, ours.bounds, chunking.NO_WEIGHTS)
    cells = theirs.count(_CELLS)
    chosen = np.arange(cells.index.size) % 3 < 2
    found, expected = (np.sort(one.collect(cells, chosen)[0]) for one in (ours, theirs))
    pieces = (one.refine(cells, chosen, _BITS) for one in (ours, theirs))
    return _same(ours.count(_CELLS), cells) and np.array_equal(found, expected) and _same(*pieces)


def _same(ours: Cells, theirs: Cells) -> bool:
    pairs = zip(ours.columns(), theirs.columns(), strict=True)
    return all(a is b or np.array_equal(a, b) for a, b in pairs)
