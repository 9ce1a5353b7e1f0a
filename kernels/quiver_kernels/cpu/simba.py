"""Level sets on the CPU: chosen for a vector, rounded to, read back (`quiver_kernels.simba`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range
from quiver_kernels.cpu import chunking, encode, simba_levels, solving
from quiver_kernels.cpu.compile import Floats, frozen, kernel
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, wire_name
from quiver_kernels.options import DEFAULT_BINS, DEFAULT_GRID, MAX_LEVEL_SETS, QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rng import SETS_STREAM, STRATA_STREAM
from quiver_kernels.sharing import run_parts
from quiver_kernels.simba import Thresholds, squared_errors
from quiver_kernels.stopping import checkpoint
from quiver_kernels.strata import Strata

# Up to so many values are taken one by one; of more, the means of about so many cells.
POINTS = 1 << 15
# Values whose random words are drawn at once: they stay in the processor's cache.
SPAN = 1 << 15
# Columns of a table over states and sets.
_ROW = MAX_LEVEL_SETS


# -- levels ----------------------------------------------------------------------------------


def solve_sets(x: NDArray[Any], bounds: Range, options: QuantizeOptions) -> NDArray[Any]:
    """Level sets of `x` in its levels' type, shape (l, s); their thresholds span its range."""
    name = wire_name(x.dtype)
    narrow, kept = WIRE_DTYPES[name], levels_dtype(name)
    flat = x.reshape(-1)
    # A good table for one set, exactly the best for few values.
    alone = replace(options, method="approx", bins=DEFAULT_BINS, grid=DEFAULT_GRID)
    table = solving.solve(flat, bounds, alone, chunking.NO_WEIGHTS).astype(np.float64)
    sets = np.tile(table, (options.level_sets, 1))
    if bounds.low < bounds.high:
        scaled = table * bounds.unit
        data = _data(flat, bounds)
        found = simba_levels.best_sets(data, scaled, options.level_sets) / bounds.unit
        spanning = _spanning(found, narrow, bounds)
        # The descent compares sums in which what is small may drown beside what is large.
        if spanning is not None and _error(data, spanning, bounds) < _error(data, sets, bounds):
            sets = spanning
    return sets.astype(narrow).astype(kept)


def _data(flat: NDArray[Any], bounds: Range) -> simba_levels.Data:
    if flat.size <= POINTS:
        values = np.sort(chunking.piece(flat, 0, flat.size).astype(np.float64)) * bounds.unit
        return simba_levels.Data(values, np.ones(values.size))
    cells = solving.stream_of(flat, bounds, chunking.NO_WEIGHTS).count(POINTS)
    checkpoint()
    count = cells.count.astype(np.float64)
    low = cells.minimum * bounds.unit
    means = low + cells.above(int(np.frexp(bounds.unit)[1]) - 1) / count
    return simba_levels.Data(np.clip(means, low, cells.maximum * bounds.unit), count)


def _error(data: simba_levels.Data, sets: Floats, bounds: Range) -> float:
    """Expected squared error of the data with level sets, from terms of one sign."""
    errors = squared_errors(data.values, sets * bounds.unit, 1.0)
    return float((np.diff(data.counts) * errors).sum())


def _spanning(sets: Floats, narrow: np.dtype[Any], bounds: Range) -> Floats | None:
    """`sets` as values of a type, with thresholds from the least to the greatest value.

    Rounding may have moved an end inwards: one level of it then moves outwards. None where there
    is no room in the type.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded: Floats = sets.astype(narrow).astype(np.float64)
        first, last = -rounded[:, 0], rounded[:, -1].copy()
        _raise(first, 0, -bounds.low, narrow)
        _raise(last, -1, bounds.high, narrow)
    rounded[:, 0], rounded[:, -1] = -first, last
    if not np.isfinite(rounded).all() or (rounded[:, 1:] < rounded[:, :-1]).any():
        return None
    return rounded


def _raise(ends: Floats, place: int, target: float, narrow: np.dtype[Any]) -> None:
    """Raise one of `ends`, values of a type, until their mean is at least `target`."""

    def missing() -> float:
        return math.fsum([*[target] * ends.size, *(-ends).tolist()])

    if not np.isfinite(ends).all():
        return
    level, step = ends[place], missing()
    while missing() > 0:
        ends[place] = np.asarray(level + step).astype(narrow)
        step *= 2.0


# -- codes -----------------------------------------------------------------------------------


@kernel
def encode_sets(
    x: NDArray[Any],
    unit: float,
    sets: int,
    inner: Floats,
    at: Floats,
    inverse: Floats,
    variance: Floats,
    stands: NDArray[np.uint16],
    words: NDArray[np.uint32],
    drawn: NDArray[np.uint32],
    states: NDArray[np.uint16],
    lanes: Floats,
    codes: NDArray[np.uint8],
    sums: Floats,
) -> None:
    """Encode values, one code a byte, by the rule of `quiver_kernels.simba`.

    Parameters
    ----------
    x, unit
        Values, and the power of two that brings the largest near 1.
    sets
        Number of level sets, l.
    inner
        T_i but for the last, infinity behind them; as many as a power of two.
    at, inverse, variance
        `Thresholds` in these units.
    stands
        Shape (states, MAX_LEVEL_SETS): twice the level at which a set stands in a state, plus one
        where it goes up next.
    words, drawn
        Words to round with, and to choose sets with; one per value.
    states, lanes
        Space to work in: a tile, (3, tile).
    codes
        Out: the codes.
    sums
        Out: expected squared error and squared norm, in squared units.
    """
    for i in range(states.size):
        lanes[0, i], lanes[1, i] = 0.0, 0.0
    number, half = np.uint64(sets), np.uint64(32)
    values = lanes[2]
    for tile in range(0, x.size, states.size):
        count = min(states.size, x.size - tile)
        source = x[tile : tile + count]
        for i in range(count):
            states[i] = 0
            values[i] = np.float64(source[i]) * unit
        step = inner.size // 2
        while step > 0:
            ahead = inner[step:]
            for i in range(count):
                k = states[i]
                states[i] = k + np.uint16(step) if values[i] >= ahead[k] else k
            step //= 2
        some, drawn_here, out = words[tile:], drawn[tile:], codes[tile:]
        for i in range(count):
            k = np.uint64(states[i])
            v, left, right = values[i], values[i] - at[k], at[k + np.uint64(1)] - values[i]
            p = left * inverse[k]
            up = (np.float64(some[i]) + 1.0 <= p * 4294967296.0) | (right <= 0.0)
            h = (np.uint64(drawn_here[i]) * number) >> half
            stand = stands[k, h]
            out[i] = np.uint8((stand >> np.uint16(1)) + (stand & np.uint16(up)))
            share = 1.0 if right <= 0.0 else min(max(p, 0.0), 1.0)
            error = (1.0 - share) * variance[k] + share * variance[k + np.uint64(1)]
            lanes[0, i] += error + max(left * right, 0.0)
            lanes[1, i] += v * v
    used = min(states.size, x.size)
    while used > 1:
        rest = (used + 1) // 2
        for i in range(used - rest):
            lanes[0, i] += lanes[0, rest + i]
            lanes[1, i] += lanes[1, rest + i]
        used = rest
    sums[0], sums[1] = lanes[0, 0], lanes[1, 0]


@kernel
def look_up_sets(
    codes: NDArray[np.uint8],
    drawn: NDArray[np.uint32],
    tables: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write out[i] = tables[set of i, codes[i]]; codes are in range."""
    number, half = np.uint64(tables.shape[0]), np.uint64(32)
    for i in range(codes.size):
        out[i] = tables[(np.uint64(drawn[i]) * number) >> half, codes[i]]


@kernel
def add_up_sets(
    codes: NDArray[np.uint8], drawn: NDArray[np.uint32], tables: Floats, total: Floats
) -> None:
    """Add what `look_up_sets` would write to `total`."""
    number, half = np.uint64(tables.shape[0]), np.uint64(32)
    for i in range(codes.size):
        total[i] += tables[(np.uint64(drawn[i]) * number) >> half, codes[i]]


def look_up(
    q: QuantizedVector,
    codes: NDArray[np.uint8],
    start: int,
    tables: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the entries of `tables` for the `codes` of the elements from `start` on."""
    for first, last in _spans(start, start + codes.size):
        part = slice(first - start, last - start)
        drawn = words_of(q.seed, SETS_STREAM, first, last)
        look_up_sets(codes[part], drawn, tables, out[part])


def add_up(
    q: QuantizedVector,
    codes: NDArray[np.uint8],
    start: int,
    tables: NDArray[Any],
    total: NDArray[Any],
) -> None:
    """Add what `look_up` would write to `total`."""
    for first, last in _spans(start, start + codes.size):
        part = slice(first - start, last - start)
        drawn = words_of(q.seed, SETS_STREAM, first, last)
        add_up_sets(codes[part], drawn, tables, total[part])


def _spans(start: int, stop: int) -> list[tuple[int, int]]:
    return [(first, min(first + SPAN, stop)) for first in range(start, stop, SPAN)]


def words_of(seed: int, stream: int, start: int, stop: int) -> NDArray[np.uint32]:
    """Philox words of the elements from `start` to `stop`."""
    first = start // 4
    words = np.empty(4 * (-(-stop // 4) - first), np.uint32)
    encode.fill_random(np.uint64(seed), np.uint64(stream), first, words)
    return frozen(words[start - 4 * first :][: stop - start])


def encode_to_sets(
    x: NDArray[Any],
    bounds: Range,
    options: QuantizeOptions,
    levels: NDArray[Any],
    seed: int,
    pack: Callable[[NDArray[np.uint8], int, int], None],
) -> tuple[float, float]:
    """Encode to level sets; expected squared error and squared norm, times the squared unit.

    `pack` takes the codes of a span (with room behind for eight), its start and its length.
    """
    table, strata, flat = Thresholds.of(levels, bounds.unit), Strata.of(options), x.reshape(-1)
    states = table.inverse.size
    inner = np.full(1 << (states - 1).bit_length() if states > 1 else 2, np.inf)
    inner[:states] = table.at[:-1]
    stands = frozen(_stands(states, len(levels)))

    def encode_span(span: tuple[int, int]) -> Floats:
        start, stop = span
        sums, codes = np.empty(2), np.zeros(-(-(stop - start) // 8) * 8, np.uint8)
        encode_sets(
            chunking.piece(flat, start, stop),
            bounds.unit,
            len(levels),
            frozen(inner),
            frozen(table.at),
            frozen(table.inverse),
            frozen(table.variance),
            stands,
            _rounding_words(seed, strata, start, stop),
            words_of(seed, SETS_STREAM, start, stop),
            np.empty(encode.TILE, np.uint16),
            np.empty((3, encode.TILE)),
            codes,
            sums,
        )
        pack(codes, start, stop)
        return sums

    sums = run_parts(_spans(0, flat.size), encode_span)
    return math.fsum(float(part[0]) for part in sums), math.fsum(float(part[1]) for part in sums)


def _stands(states: int, sets: int) -> NDArray[np.uint16]:
    """Twice the level at which each set stands in each state, plus one where it goes up next."""
    state, h = np.arange(states)[:, np.newaxis], np.arange(_ROW)
    stands = 2 * ((state + sets - 1 - h) // sets) + (h == state % sets)
    found: NDArray[np.uint16] = stands.astype(np.uint16)
    return found


def _rounding_words(seed: int, strata: Strata | None, start: int, stop: int) -> NDArray[np.uint32]:
    words = words_of(seed, 0, start, stop)
    if strata is None:
        return words
    shared = words_of(strata.shared_seed, STRATA_STREAM, start, stop)
    words = words.copy()
    encode.stratify(words, shared.copy(), frozen(strata.shifts), strata.world_size)
    return frozen(words)


def errors(x: NDArray[Any], bounds: Range, levels: NDArray[Any]) -> tuple[float, float]:
    """Expected squared error and squared norm, times the squared unit."""
    nothing = QuantizeOptions.create(method="simba", num_levels=levels.shape[1])
    return encode_to_sets(x, bounds, nothing, levels, 0, lambda *_: None)
