"""How a vector is cut: into chunks of a fixed size, so that results never depend on who calls.

A chunk is where 16-bit values are widened, unaligned input is aligned and sums are closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, frozen
from quiver_kernels.dtypes import widen
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.stopping import STEP, checkpoint, slices

CHUNK = 1 << 18
NO_WEIGHTS = np.empty(0)


def chunks(flat: NDArray[Any], size: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
    """Offsets and pieces of `flat`: native float32 or float64, aligned, read-only."""
    size = CHUNK if size is None else size
    for start in range(0, flat.size, size):
        checkpoint()
        yield start, piece(flat, start, start + size)


def piece(flat: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """Values of `flat` from `start` to `stop`: native float32 or float64, aligned, read-only."""
    return frozen(np.require(widen(flat[start:stop]), requirements="A"))


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of a vector with their weights (none: empty), made when asked for."""

    flat: NDArray[Any]
    weights: Floats

    def __len__(self) -> int:
        return (self.flat.size + CHUNK - 1) // CHUNK

    def __getitem__(self, number: int) -> tuple[NDArray[Any], Floats]:
        start = number * CHUNK
        part = piece(self.flat, start, start + CHUNK)
        return part, slice_weights(self.weights, start, part.size)


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
    """Whole blocks as rows, some at a time, and last a shorter one if there is a rest.

    Native float32 or float64, aligned; a block larger than a chunk is left as it is.
    """
    whole = flat.size // block * block
    step = max(1, CHUNK // block) * block
    for start in range(0, whole, step):
        checkpoint()
        yield start, _row_values(flat[start : min(start + step, whole)]).reshape(-1, block)
    if whole < flat.size:
        checkpoint()
        yield whole, _row_values(flat[whole:]).reshape(1, -1)


def _row_values(part: NDArray[Any]) -> NDArray[Any]:
    return part if part.size > CHUNK else np.require(widen(part), requirements="A")


def converted(values: NDArray[Any], *dtypes: np.dtype[Any]) -> NDArray[Any]:
    """A copy of `values`, shape (n,) or (n, s), as one type after the other, the last to stay."""
    if values.size <= STEP:
        for dtype in dtypes:
            values = values.astype(dtype)
        return values
    out = np.empty(values.shape, dtypes[-1])
    for part in slices(len(values), max(1, STEP // max(values[:1].size, 1))):
        piece = values[part]
        for dtype in dtypes:
            piece = piece.astype(dtype)
        out[part] = piece
    return out


def slice_weights(weights: Floats, start: int, size: int) -> Floats:
    """Weights of `size` values from `start` on; none stay none."""
    return frozen(weights[start : start + size] if weights.size else NO_WEIGHTS)


def block_size(x: NDArray[Any], options: QuantizeOptions) -> int:
    """Values that share one table."""
    return x.size if options.block_size is None else min(options.block_size, x.size)
