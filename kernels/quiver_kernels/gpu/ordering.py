"""The values of a vector on a device in order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES, widen
from quiver_kernels.gpu.device import Argument, Device, Launch
from quiver_kernels.gpu.passes import Vector

_THREADS = 256
_BLOCKS_PER_PROCESSOR = 8


def ascending(device: Device, vector: Vector) -> NDArray[Any]:
    """All values, ascending, in the host's memory, as float32 or float64; O(n).

    They are sorted as integers of the same order, -0 before 0. The vector stays as it is.
    """
    dtype = WIRE_DTYPES[vector.dtype]
    bits = 8 * dtype.itemsize
    keys = device.allocate(vector.size * dtype.itemsize)
    size = np.uint64(vector.size)
    _launch(device, f"order_to_{bits}", vector.size, (vector.values, size, keys))
    device.sort(keys, np.dtype(f"u{dtype.itemsize}"))
    _launch(device, f"order_from_{bits}", vector.size, (keys, size))
    values = np.empty(vector.size, dtype)
    device.download(keys, values)
    return widen(values)


def _launch(device: Device, kernel: str, items: int, arguments: tuple[Argument, ...]) -> None:
    blocks = min(-(-items // _THREADS), _BLOCKS_PER_PROCESSOR * device.processors)
    device.launch(Launch("order", kernel, blocks, _THREADS, arguments))
