"""Many short vectors at once: one upload, and one launch of a kernel for all of them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range
from quiver_kernels.cpu import solving
from quiver_kernels.cpu.chunking import NO_WEIGHTS
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, wire_name
from quiver_kernels.gpu import rows
from quiver_kernels.gpu.device import Buffer, Device, Download, Launch
from quiver_kernels.gpu.passes import looping_grid, values_of_keys
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.packing import packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import QuantizeRequest
from quiver_kernels.rounding import RoundingTable, rounding_table
from quiver_kernels.stopping import checkpoint
from quiver_kernels.strata import Strata

LONGEST = rows.LONGEST
"""Values of a vector that is worth sharing a launch."""

AT_ONCE = 1 << 28
"""Bytes of values that are on the device at a time."""

# Those that choose one table for all values, or for each block.
_METHODS = ("exact", "approx", "accelerated", "uniform")
_TYPES = frozenset(WIRE_DTYPES.values())
# As in the sources: threads, values of a group of codes, of a piece of errors, lanes of one.
_THREADS = 256
_GROUP = 8
_CHUNK = 1 << 18
_TILE = 512
_NONE = 2**64 - 1
# Vectors begin at multiples of 16 bytes, and so do their codes.
_ALIGNED = 16

_JOB = np.dtype(
    [
        ("start", np.uint64),
        ("size", np.uint64),
        ("row", np.uint64),
        ("levels", np.uint64),
        ("inverse", np.uint64),
        ("s", np.uint64),
        ("unit", np.float64),
        ("seed", np.uint64),
        ("shared_seed", np.uint64),
        ("shifts", np.uint64),
        ("units", np.uint64),
        ("world_size", np.uint64),
        ("bits", np.uint64),
        ("codes", np.uint64),
        ("first_tile", np.uint64),
        ("first_piece", np.uint64),
    ]
)
"""As `Job` in common.cuh."""


@dataclass(frozen=True, slots=True)
class Item:
    """One vector of many.

    Attributes
    ----------
    number
        Of the vector among all.
    x
        Its values.
    options
        With a seed.
    row
        Values that share a table.
    """

    number: int
    x: NDArray[Any]
    options: QuantizeOptions
    row: int

    @classmethod
    def of(cls, number: int, request: QuantizeRequest) -> Item | None:
        """The vector of a request, or None if it must be computed by itself."""
        x, options = request.vector, request.options
        size, block = x.size, options.block_size
        suited = request.weights is None and options.is_plain and options.method in _METHODS
        if not suited or not 0 < size <= LONGEST or x.dtype not in _TYPES:
            return None
        options = options if options.seed is not None else options.with_seed()
        return cls(number, x, options, size if block is None else min(block, size))


def groups(items: Sequence[Item], at_once: int = AT_ONCE) -> Iterator[list[Item]]:
    """Items of one type each, and of so many bytes together."""
    by_type: dict[np.dtype[Any], list[Item]] = {}
    for item in items:
        by_type.setdefault(item.x.dtype, []).append(item)
    for same in by_type.values():
        group: list[Item] = []
        held = 0
        for item in same:
            size = item.x.nbytes
            if group and held + size > at_once:
                yield group
                group, held = [], 0
            group.append(item)
            held += size
        yield group


def quantize(device: Device, items: Sequence[Item]) -> dict[int, QuantizedVector]:
    """Quantize vectors of one type, by their numbers.

    Vectors that are not finite, and those with levels that float32 arithmetic does not suit, are
    left out.
    """
    begun = time.perf_counter()
    dtype = wire_name(items[0].x.dtype)
    values, starts = _upload(device, items)
    found = _launch_ranges(device, values, dtype, items, starts)
    solving_for = _rows_of(items)
    parts = list(solving_for.values())
    solved = None
    if parts:
        first = [starts[place] for place in solving_for]
        solved = rows.launch(device, values, dtype, parts, starts=first)
    ends = np.empty((len(items), 3), np.uint64)
    sizes = [part.count * part.num_levels for part in parts]
    tables = np.empty(sum(sizes))
    downloads = [Download(found, ends)]
    if solved is not None:
        downloads.append(Download(solved, tables))
    device.download_all(downloads)
    checkpoint()
    uploaded = time.perf_counter()
    bounds = _Bounds.of(ends, dtype)
    stops = np.cumsum(sizes).tolist()
    levels = {
        place: tables[stop - size : stop]
        for place, size, stop in zip(solving_for, sizes, stops, strict=True)
    }
    coded = _Tables.of(items, bounds.fine, levels, bounds, dtype)
    if not coded.places:
        return {}
    kept = [items[place] for place in coded.places]
    jobs = _jobs(kept, coded, [starts[place] for place in coded.places], bounds)
    shifts, jobs["shifts"], jobs["units"] = _joined_shifts(kept)
    codes, errors = _launch_codes(device, values, dtype, jobs, coded, shifts)
    packed = np.empty(codes.nbytes, np.uint8)
    sums = np.empty((errors.nbytes // 16, 2))
    device.download_all([Download(codes, packed), Download(errors, sums)])
    done = time.perf_counter()
    # Nothing here is one vector's alone; each has its share.
    timings = {
        "levels": round(1e3 * (uploaded - begun) / len(items), 3),
        "encode": round(1e3 * (done - uploaded) / len(items), 3),
    }
    pieces = np.append(jobs["first_piece"], len(sums)).astype(np.int64)
    shares = _ratios(sums, pieces)
    results = {}
    seeds, begins = jobs["seed"].tolist(), jobs["codes"].tolist()
    lengths = _code_bytes(kept).tolist()
    for place, item, seed, begin, length, vnmse in zip(
        coded.places, kept, seeds, begins, lengths, shares, strict=True
    ):
        options, table = item.options, coded.levels[place]
        results[item.number] = QuantizedVector(
            method=options.method,
            bits=options.bits,
            num_levels=options.num_levels,
            shape=item.x.shape,
            dtype=dtype,
            block_size=options.block_size,
            seed=seed,
            levels=(table if options.block_size is not None else table[0]).copy(),
            codes=packed[begin : begin + length].copy(),
            vnmse=vnmse,
            device="gpu",
            timings_ms=timings,
        )
    return results


def _rows_of(items: Sequence[Item]) -> dict[int, rows.Rows]:
    """The rows of those items whose tables the device solves for, by their places."""
    # Most are alike.
    known: dict[tuple[object, ...], rows.Rows | None] = {}
    found = {}
    for place, item in enumerate(items):
        o, size = item.options, item.x.size
        key = (size, o.method, o.num_levels, o.block_size, o.grid, o.bins, o.levels is None)
        if key not in known:
            known[key] = rows.Rows.of(o, size)
        part = known[key]
        if part is not None:
            found[place] = part
    return found


def _ratios(sums: NDArray[np.float64], pieces: NDArray[np.int64]) -> list[float]:
    """Error over norm of each vector, from the errors and norms of its pieces."""
    if len(sums) == len(pieces) - 1:
        error, norm = sums.T
    else:
        spans = itertools.pairwise(pieces.tolist())
        parts = [[math.fsum(column) for column in sums[a:b].T.tolist()] for a, b in spans]
        error, norm = np.array(parts).T
    ratio = np.maximum(error, 0.0) / np.where(norm > 0, norm, 1.0)
    found: list[float] = np.where(norm > 0, ratio, 0.0).tolist()
    return found


def _code_bytes(items: Sequence[Item]) -> NDArray[np.int64]:
    """Size of the codes of each, as `packing.packed_size` has it."""
    size, row, bits = _sizes(items), _row_sizes(items), np.array([i.options.bits for i in items])
    full, rest = np.divmod(size, row)
    return np.asarray(full * -(-row * bits // 8) + -(-rest * bits // 8), np.int64)


def _sizes(items: Sequence[Item]) -> NDArray[np.int64]:
    return np.array([item.x.size for item in items], np.int64)


def _row_sizes(items: Sequence[Item]) -> NDArray[np.int64]:
    return np.array([item.row for item in items], np.int64)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Ranges of all items, by their places.

    Attributes
    ----------
    low, high
        Shape (items,); anything where a value is not finite.
    fine
        Places of those whose values are all finite.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    fine: list[int]

    @classmethod
    def of(cls, ends: NDArray[np.uint64], dtype: str) -> _Bounds:
        """From what `range.cu` found, shape (items, 3)."""
        low, high = (values_of_keys(ends[:, column], dtype) for column in (0, 1))
        return cls(low, high, np.flatnonzero(ends[:, 2] == np.uint64(_NONE)).tolist())

    def units(self, places: Sequence[int]) -> NDArray[np.float64]:
        """`checks.Range.unit` of some."""
        top = np.maximum(np.abs(self.low[places]), np.abs(self.high[places]))
        return np.asarray(np.ldexp(1.0, np.clip(-np.frexp(top)[1], -1000, 1000)), np.float64)

    def at(self, place: int) -> Range:
        """The range of one."""
        return Range(float(self.low[place]), float(self.high[place]))


def _upload(device: Device, items: Sequence[Item]) -> tuple[Buffer, list[int]]:
    """All values in one piece of memory, and where each vector begins in it."""
    dtype = items[0].x.dtype
    step = _ALIGNED // dtype.itemsize
    sizes = _sizes(items)
    rooms = -(-sizes // step) * step
    starts = _before(rooms).tolist()
    host = np.zeros(int(rooms.sum()), dtype)
    if len(set(sizes.tolist())) == 1:
        flat = [item.x.reshape(-1) for item in items]
        np.stack(flat, out=host.reshape(len(items), -1)[:, : sizes[0]])
    else:
        for item, start in zip(items, starts, strict=True):
            host[start : start + item.x.size] = item.x.reshape(-1)
    return device.upload(host), starts


def _launch_ranges(
    device: Device, values: Buffer, dtype: str, items: Sequence[Item], starts: Sequence[int]
) -> Buffer:
    spans = np.array([starts, _sizes(items)], np.uint64).T
    found = device.upload(np.tile(np.array([_NONE, 0, _NONE], np.uint64), (len(items), 1)))
    arguments = (values, device.upload(np.ascontiguousarray(spans)), np.uint32(len(items)), found)
    grid = looping_grid(device, len(items), 1)
    device.launch(Launch("range", f"range_each_{dtype}", grid, _THREADS, arguments))
    return found


@dataclass(frozen=True, slots=True)
class _Tables:
    """Level tables of some of the items, by their places, and what encoding needs of them.

    Attributes
    ----------
    places
        In the order of the tables.
    levels
        Tables of each, shape (tables, s), as they are sent.
    flat, inverse, scale
        All one after the other; no scale for narrow ones.
    """

    places: list[int]
    levels: dict[int, NDArray[Any]]
    flat: NDArray[Any]
    inverse: NDArray[Any]
    scale: NDArray[np.float64] | None

    @classmethod
    def of(
        cls,
        items: Sequence[Item],
        places: Sequence[int],
        solved: dict[int, NDArray[np.float64]],
        bounds: _Bounds,
        dtype: str,
    ) -> _Tables:
        """Tables of the items at `places`: those `solved` on the device, the CPU's for others."""
        by_size: dict[int, list[int]] = {}
        for place in places:
            by_size.setdefault(items[place].options.num_levels, []).append(place)
        kept: list[int] = []
        levels: dict[int, NDArray[Any]] = {}
        found = []
        for s, same in by_size.items():
            on_device = [place for place in same if place in solved]
            for place in same:
                if place not in solved:
                    levels[place] = _levels(items[place], bounds.at(place))
            if on_device:
                # Rounded to the vectors' type all at once.
                joined = np.concatenate([solved[place] for place in on_device]).reshape(-1, s)
                snapped, first = solving.snapped(joined, dtype), 0
                for place in on_device:
                    stop = first + solved[place].size // s
                    levels[place] = snapped[first:stop]
                    first = stop
            table, suited = _rounding(levels, same, narrow=dtype != "float64")
            if suited:
                kept += suited
                found.append(table)
        narrow = dtype != "float64"
        kind = levels_dtype(dtype)
        return cls(
            kept,
            levels,
            _flat([table.levels for table in found], kind),
            _flat([table.inverse for table in found], kind),
            None if narrow else _flat([table.scale for table in found], np.dtype(np.float64)),
        )


def _levels(item: Item, bounds: Range) -> NDArray[Any]:
    checkpoint()
    return np.atleast_2d(solving.solve(item.x, bounds, item.options, NO_WEIGHTS))


def _rounding(
    levels: dict[int, NDArray[Any]], places: Sequence[int], *, narrow: bool
) -> tuple[RoundingTable, list[int]]:
    """What encoding needs of the tables of those items for which float32 does, if `narrow`."""
    suited = list(places)
    table = rounding_table(np.concatenate([levels[place] for place in suited]))
    if narrow and not table.narrow:
        # One wide table makes all of them wide; most are not.
        suited = [place for place in places if rounding_table(levels[place]).narrow]
        if suited:
            table = rounding_table(np.concatenate([levels[place] for place in suited]))
    return table, suited


def _flat(arrays: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(array.reshape(-1) for array in arrays)])


def _jobs(
    items: Sequence[Item], tables: _Tables, starts: Sequence[int], bounds: _Bounds
) -> NDArray[Any]:
    """What the kernels are told of each item, but for its shifts; shape (items,) of `_JOB`."""
    jobs = np.zeros(len(items), _JOB)
    size, row = _sizes(items), _row_sizes(items)
    count = -(-size // row)
    s = np.array([item.options.num_levels for item in items])
    full, rest = np.divmod(size, row)
    group_count = full * -(-row // _GROUP) + -(-rest // _GROUP)
    room = -(-_code_bytes(items) // _ALIGNED) * _ALIGNED
    jobs["start"], jobs["size"], jobs["row"], jobs["s"] = starts, size, row, s
    jobs["levels"] = _before(count * s)
    jobs["inverse"] = _before(count * (s - 1))
    jobs["unit"] = bounds.units(tables.places)
    jobs["seed"] = np.array([item.options.seed for item in items], np.uint64)
    jobs["shared_seed"] = np.array([item.options.shared_seed or 0 for item in items], np.uint64)
    jobs["world_size"] = [item.options.world_size or 1 for item in items]
    jobs["bits"] = [item.options.bits for item in items]
    jobs["codes"] = _before(room)
    jobs["first_tile"] = _before(-(-group_count // _THREADS))
    jobs["first_piece"] = _before(count)
    return jobs


def _before(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the sizes before each."""
    return np.asarray(np.cumsum(sizes) - sizes, np.int64)


def _joined_shifts(
    items: Sequence[Item],
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """Shifts of all workers that round together, once each; where each item's begin; how many."""
    known: dict[tuple[int | None, int | None], tuple[int, int]] = {(None, None): (0, 0)}
    arrays = [np.zeros(1, np.uint32)]
    for item in items:
        key = (item.options.world_size, item.options.rank)
        if key not in known:
            strata = Strata.of(item.options)
            assert strata is not None  # only (None, None) names no place
            known[key] = (sum(array.size for array in arrays), strata.shifts.size)
            arrays.append(strata.shifts)
    places = np.array(
        [known[item.options.world_size, item.options.rank] for item in items], np.int64
    )
    return np.concatenate(arrays), places[:, 0], places[:, 1]


def _launch_codes(
    device: Device,
    values: Buffer,
    dtype: str,
    jobs: NDArray[Any],
    tables: _Tables,
    shifts: NDArray[np.uint32],
) -> tuple[Buffer, Buffer]:
    """Launch the kernels for codes and for errors of all jobs."""
    last = jobs[-1]
    told, levels = device.upload(jobs), device.upload(tables.flat)
    scale = None if tables.scale is None else device.upload(tables.scale)
    full, rest = divmod(int(last["size"]), int(last["row"]))
    group_count = full * -(-int(last["row"]) // _GROUP) + -(-rest // _GROUP)
    tiles = int(last["first_tile"]) + -(-group_count // _THREADS)
    pieces = int(last["first_piece"]) + full + (rest > 0)
    last_codes = packed_size(int(last["size"]), int(last["bits"]), int(last["row"]))
    codes = device.allocate(int(last["codes"]) + -(-last_codes // _ALIGNED) * _ALIGNED)
    errors = device.allocate(16 * pieces)
    count = np.uint32(len(jobs))
    most = int(jobs["s"].max())
    arguments = (
        *(values, told, count, np.uint64(tiles), levels, device.upload(tables.inverse), scale),
        *(device.upload(shifts), codes),
    )
    itemsize = 8 if dtype == "float64" else 4
    entry = 3 * itemsize if dtype == "float64" else 2 * itemsize
    device.launch(
        Launch(
            "encode",
            f"encode_each_{dtype}",
            looping_grid(device, tiles, 1),
            _THREADS,
            arguments,
            shared=_THREADS * _GROUP + entry * most,
        )
    )
    threads = min(_TILE, -(-int(jobs["row"].max()) // 32) * 32)
    shared = 16 * _TILE + itemsize * most
    given = (values, told, count, levels, errors)
    device.launch(Launch("errors", f"errors_each_{dtype}", pieces, threads, given, shared=shared))
    return codes, errors
