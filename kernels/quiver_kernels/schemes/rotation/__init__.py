"""Randomized Hadamard rotation: blocks of values turned so that no value stands out.

A pass flips signs at random and applies the orthonormal Hadamard transform to all values of a
block, in its natural order, step by step from neighbours outwards. Two passes leave the numbers of
any block close to normal ones; one would leave those of a block with one large value all alike. A
length n that is no power of two has passes by turns over its first and its last p values, p the
largest power of two below n, so nothing is padded; after each two, values half of n apart become
their sum and difference over the root of 2, or else little would pass where the two barely overlap.
In a block of fewer than 256 values pairs are turned by random angles first (`pairs`).

All arithmetic is float64 in a stated order: NumPy and the kernels give the same bits. O(n log n).
The transform is of Ailon and Chazelle (STOC 2006); DRIVE and EDEN quantize what it gives.
"""

from __future__ import annotations

import importlib.util
import math

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.rng import ROTATION_STREAM, random_words
from quiver_kernels.schemes.rotation.pairs import SHORT, turn_plainly

MAX_BLOCK = 1 << 16
"""Most values that are turned at once: 512 KiB, which stay in a processor's cache."""

HALF_ROOT = math.sqrt(0.5)

_Floats = NDArray[np.float64]
# Bits of random words that belong to a value, one for each pass.
_BITS = 4
# Values of a stretch that NumPy transposes.
_INNER = 64


def rotate(rows: _Floats, seed: int, start: int) -> None:
    """Turn each row of `rows`, in place.

    Parameters
    ----------
    rows
        Blocks of values, float64, shape (m, n), contiguous; n up to `MAX_BLOCK`. Sums of n
        magnitudes must lie within float64.
    seed, start
        Key of the signs, unsigned 64-bit, and index of the first value: signs belong to the index
        of a value, so blocks may be turned in any order.

    Raises
    ------
    InvalidInput
        Rows of another type, shape or order.

    Notes
    -----
    Norms and scalar products stay what they are but for the rounding of float64.
    """
    _turn(rows, seed, start, back=False)


def rotate_back(rows: _Floats, seed: int, start: int) -> None:
    """The inverse of `rotate`, of the same arguments."""
    _turn(rows, seed, start, back=True)


def offsets(size: int) -> tuple[int, ...]:
    """Where the transform of each pass over a block of `size` values begins."""
    rest = size - power_below(size)
    return (0, 0) if rest == 0 else (0, rest, 0, rest)


def mixes(size: int, number: int) -> bool:
    """Whether values half of the length apart are mixed after a pass."""
    return size != power_below(size) and number % 2 == 1


def power_below(size: int) -> int:
    """The largest power of two up to `size`."""
    return 1 << (size.bit_length() - 1)


def signs(seed: int, start: int, count: int) -> NDArray[np.uint8]:
    """Sign bits of values, bit p of a value for pass p: 8 values share a word, the first lowest."""
    first = start // 8
    words = random_words(seed, first, (start + count + 7) // 8 - first, ROTATION_STREAM)
    shifts = np.arange(0, 32, _BITS, dtype=np.uint32)
    spread = (words[:, np.newaxis] >> shifts).astype(np.uint8) & np.uint8(15)
    return spread.reshape(-1)[start - 8 * first :][:count]


def rotate_plainly(rows: _Floats, seed: int, start: int, *, back: bool) -> None:
    """`rotate` or `rotate_back` in NumPy alone."""
    size = rows.shape[1]
    if 1 < size < SHORT and not back:
        turn_plainly(rows, seed, start, back=back)
    bits = signs(seed, start, rows.size).reshape(rows.shape)
    power = power_below(size)
    scale = 1.0 / math.sqrt(power)
    passes = list(enumerate(offsets(size)))
    for number, offset in reversed(passes) if back else passes:
        part = rows[:, offset : offset + power]
        if not back:
            _flip(rows, bits, number)
        elif mixes(size, number):
            _mix(rows)
        np.multiply(_transformed(np.ascontiguousarray(part)), scale, out=part)
        if back:
            _flip(rows, bits, number)
        elif mixes(size, number):
            _mix(rows)
    if 1 < size < SHORT and back:
        turn_plainly(rows, seed, start, back=back)


def _turn(rows: _Floats, seed: int, start: int, *, back: bool) -> None:
    # The kernels trust this.
    fits = rows.ndim == 2 and rows.dtype == np.float64 and rows.flags.c_contiguous
    if not (
        fits and rows.flags.writeable and rows.flags.aligned and 0 < rows.shape[1] <= MAX_BLOCK
    ):
        raise InvalidInput(
            f"rows must be a writable, contiguous float64 array of shape (m, 1..{MAX_BLOCK}); "
            f"got {rows.dtype.name} of shape {list(rows.shape)}",
            code="invalid_type",
            field="rows",
        )
    if rows.size == 0:
        return
    if importlib.util.find_spec("numba") is None:
        rotate_plainly(rows, seed, start, back=back)
        return
    from quiver_kernels.schemes.rotation.compiled import rotate_quickly

    rotate_quickly(rows, seed, start, back=back)


def _flip(rows: _Floats, bits: NDArray[np.uint8], number: int) -> None:
    rows *= 1.0 - 2.0 * (bits >> np.uint8(number) & np.uint8(1))


def _mix(rows: _Floats) -> None:
    """Its own inverse."""
    half = rows.shape[1] // 2
    low, high = rows[:, :half], rows[:, half : 2 * half]
    total, difference = low + high, low - high
    np.multiply(total, HALF_ROOT, out=low)
    np.multiply(difference, HALF_ROOT, out=high)


def _transformed(rows: _Floats) -> _Floats:
    """The Hadamard transform of each row, without scale: sums and differences at distance 1, 2.."""
    count, size = rows.shape
    inner = min(size, _INNER)
    # Between neighbours there are many short stretches: they lie side by side in a transposed copy.
    across = rows.reshape(-1, inner).T.copy()
    spare = np.empty(rows.size // 2)
    for distance in _distances(1, inner):
        _step(across.reshape(-1, 2, distance, across.shape[1]), spare)
    whole = across.T.copy().reshape(count, size)
    for distance in _distances(inner, size):
        _step(whole.reshape(-1, 2, distance), spare)
    return whole


def _distances(first: int, size: int) -> list[int]:
    return [1 << k for k in range(first.bit_length() - 1, size.bit_length() - 1)]


def _step(pairs: _Floats, spare: _Floats) -> None:
    low, high = pairs[:, 0], pairs[:, 1]
    difference = np.subtract(low, high, out=spare[: low.size].reshape(low.shape))
    low += high
    high[...] = difference
