"""What an exact sum adds: a section and a weight, made ready once for all tiles."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dispatch import pick_decoder
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.exact_terms import (
    CUT,
    Factor,
    Ints,
    Term,
    exact_factors,
    joined,
    place_below,
    place_of,
    split,
)
from quiver_kernels.exact_tile import Tile, magnitude
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.tree import Outliers, RawSection, Section, decode_section

# Powers of two that float64 holds with room to spare.
_FAR, _LARGE = 900, 2.0**900


class Source(Protocol):
    """Values times a weight."""

    def add_to(self, tile: Tile, at: int, start: int, stop: int) -> None:
        """Add the values from `start` to `stop` at a place of `tile`; nothing if it raises."""
        ...


def prepare(section: Section, weight: float, known: set[int]) -> Source:
    """The source of a section; `known` places are kept to where they fit, new ones added."""
    if isinstance(section, RawSection):
        return _Values(section.values, weight)
    vector = section.vector
    tables = _tables(vector)
    if tables is None:
        return _Values(decode_section(section), weight)
    terms = joined(split(tables, weight, known), known)
    known.update(term.lsb for term in terms)
    return _Codes(vector, terms, weight, section.outliers)


def _tables(vector: QuantizedVector) -> NDArray[Any] | None:
    """The decoded level tables, one row per block; None where values are no larger."""
    expected = 1 if vector.block_size is None else 2
    if vector.is_scheme or vector.wrap is not None:
        return None
    if vector.levels.ndim != expected or 4 * vector.levels.size > max(vector.size, 1 << 12):
        return None
    return np.atleast_2d(vector.levels).astype(WIRE_DTYPES[vector.dtype])


class _Values:
    """Values as they are."""

    def __init__(self, values: NDArray[Any], weight: float) -> None:
        self._values = values
        self._weight = weight

    def add_to(self, tile: Tile, at: int, start: int, stop: int) -> None:
        """See `Source`."""
        values = self._values[start:stop]
        factors = exact_factors(values.dtype, self._weight)
        least, most = pick_decoder().extent(values) if factors else (math.nan, math.nan)
        # NaN and infinity are refused, and what is far apart is cut up, where all is split.
        plan = [_cuts(factor, least, most, tile.places) for factor in factors]
        if not plan or None in plan:
            tile.add(at, split(values, self._weight, tile.places))
            return
        for cut in plan:
            if cut is not None and most > 0:
                cut.add_to(tile, slice(at, at + values.size), values)


class _Cut(NamedTuple):
    """One factor of a weight: its products with values lie in one plane, or in two."""

    factor: float
    place: int
    lsb: int
    top: int
    lower: bool

    def add_to(self, tile: Tile, part: slice, values: NDArray[Any]) -> None:
        """Add ``factor * 2**place * values``."""
        scaled = math.ldexp(self.factor, self.place - self.lsb)
        high = tile.room(self.lsb, 1 << (self.top - self.lsb))[part]
        if self.lower:
            low = tile.room(self.lsb - CUT, 1 << CUT)[part]
            pick_decoder().add_cut(values, scaled, 2.0**CUT, high, low)
        else:
            pick_decoder().add_scaled(values, scaled, high)


def _cuts(factor: Factor, least: float, most: float, known: Collection[int]) -> _Cut | None:
    """How products with values of these magnitudes are added; None: not in two planes."""
    number, place, digits = factor
    if not math.isfinite(most) or most > _LARGE:
        return None
    # Exponents above the highest, and of the lowest bit, of all products.
    top = math.frexp(most * abs(number))[1] + place
    lowest = (math.frexp(least)[1] if most else 0) - digits + place
    lsb = place_below(lowest, top, known)
    found = _Cut(number, place, lsb if lsb is not None else place_of(top, known), top, lsb is None)
    if found.lower and lowest < found.lsb - CUT:
        return None
    return found if abs(place - found.lsb) < _FAR else None


class _Codes:
    """Codes of a table whose entries are terms already."""

    def __init__(
        self, vector: QuantizedVector, terms: list[Term], weight: float, outliers: Outliers | None
    ) -> None:
        self._vector = vector
        self._terms = [(term, magnitude(term.numbers.reshape(-1))) for term in terms]
        self._weight = weight
        self._outliers = outliers

    def add_to(self, tile: Tile, at: int, start: int, stop: int) -> None:
        """See `Source`."""
        exact = None if self._outliers is None else self._differences(tile, start, stop)
        totals = [tile.room(term.lsb, bound)[at : at + stop - start] for term, bound in self._terms]
        tables = [term.numbers for term, _ in self._terms]
        pick_decoder().add_codes(self._vector, start, stop, tables, totals)
        if exact is None:
            return
        places, terms = exact
        for lsb, numbers in terms:
            tile.room(lsb, magnitude(numbers))[at + places] += numbers

    def _differences(self, tile: Tile, start: int, stop: int) -> tuple[Ints, list[Term]]:
        """Places after `start` of exact values, and what these are beyond the levels there."""
        assert self._outliers is not None
        indices = self._outliers.indices
        part = slice(*np.searchsorted(indices, (start, stop)).tolist())
        tables = _tables(self._vector)
        assert tables is not None
        rows = indices[part] // (self._vector.block_size or self._vector.size)
        # A code beyond its table is refused when all codes are read.
        codes = np.minimum(codes_at(self._vector, indices[part]), self._vector.num_levels - 1)
        terms = split(self._outliers.values[part], self._weight, tile.places)
        terms += split(tables[rows, codes], -self._weight, tile.places)
        return indices[part] - start, terms


def codes_at(vector: QuantizedVector, indices: Ints) -> NDArray[np.int64]:
    """The codes of the values at `indices`; O(indices)."""
    block, bits = vector.block_size or vector.size, vector.bits
    bit = indices % block * bits
    place = indices // block * ((block * bits + 7) // 8) + bit // 8
    low = vector.codes[place].astype(np.int64)
    # A code may end in the next byte; there is none after the last code's.
    high = vector.codes[np.minimum(place + 1, vector.codes.size - 1)].astype(np.int64)
    codes: NDArray[np.int64] = (low | high << 8) >> (bit % 8) & ((1 << bits) - 1)
    return codes
