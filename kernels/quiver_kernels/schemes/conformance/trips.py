"""Round trips: a message read back is the message, decoded alike, for every vector and type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import api
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.conformance import vectors
from quiver_kernels.schemes.conformance.subject import Subject

_FIELDS = ("method", "bits", "num_levels", "shape", "dtype", "block_size", "seed", "vnmse")
_SIZES = (1, 2, 3, 7, 8, 9, 23, 24, 25, 47, 49, 100, 257)


def round_trips(subject: Subject) -> Iterator[str]:
    """Lengths that are no multiple of anything, shapes, and edge values of every type."""
    for size in _SIZES:
        yield from _trip(subject, vectors.normal(size, seed=size), f"{size} values")
    for shape in ((), (1, 1), (3, 5, 2)):
        x = vectors.heavy(math.prod(shape)).reshape(shape)
        yield from _trip(subject, x, f"shape {shape}")
    for name in WIRE_DTYPES:
        yield from _trip(subject, vectors.heavy(61, name), name)
    for name, x in vectors.edges():
        yield from _trip(subject, x, name)


def _trip(subject: Subject, x: NDArray[Any], case: str) -> Iterator[str]:
    """Quantize `x`, write, read and decode it."""
    q = subject.quantize(x)
    read = QuantizedVector.from_bytes(q.to_bytes())
    for field in _FIELDS:
        if getattr(read, field) != getattr(q, field):
            yield f"{case}: {field} {getattr(q, field)} was read as {getattr(read, field)}"
    if not _same_parts(q, read):
        yield f"{case}: levels, codes, side information or parameters are read otherwise"
    decoded = api.dequantize(q)
    if decoded.shape != x.shape or decoded.dtype != x.dtype:
        yield (
            f"{case}: decoded to {decoded.dtype} of shape {decoded.shape}; "
            f"expected {x.dtype} of {x.shape}"
        )
        return
    if api.dequantize(read).tobytes() != decoded.tobytes():
        yield f"{case}: the message read back decodes to other values"
    yield from _plausible(q, x, decoded, case)


def _plausible(
    q: QuantizedVector, x: NDArray[Any], decoded: NDArray[Any], case: str
) -> Iterator[str]:
    if not np.isfinite(decoded).all():
        yield f"{case}: decoded values are not finite"
    if not math.isfinite(q.vnmse) or q.vnmse < 0:
        yield f"{case}: vnmse must be finite and not negative; got {q.vnmse}"
    if not x.any():
        if decoded.any():
            yield f"{case}: zeros decode to {np.abs(decoded).max()}"
        if q.vnmse != 0:
            yield f"{case}: vnmse of zeros must be 0; got {q.vnmse}"


def _same_parts(one: QuantizedVector, other: QuantizedVector) -> bool:
    parts = [(q.levels.tobytes(), q.codes.tobytes(), q.parameters, _side(q)) for q in (one, other)]
    return parts[0] == parts[1]


def _side(q: QuantizedVector) -> dict[str, tuple[str, bytes]]:
    return {name: (part.dtype.name, part.tobytes()) for name, part in q.side.items()}
