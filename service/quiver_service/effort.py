"""How much work a request is, roughly: which thread computes it follows from this.

The unit is a value times a level in the search for optimal levels, about 10 ns. These are
guides, good to a factor of a few; `footprint` has the memory, which is a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import AggregateRequest, BatchRequest, LevelsRequest, QuantizeRequest


@dataclass(frozen=True, slots=True)
class Sizes:
    """Where tiny and small end.

    Attributes
    ----------
    tiny
        Up to this, handing a request to another thread costs about as much as computing it.
    small
        Up to this, some ten milliseconds.
    """

    tiny: int = 1 << 15
    small: int = 1 << 20


SIZES = Sizes()

# The dynamic programme of `accelerated` looks at every value several times per level.
_ACCELERATED = 16
# Rounding, packing, decoding: per value.
_PER_VALUE = 2
# Reading, checking and writing a vector of a batch, however small.
_PER_VECTOR = 1 << 14


def of_quantize(request: QuantizeRequest | LevelsRequest) -> int:
    """Effort of ``/quantize`` and ``/levels``."""
    return _of_vector(request.vector.size, request.options)


def of_batch(request: BatchRequest) -> int:
    """Effort of ``/quantize`` for many vectors: one after the other."""
    return sum(_PER_VECTOR + of_quantize(item.request) for item in request.items)


def of_dequantize(q: QuantizedVector) -> int:
    """Effort of ``/dequantize``."""
    return q.size * _PER_VALUE


def of_aggregate(request: AggregateRequest) -> int:
    """Effort of ``/aggregate``."""
    decoding = sum(q.size for q in request.vectors) * _PER_VALUE
    if request.quantize is None:
        return decoding
    return decoding + _of_vector(max(q.size for q in request.vectors), request.quantize)


def _of_vector(size: int, options: QuantizeOptions) -> int:
    rounding = size * _PER_VALUE
    if options.device == "gpu":
        # Not on this thread, whatever the size.
        return SIZES.tiny + rounding
    if options.method == "uniform":
        return rounding
    candidates = size
    if not options.sorts(min(size, options.block_size or size)):
        candidates = options.bins
    factor = _ACCELERATED if options.method == "accelerated" else 1
    return rounding + candidates * options.num_levels * factor
