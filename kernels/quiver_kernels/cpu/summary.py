"""What a solver knows of a vector: sums over cells, in ascending order, finer where needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.area import Curve, build_cell_curve
from quiver_kernels.cpu.compile import Floats, Ints, frozen

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Summary:
    """A vector as m >= 1 cells that do not overlap, ascending.

    Attributes
    ----------
    minimum, maximum
        Least and greatest value of each cell.
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
        """The cells' minima and maxima, and the curve S over these points; O(m)."""
        size = self.minimum.size + int(np.count_nonzero(self.maximum > self.minimum))
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

    def first_points(self) -> Ints:
        """Number of each cell's minimum among the points of `curve`."""
        first = np.arange(self.minimum.size)
        first[1:] += np.cumsum(self.maximum[:-1] > self.minimum[:-1])
        return first

    def replaced(self, chosen: Ints, finer: Summary, kept: Flags) -> Summary:
        """The same vector with the ascending `chosen` cells cut up into those of `finer`.

        Other cells are joined where neither the end of one nor the beginning of the next is
        `kept`, a flag for every point of `curve`.
        """
        low = self.first_points()
        begins = kept[low]
        begins[1:] |= kept[low[1:] - 1]
        begins[0] = True
        begin = np.flatnonzero(begins)
        joined = self._joined(begin)
        chosen = np.searchsorted(begin, chosen)

        parts = np.diff(
            np.searchsorted(finer.minimum, joined.minimum[chosen]), append=finer.minimum.size
        )
        sizes = np.ones(begin.size, np.int64)
        sizes[chosen] = parts
        place = np.cumsum(sizes) - sizes
        coarse = np.ones(begin.size, np.bool_)
        coarse[chosen] = False
        cut = np.ones(int(sizes.sum()), np.bool_)
        cut[place[coarse]] = False

        def merged(name: str) -> NDArray[Any]:
            mine, theirs = getattr(joined, name), getattr(finer, name)
            both = np.empty(cut.size, mine.dtype)
            both[~cut] = mine[coarse]
            both[cut] = theirs
            return both

        return Summary(
            minimum=merged("minimum"),
            maximum=merged("maximum"),
            weight=merged("weight"),
            lower=merged("lower"),
            upper=merged("upper"),
            known=merged("known"),
            unit=self.unit,
        )

    def _joined(self, begin: Ints) -> Summary:
        """Cells joined to those that begin with the cells `begin`."""
        end = np.append(begin[1:], self.minimum.size) - 1
        minimum, maximum = self.minimum[begin], self.maximum[end]
        sizes = end - begin + 1
        before = (self.minimum - np.repeat(minimum, sizes)) * self.unit
        behind = (np.repeat(maximum, sizes) - self.maximum) * self.unit
        return Summary(
            minimum,
            maximum,
            np.add.reduceat(self.weight, begin),
            np.add.reduceat(self.lower + self.weight * before, begin),
            np.add.reduceat(self.upper + self.weight * behind, begin),
            self.known[begin] & (sizes == 1),
            self.unit,
        )
