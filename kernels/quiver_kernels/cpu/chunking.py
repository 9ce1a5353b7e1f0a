"""How a vector is cut: into chunks of a fixed size, so that results never depend on who calls.

A chunk is where 16-bit values are widened, unaligned input is aligned and sums are closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.dtypes import widen
from quiver_kernels.options import QuantizeOptions

CHUNK = 1 << 18
NO_WEIGHTS = np.empty(0)


def chunks(flat: NDArray[Any], size: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
    """Offsets and pieces of `flat`: native float32 or float64, aligned, read-only."""
    size = CHUNK if size is None else size
    for start in range(0, flat.size, size):
        yield start, piece(flat, start, start + size)


def piece(flat: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """Values of `flat` from `start` to `stop`: native float32 or float64, aligned, read-only."""
    return frozen(np.require(widen(flat[start:stop]), requirements="A"))


def spans(size: int) -> list[tuple[int, int]]:
    """Starts and stops of the chunks of `size` values."""
    return [(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]


def block_spans(size: int, block: int) -> list[tuple[int, int]]:
    """Starts and stops of chunks of whole blocks; a block larger than a chunk has its own."""
    if block < CHUNK:
        step = CHUNK // block * block
        return [(start, min(start + step, size)) for start in range(0, size, step)]
    return [
        (first + start, first + stop)
        for first in range(0, size, block)
        for start, stop in spans(min(block, size - first))
    ]


def block_rows(flat: NDArray[Any], block: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Whole blocks as rows, some at a time, and last a shorter one if there is a rest."""
    whole = flat.size // block * block
    step = max(1, CHUNK // block) * block
    for start in range(0, whole, step):
        part = np.require(widen(flat[start : min(start + step, whole)]), requirements="A")
        yield start, part.reshape(-1, block)
    if whole < flat.size:
        yield whole, np.require(widen(flat[whole:]), requirements="A").reshape(1, -1)


def slice_weights(weights: Floats, start: int, size: int) -> Floats:
    """Weights of `size` values from `start` on; none stay none."""
    return frozen(weights[start : start + size] if weights.size else NO_WEIGHTS)


def block_size(x: NDArray[Any], options: QuantizeOptions) -> int:
    """Values that share one table."""
    return x.size if options.block_size is None else min(options.block_size, x.size)
