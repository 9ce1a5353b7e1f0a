"""How much memory a request needs beyond its body, known before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quiver_kernels.dtypes import from_wire, levels_dtype, wire_name
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.packing import num_blocks, packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import AggregateRequest, BatchRequest, LevelsRequest, QuantizeRequest

# What the CPU's kernels take, measured (benchmarks/reliability/reckoning.py). Optimal levels of a
# sorted copy, or of a vector that is gone through in passes, are searched for among cells; wherever
# these are, they are few where levels are few.
_SORTED_BYTES = 8
_SEARCH_BYTES = ((8, 24 << 20), (32, 52 << 20), (256, 96 << 20))
_SEARCH_BYTES_PER_VALUE = 300
# The dynamic programme, which solves short blocks and `accelerated`, keeps the values as float64
# and further arrays; `accelerated` adds two 32-bit choices per value and step of two levels.
_PROGRAMME_BYTES = 100
_CHOICE_BYTES = 4
# `approx` counts into a table that spans the binades of the values' type (by its bytes), and
# searches among cells, or makes a uniform grid.
_COUNTING_BYTES = {4: 5 << 18, 8: 11 << 20}
_CELL_BYTES = 384
_GRID_BYTES = 128
# Weights as float64, and once more scaled; those of sorted values twice more, with the order.
_WEIGHT_BYTES = 16
_SORTED_WEIGHT_BYTES = 32
# Blocks of up to so many values times levels are solved in groups of about so much of it.
_SMALL_WORK = 8_000
_GROUP_WORK = 1 << 18
# What a group takes besides: tables of its blocks in several forms.
_GROUP_BYTES, _GROUP_BYTES_PER_VALUE = 6 << 20, 8
# Level tables are made as float64.
_TABLE_WORKING_BYTES = 12
# What a message of a batch has besides its name, levels and codes, and the objects of a vector
# while it is read, kept and written: they count where thousands of vectors are small.
_MESSAGE_BYTES = 512
_ITEM_BYTES = 5 << 10


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


def of_batch(request: BatchRequest) -> Footprint:
    """Footprint of ``/quantize`` for many: outputs add up, one vector is solved at a time."""
    needed = [of_quantize(item.request) for item in request.items]
    names = sum(len(name.encode()) for name in request.names or ())
    heads = _MESSAGE_BYTES * len(needed) + names
    return Footprint(
        output=sum(each.output for each in needed) + heads,
        working=max(each.working for each in needed) + _ITEM_BYTES * len(needed),
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
    if options.num_levels == 2 and options.block_size is None:
        return needed
    if options.sorts(at_once):
        return needed + _sorted(size, at_once, options, weighted=weighted)
    if options.method == "exact":
        needed += _search(at_once, options)
    elif options.method == "approx" and not options.spaces_evenly:
        needed += _COUNTING_BYTES[itemsize] * (2 if weighted else 1)
        needed += min(_CELL_BYTES * options.bins, _PROGRAMME_BYTES * at_once)
    elif options.method == "approx":
        needed += _GRID_BYTES * options.bins
    return needed


def _sorted(size: int, at_once: int, options: QuantizeOptions, *, weighted: bool) -> int:
    """Bytes for optimal levels of sorted values; `at_once` share a table."""
    weights = _SORTED_WEIGHT_BYTES if weighted else 0
    accelerated = options.method == "accelerated"
    if accelerated or at_once * options.num_levels <= _SMALL_WORK:
        values = min(size, max(at_once, _GROUP_WORK // options.num_levels))
        choices = _CHOICE_BYTES * options.num_levels if accelerated else 0
        group = min(_GROUP_BYTES, _GROUP_BYTES_PER_VALUE * size) if at_once < size else 0
        return group + values * (_PROGRAMME_BYTES + choices + weights)
    return at_once * (_SORTED_BYTES + weights) + _search(at_once, options)


def _search(values: int, options: QuantizeOptions) -> int:
    most = next(amount for levels, amount in _SEARCH_BYTES if options.num_levels <= levels)
    return min(most, _SEARCH_BYTES_PER_VALUE * values)
