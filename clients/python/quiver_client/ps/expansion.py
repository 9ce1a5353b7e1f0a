"""Sums of arrays without rounding: a value is held as a few float64 arrays that add up to it.

Every addition keeps its rounding error as a further part (Knuth's two-sum, Shewchuk's expansions:
"Adaptive Precision Floating-Point Arithmetic", 1997). Values of similar magnitude need one
part; a part that is zero everywhere is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_PARTS = 256
"""Sums of float64 numbers span 2,100 bits and a part has 53: there are never as many."""

# Values whose intermediate results stay in a processor's second cache.
_STEP = 1 << 14


@dataclass(frozen=True, slots=True)
class Expansion:
    """An array of exact sums.

    Attributes
    ----------
    shape
        Of the array.
    parts
        Flat float64 arrays, the largest first; no parts: zeros. Their sum, taken exactly, is the
        value. Nobody writes to them.
    """

    shape: tuple[int, ...]
    parts: tuple[Floats, ...] = ()

    def plus(self, x: NDArray[Any]) -> Expansion:
        """The sum with a finite array of this shape, exactly. O(parts d).

        A sum beyond float64 gives parts that are not finite; see `is_finite`.
        """
        rest = x.reshape(-1)
        if not self.parts:
            first = np.array(rest, dtype=np.float64)
            return Expansion(self.shape, (first,) if first.any() else ())
        errors: list[Floats] = []
        for part in reversed(self.parts):
            rest, error = two_sum(part, rest)
            if error is not None:
                errors.append(error)
        return Expansion(self.shape, _compact([rest, *reversed(errors)]))

    def minus(self, x: NDArray[Any]) -> Expansion:
        """The difference, as exactly."""
        return self.plus(-x)

    def value(self) -> Floats:
        """The sum in float64, to one unit in the last place; a new array."""
        if not self.parts:
            return np.zeros(self.shape)
        total = self.parts[-1].copy()
        for part in reversed(self.parts[:-1]):
            total += part
        return total.reshape(self.shape)

    def scaled(self, factor: float) -> Expansion:
        """The sum in float64 times `factor`: rounded, unlike all else here."""
        product = self.value().reshape(-1) * factor
        return Expansion(self.shape, (product,) if product.any() else ())

    def is_finite(self) -> bool:
        """Whether no sum has left the range of float64."""
        return all(bool(np.isfinite(part).all()) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.nbytes for part in self.parts)


def two_sum(a: Floats, b: NDArray[Any]) -> tuple[Floats, Floats | None]:
    """``fl(a + b)`` and its exact error, or None if that is 0 everywhere.

    For flat arrays of one size, `a` of float64 and `b` of a floating type; six additions a value.
    """
    total = np.empty_like(a)
    errors: Floats | None = None
    # What overflows is infinite, and its error not a number: the caller looks.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, a.size, _STEP):
            piece = slice(start, start + _STEP)
            x, y = a[piece], np.asarray(b[piece], dtype=np.float64)
            s = np.add(x, y, out=total[piece])
            virtual = s - x
            error = s - virtual
            np.subtract(x, error, out=error)
            np.subtract(y, virtual, out=virtual)
            error += virtual
            if error.any():
                if errors is None:
                    errors = np.zeros_like(a)
                errors[piece] = error
    return total, errors


def _compact(parts: Sequence[Floats]) -> tuple[Floats, ...]:
    """The same sums without parts of zeros, each part as large as it can be."""
    kept = [part for part in parts if part.any()]
    if len(kept) < 3:
        return tuple(kept)
    # From the smallest up, each value takes in what is below it; zeros sink to the end.
    total, errors = kept[-1], []
    for part in reversed(kept[:-1]):
        total, error = two_sum(part, total)
        if error is not None:
            errors.append(error)
    return tuple(part for part in (total, *reversed(errors)) if part.any())
