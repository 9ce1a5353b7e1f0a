"""Weights of a uniform grid's points, of a vector on a device."""

from __future__ import annotations

import numpy as np

from quiver_kernels.checks import Range
from quiver_kernels.gpu.device import Device, Launch
from quiver_kernels.gpu.passes import Vector
from quiver_kernels.partition import Floats

# As in the source: threads of a block, sums that shared memory has room for, shares of a value.
_THREADS = 512
_NEAR = 12_000
_SHARE = 2.0**-20
_BLOCKS_PER_PROCESSOR = 4
_VALUES_PER_POINT = 8


def weights_on_grid(device: Device, vector: Vector, bounds: Range, points: int) -> Floats:
    """As `cpu.approx.add_to_grid` makes of a vector without weights; O(n).

    Parameters
    ----------
    vector
        Of at most 2^32 values, for sums of shares that float64 holds.
    bounds
        Its range, of two different values.
    points
        Of the grid, at least two.
    """
    unit = bounds.unit
    base = bounds.low * unit
    near = points <= _NEAR
    sums = device.upload(np.zeros(points, np.uint64))
    blocks = -(-vector.size // max(4 * _THREADS, _VALUES_PER_POINT * points if near else 0))
    arguments = (
        vector.values,
        np.uint64(vector.size),
        np.float64(unit),
        np.float64(base),
        np.float64((points - 1) / (bounds.high * unit - base)),
        np.uint32(points),
        np.uint32(near),
        sums,
    )
    device.launch(
        Launch(
            "grid",
            f"grid_{vector.dtype}",
            min(blocks, _BLOCKS_PER_PROCESSOR * device.processors),
            _THREADS,
            arguments,
            shared=4 * points if near else 0,
        )
    )
    found = np.empty(points, np.uint64)
    device.download(sums, found)
    return found.astype(np.float64) * _SHARE
