"""Passes over a vector, on a device and on the CPU: whether they find the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cells import Cells
from quiver_kernels.checks import finite_range
from quiver_kernels.cpu import approx, chunking, solving, streaming
from quiver_kernels.gpu import passes
from quiver_kernels.gpu.device import Device
from quiver_kernels.gpu.grid import weights_on_grid
from quiver_kernels.gpu.stream import DeviceStream


def stream_of(device: Device, x: NDArray[Any]) -> DeviceStream:
    vector = passes.Vector.upload(device, x)
    return DeviceStream(device, vector, passes.finite_range(device, vector))


def cpu_stream(x: NDArray[Any]) -> streaming.Stream:
    return solving.stream_of(x, finite_range(x), chunking.NO_WEIGHTS)


def same_cells(ours: Cells, theirs: Cells) -> bool:
    assert ours.partition == theirs.partition
    pairs = zip(ours.columns(), theirs.columns(), strict=True)
    return all((a is None and b is None) or np.array_equal(a, b) for a, b in pairs)


def streams_agree(device: Device, x: NDArray[Any], cells: int, seed: int = 0) -> bool:
    """Whether counting, collecting and cutting up twice find what the CPU finds."""
    ours, theirs = stream_of(device, x), cpu_stream(x)
    rng = np.random.default_rng(seed)
    found, expected = ours.count(cells), theirs.count(cells)
    agree = same_cells(found, expected)
    for bits in (1, 3):
        chosen = rng.random(expected.index.size) < 0.6
        chosen[rng.integers(chosen.size)] = True
        values, weights = ours.collect(expected, chosen)
        assert weights.size == 0
        agree &= np.array_equal(np.sort(values), np.sort(theirs.collect(expected, chosen)[0]))
        found = ours.refine(expected, chosen, bits)
        expected = theirs.refine(expected, chosen, bits)
        agree &= same_cells(found, expected)
    return agree


def grids_agree(device: Device, x: NDArray[Any], points: int) -> bool:
    """Whether the weights of a uniform grid's points are the CPU's."""
    bounds = finite_range(x)
    theirs = np.zeros(points)
    approx.add_to_grid(x, chunking.NO_WEIGHTS, bounds.low, bounds.high, bounds.unit, theirs)
    ours = weights_on_grid(device, passes.Vector.upload(device, x), bounds, points)
    assert theirs.sum() == x.size
    return np.array_equal(ours, theirs)
