"""Many short vectors at once: one upload, and one launch of a kernel for all of them."""

from __future__ import annotations

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
from quiver_kernels.gpu.passes import looping_grid, range_of
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
        suited = request.weights is None and options.is_plain and options.method in _METHODS
        if not suited or not 0 < x.size <= LONGEST or x.dtype not in WIRE_DTYPES.values():
            return None
        row = x.size if options.block_size is None else min(options.block_size, x.size)
        return cls(number, x, options.with_seed(), row)

    @property
    def tables(self) -> int:
        """Number of level tables."""
        return -(-self.x.size // self.row)

    @property
    def code_bytes(self) -> int:
        """Size of its codes."""
        return packed_size(self.x.size, self.options.bits, self.row)


def groups(items: Sequence[Item], at_once: int = AT_ONCE) -> Iterator[list[Item]]:
    """Items of one type each, and of so many bytes together."""
    for dtype in WIRE_DTYPES.values():
        group: list[Item] = []
        held = 0
        for item in items:
            if item.x.dtype != dtype:
                continue
            if group and held + item.x.nbytes > at_once:
                yield group
                group, held = [], 0
            group.append(item)
            held += item.x.nbytes
        if group:
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
    parts = {
        place: part
        for place, item in enumerate(items)
        if (part := rows.Rows.of(item.options, item.x.size, starts[place])) is not None
    }
    solved = rows.launch(device, values, dtype, list(parts.values())) if parts else None
    ends = np.empty((len(items), 3), np.uint64)
    sizes = [part.count * part.num_levels for part in parts.values()]
    tables = np.empty(sum(sizes))
    downloads = [Download(found, ends)]
    if solved is not None:
        downloads.append(Download(solved, tables))
    device.download_all(downloads)
    checkpoint()
    uploaded = time.perf_counter()
    fine = [place for place in range(len(items)) if int(ends[place, 2]) == _NONE]
    bounds = {place: range_of(int(ends[place, 0]), int(ends[place, 1]), dtype) for place in fine}
    stops = np.cumsum(sizes).tolist()
    levels = {
        place: tables[stop - size : stop]
        for place, size, stop in zip(parts, sizes, stops, strict=True)
    }
    coded = _Tables.of(items, fine, levels, bounds, dtype)
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
    pieces = np.append(jobs["first_piece"], len(sums)).astype(np.int64).tolist()
    results = {}
    seeds = jobs["seed"].tolist()
    for place, item, seed, job, first, stop in zip(
        coded.places, kept, seeds, jobs["codes"].tolist(), pieces[:-1], pieces[1:], strict=True
    ):
        error, norm = (math.fsum(column) for column in sums[first:stop].T.tolist())
        table = coded.levels[place]
        results[item.number] = QuantizedVector(
            method=item.options.method,
            bits=item.options.bits,
            num_levels=item.options.num_levels,
            shape=item.x.shape,
            dtype=dtype,
            block_size=item.options.block_size,
            seed=seed,
            levels=(table if item.options.block_size is not None else table[0]).copy(),
            codes=packed[job : job + item.code_bytes].copy(),
            vnmse=max(error, 0.0) / norm if norm > 0 else 0.0,
            device="gpu",
            timings_ms=timings,
        )
    return results


def _upload(device: Device, items: Sequence[Item]) -> tuple[Buffer, list[int]]:
    """All values in one piece of memory, and where each vector begins in it."""
    dtype = items[0].x.dtype
    step = _ALIGNED // dtype.itemsize
    rooms = [-(-item.x.size // step) * step for item in items]
    starts = (np.cumsum(rooms) - rooms).tolist()
    host = np.zeros(sum(rooms), dtype)
    for item, start in zip(items, starts, strict=True):
        host[start : start + item.x.size] = item.x.reshape(-1)
    return device.upload(host), starts


def _launch_ranges(
    device: Device, values: Buffer, dtype: str, items: Sequence[Item], starts: Sequence[int]
) -> Buffer:
    spans = np.array([starts, [item.x.size for item in items]], np.uint64).T
    found = device.upload(np.array([[_NONE, 0, _NONE]] * len(items), np.uint64))
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
        bounds: dict[int, Range],
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
            for place in same:
                levels[place] = _levels(items[place], s, solved.get(place), bounds[place])
            on_device = [place for place in same if place in solved]
            if on_device:
                # Rounded to the vectors' type all at once.
                joined = np.concatenate([levels[place] for place in on_device])
                counts = [items[place].tables for place in on_device]
                pieces = np.split(solving.snapped(joined, dtype), np.cumsum(counts)[:-1])
                levels.update(zip(on_device, pieces, strict=True))
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


def _levels(item: Item, s: int, solved: NDArray[np.float64] | None, bounds: Range) -> NDArray[Any]:
    if solved is not None:
        return solved.reshape(-1, s)
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
    items: Sequence[Item], tables: _Tables, starts: Sequence[int], bounds: dict[int, Range]
) -> NDArray[Any]:
    """What the kernels are told of each item, but for its shifts; shape (items,) of `_JOB`."""
    jobs = np.zeros(len(items), _JOB)
    size = np.array([item.x.size for item in items])
    row = np.array([item.row for item in items])
    count = np.array([item.tables for item in items])
    s = np.array([item.options.num_levels for item in items])
    full, rest = np.divmod(size, row)
    group_count = full * -(-row // _GROUP) + -(-rest // _GROUP)
    room = -(-np.array([item.code_bytes for item in items]) // _ALIGNED) * _ALIGNED
    jobs["start"], jobs["size"], jobs["row"], jobs["s"] = starts, size, row, s
    jobs["levels"] = _before(count * s)
    jobs["inverse"] = _before(count * (s - 1))
    jobs["unit"] = [bounds[place].unit for place in tables.places]
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
