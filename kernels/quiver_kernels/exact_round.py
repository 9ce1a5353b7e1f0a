"""An exact sum over an exact total, rounded once: to float64, or to whole numbers.

Most quotients are found in float64 arithmetic with a proven bound of its error; the few whose
rounding the bound leaves open are computed in integers of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dispatch import pick_decoder
from quiver_kernels.exact_terms import Floats, Ints, Term
from quiver_kernels.stopping import slices

# Values at a time: what is worked with stays in the cache.
_PIECE = 1 << 13
_EXACT = 1 << 53
_FAR = 900
# Results below are rounded in integers: they may be subnormal.
_SMALL = 2.0**-960


def quotients(planes: Sequence[Term], total: Fraction, size: int) -> Floats:
    """``sum of planes / total``, correctly rounded to float64 (nearest, ties to even).

    Parameters
    ----------
    planes
        Terms of `size` numbers below 2^62, ``lsb`` different for each.
    total
        Greater than 0.
    size
        Number of values.

    Returns
    -------
    ndarray
        float64, shape (size,). O(size) for each plane; a microsecond for each value whose
        rounding is not clear in twice float64's digits.
    """
    found = np.zeros(size)
    ordered = sorted(planes, key=lambda plane: -plane.lsb)
    divisor, shift = _odd_part(total)
    for part in slices(size, _PIECE):
        pieces = [Term(plane.lsb, plane.numbers[part]) for plane in ordered]
        pieces = [plane for plane in pieces if plane.numbers.any()]
        if not pieces:
            continue
        if not _single(pieces, divisor, shift, found[part]):
            open_cases = _double(pieces, divisor, shift, found[part])
            _settle(pieces, total, open_cases, found[part])
    return found


def whole_numbers(planes: Sequence[Term], total: Fraction, size: int) -> Ints | list[int]:
    """``sum of planes / total`` rounded to the nearest integer, ties to even, exactly.

    Returns
    -------
    ndarray or list of int
        Shape (size,): int64, or a list where a value may need more bits on the way.
    """
    if not planes:
        return np.zeros(size, np.int64)
    divisor, shift = _odd_part(total)
    joined = _joined(planes)
    if joined is not None:
        place = joined.lsb - shift
        up, down = max(place, 0), max(-place, 0)
        if _top(joined.numbers) << up < 1 << 62 and divisor << down < 1 << 61:
            denominator = np.int64(divisor << down)
            whole, left = np.divmod(joined.numbers << np.int64(up), denominator)
            beyond = (2 * left > denominator) | ((2 * left == denominator) & (whole & 1 == 1))
            found: Ints = whole + beyond
            return found
    exact = []
    for part in slices(size, _PIECE):
        exact += [round(Fraction(each) / total) for each in _sums(planes, part)]
    return exact


def _joined(planes: Sequence[Term]) -> Term | None:
    """All planes as one, without zero bits at its end; None where 62 bits are not enough."""
    lowest = min(plane.lsb for plane in planes)
    if sum(_top(numbers) << (lsb - lowest) for lsb, numbers in planes) >= 1 << 62:
        return None
    joined = np.zeros_like(planes[0].numbers)
    for lsb, numbers in planes:
        # A plane of zeros may be anywhere.
        joined += numbers << np.int64(min(lsb - lowest, 62))
    bits = int(np.bitwise_or.reduce(joined))
    zeros = (bits & -bits).bit_length() - 1 if bits else 0
    return Term(lowest + zeros, joined >> np.int64(zeros))


def _top(numbers: Ints) -> int:
    return max(int(numbers.max()), -int(numbers.min()))


def _odd_part(total: Fraction) -> tuple[int, int]:
    """Odd integer n and k with ``total = n * 2**k``; totals of floats have such a form."""
    n = total.numerator
    zeros = (n & -n).bit_length() - 1
    return n >> zeros, zeros + 1 - total.denominator.bit_length()


def _single(planes: list[Term], divisor: int, shift: int, out: Floats) -> bool:
    """One IEEE division where sum and total are float64 numbers; False if they are not."""
    numbers, place = planes[0].numbers, planes[0].lsb - shift
    if len(planes) > 1 or divisor >= _EXACT or not -_FAR < place < _FAR:
        return False
    if _top(numbers) > _EXACT:
        return False
    np.divide(numbers, float(divisor), out=out)
    out *= 2.0**place
    return True


def _double(planes: list[Term], divisor: int, shift: int, out: Floats) -> NDArray[np.bool_]:
    """Quotients in twice float64's digits; which of them are not proven to be rounded right."""
    top = planes[0].lsb
    near = [plane for plane in planes if top - plane.lsb <= _FAR]
    bits = max(divisor.bit_length() - 53, 0)
    wide = float(divisor >> bits)
    # What the divisor has beyond 53 bits, in units of the last of them.
    tail = float(Fraction(divisor, 1 << bits) - int(wide))
    unclear = np.zeros(out.size, np.bool_)
    numbers = [plane.numbers for plane in near]
    scales = [2.0 ** (plane.lsb - top) for plane in near]
    pick_decoder().divide(numbers, scales, wide, tail, out, unclear)
    zero = out == 0
    place = top - shift - bits
    if abs(place) < _FAR:
        out *= 2.0**place
    else:
        with np.errstate(over="ignore", under="ignore"):
            np.ldexp(out, place, out=out)
    unclear |= (np.abs(out) < _SMALL) & ~zero | ~np.isfinite(out)
    for plane in planes[len(near) :]:
        unclear |= plane.numbers != 0
    return unclear


def _settle(planes: list[Term], total: Fraction, which: NDArray[np.bool_], out: Floats) -> None:
    """The quotients of `which`, in integers: Python divides them with correct rounding."""
    places = np.flatnonzero(which)
    if not places.size:
        return
    lowest = min(plane.lsb for plane in planes)
    sums = [0] * places.size
    for lsb, numbers in planes:
        sums = [
            each + (number << (lsb - lowest))
            for each, number in zip(sums, numbers[places].tolist(), strict=True)
        ]
    numerator = total.denominator << max(lowest, 0)
    denominator = total.numerator << max(-lowest, 0)
    out[places] = [each * numerator / denominator for each in sums]


def _sums(planes: Sequence[Term], part: slice) -> list[Fraction]:
    columns = [
        [Fraction(number) * Fraction(2) ** lsb for number in numbers[part].tolist()]
        for lsb, numbers in planes
    ]
    return [sum(row, Fraction(0)) for row in zip(*columns, strict=True)]
