"""Sums of terms for some values: a plane of int64 for each place, made when first needed."""

from __future__ import annotations

import numpy as np

from quiver_kernels.exact_terms import Ints, Term

# Numbers of a plane stay within this, so that no addition overflows 63 bits.
LIMIT = 1 << 62
_CARRY = 32


class Tile:
    """Planes of `size` numbers. Bounds of what they hold are known before every addition."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._planes: dict[int, Ints] = {}
        self._bounds: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the planes."""
        return 8 * self.size * len(self._planes)

    @property
    def places(self) -> list[int]:
        """Places of the planes' lowest bits."""
        return list(self._planes)

    def planes(self) -> list[Term]:
        """The planes; the values are the sums over them."""
        return [Term(lsb, numbers) for lsb, numbers in self._planes.items()]

    def room(self, lsb: int, amount: int) -> Ints:
        """The plane at `lsb`, ready to have numbers of magnitude `amount` added, once each."""
        if self._bounds.get(lsb, 0) + amount > LIMIT:
            self._carry(lsb)
        if lsb not in self._planes:
            self._planes[lsb] = np.zeros(self.size, np.int64)
        self._bounds[lsb] = self._bounds.get(lsb, 0) + amount
        return self._planes[lsb]

    def add(self, at: int, terms: list[Term]) -> None:
        """Add `terms` to the values from `at` on."""
        for lsb, numbers in terms:
            plane = self.room(lsb, magnitude(numbers))
            plane[at : at + numbers.size] += numbers

    def merge(self, other: Tile) -> None:
        """Add the sums of `other`, of the same size."""
        for lsb, numbers in other._planes.items():
            self.room(lsb, other._bounds[lsb])[:] += numbers

    def _carry(self, lsb: int) -> None:
        """Move all but the lowest bits of a plane to a higher one."""
        plane, bound = self._planes[lsb], self._bounds[lsb]
        high = plane >> np.int64(_CARRY)
        plane -= high << np.int64(_CARRY)
        self._bounds[lsb] = 1 << _CARRY
        above = self.room(lsb + _CARRY, (bound >> _CARRY) + 1)
        above += high


def magnitude(numbers: Ints) -> int:
    """Largest absolute value; 0 of none."""
    return max(int(numbers.max()), -int(numbers.min())) if numbers.size else 0
