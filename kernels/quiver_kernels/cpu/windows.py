"""The values of a vector that lie in a few windows, in one pass that hardly stops for the others.

Sixteen values are compared at once: each finds its window by a search in registers, where the
processor can permute numbers in them. Elsewhere `cells.collect` looks values up one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from quiver_kernels.cells import Cells
from quiver_kernels.cpu.compile import frozen, kernel

MOST_WINDOWS = 16
_LANES = 16
_I8, _I16, _I32, _I64 = (ir.IntType(width) for width in (8, 16, 32, 64))
_FLOAT = ir.FloatType()
# What levels of x86-64 have, by the names that Numba may be told in place of features.
_LEVELS_OF_X86 = {"x86-64-v3": {"+avx2"}, "x86-64-v4": {"+avx2", "+avx512f"}}


def _vector(of: ir.Type, lanes: int = _LANES) -> ir.Type:
    return ir.VectorType(of, lanes)


def _vector_of(of: ir.Type, numbers: Iterable[float]) -> ir.Value:
    values = list(numbers)
    return ir.Constant(_vector(of, len(values)), values)


def _shuffle(builder: Any, first: ir.Value, second: ir.Value, places: list[int]) -> ir.Value:
    """The lanes of two vectors, one after the other, that `places` name."""
    return builder.shuffle_vector(first, second, _vector_of(_I32, places))


def _features(context: Any) -> set[str]:
    _, name, features = context.codegen().magic_tuple()
    return {*features.split(","), *_LEVELS_OF_X86.get(name, ())}


def _insert(builder: Any, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call an instruction of the processor or of LLVM."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function: Any = cgutils.get_or_insert_function
    return builder.call(function(builder.module, kind, name), list(arguments))


def _load(builder: Any, place: ir.Value, first: int, lanes: int) -> ir.Value:
    pointer = builder.gep(place, [ir.Constant(_I64, first)])
    return builder.load(builder.bitcast(pointer, _vector(_FLOAT, lanes).as_pointer()), align=4)


def _at_places(features: set[str], builder: Any, table: ir.Value, places: ir.Value) -> ir.Value:
    """Of 16 numbers those at `places`."""
    if "+avx512f" in features:
        numbers = _load(builder, table, 0, 16)
        return _insert(builder, "llvm.x86.avx512.permvar.sf.512", numbers.type, numbers, places)
    lower, upper = _load(builder, table, 0, 8), _load(builder, table, 8, 8)
    halves: list[ir.Value] = []
    for begin in (0, 8):
        part = _shuffle(builder, places, places, list(range(begin, begin + 8)))
        # Of a place, the instruction takes the last three bits.
        few, more = (
            _insert(builder, "llvm.x86.avx2.permps", n.type, n, part) for n in (lower, upper)
        )
        beyond = builder.icmp_unsigned(">", part, _vector_of(_I32, [7] * 8))
        halves.append(builder.select(beyond, more, few))
    return _shuffle(builder, halves[0], halves[1], list(range(16)))


def _inside(features: set[str], builder: Any, x: ir.Value, low: ir.Value, high: ir.Value) -> Any:
    """Which lanes of `x` lie in a window: the last that begins at or before it is looked at."""
    place = _vector_of(_I32, [0] * _LANES)
    for step in (8, 4, 2, 1):
        ahead = builder.or_(place, _vector_of(_I32, [step] * _LANES))
        reached = builder.fcmp_ordered(">=", x, _at_places(features, builder, low, ahead))
        place = builder.select(reached, ahead, place)
    return builder.and_(
        builder.fcmp_ordered(">=", x, _at_places(features, builder, low, place)),
        builder.fcmp_ordered("<=", x, _at_places(features, builder, high, place)),
    )


def _has(feature: str) -> Any:
    """Whether the processor that a kernel is compiled for has a feature."""

    def has(context: Any) -> Any:  # noqa: ARG001 - Numba's signature
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
            return ir.Constant(ir.IntType(1), feature in _features(context))

        return types.boolean(), generate

    return intrinsic(has)


def _compared(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """`_LANES` values from a place on, and which of them lie in a window; see `_mask`."""
    proxy: Any = cgutils.create_struct_proxy
    values, low, high = (
        proxy(signature.args[i])(context, builder, arguments[i]).data for i in range(3)
    )
    x = _load(builder, builder.gep(values, [arguments[3]]), 0, _LANES)
    return x, _inside(_features(context), builder, x, low, high)


def _mask(context: Any, values: Any, low: Any, high: Any, start: Any) -> Any:  # noqa: ARG001
    """Which of `_LANES` values from `start` on lie in a window, as bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if "+avx2" not in _features(context):
            return ir.Constant(_I32, 0)
        _, within = _compared(context, builder, signature, arguments)
        return builder.zext(builder.bitcast(within, _I16), _I32)

    return types.int32(values, low, high, start), generate


def _close_up(
    context: Any,  # noqa: ARG001 - Numba's signature
    values: Any,
    low: Any,
    high: Any,
    start: Any,
    found: Any,
    size: Any,
) -> Any:
    """Of `_LANES` values from `start` on, put those in a window to found[size:]; returns how many.

    What is behind them there is spoiled.
    """
    signature = types.int32(values, low, high, start, found, size)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if "+avx512f" not in _features(context):
            return ir.Constant(_I32, 0)
        x, within = _compared(context, builder, signature, arguments)
        proxy: Any = cgutils.create_struct_proxy
        out = proxy(signature.args[4])(context, builder, arguments[4]).data
        name = "llvm.x86.avx512.mask.compress.v16f32"
        closed = _insert(builder, name, x.type, x, x, within)
        pointer = builder.bitcast(builder.gep(out, [arguments[5]]), x.type.as_pointer())
        builder.store(closed, pointer, align=4)
        return builder.zext(builder.ctpop(builder.bitcast(within, _I16)), _I32)

    return signature, generate


def _lowest(context: Any, mask: Any) -> Any:  # noqa: ARG001 - Numba's signature
    """The place of the lowest bit of a mask that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int32(types.int32), generate


_can_permute, _can_close_up = _has("+avx2"), _has("+avx512f")
_mask_of: Any = intrinsic(_mask)
_move: Any = intrinsic(_close_up)
_first_place: Any = intrinsic(_lowest)


@kernel
def can_pick() -> bool:
    """Whether this processor has what `pick` takes."""
    return bool(_can_permute())


@kernel
def pick(
    x: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    found: NDArray[np.float32],
) -> int:
    """Copy the values that lie in a window to `found`, in order; returns how many.

    `found` has room for `_LANES` values more than `x`.
    """
    size = 0
    whole = x.size // _LANES * _LANES
    if _can_close_up():
        for start in range(0, whole, _LANES):
            size += _move(x, low, high, start, found, size)
    else:
        for start in range(0, whole, _LANES):
            mask: int = _mask_of(x, low, high, start)
            while mask != 0:
                found[size] = x[start + _first_place(mask)]
                size += 1
                mask &= mask - 1
    for i in range(whole, x.size):
        for w in range(low.size):
            if low[w] <= x[i] <= high[w]:
                found[size] = x[i]
                size += 1
    return size


@dataclass(frozen=True, eq=False, slots=True)
class Windows:
    """At most `MOST_WINDOWS` closed intervals that do not overlap.

    Attributes
    ----------
    low, high
        Ends, ascending, float32; infinities behind the last window.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def of(cls, cells: Cells, chosen: NDArray[np.bool_]) -> Windows | None:
        """Those with the values of the `chosen` rows alone, of float32 values; None: too many.

        Rows that follow each other are one window. The edge of a cell that is no value of a loose
        row belongs to the next cell away from 0.
        """
        begins = np.flatnonzero(chosen & ~np.concatenate([[False], chosen[:-1]]))
        ends = np.flatnonzero(chosen & ~np.concatenate([chosen[1:], [False]]))
        if begins.size > MOST_WINDOWS:
            return None
        first, last = cells[begins], cells[ends]
        edge = 1 << cells.partition.layout.offset_bits
        least, greatest = first.minimum.astype(np.float32), last.maximum.astype(np.float32)
        above = (first.farthest == edge) & (first.index < 0)
        # 0 is in cell 0, with -0, and not in the one below.
        below = np.where(last.index < 0, ~last.index + last.nearest == 0, last.farthest == edge)
        infinity = np.float32(np.inf)
        low = np.full(MOST_WINDOWS, infinity)
        high = -low
        low[: begins.size] = np.where(above, np.nextafter(least, infinity), least)
        high[: ends.size] = np.where(below, np.nextafter(greatest, -infinity), greatest)
        return cls(frozen(low), frozen(high))

    def pick(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values in a window, in order."""
        found = np.empty(values.size + _LANES, np.float32)
        return found[: pick(frozen(values), self.low, self.high, found)].copy()
