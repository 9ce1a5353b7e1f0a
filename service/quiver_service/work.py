"""What a request asks of a device, as far as its cost depends on it: see `quiver_kernels.costs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from quiver_kernels.costs import Work
from quiver_kernels.dtypes import from_wire
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import QuantizeRequest


def of_vector(
    x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None = None
) -> Work:
    """Levels, or levels and codes, of a vector in host memory."""
    return Work.of_quantize(x.size, x.dtype.itemsize, options, weighted=weights is not None)


def of_batch(requests: Sequence[QuantizeRequest]) -> Work:
    """Levels and codes of many vectors."""
    return Work.of_many([of_vector(one.vector, one.options, one.weights) for one in requests])


def of_decode(q: QuantizedVector) -> Work:
    """Decoding one vector."""
    work = Work.of_decode(q.size, from_wire(q.dtype).itemsize, q.codes.nbytes)
    return work if q.is_plain else replace(work, operation=None)


def of_mean(vectors: Sequence[QuantizedVector]) -> Work:
    """The mean of vectors of one shape; what is wrong with them is said by the kernels."""
    first = vectors[0]
    work = Work.of_mean(
        first.size,
        len(vectors),
        from_wire(first.dtype).itemsize,
        sum(q.codes.nbytes for q in vectors),
    )
    sets = not all(q.is_plain for q in vectors)
    return replace(work, operation=None) if sets else work
