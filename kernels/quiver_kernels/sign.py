"""The sign quantizer: 1 bit per value, deterministic, for use with error feedback.

Every value becomes +m or -m by its sign, m the mean magnitude. Of all scales the mean magnitude
has the least squared error ("Error Feedback Fixes SignSGD", ICML 2019). The message is an
ordinary quantized vector with two levels, so whatever decodes those decodes these.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_kernels.api import as_vector
from quiver_kernels.checks import finite_range
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, widen, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.packing import num_blocks, pack_codes
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.stopping import slices

METHOD = "sign"
_STEP = 1 << 16

_Floats = NDArray[np.float64]


def sign_quantize(x: ArrayLike, *, block_size: int | None = None) -> QuantizedVector:
    """Quantize `x` to its signs and its mean magnitude. O(d), plain NumPy.

    Parameters
    ----------
    x
        Values, any shape; float16, bfloat16, float32 or float64 (other real types become
        float64). Finite, at least one.
    block_size
        Values that share a magnitude; None: all.

    Returns
    -------
    QuantizedVector
        ``method="sign"``, 1 bit, levels ``[-m, m]`` for each block with m the mean of |x|,
        summed in float64 and rounded to the levels' type (to the type of `x` for 16-bit types).
        Zeros count as positive; a block of zeros has m = 0 and decodes to zeros. ``seed`` is 0.

        ``vnmse`` is the error itself, not an expectation:
        ``1 - delta`` with ``delta = |x|_1^2 / (d |x|_2^2)``, but for the rounding of m. As delta
        is positive unless `x` is zero, this is a contraction; it is biased.

    Raises
    ------
    InvalidInput
        An unsupported dtype, an empty or non-finite `x`, or a `block_size` below 1.
    """
    begun = time.perf_counter()
    array = as_vector(x)
    bounds = finite_range(array, "x")
    if block_size is not None and block_size < 1:
        raise InvalidInput(
            f"block_size must be positive or None; got {block_size}",
            code="invalid_option",
            field="block_size",
        )
    name = wire_name(array.dtype)
    flat = array.reshape(-1)
    block = flat.size if block_size is None else min(block_size, flat.size)
    counts = np.full(num_blocks(flat.size, block), block)
    counts[-1] = flat.size - (counts.size - 1) * block

    positive = np.empty(flat.size, dtype=np.bool_)
    sums = np.zeros(counts.size)
    for piece, values in _pieces(flat):
        positive[piece] = values >= 0
        _add_by_block(sums, np.abs(values) * bounds.unit, piece.start, block)
    # Levels are exactly what decoding gives, so they are rounded to the vector's type first.
    mean = (sums / counts / bounds.unit).astype(WIRE_DTYPES[name]).astype(levels_dtype(name))
    table = np.stack([0 - mean, mean], axis=1)

    error, norm = _error_and_norm(flat, mean.astype(np.float64) * bounds.unit, bounds.unit, block)
    return QuantizedVector(
        method=METHOD,
        bits=1,
        num_levels=2,
        shape=array.shape,
        dtype=name,
        block_size=block_size,
        seed=0,
        levels=table[0] if block_size is None else table,
        codes=_packed(positive, block),
        vnmse=error / norm if norm > 0 else 0.0,
        timings_ms={"encode": round(1e3 * (time.perf_counter() - begun), 3)},
    )


def _pieces(flat: NDArray[Any]) -> Iterator[tuple[slice, _Floats]]:
    for piece in slices(flat.size, _STEP):
        yield piece, widen(flat[piece]).astype(np.float64)


def _add_by_block(sums: _Floats, values: _Floats, start: int, block: int) -> None:
    """Add each of `values`, which begin at element `start`, to the sum of its block."""
    first = start // block
    edges = np.arange(first * block, start + values.size, block) - start
    edges[0] = 0
    sums[first : first + edges.size] += np.add.reduceat(values, edges)


def _error_and_norm(
    flat: NDArray[Any], mean: _Floats, unit: float, block: int
) -> tuple[float, float]:
    """Squared error and squared norm, in squared units; no difference of nearly equal sums."""
    if mean.size == 1 and flat.size <= _STEP:
        magnitudes = np.abs(widen(flat).astype(np.float64)) * unit
        return float(np.square(magnitudes - mean[0]).sum()), float(np.square(magnitudes).sum())
    errors, norms = np.zeros(mean.size), np.zeros(mean.size)
    for piece, values in _pieces(flat):
        magnitudes = np.abs(values) * unit
        blocks = np.arange(piece.start, piece.stop) // block if mean.size > 1 else 0
        _add_by_block(errors, np.square(magnitudes - mean[blocks]), piece.start, block)
        _add_by_block(norms, np.square(magnitudes), piece.start, block)
    return float(errors.sum()), float(norms.sum())


def _packed(positive: NDArray[np.bool_], block: int) -> NDArray[np.uint8]:
    if block % 8 == 0 or block == positive.size:
        return np.packbits(positive, bitorder="little")
    return pack_codes(positive.view(np.uint8), 1, block)
