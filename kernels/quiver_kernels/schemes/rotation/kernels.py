"""Kernels of the rotation: signs and Hadamard transforms of many blocks.

Sums and differences are those of the NumPy form in the same order, several distances at once while
the numbers are in registers; stretches that fit into the first cache go through all short distances
before the next stretch is touched.
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

# Values of a stretch: 16 KiB.
STRETCH = 2048


@kernel
def spread_signs(words: NDArray[np.uint32], bits: NDArray[np.uint8]) -> None:
    """Write the 8 groups of 4 bits of each word, the lowest first."""
    for i in range(words.size):
        word = words[i]
        for j in range(8):
            bits[8 * i + j] = np.uint8(word >> np.uint32(4 * j)) & np.uint8(15)


_DOUBLE, _I32, _I64 = ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_LANES = 8
_VECTOR = ir.VectorType(_DOUBLE, _LANES)


def _pointer(builder: Any, data: ir.Value, offset: ir.Value) -> ir.Value:
    return builder.bitcast(builder.gep(data, [offset]), _VECTOR.as_pointer())


def _swapped(builder: Any, vector: ir.Value, distance: int) -> ir.Value:
    """A vector with lanes exchanged that lie `distance` apart."""
    places = ir.Constant(ir.VectorType(_I32, _LANES), [i ^ distance for i in range(_LANES)])
    return builder.shuffle_vector(vector, vector, places)


def _within(builder: Any, vector: ir.Value, distance: int) -> ir.Value:
    """One step among the lanes of a vector: sums in lower lanes, differences in upper ones."""
    other = _swapped(builder, vector, distance)
    total, difference = builder.fadd(vector, other), builder.fsub(other, vector)
    places = [i + _LANES if i & distance else i for i in range(_LANES)]
    mask = ir.Constant(ir.VectorType(_I32, _LANES), places)
    return builder.shuffle_vector(total, difference, mask)


def _steps(count: int, *, inner: bool) -> Any:
    """An instruction for kernels: steps of the transform on `count` vectors in registers.

    The vectors lie `distance` values apart; `inner`: first the steps among their lanes. The
    compiler does not find this, as it cannot know that the vectors do not overlap.
    """

    @intrinsic
    def steps(context: Any, x: Any, start: Any, distance: Any) -> Any:  # noqa: ARG001
        signature = types.void(x, start, distance)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            proxy: Any = cgutils.create_struct_proxy
            data = proxy(signature.args[0])(context, builder, arguments[0]).data
            start, apart = (
                context.cast(builder, arguments[i], signature.args[i], types.int64) for i in (1, 2)
            )
            places = [
                builder.add(start, builder.mul(apart, ir.Constant(_I64, i))) for i in range(count)
            ]
            found = [builder.load(_pointer(builder, data, place), align=8) for place in places]
            if inner:
                for step in (1, 2, 4):
                    found = [_within(builder, vector, step) for vector in found]
            step = 1
            while step < count:
                for i in range(count):
                    if not i & step:
                        a, b = found[i], found[i + step]
                        found[i], found[i + step] = builder.fadd(a, b), builder.fsub(a, b)
                step *= 2
            for place, vector in zip(places, found, strict=True):
                builder.store(vector, _pointer(builder, data, place), align=8)
            return context.get_dummy_value()

        return signature, generate

    return steps


_begin = _steps(8, inner=True)
_two, _four, _eight = (_steps(count, inner=False) for count in (2, 4, 8))


@kernel
def widen(x: Floats, distance: int) -> None:
    """The steps of the transform from `distance`, 8 or more, on: three at once where there are."""
    n = x.size
    while 8 * distance <= n:
        for start in range(0, n, 8 * distance):
            for i in range(start, start + distance, 8):
                _eight(x, i, distance)
        distance *= 8
    if 4 * distance <= n:
        for start in range(0, n, 4 * distance):
            for i in range(start, start + distance, 8):
                _four(x, i, distance)
        distance *= 4
    if 2 * distance <= n:
        for start in range(0, n, 2 * distance):
            for i in range(start, start + distance, 8):
                _two(x, i, distance)


@kernel
def transform(x: Floats, stretch: int) -> None:
    """The Hadamard transform of a power of two of values, without scale, in place.

    `stretch`, a power of two of at least 64: values that are gone through together first.
    """
    n = x.size
    if n < 64:
        distance = 1
        while distance < n:
            for start in range(0, n, 2 * distance):
                for i in range(start, start + distance):
                    a, b = x[i], x[i + distance]
                    x[i], x[i + distance] = a + b, a - b
            distance *= 2
        return
    stretch = min(stretch, n)
    for first in range(0, n, stretch):
        part = x[first : first + stretch]
        for start in range(0, stretch, 64):
            _begin(part, start, 8)
        widen(part, 64)
    widen(x, stretch)


@kernel
def mix(x: Floats, factor: float) -> None:
    """Sums and differences of values half of the length apart, times `factor`."""
    half = x.size // 2
    low, high = x[:half], x[half : 2 * half]
    for i in range(half):
        a, b = low[i], high[i]
        low[i], high[i] = (a + b) * factor, (a - b) * factor


@kernel
def turn_rows(
    rows: Floats,
    bits: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    power: int,
    scale: float,
    half_root: float,
    back: bool,
) -> None:
    """Turn each row, or turn it back.

    Parameters
    ----------
    rows
        In and out, shape (m, n).
    bits
        Sign bits of all values, bit p for pass p.
    offsets, power
        Where the transform of each pass begins, and its length.
    scale
        What makes it orthonormal.
    half_root
        The root of 1/2.
    back
        Whether passes are undone.
    """
    n = rows.shape[1]
    count = offsets.size
    for r in range(rows.shape[0]):
        row, sign = rows[r], bits[r * n : (r + 1) * n]
        for k in range(count):
            number = count - 1 - k if back else k
            bit = np.uint8(1 << number)
            mixes = power < n and number % 2 == 1
            if back and mixes:
                mix(row, half_root)
            part = row[offsets[number] : offsets[number] + power]
            if not back:
                for i in range(n):
                    row[i] = -row[i] if sign[i] & bit else row[i]
            transform(part, STRETCH)
            for i in range(power):
                part[i] *= scale
            if back:
                for i in range(n):
                    row[i] = -row[i] if sign[i] & bit else row[i]
            elif mixes:
                mix(row, half_root)


@kernel
def turn_pairs(rows: Floats, words: NDArray[np.uint32], shift: int, back: bool) -> None:
    """Turn the pairs of one round of each row by the words of the lower value, or turn them back.

    `words` are those of all values, in order.
    """
    n = rows.shape[1]
    for r in range(rows.shape[0]):
        row = rows[r]
        for i in range(n):
            j = shift - i if i <= shift else shift - i + n
            if i < j:
                t = (np.float64(words[r * n + i]) + 0.5) * 2.0**-31 - 1.0
                inverse = 1.0 / (1.0 + t * t)
                cosine, sine = (1.0 - t * t) * inverse, 2.0 * t * inverse
                if back:
                    sine = -sine
                a, b = row[i], row[j]
                row[i], row[j] = cosine * a - sine * b, sine * a + cosine * b
