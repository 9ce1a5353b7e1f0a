"""How much work a request is, roughly: which thread computes it follows from this.

The unit is a value times a level in the search for optimal levels, about 10 ns. These are
guides, good to a factor of a few; `footprint` has the memory, which is a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from quiver_kernels.options import GIVEN, SIMBA, QuantizeOptions
from quiver_kernels.planwire import PlanRequest
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.normed.statistics import MOST_PARTS
from quiver_kernels.treerequest import TreesRequest
from quiver_kernels.wire import (
    AggregateRequest,
    BatchRequest,
    LevelsRequest,
    QuantizeRequest,
    SketchLevelsRequest,
    StatisticsRequest,
)


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
NONE_TINY = Sizes(tiny=0)

# The dynamic programme of `accelerated` looks at every value several times per level.
_ACCELERATED = 16
# The descent of `simba` looks at all its levels some thousand times.
_PER_SET_LEVEL = 1 << 14
# Rounding, packing, decoding: per value.
_PER_VALUE = 2
# The same by a scheme, which may search, rotate, or go along a trellis.
_PER_SCHEME_VALUE, _PER_SCHEME_DECODED = 64, 16
# Outliers and entropy coding, and back.
_PER_WRAPPED, _PER_UNWRAPPED = 64, 32
# Adding exactly: per value.
_PER_SUM = 3
# Reading a row of a sketch and merging it with others.
_PER_ROW = 250
# A block's part in the model of statistics; an entry of a table that is fitted to it, per part.
_PER_BLOCK = 8
_PER_ENTRY = 256
# Reading, checking and writing a vector of a batch, however small.
_PER_VECTOR = 1 << 14
# Its part in the search for the best combination.
_PER_CHOICE = 1 << 16


def of_quantize(request: QuantizeRequest | LevelsRequest) -> int:
    """Effort of ``/quantize`` and ``/levels``."""
    return _of_vector(request.vector.size, request.options)


def of_sketch_levels(request: SketchLevelsRequest) -> int:
    """Effort of ``/levels`` from sketches: reading, merging and searching."""
    return request.rows * (_PER_ROW + request.num_levels)


def of_statistics(request: StatisticsRequest) -> int:
    """Effort of ``/levels`` from statistics: the model of the blocks, then steps of all levels."""
    return request.size * _PER_BLOCK + MOST_PARTS * request.options.num_levels * _PER_ENTRY


def of_batch(request: BatchRequest) -> int:
    """Effort of ``/quantize`` for many vectors: one after the other."""
    return sum(_PER_VECTOR + of_quantize(item.request) for item in request.items)


def of_plan(request: PlanRequest) -> int:
    """Effort of ``/plan``: levels for every candidate of every vector, then the choice."""
    each = _PER_VECTOR if request.budget is None else _PER_VECTOR + _PER_CHOICE
    return sum(
        each + sum(_of_vector(x.size, options) for options in request.ways.options)
        for x in request.vectors.values()
    )


def of_dequantize(q: QuantizedVector) -> int:
    """Effort of ``/dequantize``."""
    unwrapping = 0 if q.wrap is None else _PER_UNWRAPPED
    return q.size * (unwrapping + (_PER_SCHEME_DECODED if q.is_scheme else _PER_VALUE))


def of_aggregate(request: AggregateRequest) -> int:
    """Effort of ``/aggregate``."""
    decoding = sum(map(of_dequantize, request.vectors))
    if request.quantize is None:
        return decoding
    return decoding + _of_vector(max(q.size for q in request.vectors), request.quantize)


def of_trees(request: TreesRequest) -> int:
    """Effort of ``/aggregate`` of trees."""
    parts = sum(
        len(group.leaves) + len(group.sections) for tree in request.trees for group in tree.groups
    )
    adding = _PER_VECTOR * parts + _PER_SUM * sum(tree.size for tree in request.trees)
    if request.quantize is None:
        return adding
    chosen = [leaf for leaf in request.trees[0].leaves() if request.quantize.takes(leaf)]
    options = request.quantize.options
    return adding + sum(_PER_VECTOR + _of_vector(leaf.size, options) for leaf in chosen)


def _of_vector(size: int, options: QuantizeOptions) -> int:
    if options.is_wrapped:
        return size * _PER_WRAPPED + _of_vector(size, options.without_wrappers())
    rounding = size * _PER_VALUE
    if options.device == "gpu":
        # Not on this thread, whatever the size.
        return SIZES.tiny + rounding
    if options.is_scheme:
        return size * _PER_SCHEME_VALUE
    if options.method in ("uniform", GIVEN):
        return rounding
    if options.method == SIMBA:
        return 2 * rounding + options.level_sets * options.num_levels * _PER_SET_LEVEL
    candidates = size
    if not options.sorts(min(size, options.block_size or size)):
        candidates = options.bins
    factor = _ACCELERATED if options.method == "accelerated" else 1
    return rounding + candidates * options.num_levels * factor
