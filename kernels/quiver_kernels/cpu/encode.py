"""Unbiased codes: look up the interval, round by the element's Philox word, pack.

Each tile of values goes through one short loop per stage, so that the compiler can
vectorise every stage that reads and writes in order; table look-ups, which it cannot, have
loops of their own. Among few levels 16 values go through all stages at once, in registers: the
instructions for that are spelled out (`_rounding`, `_philox`). They are of no one processor; where
it can permute numbers in registers, that is made use of. The rule is `quiver_kernels.rounding`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
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
# Random words that are drawn at once.
DRAWN = 32
# Values that are asked for while those before them are encoded: drawing words takes as long.
AHEAD = 2048
_TWO_32 = 4294967296.0
# `rng.STRATA_STREAM`; Numba keys a kernel on the text of its own file.
_STRATA_STREAM = np.uint64(2)
# The largest float32 below 1: what a probability below 1 can be.
_BELOW_ONE = np.float32(1.0 - 2.0**-24)


_I8, _I32, _I64 = (ir.IntType(width) for width in (8, 32, 64))
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
# What levels of x86-64 have, by the names that Numba may be told in place of features.
_LEVELS_OF_X86 = {"x86-64-v3": {"+avx2"}, "x86-64-v4": {"+avx2", "+avx512f"}}


def _vector(of: ir.Type, lanes: int = LANES) -> ir.Type:
    return ir.VectorType(of, lanes)


def _vector_of(of: ir.Type, numbers: Iterable[float]) -> ir.Value:
    values = list(numbers)
    return ir.Constant(_vector(of, len(values)), values)


def _shuffle(builder: Any, first: ir.Value, second: ir.Value, places: list[int]) -> ir.Value:
    """The lanes of two vectors, one after the other, that `places` name."""
    return builder.shuffle_vector(first, second, _vector_of(_I32, places))


def _splat(builder: Any, number: ir.Value, lanes: int = LANES) -> ir.Value:
    """A number in every lane."""
    nothing = ir.Constant(_vector(number.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(_I32, 0))
    return _shuffle(builder, one, nothing, [0] * lanes)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> ir.Value:
    """Where the numbers of an array argument are."""
    proxy: Any = cgutils.create_struct_proxy
    return proxy(kind)(context, builder, array).data


def _at(builder: Any, data: ir.Value, offset: ir.Value, of: ir.Type) -> ir.Value:
    """Where a vector that begins `offset` numbers behind `data` is."""
    return builder.bitcast(builder.gep(data, [offset]), of.as_pointer())


def _nothing(context: Any) -> Any:
    """An instruction of the other type's branch, which is compiled too and never run."""
    return context.get_dummy_value()


def _prefetch(builder: Any, place: ir.Value) -> None:
    """Have memory that is read soon brought near; it may be nobody's."""
    numbers = [ir.Constant(_I32, number) for number in (0, 3, 1)]
    kind = ir.FunctionType(ir.VoidType(), [place.type, *(_I32 for _ in numbers)])
    insert: Any = cgutils.get_or_insert_function
    function = insert(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, *numbers])


def _philox() -> Any:
    """An instruction for kernels: the words of eight groups, 32 in a row.

    Groups lie side by side in 64-bit lanes, whose lower halves hold the words of the counter: so
    vector units multiply them. What is in the upper halves does not matter. A product's upper half
    is brought down by a shuffle, since shifts would wait for the unit that multiplies.
    """

    @intrinsic
    def draw(
        context: Any,  # noqa: ARG001
        seed: Any,
        stream: Any,
        first_group: Any,
        words: Any,
        start: Any,
    ) -> Any:
        signature = types.void(seed, stream, first_group, words, start)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            seed, stream, first_group, _, start = arguments
            low, half = ir.Constant(_I64, 0xFFFFFFFF), ir.Constant(_I64, 32)
            upper = [i | 1 for i in range(16)]

            def words_of(numbers: ir.Value) -> ir.Value:
                return builder.bitcast(numbers, _vector(_I32))

            def numbers_of(words: ir.Value) -> ir.Value:
                return builder.bitcast(words, _vector(_I64, 8))

            def high(words: ir.Value) -> ir.Value:
                return _shuffle(builder, words, words, upper)

            def product(words: ir.Value, factor: int) -> ir.Value:
                lower = builder.and_(numbers_of(words), _vector_of(_I64, [0xFFFFFFFF] * 8))
                return words_of(builder.mul(lower, _vector_of(_I64, [factor] * 8)))

            groups = builder.add(_splat(builder, first_group, 8), _vector_of(_I64, range(8)))
            c0, c2 = words_of(groups), words_of(_splat(builder, stream, 8))
            c1, c3 = high(c0), words_of(_vector_of(_I64, [0] * 8))
            k0, k1 = builder.and_(seed, low), builder.lshr(seed, half)
            for _ in range(10):
                p0, p1 = product(c0, 0xD2511F53), product(c2, 0xCD9E8D57)
                key0, key1 = (words_of(_splat(builder, k, 8)) for k in (k0, k1))
                c0, c1, c2, c3 = (
                    builder.xor(builder.xor(high(p1), c1), key0),
                    p1,
                    builder.xor(builder.xor(high(p0), c3), key1),
                    p0,
                )
                k0 = builder.and_(builder.add(k0, ir.Constant(_I64, 0x9E3779B9)), low)
                k1 = builder.and_(builder.add(k1, ir.Constant(_I64, 0xBB67AE85)), low)
            lower = [place for i in range(8) for place in (2 * i, 16 + 2 * i)]
            first = numbers_of(_shuffle(builder, c0, c1, lower))
            second = numbers_of(_shuffle(builder, c2, c3, lower))
            out = _data(context, builder, signature.args[3], arguments[3])
            for part in range(2):
                pairs = [place for i in range(4) for place in (4 * part + i, 8 + 4 * part + i)]
                offset = builder.add(start, ir.Constant(_I64, 16 * part))
                place = _at(builder, out, offset, _vector(_I32))
                words = words_of(_shuffle(builder, first, second, pairs))
                builder.store(words, place, align=4)
            return context.get_dummy_value()

        return signature, generate

    return draw


_draw_32 = _philox()


@kernel
def fill_random(
    seed: np.uint64, stream: np.uint64, first_group: int, words: NDArray[np.uint32]
) -> None:
    """Fill `words`, uint32 of a multiple of 4, with the groups from `first_group` on.

    `stream` is the third word of the counter.
    """
    whole = words.size // DRAWN * DRAWN
    for start in range(0, whole, DRAWN):
        _draw_32(seed, stream, np.uint64(first_group) + np.uint64(start // 4), words, start)
    if whole < words.size:
        more = np.empty(DRAWN, np.uint32)
        _draw_32(seed, stream, np.uint64(first_group) + np.uint64(whole // 4), more, 0)
        for i in range(whole, words.size):
            words[i] = more[i - whole]


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


class _Levels:
    """The rows of `encode_blocks`' table of few levels, as an instruction's vectors.

    Values are placed among the inner levels by a search in registers where the processor can
    permute numbers in them, else by comparing with one level after the other. The interval is a
    count of levels that are not above the value, so all ways give the same.
    """

    def __init__(self, context: Any, builder: Any, table: ir.Value, number: ir.Type) -> None:
        _, name, features = context.codegen().magic_tuple()
        self._builder, self._table, self._number = builder, table, number
        self._features = {*features.split(","), *_LEVELS_OF_X86.get(name, ())}

    def found(self, x: ir.Value, most: int) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        """Codes (bytes) of `x` among at most `most` levels; levels below and above; reciprocals."""
        narrow = self._number == _FLOAT
        if narrow and {"+avx512f", "+avx2"} & self._features:
            return self._searched(x, most)
        return self._compared(x, most)

    def _compared(self, x: ir.Value, most: int) -> tuple[ir.Value, ...]:
        builder = self._builder
        code = _vector_of(_I8, [0] * LANES)
        below, above, inverse = self._entry(0, 0), self._entry(1, 1), self._entry(2, 0)
        for j in range(1, most - 1):
            level = self._entry(0, j)
            reached = builder.fcmp_ordered(">=", x, level)
            below = builder.select(reached, level, below)
            above = builder.select(reached, self._entry(1, j + 1), above)
            inverse = builder.select(reached, self._entry(2, j), inverse)
            code = builder.select(reached, _vector_of(_I8, [j] * LANES), code)
        return code, below, above, inverse

    def _searched(self, x: ir.Value, most: int) -> tuple[ir.Value, ...]:
        builder = self._builder
        place = _vector_of(_I32, [0] * LANES)
        step = most // 2
        while step > 0:
            ahead = builder.or_(place, _vector_of(_I32, [step] * LANES))
            reached = builder.fcmp_ordered(">=", x, self._at_places(0, 0, ahead))
            place = builder.select(reached, ahead, place)
            step //= 2
        rest = (self._at_places(*entry, place) for entry in ((1, 0), (1, 1), (2, 0)))
        return builder.trunc(place, _vector(_I8)), *rest

    def _entry(self, row: int, place: int) -> ir.Value:
        """A number of the table in every lane."""
        return _splat(self._builder, self._builder.load(self._pointer(row, place)))

    def _at_places(self, row: int, first: int, places: ir.Value) -> ir.Value:
        """Of 16 numbers of a row, from `first` on, those at `places`."""
        builder = self._builder
        if "+avx512f" in self._features:
            numbers = self._load(row, first, 16)
            return self._call("llvm.x86.avx512.permvar.sf.512", numbers, places)
        lower, upper = self._load(row, first, 8), self._load(row, first + 8, 8)
        halves: list[ir.Value] = []
        for start in (0, 8):
            part = _shuffle(builder, places, places, list(range(start, start + 8)))
            # Of a place, the instruction takes the last three bits.
            low, high = (self._call("llvm.x86.avx2.permps", n, part) for n in (lower, upper))
            beyond = builder.icmp_unsigned(">", part, _vector_of(_I32, [7] * 8))
            halves.append(builder.select(beyond, high, low))
        return _shuffle(builder, halves[0], halves[1], list(range(16)))

    def _call(self, name: str, numbers: ir.Value, places: ir.Value) -> ir.Value:
        kind = ir.FunctionType(numbers.type, [numbers.type, places.type])
        insert: Any = cgutils.get_or_insert_function
        return self._builder.call(insert(self._builder.module, kind, name), [numbers, places])

    def _load(self, row: int, place: int, lanes: int) -> ir.Value:
        vector = _vector(self._number, lanes).as_pointer()
        return self._builder.load(
            self._builder.bitcast(self._pointer(row, place), vector), align=self._bytes
        )

    def _pointer(self, row: int, place: int) -> ir.Value:
        offset = ir.Constant(_I64, row * (MOST_PLACED + 1) + place)
        return self._builder.gep(self._table, [offset])

    @property
    def _bytes(self) -> int:
        return 4 if self._number == _FLOAT else 8


def _placing(most: int) -> Any:
    """An instruction for kernels: the intervals of `LANES` float64 values, `most` levels at most.

    A table look-up takes one value at a time; LLVM does not find this by itself, so the vectors
    are spelled out.
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
            if signature.args[0].dtype != types.float64:
                return _nothing(context)
            values, table, codes, found = (
                _data(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 3, 4)
            )
            start = arguments[2]
            x = builder.load(_at(builder, values, start, _vector(_DOUBLE)), align=1)
            code, *rest = _Levels(context, builder, table, _DOUBLE).found(x, most)
            builder.store(code, _at(builder, codes, start, _vector(_I8)), align=1)
            for row, result in enumerate(rest):
                offset = builder.add(start, ir.Constant(_I64, row * TILE))
                builder.store(result, _at(builder, found, offset, _vector(_DOUBLE)), align=1)
            return context.get_dummy_value()

        return signature, generate

    return place


_place_4, _place_8, _place_16 = (_placing(most) for most in (4, 8, MOST_PLACED))


def _rounding(most: int) -> Any:
    """An instruction for kernels: codes of `LANES` float32 values, `most` levels at most.

    They are rounded by the narrow rule; errors and squares are added to the sums of their lanes.
    """

    @intrinsic
    def place_and_round(
        context: Any,  # noqa: ARG001
        values: Any,
        table: Any,
        top: Any,
        words: Any,
        start: Any,
        codes: Any,
        lanes: Any,
    ) -> Any:
        signature = types.void(values, table, top, words, start, codes, lanes)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if signature.args[0].dtype != types.float32:
                return _nothing(context)
            values, table, words, codes, lanes = (
                _data(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 3, 5, 6)
            )
            top, start = _splat(builder, arguments[2]), arguments[4]

            def all_of(number: float) -> ir.Value:
                return _vector_of(_FLOAT, [number] * LANES)

            x = builder.load(_at(builder, values, start, _vector(_FLOAT)), align=4)
            later = builder.add(start, ir.Constant(_I64, AHEAD))
            _prefetch(builder, _at(builder, values, later, _I8))
            code, *rest = _Levels(context, builder, table, _FLOAT).found(x, most)
            below, above, inverse = rest
            word = builder.load(_at(builder, words, start, _vector(_I32)), align=4)
            p = builder.fmul(builder.fsub(x, below), inverse)
            most_below_one = all_of(float(_BELOW_ONE))
            least = builder.select(builder.fcmp_ordered("<", p, most_below_one), p, most_below_one)
            threshold = builder.fptoui(builder.fmul(least, all_of(_TWO_32)), _vector(_I32))
            up = builder.or_(
                builder.icmp_unsigned("<", word, threshold),
                builder.or_(
                    builder.fcmp_ordered(">=", p, all_of(1.0)),
                    builder.fcmp_ordered(">=", x, top),
                ),
            )
            code = builder.add(code, builder.zext(up, _vector(_I8)))
            builder.store(code, _at(builder, codes, start, _vector(_I8)), align=1)
            v, low, high = (builder.fpext(one, _vector(_DOUBLE)) for one in (x, below, above))
            error = builder.fmul(builder.fsub(high, v), builder.fsub(v, low))
            for row, term in enumerate((error, builder.fmul(v, v))):
                offset = builder.add(start, ir.Constant(_I64, row * TILE))
                place = _at(builder, lanes, offset, _vector(_DOUBLE))
                builder.store(builder.fadd(builder.load(place, align=8), term), place, align=8)
            return context.get_dummy_value()

        return signature, generate

    return place_and_round


_round_4, _round_8, _round_16 = (_rounding(most) for most in (4, 8, MOST_PLACED))


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
        Space to work in: (2, TILE + DRAWN), TILE, (4, TILE) of the type of `x`, (2, TILE).
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
                needed = first_index + x.size - base
                filled = base + min(words.shape[1], (needed + DRAWN - 1) // DRAWN * DRAWN)
                fresh = words[0, : filled - base]
                fill_random(seed, np.uint64(0), base // 4, fresh)
                if shifts.size > 0:
                    shared = words[1, : filled - base]
                    fill_random(shared_seed, _STRATA_STREAM, base // 4, shared)
                    stratify(fresh, shared, shifts, world_size)
            drawn = words[0, index - base :]

            # The first values of a tile are placed at once, what is left of it one by one.
            whole = 0
            if at_once and scale is None:
                whole = code.size // LANES * LANES
                if s <= 4:
                    for i in range(0, whole, LANES):
                        _round_4(values, table, top, drawn, i, code, lanes)
                elif s <= 8:
                    for i in range(0, whole, LANES):
                        _round_8(values, table, top, drawn, i, code, lanes)
                else:
                    for i in range(0, whole, LANES):
                        _round_16(values, table, top, drawn, i, code, lanes)
                if whole == code.size:
                    continue
                values, code, drawn = values[whole:], code[whole:], drawn[whole:]
            below, above = found[0], found[1]
            if at_once and scale is not None and code.size >= LANES:
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

            errors, norms = lanes[0, whole:], lanes[1, whole:]
            if scale is None:
                for i in range(code.size):
                    p = (values[i] - below[i]) * found[2, i]
                    t = np.uint32(min(p, _BELOW_ONE) * np.float32(_TWO_32))
                    up = (drawn[i] < t) | (p >= np.float32(1.0)) | (values[i] >= top)
                    code[i] += np.uint8(up)
                for i in range(code.size):
                    v = np.float64(values[i])
                    errors[i] += (np.float64(above[i]) - v) * (v - np.float64(below[i]))
                    norms[i] += v * v
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
                    errors[i] += (above[i] * unit - v) * (v - below[i] * unit)
                    norms[i] += v * v

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
