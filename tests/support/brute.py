"""Exact arithmetic and exhaustive search: what is true of the objective, without the package.

Every float64 is an integer times a power of two, so costs are computed here as Python integers
over a common power of two: no rounding, no overflow, at any range of values.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

Number = float


def as_integers(values: Iterable[Number]) -> tuple[list[int], int]:
    """Integers n and an exponent e with value = n * 2**e, for every value."""
    ratios = [float(value).as_integer_ratio() for value in values]
    exponent = max((denominator.bit_length() - 1 for _, denominator in ratios), default=0)
    return [top * ((1 << exponent) // bottom) for top, bottom in ratios], -exponent


@dataclass(frozen=True)
class Problem:
    """Data points and weights as integers; `unit` turns an integer cost into the real one."""

    points: list[int]
    weights: list[int]
    unit: Fraction

    @classmethod
    def of(cls, x: Sequence[Number], weights: Sequence[Number] | None = None) -> Problem:
        points, exponent = as_integers(x)
        scaled, weight_exponent = as_integers([1.0] * len(points) if weights is None else weights)
        return cls(points, scaled, Fraction(2) ** (2 * exponent + weight_exponent))

    def interval(self, low: int, high: int) -> int:
        """The cost of all points strictly between two neighbouring levels."""
        return sum(
            w * (high - x) * (x - low)
            for x, w in zip(self.points, self.weights, strict=True)
            if low < x < high
        )

    def best(self, num_levels: int) -> int:
        """The least cost over every subset of the points that has both ends."""
        distinct = sorted(set(self.points))
        if len(distinct) <= num_levels:
            return 0
        pairs = itertools.combinations(distinct, 2)
        cost = {(low, high): self.interval(low, high) for low, high in pairs}
        return min(
            sum(cost[pair] for pair in itertools.pairwise((distinct[0], *inner, distinct[-1])))
            for inner in itertools.combinations(distinct[1:-1], num_levels - 2)
        )


def objective(
    x: Sequence[Number], levels: Sequence[Number], weights: Sequence[Number] | None = None
) -> Fraction:
    """sum of w (b - x)(x - a) with the neighbouring levels a <= x <= b, exactly."""
    numbers, exponent = as_integers([*x, *levels])
    points, table = numbers[: len(x)], sorted(set(numbers[len(x) :]))
    scaled, weight_exponent = as_integers([1.0] * len(points) if weights is None else weights)
    if points and not table[0] <= min(points) <= max(points) <= table[-1]:
        raise ValueError("the levels do not bracket the data")
    total = 0
    for point, weight in zip(points, scaled, strict=True):
        above = bisect.bisect_left(table, point)
        if table[above] != point:
            total += weight * (table[above] - point) * (point - table[above - 1])
    return total * Fraction(2) ** (2 * exponent + weight_exponent)


def optimum(
    x: Sequence[Number], num_levels: int, weights: Sequence[Number] | None = None
) -> Fraction:
    """The least objective of `num_levels` levels on data points, by trying every choice."""
    problem = Problem.of(x, weights)
    return problem.best(num_levels) * problem.unit


def squared_norm(x: Sequence[Number]) -> Fraction:
    """The sum of squares, exactly."""
    points, exponent = as_integers(x)
    return sum(point * point for point in points) * Fraction(2) ** (2 * exponent)


def gap(cost: Fraction, best: Fraction) -> float:
    """Relative excess of a cost over the optimum; infinite where only the optimum is 0."""
    if cost == best:
        return 0.0
    return ratio(cost - best, best)


def ratio(top: Fraction, bottom: Fraction) -> float:
    """top / bottom as a float; infinite where it is beyond the largest, or bottom is 0."""
    try:
        return float(top / bottom)
    except (OverflowError, ZeroDivisionError):
        return math.inf
