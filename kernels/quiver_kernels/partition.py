"""A cut of the real axis into cells that knows of the data only its range.

Near 0 a cell is a float's sign, exponent and first seven bits of mantissa: its width grows with
the magnitude. From some magnitude on cells are `2**exponent` wide. Both kinds are dyadic, so
the cells of a finer partition lie whole in those of a coarser one: sums over cells of the parts
of a vector add up to those of the whole, whatever the cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DEFAULT_CELLS = 4096
MIN_CELLS = 2
MAX_CELLS = 1 << 16
KEY_BITS = 7


@dataclass(frozen=True, slots=True)
class Layout:
    """How a floating type lies in memory: what the keys of its values are made of.

    Attributes
    ----------
    name
        Wire name of the type.
    dtype, integer
        The type, and the signed integer of its width.
    mantissa, bias
        Bits of the mantissa without the leading one, and the bias of the exponent.
    """

    name: str
    dtype: np.dtype[Any]
    integer: np.dtype[Any]
    mantissa: int
    bias: int

    @property
    def offset_bits(self) -> int:
        """Bits of a value's place in its cell: the mantissa bits that are no part of the key."""
        return self.mantissa - KEY_BITS


LAYOUTS = {
    "float32": Layout("float32", np.dtype(np.float32), np.dtype(np.int32), 23, 127),
    "float64": Layout("float64", np.dtype(np.float64), np.dtype(np.int64), 52, 1023),
}
"""By wire name; 16-bit types are widened to float32 first."""


def layout_of(dtype: np.dtype[Any]) -> Layout:
    """The layout values of `dtype` are counted in: float64's own, float32 for all others."""
    return LAYOUTS["float64" if dtype.itemsize == 8 else "float32"]


@dataclass(frozen=True, slots=True)
class Partition:
    """Cells of width ``min(2**(k - 7), 2**exponent)`` for magnitudes in ``[2**k, 2**(k + 1))``.

    A cell is half open towards larger magnitudes, and no cell holds both signs: 0, with -0, is
    the first value of cell 0, and cell -1 holds the negative values next to it. Indices ascend
    with the values and leave none out. The place of a value in its cell, seen from 0, is an
    integer too: its *offset*, in units of the cell's width over ``2**offset_bits``. Index and
    offset together are the value.

    Attributes
    ----------
    layout
        Type whose values are counted.
    exponent
        Of the width of the outer cells; a function of the range and of `cells` alone.
    cells
        The outer cells that a range may spread over, at most.
    """

    layout: Layout
    exponent: int
    cells: int = DEFAULT_CELLS

    @classmethod
    def of(cls, low: float, high: float, cells: int, layout: Layout) -> Partition:
        """The finest partition by whose width alone `low` and `high` are less than `cells` apart.

        The range of a part of a vector never gives a coarser one than that of the whole.
        """
        # The scale 2**-exponent must be a normal number, and cells finer than the type's own
        # steps at the largest magnitude would tell nothing apart.
        exponent = 1 - layout.bias
        top = max(abs(low), abs(high))
        if top > 0:
            exponent = max(exponent, math.frexp(top)[1] - 1 - layout.mantissa)
        # Up to here the range takes more cells for sure; halves, since it may exceed float64.
        half = 0.5 * high - 0.5 * low
        if half > 0:
            exponent = max(exponent, math.frexp(half)[1] - cells.bit_length() - 2)
        while _steps(high, exponent) - _steps(low, exponent) >= cells:
            exponent += 1
        return cls(layout, exponent, cells)

    @property
    def first_outer(self) -> int:
        """Index of the first cell of the uniform width, at magnitude ``2**(exponent + 7)``."""
        binade = self.exponent + KEY_BITS + self.layout.bias
        return min(binade, 2 * self.layout.bias + 1) << KEY_BITS

    @property
    def outer_shift(self) -> int:
        """What the outer cells' indices are ahead of magnitude over width."""
        return self.first_outer - (1 << KEY_BITS)

    def locate(self, values: NDArray[Any]) -> tuple[Ints, Ints]:
        """Indices of the cells of `values`, and the offsets in them."""
        layout = self.layout
        bits = layout.offset_bits
        magnitude = np.abs(values.astype(layout.dtype))
        key = magnitude.view(layout.integer).astype(np.int64)
        outer = (key >> bits) >= self.first_outer
        # An outer cell's number takes the bits of the mantissa that are worth its width or more.
        octave = np.where(outer, (key >> layout.mantissa) - (self.first_outer >> KEY_BITS), 0)
        full = (key & ((1 << layout.mantissa) - 1)) | (1 << layout.mantissa)
        low = full & ((np.int64(1) << (bits - octave)) - 1)
        cell = np.where(outer, (full >> (bits - octave)) + self.outer_shift, key >> bits)
        offset = np.where(outer, low << octave, key & ((1 << bits) - 1))
        return np.where(values < 0, ~cell, cell), offset

    def value(self, index: Ints, offset: Ints) -> Floats:
        """The values at `offset` in the cells `index`; exact, as float64.

        The offset ``2**offset_bits`` is the cell's far edge, which is the next one's first value.
        """
        layout = self.layout
        cell = _magnitudes(index)
        # Wider cells than the type's largest binade there are none.
        width = 2.0 ** min(self.exponent, layout.bias)
        # Each formula is for the one kind of cells, and gives anything for the other.
        with np.errstate(over="ignore", invalid="ignore"):
            key = ((cell << layout.offset_bits) + offset).astype(layout.integer)
            inner = key.view(layout.dtype).astype(np.float64)
            # Both factors are normal numbers, and the product is a value of the type.
            outer = ((cell - self.outer_shift) + offset * 2.0**-layout.offset_bits) * width
        values = np.where(cell >= self.first_outer, outer, inner)
        np.negative(values, out=values, where=index < 0)
        return values

    def width_exponent(self, index: Ints) -> Ints:
        """Binary exponents of the widths of the cells `index`."""
        octave = np.maximum(_magnitudes(index) >> KEY_BITS, 1) - self.layout.bias - KEY_BITS
        exponent: Ints = np.minimum(octave, self.exponent)
        return exponent


def _magnitudes(index: Ints) -> Ints:
    """Cells of the magnitudes: the mirror images of negative values' cells."""
    return index ^ (index >> 63)


def _steps(value: float, exponent: int) -> int:
    """floor(value / 2**exponent), exactly."""
    numerator, denominator = value.as_integer_ratio()
    if exponent >= 0:
        return numerator // (denominator << exponent)
    return (numerator << -exponent) // denominator
