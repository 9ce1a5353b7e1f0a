"""Unbiased codes: look up the interval, round by the element's Philox word, pack.

Each tile of values goes through one short loop per stage, so that the compiler can
vectorise every stage that reads and writes in order; table look-ups, which it cannot, have
loops of their own. Among few levels values are placed by comparisons instead (`_placing`).
The rule is `quiver_kernels.rounding`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel

TILE = 512
# Values that are placed at once, and most levels for which that is done.
LANES = 16
MOST_PLACED = 16
_TWO_32 = 4294967296.0
# `rng.STRATA_STREAM`; Numba keys a kernel on the text of its own file.
_STRATA_STREAM = np.uint64(2)
# The largest float32 below 1: what a probability below 1 can be.
_BELOW_ONE = np.float32(1.0 - 2.0**-24)


@kernel
def fill_random(
    seed: np.uint64, stream: np.uint64, first_group: int, words: NDArray[np.uint32]
) -> None:
    """Fill `words`, uint32 of a multiple of 4, with the groups from `first_group` on.

    `stream` is the third word of the counter.
    32-bit words lie in 64-bit variables, as the vector units multiply them. A run-time loop
    over rounds would be ten times slower, so they stand one by one.
    """
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for g in range(words.size // 4):
        group = np.uint64(first_group) + np.uint64(g)
        k0, k1 = seed & low, seed >> half
        p0, p1 = (group & low) * m0, stream * m1
        c0, c1, c2, c3 = (p1 >> half) ^ (group >> half) ^ k0, p1 & low, (p0 >> half) ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
        p0, p1 = c0 * m0, c2 * m1
        words[4 * g] = np.uint32((p1 >> half) ^ c1 ^ k0)
        words[4 * g + 1] = np.uint32(p1)
        words[4 * g + 2] = np.uint32((p0 >> half) ^ c3 ^ k1)
        words[4 * g + 3] = np.uint32(p0)


@kernel
def stratify(
    words: NDArray[np.uint32],
    drawn: NDArray[np.uint32],
    shifts: NDArray[np.uint32],
    world_size: int,
) -> None:
    """Put `words` into the strata that `drawn` ones assign: the rule of `quiver_kernels.strata`.

    The quotient is a whole number below 2**32 and some n-th, n <= 2**16: its floor survives the
    rounding of a float64 division, which vector units have.
    """
    units, n, low, half = (
        np.uint64(shifts.size),
        np.uint64(world_size),
        np.uint64(0xFFFFFFFF),
        np.uint64(32),
    )
    divisor = np.float64(world_size)
    for i in range(words.size):
        scaled = np.uint64(drawn[i]) * units
        stratum = np.uint64(shifts[scaled >> half]) + (((scaled & low) * n) >> half)
        stratum = stratum - n if stratum >= n else stratum
        within = np.float64(np.int64(stratum << half | np.uint64(words[i])))
        words[i] = np.uint32(np.int64(within / divisor))


def _placing(most: int) -> Any:
    """An instruction for kernels: the intervals of `LANES` values among at most `most` levels.

    A table look-up takes one value at a time. Comparing with every level, and selecting all that
    is known of the interval as one goes, takes as many values as a vector unit holds; LLVM does
    not find this by itself, so the vectors are spelled out. Nothing in it is of one processor.
    """

    @intrinsic
    def place(
        context: Any,  # noqa: ARG001
        values: Any,
        table: Any,
        start: Any,
        codes: Any,
        found: Any,
    ) -> Any:
        signature = types.void(values, table, start, codes, found)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds = signature.args
            lane = context.get_value_type(kinds[0].dtype)
            many, byte = ir.VectorType(lane, LANES), ir.IntType(8)
            proxy: Any = cgutils.create_struct_proxy
            data = {
                name: proxy(kind)(context, builder, value).data
                for name, kind, value in zip(
                    ("values", "table", "start", "codes", "found"), kinds, arguments, strict=True
                )
                if isinstance(kind, types.Array)
            }
            first = arguments[2]
            index = ir.IntType(64)
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)

            def entry(row: int, place: int) -> ir.Value:
                """A number of the table in every lane."""
                offset = ir.Constant(index, row * (MOST_PLACED + 1) + place)
                number = builder.load(builder.gep(data["table"], [offset]))
                one = builder.insert_element(
                    ir.Constant(many, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
                )
                return builder.shuffle_vector(one, ir.Constant(many, ir.Undefined), zeros)

            def at(name: str, offset: ir.Value, of: ir.Type) -> ir.Value:
                pointer = builder.gep(data[name], [offset])
                return builder.bitcast(pointer, of.as_pointer())

            x = builder.load(at("values", first, many), align=1)
            below, above, inverse = entry(0, 0), entry(1, 1), entry(2, 0)
            codes_of = ir.VectorType(byte, LANES)
            code = ir.Constant(codes_of, [0] * LANES)
            for j in range(1, most - 1):
                level = entry(0, j)
                reached = builder.fcmp_ordered(">=", x, level)
                below = builder.select(reached, level, below)
                above = builder.select(reached, entry(1, j + 1), above)
                inverse = builder.select(reached, entry(2, j), inverse)
                code = builder.select(reached, ir.Constant(codes_of, [j] * LANES), code)
            builder.store(code, at("codes", first, codes_of), align=1)
            for row, result in enumerate((below, above, inverse)):
                offset = builder.add(first, ir.Constant(index, row * TILE))
                builder.store(result, at("found", offset, many), align=1)
            return context.get_dummy_value()

        return signature, generate

    return place


_place_4, _place_8, _place_16 = (_placing(most) for most in (4, 8, MOST_PLACED))


@kernel
def encode_blocks(
    x: NDArray[Any],
    block_size: int,
    first_index: int,
    levels: NDArray[Any],
    inverse: NDArray[Any],
    scale: Floats | None,
    inner: NDArray[Any],
    cells: NDArray[Any],
    guess: NDArray[np.uint8],
    first_step: int,
    seed: np.uint64,
    shared_seed: np.uint64,
    shifts: NDArray[np.uint32],
    world_size: int,
    unit: float,
    words: NDArray[np.uint32],
    places: NDArray[np.uint16],
    found: NDArray[Any],
    lanes: Floats,
    codes: NDArray[np.uint8],
    sums: Floats,
) -> None:
    """Encode consecutive blocks, one code a byte.

    Parameters
    ----------
    x
        Values of whole blocks (the last may be shorter), or a piece of one block.
    block_size
        Values per table.
    first_index
        Index of x[0] in the vector.
    levels, inverse, scale
        Rows of a `RoundingTable`, one per block; of the type of `x`. No scale: narrow.
    inner, cells, guess, first_step
        An `IntervalTable` of the same rows.
    seed
        Key of the random numbers.
    shared_seed, shifts, world_size
        A worker's `Strata`; no shifts: it rounds alone.
    unit
        Power of two that keeps squares of the values within float64.
    words, places, found, lanes
        Space to work in: (2, TILE + 4), TILE, (4, TILE) of the type of `x`, (2, TILE).
    codes
        Out: the codes.
    sums
        Out: sums[b] = (expected squared error, squared norm) of block b, in squared units.
    """
    s = levels.shape[1]
    # For placing values at once: inner levels and infinities; levels; reciprocals.
    table = np.empty((3, MOST_PLACED + 1), x.dtype)
    cell_count = x.dtype.type(guess.shape[1] - 1)
    filled, base = 0, 0
    for b in range(levels.shape[0]):
        start = b * block_size
        stop = min(start + block_size, x.size)
        top = levels[b, s - 1]
        used = min(TILE, stop - start)
        for i in range(used):
            lanes[0, i] = 0.0
            lanes[1, i] = 0.0
        at_once = s <= MOST_PLACED and stop - start >= LANES
        if at_once:
            for j in range(MOST_PLACED + 1):
                table[0, j] = levels[b, j] if j < s - 1 else np.inf
                table[1, j] = levels[b, min(j, s - 1)]
                table[2, j] = inverse[b, min(j, s - 2)]
        for tile in range(start, stop, TILE):
            end = min(tile + TILE, stop)
            values, code = x[tile:end], codes[tile:end]
            index = first_index + tile
            if first_index + end > filled:
                base = index // 4 * 4
                filled = min(base + words.shape[1], (first_index + x.size + 3) // 4 * 4)
                fresh = words[0, : filled - base]
                fill_random(seed, np.uint64(0), base // 4, fresh)
                if shifts.size > 0:
                    shared = words[1, : filled - base]
                    fill_random(shared_seed, _STRATA_STREAM, base // 4, shared)
                    stratify(fresh, shared, shifts, world_size)
            drawn = words[0, index - base :]

            below, above = found[0], found[1]
            if at_once and code.size >= LANES:
                last = code.size - LANES
                # The last values may be placed twice, with the same result.
                if s <= 4:
                    for i in range(0, code.size, LANES):
                        _place_4(values, table, min(i, last), code, found)
                elif s <= 8:
                    for i in range(0, code.size, LANES):
                        _place_8(values, table, min(i, last), code, found)
                else:
                    for i in range(0, code.size, LANES):
                        _place_16(values, table, min(i, last), code, found)
            else:
                if guess.shape[1] > 1:
                    low, cell_scale, row_guess = cells[b, 0], cells[b, 1], guess[b]
                    for i in range(code.size):
                        place = (values[i] - low) * cell_scale
                        places[i] = np.int32(min(max(place, x.dtype.type(0)), cell_count))
                    for i in range(code.size):
                        code[i] = row_guess[places[i]]
                else:
                    for i in range(code.size):
                        code[i] = 0
                if first_step == 0:
                    for j in range(1, s - 1):
                        for i in range(code.size):
                            code[i] += np.uint8(values[i] >= levels[b, j])
                step = first_step
                while step > 0:
                    ahead = inner[b, step:]
                    for i in range(code.size):
                        k = code[i]
                        code[i] = k + np.uint8(step) if values[i] >= ahead[k] else k
                    step //= 2
                for i in range(code.size):
                    below[i] = levels[b, code[i]]
                for i in range(code.size):
                    above[i] = levels[b, code[i] + np.uint64(1)]
                for i in range(code.size):
                    found[2, i] = inverse[b, code[i]]

            if scale is None:
                for i in range(code.size):
                    p = (values[i] - below[i]) * found[2, i]
                    t = np.uint32(min(p, _BELOW_ONE) * np.float32(_TWO_32))
                    up = (drawn[i] < t) | (p >= np.float32(1.0)) | (values[i] >= top)
                    code[i] += np.uint8(up)
                for i in range(code.size):
                    v = np.float64(values[i])
                    lanes[0, i] += (np.float64(above[i]) - v) * (v - np.float64(below[i]))
                    lanes[1, i] += v * v
            else:
                for i in range(code.size):
                    found[3, i] = scale[b, code[i]]
                for i in range(code.size):
                    p = (values[i] * found[3, i] - below[i] * found[3, i]) * found[2, i]
                    # r < floor(t) for a whole r is r + 1 <= t, and r + 1 is exact in float64.
                    up = (np.float64(drawn[i]) + 1.0 <= p * _TWO_32) | (values[i] >= top)
                    code[i] += np.uint8(up)
                for i in range(code.size):
                    v = values[i] * unit
                    lanes[0, i] += (above[i] * unit - v) * (v - below[i] * unit)
                    lanes[1, i] += v * v

        while used > 1:
            half = (used + 1) // 2
            for i in range(used - half):
                lanes[0, i] += lanes[0, half + i]
                lanes[1, i] += lanes[1, half + i]
            used = half
        # Squares of float32 fit into float64 as they are.
        once = unit if scale is None else 1.0
        sums[b, 0] = lanes[0, 0] * once * once
        sums[b, 1] = lanes[1, 0] * once * once


@kernel
def pack_pairs(pairs: NDArray[np.uint16], packed: NDArray[np.uint8]) -> None:
    """Pack codes of 4 bits without a gap: two, the first in the low byte, are one byte."""
    for i in range(packed.size):
        packed[i] = np.uint8(pairs[i] | pairs[i] >> np.uint16(4))


@kernel
def pack_eights(eights: NDArray[np.uint64], bits: int, packed: NDArray[np.uint8]) -> None:
    """Pack codes of `bits` bits without a gap: eight, the first in the low byte, are `bits` bytes.

    Neighbours move together, then pairs of them, then fours. Spoils `eights`.
    """
    one, two, four = np.uint64(8 - bits), np.uint64(16 - 2 * bits), np.uint64(32 - 4 * bits)
    for g in range(eights.size):
        w = eights[g]
        w = (w & np.uint64(0x00FF00FF00FF00FF)) | ((w & np.uint64(0xFF00FF00FF00FF00)) >> one)
        w = (w & np.uint64(0x0000FFFF0000FFFF)) | ((w & np.uint64(0xFFFF0000FFFF0000)) >> two)
        w = (w & np.uint64(0x00000000FFFFFFFF)) | ((w & np.uint64(0xFFFFFFFF00000000)) >> four)
        eights[g] = w
    for i in range(bits):
        column = packed[i::bits]
        for g in range(column.size):
            column[g] = np.uint8(eights[g] >> np.uint64(8 * i))


@kernel
def pack_blocks(
    codes: NDArray[np.uint8], block_size: int, bits: int, packed: NDArray[np.uint8]
) -> None:
    """Pack blocks that end within a byte: each begins on a byte of its own."""
    stride = (block_size * bits + 7) // 8
    for place in range(packed.size):
        packed[place] = 0
    for i in range(codes.size):
        bit = i % block_size * bits
        place = i // block_size * stride + bit // 8
        word = np.uint64(codes[i]) << np.uint64(bit % 8)
        packed[place] |= np.uint8(word)
        if bit % 8 + bits > 8:
            packed[place + 1] |= np.uint8(word >> np.uint64(8))
