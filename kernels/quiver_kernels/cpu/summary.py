"""What a solver knows of a vector: sums over cells, in ascending order, finer where needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.area import Curve, build_cell_curve
from quiver_kernels.cpu.compile import Floats, Ints, frozen, inlined, kernel

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Summary:
    """A vector as m >= 1 cells, ascending; they may share an end, and do not overlap else.

    Attributes
    ----------
    minimum, maximum
        Least and greatest value of each cell, or bounds of these.
    weight
        Weight of its values.
    lower, upper
        Sums of w * (value - minimum) and of w * (maximum - value), times `unit`.
    known
        Cells whose values are all at their minimum and maximum.
    unit
        Power of two that brings all values within [-1, 1].
    """

    minimum: Floats
    maximum: Floats
    weight: Floats
    lower: Floats
    upper: Floats
    known: Flags
    unit: float

    @classmethod
    def of_values(cls, values: Floats, weights: Floats, unit: float) -> Summary:
        """Every one of the distinct ascending `values` a cell of its own."""
        none = np.zeros(values.size)
        return cls(values, values, weights, none, none, np.ones(values.size, np.bool_), unit)

    def with_cells(self, others: Summary) -> Summary:
        """The cells of two summaries that do not overlap."""
        order = np.argsort(np.concatenate([self.minimum, others.minimum]))

        def merged(name: str) -> NDArray[Any]:
            both: NDArray[Any] = np.concatenate([getattr(self, name), getattr(others, name)])
            return both[order]

        return Summary(
            minimum=merged("minimum"),
            maximum=merged("maximum"),
            weight=merged("weight"),
            lower=merged("lower"),
            upper=merged("upper"),
            known=merged("known"),
            unit=self.unit,
        )

    def curve(self) -> tuple[Floats, Curve]:
        """The cells' distinct minima and maxima, and the curve S over these points; O(m)."""
        size = 1 + int(self.last_points()[-1])
        points, curve = np.empty(size), Curve.empty(size)
        build_cell_curve(
            frozen(self.minimum),
            frozen(self.maximum),
            frozen(self.weight),
            frozen(self.lower),
            frozen(self.upper),
            frozen(self.known),
            self.unit,
            points,
            curve.x,
            curve.slope,
            curve.area,
            curve.first,
            curve.last,
            curve.inside,
        )
        return points, curve

    def last_points(self) -> Ints:
        """Number of each cell's maximum among the points of `curve`."""
        new = (self.maximum > self.minimum).astype(np.int64)
        new[1:] += self.minimum[1:] > self.maximum[:-1]
        last: Ints = np.cumsum(new)
        return last

    def first_points(self) -> Ints:
        """Number of each cell's minimum among the points of `curve`."""
        return self.last_points() - (self.maximum > self.minimum)

    def replaced(self, chosen: Ints, finer: Summary, kept: Flags) -> Summary:
        """The same vector with the ascending `chosen` cells cut up into those of `finer`.

        Other cells are joined where neither the end of one nor the beginning of the next is
        `kept`, a flag for every point of `curve`.
        """
        low = self.first_points()
        begins = kept[low]
        begins[1:] |= kept[self.last_points()[:-1]]
        cut = np.zeros(low.size, np.bool_)
        cut[chosen] = True
        size = low.size + finer.minimum.size
        minimum, maximum, weight, lower, upper = (np.empty(size) for _ in range(5))
        known = np.empty(size, np.bool_)
        count = replace_cells(
            frozen(self.minimum),
            frozen(self.maximum),
            frozen(self.weight),
            frozen(self.lower),
            frozen(self.upper),
            frozen(self.known),
            self.unit,
            begins,
            cut,
            frozen(finer.minimum),
            frozen(finer.maximum),
            frozen(finer.weight),
            frozen(finer.lower),
            frozen(finer.upper),
            frozen(finer.known),
            minimum,
            maximum,
            weight,
            lower,
            upper,
            known,
        )
        return Summary(
            minimum[:count],
            maximum[:count],
            weight[:count],
            lower[:count],
            upper[:count],
            known[:count],
            self.unit,
        )


@inlined
def _row_value(
    cell: int, offset: int, key_bits: int, offset_bits: int, first: int, widest: int
) -> float:
    """The magnitude at an offset of a magnitude's cell; see `partition.Partition`.

    In the binade of the narrowest cells, and above it, a cell's number has a leading one.
    """
    binade = cell >> key_bits
    octave = max(binade, 1) + first - 1 - key_bits
    number = cell & ((1 << key_bits) - 1)
    if binade > 0:
        number |= 1 << key_bits
    if octave >= widest:
        octave = widest
        number = cell - ((widest + key_bits + 1 - first) << key_bits) + (1 << key_bits)
    return math.ldexp(float((number << offset_bits) + offset), octave - offset_bits)


@kernel
def summarize_rows(
    index: Ints,
    count: Ints,
    whole: Ints,
    part: Ints,
    nearest: Ints,
    farthest: Ints,
    key_bits: int,
    offset_bits: int,
    first: int,
    widest: int,
    exponent: int,
    minimum: Floats,
    maximum: Floats,
    weight: Floats,
    lower: Floats,
    upper: Floats,
) -> None:
    """Fill a `Summary` from the columns of `cells.Cells` without weights; O(m).

    The same numbers as `Cells.minimum`, `maximum`, `mass`, `above` and `below`.

    Parameters
    ----------
    key_bits, offset_bits
        Of the type's layout; offsets have at most `cells.SHORT_OFFSET`.
    first, widest
        Exponents of the binade of the type's least normal number, and of the outer cells' width.
    exponent
        Of the unit.
    """
    rest = (1 << offset_bits) - 1
    for r in range(index.size):
        negative = index[r] < 0
        cell = ~index[r] if negative else index[r]
        near = _row_value(cell, nearest[r], key_bits, offset_bits, first, widest)
        far = _row_value(cell, farthest[r], key_bits, offset_bits, first, widest)
        # Sums of the distances from the near end, and to the far one.
        near_sum = whole[r] * (1 << offset_bits) + part[r] - count[r] * nearest[r]
        far_sum = count[r] * farthest[r] - whole[r] * (1 << offset_bits) - part[r]
        shift = min(max(cell >> key_bits, 1) + first - 1 - key_bits, widest) + exponent
        scale = math.ldexp(1.0, -offset_bits)
        outward = math.ldexp((near_sum >> offset_bits) + (near_sum & rest) * scale, shift)
        inward = math.ldexp((far_sum >> offset_bits) + (far_sum & rest) * scale, shift)
        weight[r] = count[r]
        if negative:
            minimum[r], maximum[r], lower[r], upper[r] = -far, -near, inward, outward
        else:
            minimum[r], maximum[r], lower[r], upper[r] = near, far, outward, inward


@kernel
def replace_cells(
    minimum: Floats,
    maximum: Floats,
    weight: Floats,
    lower: Floats,
    upper: Floats,
    known: Flags,
    unit: float,
    begins: Flags,
    cut: Flags,
    finer_minimum: Floats,
    finer_maximum: Floats,
    finer_weight: Floats,
    finer_lower: Floats,
    finer_upper: Floats,
    finer_known: Flags,
    new_minimum: Floats,
    new_maximum: Floats,
    new_weight: Floats,
    new_lower: Floats,
    new_upper: Floats,
    new_known: Flags,
) -> int:
    """`Summary.replaced` on the arrays; returns the number of new cells. O(m).

    Parameters
    ----------
    begins
        Cells that are not joined to the one before.
    cut
        Cells in whose place the finer ones are put.
    """
    size, at = 0, 0
    for c in range(minimum.size):
        if cut[c]:
            while at < finer_minimum.size and finer_minimum[at] <= maximum[c]:
                new_minimum[size], new_maximum[size] = finer_minimum[at], finer_maximum[at]
                new_weight[size], new_known[size] = finer_weight[at], finer_known[at]
                new_lower[size], new_upper[size] = finer_lower[at], finer_upper[at]
                size, at = size + 1, at + 1
        elif c == 0 or begins[c] or cut[c - 1]:
            new_minimum[size], new_maximum[size] = minimum[c], maximum[c]
            new_weight[size], new_known[size] = weight[c], known[c]
            new_lower[size], new_upper[size] = lower[c], upper[c]
            size += 1
        else:
            # Sums of one cell are measured from the ends of both from now on.
            to_low = (minimum[c] * unit - new_minimum[size - 1] * unit) * weight[c]
            to_high = (maximum[c] * unit - new_maximum[size - 1] * unit) * new_weight[size - 1]
            new_lower[size - 1] += lower[c] + to_low
            new_upper[size - 1] += upper[c] + to_high
            new_weight[size - 1] += weight[c]
            new_maximum[size - 1] = maximum[c]
            new_known[size - 1] = False
    return size
