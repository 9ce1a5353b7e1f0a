"""Sums of quantized vectors on a device: one launch for as many as are brought over at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.gpu.device import Buffer, Device, Download, Launch
from quiver_kernels.gpu.passes import check_codes, looping_grid
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.stopping import checkpoint

_THREADS = 256
AT_ONCE = 1 << 28
"""Bytes of codes and tables that are on the device at a time; a single vector may have more."""


def total(
    device: Device,
    vectors: Sequence[QuantizedVector],
    shares: Sequence[float],
    at_once: int = AT_ONCE,
) -> NDArray[np.float64]:
    """Sum of share times decoded vector, flat; terms are added in the vectors' order.

    Parameters
    ----------
    vectors
        Of one shape, without level sets.
    at_once
        In place of `AT_ONCE`.

    Raises
    ------
    InvalidInput
        A code points beyond its level table (``invalid_codes``).
    """
    size = vectors[0].size
    totals = device.allocate(8 * size)
    beyond = device.upload(np.zeros(len(vectors), np.uint32))
    for part in _groups(vectors, at_once):
        checkpoint()
        _add(device, vectors[part], shares[part], part.start, totals, beyond)
    largest, found = np.empty((len(vectors), 1), np.uint32), np.empty(size)
    device.download_all([Download(beyond, largest), Download(totals, found)])
    for q, code in zip(vectors, largest, strict=True):
        check_codes(q, code)
    return found


def _groups(vectors: Sequence[QuantizedVector], at_once: int) -> Iterator[slice]:
    """Neighbouring vectors of so many bytes together, or one."""
    start, held = 0, 0
    for number, q in enumerate(vectors):
        size = q.codes.nbytes + 8 * q.levels.size
        if number > start and held + size > at_once:
            yield slice(start, number)
            start, held = number, 0
        held += size
    yield slice(start, len(vectors))


def _add(
    device: Device,
    vectors: Sequence[QuantizedVector],
    shares: Sequence[float],
    first: int,
    totals: Buffer,
    beyond: Buffer,
) -> None:
    """Launch the sum of `vectors`, of which the first is number `first` of all."""
    tables = [
        (share * q.levels.astype(np.float64)).reshape(-1)
        for q, share in zip(vectors, shares, strict=True)
    ]
    terms = np.array(
        [(0, 0, min(q.block_size or q.size, q.size), q.num_levels, q.bits) for q in vectors],
        np.uint64,
    )
    terms[:, 0] = _starts([q.codes for q in vectors])
    terms[:, 1] = _starts(tables)
    size = vectors[0].size
    arguments = (
        device.upload(_joined([q.codes for q in vectors])),
        device.upload(_joined(tables)),
        device.upload(terms),
        np.uint32(len(vectors)),
        np.uint64(size),
        np.uint32(first == 0),
        totals,
        device.part(beyond, 4 * first, 4 * len(vectors)),
    )
    grid = looping_grid(device, size, _THREADS)
    device.launch(Launch("mean", "mean_add", grid, _THREADS, arguments))


def _starts(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """Where each begins in `_joined`."""
    sizes = np.array([array.size for array in arrays], np.uint64)
    return np.asarray(np.cumsum(sizes) - sizes, np.uint64)


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One after the other; a single one uncopied."""
    return np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)
