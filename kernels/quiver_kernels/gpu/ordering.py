"""The values of a vector on a device in order, alone or with their weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES, widen
from quiver_kernels.gpu import sources
from quiver_kernels.gpu.device import Argument, Buffer, Device, Download, Launch
from quiver_kernels.gpu.passes import Vector
from quiver_kernels.partition import Floats

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


def ascending_pairs(device: Device, vector: Vector, weights: Buffer) -> tuple[NDArray[Any], Floats]:
    """As `ascending`, with the weights in the same order; equal values keep theirs.

    Parameters
    ----------
    vector
        Of at most 2^32 - 1 values: a key has 32 bits for a value's place.
    weights
        One float64 number for each value.
    """
    size, key = np.uint64(vector.size), np.dtype(np.uint64)
    keys = device.allocate(8 * vector.size)
    if vector.dtype != "float64":
        number = np.uint32(sources.number_of(vector.dtype))
        _launch(device, "order_pairs", vector.size, (vector.values, number, size, keys))
        device.sort(keys, key)
        return taken(device, vector, weights, keys, None, vector.size)
    lower = device.allocate(8 * vector.size)
    _launch(device, "order_lower", vector.size, (vector.values, size, lower))
    device.sort(lower, key)
    _launch(device, "order_upper", vector.size, (vector.values, size, lower, keys))
    device.sort(keys, key)
    return taken(device, vector, weights, keys, lower, vector.size)


def taken(
    device: Device,
    vector: Vector,
    weights: Buffer,
    keys: Buffer,
    lower: Buffer | None,
    count: int,
) -> tuple[NDArray[Any], Floats]:
    """Values whose places the lower halves of `count` keys are, and their weights, on the host.

    With `lower` the keys have places among these, and these those of the values.
    """
    dtype = WIRE_DTYPES[vector.dtype]
    values, heavy = np.empty(count, dtype), np.empty(count)
    if count:
        out, out_weights = device.allocate(values.nbytes), device.allocate(heavy.nbytes)
        number = np.uint32(sources.number_of(vector.dtype))
        given = (vector.values, number, weights, keys, lower, np.uint64(count), out, out_weights)
        _launch(device, "order_take", count, given)
        device.download_all([Download(out, values), Download(out_weights, heavy)])
    return widen(values), heavy


def _launch(device: Device, kernel: str, items: int, arguments: tuple[Argument, ...]) -> None:
    blocks = min(-(-items // _THREADS), _BLOCKS_PER_PROCESSOR * device.processors)
    device.launch(Launch("order", kernel, blocks, _THREADS, arguments))
