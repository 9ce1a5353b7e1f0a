"""How much memory a request needs beyond its body, known before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quiver_kernels.cells import TABLES
from quiver_kernels.dtypes import from_wire, leaf_dtype, levels_dtype, wire_name
from quiver_kernels.exact_sum import TILE
from quiver_kernels.options import APPROX_FROM, SIMBA, QuantizeOptions
from quiver_kernels.packing import num_blocks, packed_size
from quiver_kernels.planwire import PlanRequest
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.coding import scheme_of
from quiver_kernels.stopping import STEP
from quiver_kernels.tree import QuantizedTree, RawSection, Section
from quiver_kernels.treerequest import TreesRequest
from quiver_kernels.wire import (
    AggregateRequest,
    BatchRequest,
    LevelsRequest,
    QuantizeRequest,
    SketchLevelsRequest,
    StatisticsRequest,
)
from quiver_kernels.wrapping import around

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
# `approx` counts into tables that span the binades of the values' type (by its bytes), one for
# each thread that helps; with weights into one, and one of sums. Then it searches among cells, or
# makes a uniform grid.
_COUNTING_BYTES = {4: 5 << 18, 8: 9 << 20}
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
# Rows of sketches are read, merged some at a time, and searched; a grid has so many points at most.
_ROW_BYTES = 512
_MERGED_ROWS = 1 << 20
# Means, variances, norms and weights as float64, and the order of weights.
_STATISTIC_BYTES = 96
_SKETCH_GRID_BYTES = 24 << 20
# Means are added up as float64, a stretch at a time, with its codes.
_SUM_BYTES = 10
# Level tables are made as float64.
_TABLE_WORKING_BYTES = 12
# `simba` descends over cells or single values; its levels are numbers of the descent, and random
# words are drawn for some values at once.
_SETS_POINTS, _SETS_POINT_BYTES, _SETS_LEVEL_BYTES = 1 << 15, 80, 256
_SETS_LEAST_BYTES = 1 << 15
# What a message of a batch has besides its name, levels and codes, and the objects of a vector
# while it is read, kept and written: they count where thousands of vectors are small.
_MESSAGE_BYTES = 512
_ITEM_BYTES = 5 << 10
# A row of an error curve, and partial solutions while the best combination is searched for.
_CANDIDATE_BYTES = 32
_CHOOSING_BYTES = 80 << 20
# Exact sums: planes and what is made of one tile, for each of its values; two terms for each
# entry of a table; tables up to so many entries are made into terms in any case.
_TILE_BYTES = 256
_TERM_BYTES = 32
_SMALL_TABLE = 1 << 10


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


def of_sketch_levels(request: SketchLevelsRequest) -> Footprint:
    """Footprint of ``/levels`` from sketches: numbers of those read, merged and searched."""
    largest = max(sketch.rows for sketch in request.sketches)
    return Footprint(
        output=request.num_levels * np.dtype(np.float64).itemsize,
        working=_ROW_BYTES * min(request.rows, _MERGED_ROWS + 2 * largest) + _SKETCH_GRID_BYTES,
    )


def of_statistics(request: StatisticsRequest) -> Footprint:
    """Footprint of ``/levels`` from statistics: some numbers for each block."""
    return Footprint(
        output=request.options.num_levels * np.dtype(np.float64).itemsize,
        working=_STATISTIC_BYTES * request.size,
    )


def of_plan(request: PlanRequest) -> Footprint:
    """Footprint of ``/plan``: a row for each candidate; one vector is solved for at a time."""
    ways, count = request.ways, len(request.vectors)
    names = sum(len(name.encode()) for name in request.vectors)
    answer = names + count * (_MESSAGE_BYTES + _CANDIDATE_BYTES * (len(ways.options) + 1))
    one = 0
    for x in request.vectors.values():
        itemsize = levels_dtype(wire_name(x.dtype)).itemsize
        for options in ways.options:
            if options.is_scheme:
                # The message itself is made, to be weighed.
                one = max(one, _of_scheme(x.size, options).total)
                continue
            needed = _working(x.size, itemsize, options, weighted=False)
            one = max(one, needed + _table_entries(x.size, options) * itemsize)
    choosing = 0 if request.budget is None else min(_CHOOSING_BYTES, count << 20)
    return Footprint(answer, max(one, choosing) + count * _ITEM_BYTES)


def of_dequantize(q: QuantizedVector) -> Footprint:
    """Footprint of ``/dequantize``: the decoded vector and a copy of the tables."""
    return Footprint(q.size * from_wire(q.dtype).itemsize, _decoding(q))


def of_aggregate(request: AggregateRequest) -> Footprint:
    """Footprint of ``/aggregate``: the mean, copies of the tables, its codes if asked for."""
    size = max(q.size for q in request.vectors)
    dtype = max((q.dtype for q in request.vectors), key=lambda name: from_wire(name).itemsize)
    mean = size * from_wire(dtype).itemsize
    tables = sum(q.levels.size * np.dtype(np.float64).itemsize for q in request.vectors)
    tables += _SUM_BYTES * min(size, STEP)
    if any(q.is_scheme or q.wrap is not None for q in request.vectors):
        # Each is decoded as a whole, and once more as float64, and added to a sum.
        doubles = 3 * size * np.dtype(np.float64).itemsize
        tables += doubles + max(_decoding(q) for q in request.vectors)
    if request.quantize is None:
        return Footprint(mean, tables)
    answer = _of_quantized(size, dtype, request.quantize, weighted=False)
    return Footprint(answer.output, mean + max(tables, answer.working))


def of_trees(request: TreesRequest) -> Footprint:
    """Footprint of ``/aggregate`` of trees: the means, sums of a tile, copies of the tables."""
    leaves = request.trees[0].leaves()
    means = sum(leaf.size * leaf_dtype(leaf.dtype).itemsize for leaf in leaves)
    values = max((leaf.size for leaf in leaves), default=0)
    parts = sum(len(group.sections) for tree in request.trees for group in tree.groups)
    tables = sum(map(_section_bytes, _sections(request.trees)))
    tile = min(max(values, sum(leaf.size for leaf in leaves)), TILE)
    working = tables + _TILE_BYTES * tile + _ITEM_BYTES * (parts + len(request.trees) * len(leaves))
    heads = _MESSAGE_BYTES * (len(leaves) + 1) + sum(len(leaf.name.encode()) for leaf in leaves)
    if request.quantize is None:
        return Footprint(means + heads, working)
    output, solving = heads, 0
    for leaf in leaves:
        if not request.quantize.takes(leaf):
            output += leaf.size * leaf_dtype(leaf.dtype).itemsize
            continue
        answer = _of_quantized(leaf.size, leaf.dtype, request.quantize.options, weighted=False)
        output += answer.output
        solving = max(solving, answer.working)
    return Footprint(output, means + max(working, solving))


def _sections(trees: Sequence[QuantizedTree]) -> Iterator[Section]:
    return (section for tree in trees for group in tree.groups for section in group.sections)


def _section_bytes(section: Section) -> int:
    """Bytes that are made of a section before it is added up."""
    if isinstance(section, RawSection):
        return 0
    vector = section.vector
    # Where tables are about as long as the vector, it is decoded.
    decoded = vector.size * from_wire(vector.dtype).itemsize
    if vector.wrap is not None:
        return decoded + _decoding(vector)
    return min(_TERM_BYTES * vector.levels.size, decoded + _TERM_BYTES * _SMALL_TABLE)


def _decoding(q: QuantizedVector) -> int:
    """Bytes that decoding takes beside its result."""
    unwrapping = around.dequantize_bytes(q)
    if not q.is_scheme:
        return unwrapping + q.levels.nbytes
    return unwrapping + scheme_of(q.method).working_bytes(q.coded.choice, q.size)


def _of_scheme(size: int, options: QuantizeOptions) -> Footprint:
    """As the scheme declares them; the conformance kit holds it to that."""
    scheme, choice = scheme_of(options.method), options.choice
    return Footprint(
        math.ceil(scheme.message_bits(choice, size) / 8), scheme.working_bytes(choice, size)
    )


def _of_quantized(size: int, dtype: str, options: QuantizeOptions, *, weighted: bool) -> Footprint:
    if options.is_wrapped:
        alone = _of_quantized(size, dtype, options.without_wrappers(), weighted=weighted)
        return Footprint(
            alone.output + around.message_bytes(size, options),
            alone.working + around.quantize_bytes(size, options),
        )
    if options.is_scheme:
        return _of_scheme(size, options)
    codes = packed_size(size, options.bits, options.block_size)
    itemsize = levels_dtype(dtype).itemsize
    tables = _table_entries(size, options) * itemsize
    return Footprint(codes + tables, _working(size, itemsize, options, weighted=weighted))


def _table_entries(size: int, options: QuantizeOptions) -> int:
    tables = num_blocks(size, options.block_size)
    return (options.level_sets if options.method == SIMBA else tables) * options.num_levels


def _working(size: int, itemsize: int, options: QuantizeOptions, *, weighted: bool) -> int:
    needed = _table_entries(size, options) * _TABLE_WORKING_BYTES
    if weighted:
        needed += size * _WEIGHT_BYTES
    at_once = min(size, options.block_size or size)
    if options.method == SIMBA:
        return needed + _level_sets(size, itemsize, options)
    if options.num_levels == 2 and options.block_size is None:
        return needed
    if options.sorts(at_once):
        return needed + _sorted(size, at_once, options, weighted=weighted)
    if options.method == "exact":
        needed += _search(at_once, options)
    elif options.method == "approx" and not options.spaces_evenly:
        tables = 2 if weighted else min(TABLES[itemsize], 1 + at_once // STEP)
        needed += _COUNTING_BYTES[itemsize] * tables
        needed += min(_CELL_BYTES * options.bins, _PROGRAMME_BYTES * at_once)
    elif options.method == "approx":
        needed += _GRID_BYTES * options.bins
    return needed


def _level_sets(size: int, itemsize: int, options: QuantizeOptions) -> int:
    """Bytes to find level sets, and to round to them."""
    points = _SETS_LEAST_BYTES + _SETS_POINT_BYTES * min(size, _SETS_POINTS)
    if size > APPROX_FROM:
        points += _COUNTING_BYTES[itemsize] + _CELL_BYTES * _SETS_POINTS // 8
    return points + _SETS_LEVEL_BYTES * options.level_sets * options.num_levels


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
