"""Codes, integers without a bound, as symbols of a small alphabet and a few further bits.

A symbol stands for one small code, or for a class of large ones; further bits, uncoded, say which
of the class it is. The lowest bit of a code follows from its symbol alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.entropy import Walk
from quiver_kernels.schemes.trellis.machine import Machine
from quiver_kernels.schemes.trellis.paths import has_numba

MAX_DIRECT = 1023
MAX_CLASSES = 24
# Bits that a magnitude takes in tables, and those that a code of a class wastes.
_TABLED, _WASTED = 32, 2
# So few symbols more are no matter.
_NEAR = 4

Codes = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Alphabet:
    """Symbols 0..2 direct: a code plus `direct`; then two, even and odd, of each class.

    Class e of a parity holds the 2^e magnitudes of that parity from the (2^e)-th one beyond
    `direct` on; e + 1 further bits say which, and the sign (lowest).

    Attributes
    ----------
    direct
        Greatest magnitude with a symbol of its own.
    classes
        Number of classes.
    """

    direct: int
    classes: int

    @classmethod
    def of(cls, codes: Codes) -> Alphabet:
        """One that holds `codes`, classes only for rare ones."""
        return cls.for_counts(*magnitudes(codes))

    @classmethod
    def for_counts(cls, counts: NDArray[np.int64], top: int) -> Alphabet:
        """One for codes of which `magnitudes` says this."""
        beyond = counts.sum() - np.cumsum(counts)[: MAX_DIRECT + 1]
        direct = int(np.argmin(_TABLED * np.arange(MAX_DIRECT + 1) + _WASTED * beyond))
        if top <= min(direct + _NEAR, MAX_DIRECT):
            return cls(top, 0)
        widest = cls(direct, MAX_CLASSES)
        ends = widest.symbols(np.array([top - 1, top], np.int32))
        return cls(direct, (int(ends.max()) - 2 * direct - 1) // 2 + 1)

    @staticmethod
    def most(size: int) -> int:
        """Symbols for `size` codes, at most."""
        direct = min(MAX_DIRECT, size * _WASTED // _TABLED + _NEAR)
        return 2 * direct + 1 + 2 * MAX_CLASSES

    @property
    def size(self) -> int:
        """Number of symbols."""
        return 2 * self.direct + 1 + 2 * self.classes

    def symbols(self, codes: Codes) -> NDArray[np.uint16]:
        """The symbol of each code."""
        found = codes + self.direct
        large = np.flatnonzero(np.abs(codes) > self.direct)
        if large.size:
            parity, place, _ = self._placed(codes[large])
            found[large] = 2 * self.direct + 1 + 2 * place + parity
        return found.astype(np.uint16)

    def further(self, codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Further bits of codes beyond `direct`, as (number, how many bits)."""
        _, place, rest = self._placed(codes)
        return 2 * rest + (codes < 0), place + 1

    def width(self, symbols: NDArray[np.uint16]) -> NDArray[np.int64]:
        """How many further bits symbols of classes have."""
        return (symbols.astype(np.int64) - (2 * self.direct + 1)) // 2 + 1

    def codes(self, symbols: NDArray[np.uint16], further: NDArray[np.int64]) -> Codes:
        """The codes of symbols of classes, from their further bits."""
        symbol = symbols.astype(np.int64) - (2 * self.direct + 1)
        beyond = (1 << (symbol // 2)) + (further >> 1) - 1
        magnitude = self._first(symbol & 1) + 2 * beyond
        found: Codes = np.where(further & 1, -magnitude, magnitude).astype(np.int32)
        return found

    def walk(self, machine: Machine) -> Walk:
        """The automaton of the entropy coder: states of the trellis, a table per quantizer."""
        direct = np.arange(-self.direct, self.direct + 1) & 1
        bits = np.concatenate([direct, np.arange(2 * self.classes) & 1])
        moves = np.ascontiguousarray(machine.move_table()[:, bits])
        return Walk(moves, machine.quantizer_table())

    def _first(self, parity: NDArray[np.int64]) -> NDArray[np.int64]:
        """The least magnitude of a parity beyond `direct`."""
        least = self.direct + 1
        return least + ((parity ^ least) & 1)

    def _placed(
        self, codes: Codes
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Parity, class, and place within the class."""
        magnitude = np.abs(codes.astype(np.int64))
        parity = magnitude & 1
        beyond = (magnitude - self._first(parity)) // 2 + 1
        place = np.frexp(beyond.astype(np.float64))[1].astype(np.int64) - 1
        return parity, place, beyond - (1 << place)


def magnitudes(codes: Codes) -> tuple[NDArray[np.int64], int]:
    """How often each magnitude up to `MAX_DIRECT` occurs, and larger ones in all; the largest."""
    if has_numba():
        from quiver_kernels.schemes.ectcq import kernels

        counts = np.zeros(MAX_DIRECT + 2, np.int64)
        return counts, kernels.count_magnitudes(codes, counts)
    sizes = np.abs(codes)
    counts = np.bincount(np.minimum(sizes, MAX_DIRECT + 1), minlength=MAX_DIRECT + 2)
    return counts, int(sizes.max())
