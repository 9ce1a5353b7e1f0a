"""Weighted sums of vectors without any rounding, so that no order of arrival shows in them.

A weight times a value is a binary fraction. `exact_terms` writes it as integers at places of
a power of two; those of one place are added up in a plane of int64. A quantized vector costs an
integer look-up and an addition per value and plane, mostly one. The mean is rounded once.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.errors import InvalidInput
from quiver_kernels.exact_round import quotients, whole_numbers
from quiver_kernels.exact_sources import prepare
from quiver_kernels.exact_terms import Floats
from quiver_kernels.exact_tile import Tile
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import checkpoint
from quiver_kernels.tree import QuantizedSection, RawSection, Section

# Values of one tile: a few planes of it stay in the cache.
TILE = 1 << 16


Addend = NDArray[Any] | QuantizedVector | Section | Sequence[Section]
Piece = tuple[int, Section, int, int]


class ExactSum:
    """The exact weighted sum of vectors of one size, and their mean.

    Any order of additions and any tree of merges gives the same means, bit for bit. Not for
    several threads at a time.

    Parameters
    ----------
    size
        Number of values.

    Notes
    -----
    Memory: 8 bytes per value and plane; 1 or 2 planes for values of like magnitude, more the
    further apart they are, some 40 at most in each stretch of 2^16 values.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._tiles = [Tile(min(TILE, size - at)) for at in range(0, size, TILE)]
        self._known: set[int] = set()
        self._total = Fraction(0)

    @property
    def total_weight(self) -> float:
        """Sum of the weights, rounded once."""
        return rounded(self._total)

    @property
    def nbytes(self) -> int:
        """Bytes of the planes."""
        return sum(tile.nbytes for tile in self._tiles)

    def add(self, values: Addend, weight: float = 1.0) -> None:
        """Add ``weight * values``; all of it, or nothing if it raises.

        Parameters
        ----------
        values
            `size` finite values: an array of a type of `LEAF_DTYPES`, a quantized vector, or
            sections one after the other.
        weight
            Finite, not negative.

        Raises
        ------
        InvalidInput
            Sizes disagree, a value is not finite, a weight is bad, or a code points beyond its
            table.
        """
        self._add(_sections(values), check_weight(weight))

    def remove(self, values: Addend, weight: float = 1.0) -> None:
        """Take back an addition of these values with this weight, as if it had not been.

        Errors as for `add`, and for a weight above what is left.
        """
        weight = check_weight(weight)
        if weight > self._total:
            raise InvalidInput(
                f"weight must be at most what was added, {self.total_weight}; got {weight}",
                code="invalid_weights",
                field="weight",
            )
        self._add(_sections(values), -weight)

    def merge(self, other: ExactSum) -> None:
        """Add everything that was added to `other`, of the same size; `other` stays as it is."""
        if other.size != self.size:
            raise InvalidInput(
                f"other must be of size {self.size}; got {other.size}",
                code="size_mismatch",
                field="other",
            )
        for mine, theirs in zip(self._tiles, other._tiles, strict=True):
            mine.merge(theirs)
        self._known |= other._known
        self._total += other._total

    def mean(self) -> Floats:
        """The exact sum over the exact sum of weights, float64, rounded once, shape (size,).

        Raises
        ------
        InvalidInput
            The weights add up to 0 (``invalid_weights``).
        """
        return self.mean_over(check_total(self._total), "float64")

    def mean_over(self, total: Fraction, dtype: str) -> NDArray[Any]:
        """The sums over `total` as a type of `LEAF_DTYPES`, shape (size,): see `finished`."""
        found = np.empty(self.size, LEAF_DTYPES[dtype])
        for number, tile in enumerate(self._tiles):
            first = number * TILE
            found[first : first + tile.size] = finished(tile, total, dtype)
        return found

    def add_pieces(self, pieces: Iterable[Piece], weight: float) -> None:
        """Add values of sections at places of this sum; all, or none if it raises.

        Parameters
        ----------
        pieces
            Place in the sum, section, and the values of it from start to stop.
        weight
            Negative to take back. It is not counted: the caller knows the total.
        """
        done: list[tuple[Tile, int, Section, int, int]] = []
        try:
            for at, section, start, stop in pieces:
                source = prepare(section, weight, self._known)
                for tile, place, low, high in self._cut(at, start, stop):
                    checkpoint()
                    source.add_to(tile, place, low, high)
                    done.append((tile, place, section, low, high))
        except BaseException:
            # What is exact can be taken back.
            for tile, place, section, low, high in done:
                prepare(section, -weight, self._known).add_to(tile, place, low, high)
            raise

    def _add(self, sections: Sequence[Section], weight: float) -> None:
        sizes = [section.size for section in sections]
        if sum(sizes) != self.size:
            raise InvalidInput(
                f"values must be {self.size}; got {sum(sizes)}",
                code="size_mismatch",
                field="values",
            )
        ends = itertools.accumulate(sizes)
        pieces = [
            (end - section.size, section, 0, section.size)
            for end, section in zip(ends, sections, strict=True)
        ]
        self.add_pieces(pieces, weight)
        self._total += Fraction(weight)

    def _cut(self, at: int, start: int, stop: int) -> Iterator[tuple[Tile, int, int, int]]:
        """Tiles of the values `start` to `stop` that belong at `at`, and which of them."""
        while start < stop:
            number, place = divmod(at, TILE)
            size = min(stop - start, TILE - place)
            yield self._tiles[number], place, start, start + size
            at, start = at + size, start + size


def tiled_mean(
    vectors: Sequence[Sequence[Piece]], weights: Sequence[float], size: int, dtype: str
) -> NDArray[Any]:
    """The mean of vectors that are all here: as by `ExactSum`, tile by tile.

    Parameters
    ----------
    vectors
        Pieces of each as for `ExactSum.add_pieces`, ascending, that cover it without gaps.
    weights
        One for each, not all zero.
    size, dtype
        Values of each, and the type of the mean, of `LEAF_DTYPES`.

    Returns
    -------
    ndarray
        Shape (size,), as by `finished`. It needs the planes of a tile for each thread; tiles are
        shared with threads that help (`sharing`).
    """
    total = check_total(sum(map(Fraction, weights), Fraction(0)))
    known: set[int] = set()
    prepared = [
        [(at, prepare(section, weight, known), start, stop) for at, section, start, stop in pieces]
        for pieces, weight in zip(vectors, weights, strict=True)
        if weight
    ]
    places = [[at for at, *_ in pieces] for pieces in prepared]
    out = np.empty(size, LEAF_DTYPES[dtype])

    def mean_of_tile(first: int) -> None:
        last = min(first + TILE, size)
        tile = Tile(last - first)
        for pieces, starts in zip(prepared, places, strict=True):
            checkpoint()
            number = bisect.bisect_right(starts, first) - 1
            for at, source, start, stop in pieces[number:]:
                if at >= last:
                    break
                low, high = max(first, at), min(last, at + stop - start)
                source.add_to(tile, low - first, start + low - at, start + high - at)
        out[first:last] = finished(tile, total, dtype)

    run_parts(range(0, size, TILE), mean_of_tile)
    return out


def finished(tile: Tile, total: Fraction, dtype: str) -> NDArray[Any]:
    """The sums of a tile over `total`, shape (size,).

    Floating types: correctly rounded to float64, and then to the type. Integers: to the nearest,
    ties to even. Booleans: whether it exceeds 1/2.
    """
    if dtype in WIRE_DTYPES:
        return quotients(tile.planes(), total, tile.size).astype(WIRE_DTYPES[dtype])
    # A list has integers beyond int64.
    return np.array(whole_numbers(tile.planes(), total, tile.size), LEAF_DTYPES[dtype])


def check_total(total: Fraction) -> Fraction:
    """`total`; `InvalidInput` unless it is positive."""
    if total <= 0:
        raise InvalidInput(
            "weights must not be all zero; got a sum of 0", code="invalid_weights", field="weights"
        )
    return total


def rounded(total: Fraction) -> float:
    """`total` as float64; infinity if it is beyond."""
    try:
        return float(total)
    except OverflowError:
        return math.inf


def check_weight(weight: float) -> float:
    """`weight` as a float; `InvalidInput` unless it is finite and not negative."""
    try:
        value = float(weight)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise InvalidInput(
            f"weight must be finite and not negative; got {value}",
            code="invalid_weights",
            field="weight",
        )
    return value


def _sections(values: Addend) -> Sequence[Section]:
    if isinstance(values, QuantizedVector):
        flat = replace(values, shape=(values.size,))
        return [QuantizedSection(flat)]
    if isinstance(values, np.ndarray):
        return [RawSection(values.reshape(-1))]
    if isinstance(values, RawSection | QuantizedSection):
        return [values]
    return values
