"""Floating-point numbers times a weight as integers: exactly, in as few terms as it takes.

A term is an int64 number per value and a power of two for all of them; the terms of a value add
up to weight times value. Sums of terms are sums of integers, so their order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Numbers of a term are below 2^55, their highest bits at least 44 above its lowest: room for
# values of float32 that are 2^20 apart, and for 128 or more terms in 63 bits.
_MIN_SPAN, _MAX_SPAN, _GRID = 44, 55, 8
# Bits between two planes of a value that does not fit into one.
CUT = 48
# Numbers of a term that spares a second one.
_MAX_WIDTH = 57
# Magnitudes that may be multiplied by an integer of 53 bits without overflow.
_LARGE = 2.0**900
_STEP_DOWN = 100
# Float types: bits of the significand.
_DIGITS = {2: 11, 4: 24, 8: 53}
_HALF_DIGITS = 27
# Larger integers are taken in two halves.
_WHOLE = 1 << 32
# Tables of more numbers are not worth the time of joining terms.
_MAX_JOINED = 1 << 12


class Term(NamedTuple):
    """``numbers * 2**lsb``, one number per value."""

    lsb: int
    numbers: Ints


class Factor(NamedTuple):
    """A part of a weight, ``number * 2**place``, and the bits of a value's significand."""

    number: float
    place: int
    digits: int


def split(values: NDArray[Any], weight: float, known: Collection[int] = ()) -> list[Term]:
    """Terms whose sum is exactly ``weight * values``; O(values) for each.

    Parameters
    ----------
    values
        Finite numbers of a floating, integer or boolean type, any shape.
    weight
        Finite; negative to take back what was added.
    known
        Values of `lsb` that are in use: terms keep to them where they fit.

    Returns
    -------
    list of Term
        None for zeros; one for float32 within 2^20 of each other and an integer weight of few
        bits; at most some 200, for values from 2^-1074 to 2^1023.

    Raises
    ------
    InvalidInput
        A value is NaN or infinite (``non_finite``).
    """
    found: list[Term] = []
    if weight == 0 or values.size == 0:
        return found
    numerator, denominator = weight.as_integer_ratio()
    for part, shift, digits in _parts(values, whole=abs(numerator).bit_count() == 1):
        for factor, exponent in _factors(numerator, 53 - digits):
            place = shift + exponent + 1 - denominator.bit_length()
            for product, lift in _products(part, factor):
                found += _terms(product, place + lift, [*known, *(term.lsb for term in found)])
    return found


def exact_factors(dtype: np.dtype[Any], weight: float) -> list[Factor]:
    """Factors that add up to `weight`, whose products with values of a type float64 holds.

    None for types that are not floating ones, and for float64 unless the weight is a power of
    two.
    """
    if dtype.kind in "iub":
        return []
    digits = _DIGITS[dtype.itemsize]
    numerator, denominator = weight.as_integer_ratio()
    shift = 1 - denominator.bit_length()
    power = abs(numerator).bit_count() == 1
    width = abs(numerator).bit_length() if power else 53 - digits
    if width == 0:
        return []
    return [Factor(f, place + shift, digits) for f, place in _factors(numerator, width)]


def joined(terms: list[Term], known: Collection[int]) -> list[Term]:
    """The same sums in the fewest terms, where there are more than two and few numbers each."""
    if len(terms) < 3 or terms[0].numbers.size > _MAX_JOINED:
        return terms
    lowest = min(term.lsb for term in terms)
    shape = terms[0].numbers.shape
    sums = [0] * terms[0].numbers.size
    for lsb, numbers in terms:
        flat = numbers.reshape(-1).tolist()
        sums = [each + (n << (lsb - lowest)) for each, n in zip(sums, flat, strict=True)]
    found: list[Term] = []
    while top := max(abs(each) for each in sums):
        last = top.bit_length() <= _MAX_SPAN
        lsb = lowest if last else place_of(lowest + top.bit_length(), known)
        # Towards 0, so that a small negative number does not become a long row of ones.
        step = 1 << (lsb - lowest)
        cut = [(abs(each) // step) * (1 if each > 0 else -1) for each in sums]
        found.append(Term(lsb, np.array(cut).reshape(shape)))
        sums = [each - step * whole for each, whole in zip(sums, cut, strict=True)]
    return min(terms, found, key=len)


def _parts(values: NDArray[Any], *, whole: bool) -> Iterator[tuple[Floats, int, int]]:
    """Float64 arrays, powers of two for each and bits of their significands; they add up."""
    if values.dtype.kind in "iub":
        if values.dtype.itemsize < 8:
            yield values.astype(np.float64), 0, 8 * values.dtype.itemsize
        elif int(values.max()) <= _WHOLE and int(values.min()) >= -_WHOLE:
            yield values.astype(np.float64), 0, 32
        else:
            yield (values >> values.dtype.type(32)).astype(np.float64), 32, 32
            yield (values & values.dtype.type(0xFFFFFFFF)).astype(np.float64), 0, 32
        return
    wide = values.astype(np.float64)
    digits = _DIGITS[values.dtype.itemsize]
    if digits < 53 or whole:
        # The weight is a power of two: nothing is lost in the product.
        yield wide, 0, min(digits, 52) if not whole else 0
        return
    high = (wide.view(np.int64) & np.int64(-1 << _HALF_DIGITS)).view(np.float64)
    # NaN and infinity keep to the first part, where they are refused.
    with np.errstate(invalid="ignore"):
        low = np.where(np.isfinite(wide), wide - high, wide)
    yield high, 0, 53 - _HALF_DIGITS
    yield low, 0, _HALF_DIGITS


def _factors(numerator: int, width: int) -> Iterator[tuple[float, int]]:
    """Integers of at most `width` bits, and their powers of two, that add up to `numerator`."""
    sign, left, place = (-1 if numerator < 0 else 1), abs(numerator), 0
    while left:
        zeros = (left & -left).bit_length() - 1
        left, place = left >> zeros, place + zeros
        low = left & ((1 << width) - 1)
        yield float(sign * low), place
        left, place = left >> width, place + width


def _products(part: Floats, factor: float) -> Iterator[tuple[Floats, int]]:
    """``part * factor``, exactly: large values apart from small ones, where they would overflow."""
    top = float(np.abs(part).max())
    if not math.isfinite(top):
        index = int(np.flatnonzero(~np.isfinite(part.reshape(-1)))[0])
        raise InvalidInput(
            f"values must be finite; got {float(part.reshape(-1)[index])} at index {index}",
            code="non_finite",
            field="values",
        )
    if top < _LARGE:
        yield part if factor == 1.0 else part * factor, 0
        return
    large = np.abs(part) >= 1.0
    yield np.where(large, part, 0.0) * 2.0**-_STEP_DOWN * factor, _STEP_DOWN
    yield np.where(large, 0.0, part) * factor, 0


def _terms(values: Floats, place: int, known: Collection[int]) -> list[Term]:
    """Terms of ``values * 2**place``: the leading bits first, then what is left of them."""
    found: list[Term] = []
    while top := max(float(values.max()), -float(values.min())):
        lsb = place_of(math.frexp(top)[1] + place, [*known, *(term.lsb for term in found)])
        local = lsb - place
        scaled = _scaled(values, -local)
        whole = np.trunc(scaled)
        found.append(Term(lsb, whole.astype(np.int64)))
        # Scaling up is exact; scaling down may lose the bits of a value below 1.
        if local <= 0 and np.array_equal(scaled, whole):
            break
        values = values - _scaled(whole, local)
    return found


def place_of(top: int, known: Collection[int]) -> int:
    """Place of the lowest bit of a term for values below ``2**top``."""
    fitting = [lsb for lsb in known if _MIN_SPAN <= top - lsb <= _MAX_SPAN]
    return max(fitting) if fitting else (top - _MIN_SPAN) // _GRID * _GRID


def place_below(lowest: int, top: int, known: Collection[int]) -> int | None:
    """Place of a term for values below ``2**top`` whose last bits are not below `lowest`."""
    fitting = [lsb for lsb in known if lsb <= lowest and top - lsb <= _MAX_WIDTH]
    if fitting:
        return max(fitting)
    lsb = min((top - _MIN_SPAN) // _GRID, lowest // _GRID) * _GRID
    return lsb if top - lsb <= _MAX_WIDTH else None


def _scaled(values: Floats, exponent: int) -> Floats:
    if abs(exponent) < 1000:
        return values * 2.0**exponent
    found: Floats = np.ldexp(values, exponent)
    return found
