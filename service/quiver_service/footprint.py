"""How much memory a request needs beyond its body, known before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quiver_kernels.dtypes import from_wire, levels_dtype, wire_name
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.packing import num_blocks, packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import AggregateRequest, LevelsRequest, QuantizeRequest

# Upper estimates for the CPU's kernels. The optimal methods sort the values as float64 and keep
# eight arrays beside them; the dynamic programme of `accelerated` adds two 32-bit choices per
# value and step of two levels.
_SORTING_BYTES = 84
_CHOICE_BYTES = {"accelerated": 4}
# Long vectors are streamed: sums over cells, and the few values that are collected.
_STREAMING_BYTES = 192 << 20
# `approx` counts into a table that spans the binades of the values' type (by its bytes), and
# searches among cells, or makes a uniform grid.
_COUNTING_BYTES = {4: 5 << 18, 8: 11 << 20}
_CELL_BYTES = 384
_GRID_BYTES = 128
_WEIGHT_BYTES = 8
_SORTED_WEIGHT_BYTES = 24
# Blocks are solved in groups of about so many values.
_GROUP_VALUES = 1 << 18
# Level tables are made as float64, and a rounding table is derived from them.
_TABLE_WORKING_BYTES = 40


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of an answer and of the memory needed while it is computed."""

    output: int
    working: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.output + self.working


def of_quantize(request: QuantizeRequest) -> Footprint:
    """Footprint of ``/quantize``: codes, level tables, and the solver's memory."""
    dtype = wire_name(request.vector.dtype)
    return _of_quantized(
        request.vector.size, dtype, request.options, weighted=request.weights is not None
    )


def of_levels(request: LevelsRequest) -> Footprint:
    """Footprint of ``/levels``: level tables and the solver's memory."""
    size, options = request.vector.size, request.options
    itemsize = levels_dtype(wire_name(request.vector.dtype)).itemsize
    tables = _table_entries(size, options) * itemsize
    weighted = request.weights is not None
    return Footprint(tables, _working(size, itemsize, options, weighted=weighted))


def of_dequantize(q: QuantizedVector) -> Footprint:
    """Footprint of ``/dequantize``: the decoded vector and a copy of the tables."""
    return Footprint(q.size * from_wire(q.dtype).itemsize, q.levels.nbytes)


def of_aggregate(request: AggregateRequest) -> Footprint:
    """Footprint of ``/aggregate``: the mean, copies of the tables, its codes if asked for."""
    size = max(q.size for q in request.vectors)
    dtype = max((q.dtype for q in request.vectors), key=lambda name: from_wire(name).itemsize)
    mean = size * from_wire(dtype).itemsize
    tables = sum(q.levels.size * np.dtype(np.float64).itemsize for q in request.vectors)
    if request.quantize is None:
        return Footprint(mean, tables)
    answer = _of_quantized(size, dtype, request.quantize, weighted=False)
    return Footprint(answer.output, mean + max(tables, answer.working))


def _of_quantized(size: int, dtype: str, options: QuantizeOptions, *, weighted: bool) -> Footprint:
    codes = packed_size(size, options.bits, options.block_size)
    itemsize = levels_dtype(dtype).itemsize
    tables = _table_entries(size, options) * itemsize
    return Footprint(codes + tables, _working(size, itemsize, options, weighted=weighted))


def _table_entries(size: int, options: QuantizeOptions) -> int:
    return num_blocks(size, options.block_size) * options.num_levels


def _working(size: int, itemsize: int, options: QuantizeOptions, *, weighted: bool) -> int:
    needed = _table_entries(size, options) * _TABLE_WORKING_BYTES
    if weighted:
        needed += size * _WEIGHT_BYTES
    at_once = min(size, options.block_size or size)
    if options.sorts(at_once):
        sorted_at_once = size
        if options.block_size is not None:
            sorted_at_once = min(size, max(options.block_size, _GROUP_VALUES))
        per_value = _SORTING_BYTES + _CHOICE_BYTES.get(options.method, 0) * options.num_levels
        needed += sorted_at_once * (per_value + (_SORTED_WEIGHT_BYTES if weighted else 0))
    elif options.method == "exact":
        needed += _STREAMING_BYTES
    elif options.method == "approx" and not options.spaces_evenly:
        needed += _COUNTING_BYTES[itemsize] * (2 if weighted else 1)
        needed += min(_CELL_BYTES * options.bins, _SORTING_BYTES * at_once)
    elif options.method == "approx":
        needed += _GRID_BYTES * options.bins
    return needed
