"""Kernels of ECTCQ: the best codes of each value, how often magnitudes occur, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel

_TILE = 512


_I32, _I64, _DOUBLE = ir.IntType(32), ir.IntType(64), ir.DoubleType()


def _vector_of(of: ir.Type, numbers: Sequence[float]) -> ir.Value:
    return ir.Constant(ir.VectorType(of, len(numbers)), list(numbers))


def _shuffle(builder: Any, first: ir.Value, second: ir.Value, places: list[int]) -> ir.Value:
    """The lanes of two vectors, one after the other, that `places` name."""
    return builder.shuffle_vector(first, second, _vector_of(_I32, places))


def _splat(builder: Any, number: ir.Value, lanes: int) -> ir.Value:
    nothing = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(_I32, 0))
    return _shuffle(builder, one, nothing, [0] * lanes)


def _choosing() -> Any:
    """An instruction for kernels: the best code of one value for each of the four subsets.

    Four codes in a row are next to a value, two of either lowest bit, by either quantizer: eight
    in one vector. The compiler does not find this by itself.
    """

    @intrinsic
    def choose(
        context: Any,  # noqa: ARG001
        place: Any,
        size: Any,
        sign: Any,
        lows: Any,
        rates: Any,
        starts: Any,
        bends: Any,
        zeros: Any,
        costs: Any,
        picks: Any,
    ) -> Any:
        signature = types.void(place, size, sign, lows, rates, starts, bends, zeros, costs, picks)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            proxy: Any = cgutils.create_struct_proxy
            place, size, sign = arguments[:3]

            def data(number: int) -> ir.Value:
                return proxy(signature.args[number])(context, builder, arguments[number]).data

            def at(number: int, offset: ir.Value, of: ir.Type, lanes: int) -> ir.Value:
                pointer = builder.gep(data(number), [offset])
                return builder.bitcast(pointer, ir.VectorType(of, lanes).as_pointer())

            def of_both(number: int, table: int, limit: int | None) -> ir.Value:
                """Four numbers of a table for each quantizer, from where an array says."""
                fours = []
                for q in range(2):
                    start = builder.add(two, ir.Constant(_I64, q))
                    offset = builder.load(builder.gep(data(number), [start]))
                    if limit is not None:
                        # A row of four for each low code up to `limit`, and for each quantizer.
                        capped = builder.select(
                            builder.icmp_signed("<", offset, ir.Constant(_I32, limit)),
                            offset,
                            ir.Constant(_I32, limit),
                        )
                        rows = builder.add(capped, ir.Constant(_I32, 1 + q * (limit + 2)))
                        offset = builder.shl(rows, ir.Constant(_I32, 2))
                    wide = builder.sext(offset, _I64)
                    fours.append(builder.load(at(table, wide, _DOUBLE, 4), align=8))
                return _shuffle(builder, fours[0], fours[1], list(range(8)))

            two = builder.shl(place, ir.Constant(_I64, 1))
            rate, bend = of_both(5, 4, None), of_both(3, 6, 1)
            pair = builder.load(at(3, two, _I32, 2), align=4)
            low = _shuffle(builder, pair, pair, [0] * 4 + [1] * 4)
            # Point of code k: 2 k - q sign(k).
            points = builder.sub(
                builder.shl(low, _vector_of(_I32, [1] * 8)), _vector_of(_I32, [0] * 4 + [1] * 4)
            )
            points = builder.add(points, _vector_of(_I32, [0, 2, 4, 6] * 2))
            exact = builder.fadd(builder.sitofp(points, ir.VectorType(_DOUBLE, 8)), bend)
            off = builder.fsub(_splat(builder, size, 8), exact)
            cost = builder.fadd(builder.fmul(off, off), rate)
            near = _shuffle(builder, cost, cost, [0, 1, 4, 5])
            far = _shuffle(builder, cost, cost, [2, 3, 6, 7])
            further = builder.fcmp_ordered("<", far, near)
            cost = builder.select(further, far, near)
            first = _shuffle(builder, low, low, [0, 0, 4, 4])
            code = builder.add(first, _vector_of(_I32, [0, 1, 0, 1]))
            step = builder.select(further, _vector_of(_I32, [2] * 4), _vector_of(_I32, [0] * 4))
            code = builder.add(code, step)
            # Even codes come first.
            lowest = builder.and_(first, _vector_of(_I32, [1] * 4))
            odd = builder.icmp_unsigned("!=", lowest, _vector_of(_I32, [0] * 4))
            cost = builder.select(odd, _shuffle(builder, cost, cost, [1, 0, 3, 2]), cost)
            code = builder.select(odd, _shuffle(builder, code, code, [1, 0, 3, 2]), code)
            zero = builder.load(at(7, ir.Constant(_I64, 0), _DOUBLE, 4), align=8)
            nothing = builder.fadd(_splat(builder, builder.fmul(size, size), 4), zero)
            keep = builder.fcmp_ordered("<=", cost, nothing)
            cost = builder.select(keep, cost, nothing)
            code = builder.select(keep, code, _vector_of(_I32, [0] * 4))
            code = builder.mul(code, _splat(builder, sign, 4))
            four = builder.shl(place, ir.Constant(_I64, 2))
            builder.store(cost, at(8, four, _DOUBLE, 4), align=8)
            builder.store(code, at(9, four, _I32, 4), align=4)
            return context.get_dummy_value()

        return signature, generate

    return choose


_choose = _choosing()


@kernel
def weigh(
    values: Floats, step: float, rates: Floats, costs: Floats, picks: NDArray[np.int32]
) -> None:
    """Write the best code of each value by quantizer q with lowest bit b, and what it costs.

    Parameters
    ----------
    values, step
        What to quantize, and by which step.
    rates
        rates[q, k + reach]: what code k costs in squared steps; further codes cost as the last.
    costs, picks
        Out: cost in squared steps, and code, at [i, 2 q + b].
    """
    middle = rates.shape[1] // 2
    # Rates of codes -1 .. middle + 4, as magnitudes see them, by sign and quantizer.
    table = np.empty((2, 2, middle + 6))
    for k in range(-1, middle + 5):
        code = min(k, middle)
        for q in range(2):
            table[0, q, k + 1] = rates[q, middle + max(code, -middle)]
            table[1, q, k + 1] = rates[q, middle - code]
    reach, length = np.int32(middle), np.int32(middle + 6)
    # By quantizer and low code (-1, 0, more): what codes -1 and 0 lie beyond 2 k - q.
    bends = np.zeros((2, 3, 4))
    bends[1, 0, 0], bends[1, 0, 1], bends[1, 1, 0] = 2.0, 1.0, 1.0
    # Of odd codes none is zero.
    zeros = np.array([rates[0, middle], np.inf, rates[1, middle], np.inf])
    sizes, signs = np.empty(_TILE), np.empty(_TILE, np.int32)
    lows, starts = np.empty((_TILE, 2), np.int32), np.empty((_TILE, 2), np.int32)
    for first in range(0, values.size, _TILE):
        part = values[first : first + _TILE]
        for i in range(part.size):
            size, negative = abs(part[i]) / step, np.int32(part[i] < 0)
            sizes[i], signs[i] = size, 1 - 2 * negative
            for q in range(2):
                # The point of the second code is not beyond the value, that of the third is.
                low = np.int32(2.0 * (size * 0.25 + 0.25 * q)) - np.int32(1)
                lows[i, q] = low
                starts[i, q] = min(low, reach) + np.int32(1) + (2 * negative + q) * length
        cost, picked = costs[first : first + _TILE], picks[first : first + _TILE]
        for i in range(part.size):
            _choose(i, sizes[i], signs[i], lows, table, starts, bends, zeros, cost, picked)


@kernel
def chosen(picks: NDArray[np.int32], subsets: NDArray[np.uint8], codes: NDArray[np.int32]) -> None:
    """Write the code of each value's subset."""
    for i in range(codes.size):
        codes[i] = picks[i, subsets[i]]


@kernel
def count_magnitudes(codes: NDArray[np.int32], counts: NDArray[np.int64]) -> int:
    """Add up how often each magnitude occurs, all large ones in the last place; the largest."""
    last, top = np.int64(counts.size - 1), np.int64(0)
    for i in range(codes.size):
        size = abs(np.int64(codes[i]))
        top = max(top, size)
        counts[min(size, last)] += 1
    return int(top)


@kernel
def squared_errors(
    x: NDArray[Any],
    codes: NDArray[np.int32],
    chunk: int,
    moves: NDArray[np.uint8],
    quantizers: NDArray[np.uint8],
    step: float,
    most: float,
    unit: float,
) -> tuple[float, float]:
    """Squared error and squared norm of whole chunks, in squared units."""
    rounded = np.empty(1, x.dtype)
    error, norm = 0.0, 0.0
    for start in range(0, x.size, chunk):
        state = np.uint8(0)
        for i in range(start, min(start + chunk, x.size)):
            code = np.int64(codes[i])
            sign = np.int64(code > 0) - np.int64(code < 0)
            point = (2 * code - np.int64(quantizers[state]) * sign) * step
            rounded[0] = max(-most, min(most, point))
            state = moves[state, code & 1]
            value = x[i] * unit
            off = value - rounded[0] * unit
            error += off * off
            norm += value * value
    return error, norm
