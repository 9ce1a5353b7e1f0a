"""Levels on a grid of integers times a power of two, for sums of codes without decoding.

With levels ``k * 2**e``, k integers, a sum of decoded values is a sum of integers: exact in any
order, and the same whether values are decoded first or codes are added as table integers
(`homomorphic`). The best levels of such a grid follow from a sketch alone: its cells lie between
neighbouring points of every grid that is not finer than they are, so the cost of every interval
between grid points is known exactly but for one constant (as in `cpu.approx`: a value's weight is
split between the grid points around it, in proportion to nearness).

The form is that of THC (NSDI 2024): its granularity is the number of grid steps over the range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_kernels import dispatch
from quiver_kernels.api import as_vector
from quiver_kernels.cellerror import error_of
from quiver_kernels.cells import Cells
from quiver_kernels.dtypes import WIRE_DTYPES, from_wire, levels_dtype, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import (
    MAX_GRANULARITY,
    MAX_LEVELS,
    MIN_GRANULARITY,
    MIN_LEVELS,
    level_table,
)
from quiver_kernels.partition import DEFAULT_CELLS, MAX_CELLS, Floats, Ints
from quiver_kernels.sketch import Sketch
from quiver_kernels.wire import check_granularity

AUTO_LOSS = 0.01
"""What ``granularity="auto"`` may lose against levels that are on no grid."""

Granularity = int | Literal["auto"]

# Integers up to so many bits are exact as float64.
_EXACT_BITS = 53
# All numbers of a type are below two to this.
_TOP_EXPONENT = {"float16": 16, "bfloat16": 128, "float32": 128, "float64": 1024}
# Bits that a level may have: levels of float64 vectors are float32 numbers too, but for its range.
_LEVEL_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 24}


@dataclass(frozen=True, eq=False, slots=True)
class GridLevels:
    """A level table of integers times a power of two.

    Attributes
    ----------
    integers
        Ascending, shape (s,), int64; at most 53 bits each.
    exponent
        Of the grid's step: level k is ``integers[k] * 2**exponent``, exactly.
    dtype
        Type of `levels`: float32 or float64.
    """

    integers: Ints
    exponent: int
    dtype: str

    @classmethod
    def of(cls, levels: ArrayLike) -> GridLevels:
        """The coarsest grid that the `levels` of any table lie on.

        Every floating-point number is an integer times a power of two, so there always is one;
        its steps may be many.

        Parameters
        ----------
        levels
            Ascending and finite, shape (s,), s = 2..256; float32 or float64 (other real types
            become float64).

        Raises
        ------
        InvalidInput
            No such table, or its integers have more than 53 bits.
        """
        values = level_table(levels)
        ratios = [value.as_integer_ratio() for value in values]
        # A denominator is a power of two, and odd numerators times it are the finest there is.
        exponents = [
            (top & -top).bit_length() - bottom.bit_length() for top, bottom in ratios if top
        ]
        exponent = min(exponents, default=0)
        numbers = [_shifted(top, 1 - bottom.bit_length() - exponent) for top, bottom in ratios]
        bits = max(abs(numbers[0]), abs(numbers[-1]), numbers[-1] - numbers[0]).bit_length()
        if bits > _EXACT_BITS:
            raise InvalidInput(
                f"levels must be integers of at most {_EXACT_BITS} bits times one power of two; "
                f"got {bits} bits",
                code="invalid_levels",
                field="levels",
            )
        narrow = np.asarray(levels).dtype == np.float32
        return cls(np.array(numbers, np.int64), exponent, "float32" if narrow else "float64")

    @property
    def num_levels(self) -> int:
        """Number of levels, s."""
        return int(self.integers.size)

    @property
    def granularity(self) -> int:
        """Steps of the grid from the first level to the last."""
        return int(self.integers[-1] - self.integers[0])

    @property
    def step(self) -> float:
        """Distance of neighbouring grid points, ``2**exponent``."""
        return math.ldexp(1.0, self.exponent)

    @property
    def levels(self) -> NDArray[Any]:
        """The table, ascending, shape (s,), exact."""
        exact = np.ldexp(self.integers.astype(np.float64), self.exponent)
        return exact.astype(WIRE_DTYPES[self.dtype])

    def same_as(self, other: GridLevels) -> bool:
        """Whether both have the same levels, of whatever type."""
        return self.num_levels == other.num_levels and bool(
            (self.levels.astype(np.float64) == other.levels.astype(np.float64)).all()
        )


def grid_levels(
    source: Sketch | ArrayLike,
    num_levels: int = 16,
    granularity: Granularity = "auto",
    *,
    dtype: str | None = None,
) -> GridLevels:
    """The best levels among the points of a grid of integers times a power of two.

    Parameters
    ----------
    source
        A sketch, e.g. the merged one of all workers, or a vector, which is sketched first.
    num_levels
        Levels, 2..256.
    granularity
        Steps of the grid over the range at most, 2..65536: the step is the smallest power of
        two that leaves no more of them. It is no smaller than the sketch's cells, which cut the
        range into ``sketch.cells / 2`` at least, nor than what `dtype` can tell apart. ``auto``:
        the coarsest grid whose error is less than 1 % above that of the sketch's best levels, or
        the finest there is.
    dtype
        Type of the vectors that are to be quantized, whose values the levels must be; None: that
        of the source, float32 for a sketch of 16-bit vectors.

    Returns
    -------
    GridLevels
        First at most the least value and last at least the greatest, by less than a step. With
        fewer distinct grid points than levels the last is repeated. Optimal for the values
        counted among all tables on the grid, up to float64 rounding of the cost.

    Raises
    ------
    InvalidInput
        An option out of range, an unsupported dtype, an empty or non-finite vector, or a range
        so close to the limits of `dtype` that the last grid point is beyond them.
    BackendUnavailable
        Numba is not installed.

    Notes
    -----
    O(cells + granularity log granularity) after the sketch. "THC: Accelerating distributed deep
    learning using tensor homomorphic compression", NSDI 2024, section 4.
    """
    _check_options(num_levels, granularity)
    dispatch.pick("cpu")
    if isinstance(source, Sketch):
        name = source.dtype if dtype is None else wire_name(from_wire(dtype))
        sketch = source
    else:
        vector = as_vector(source, "source")
        name = wire_name(vector.dtype) if dtype is None else wire_name(from_wire(dtype))
        wanted = MAX_CELLS if granularity == "auto" else min(2 * granularity, MAX_CELLS)
        sketch = Sketch.from_vector(vector, max(wanted, DEFAULT_CELLS))
    finest = _finest(sketch.rows, name)
    if granularity != "auto":
        while _steps(sketch.rows, finest) > granularity:
            finest += 1
        return _best(sketch.rows, finest, num_levels, name)
    return _coarsest(sketch, finest, num_levels, name)


def _coarsest(sketch: Sketch, finest: int, num_levels: int, dtype: str) -> GridLevels:
    """The best levels of the coarsest grid that loses less than `AUTO_LOSS`."""
    allowed = error_of(sketch.rows, sketch.levels(num_levels)).high * (1 + AUTO_LOSS)
    exponent = finest
    while _steps(sketch.rows, exponent) >= max(num_levels, MIN_GRANULARITY + 1):
        exponent += 1
    while exponent > finest and not _fits(sketch.rows, exponent, dtype):
        exponent -= 1
    while True:
        found = _best(sketch.rows, exponent, num_levels, dtype)
        if exponent == finest or error_of(sketch.rows, found.levels).high < allowed:
            return found
        exponent -= 1


def _best(cells: Cells, exponent: int, num_levels: int, dtype: str) -> GridLevels:
    """Optimal levels on the grid of one step."""
    from quiver_kernels.cpu.exact import solve_row

    if not _fits(cells, exponent, dtype):
        raise InvalidInput(
            f"source must leave room for the grid's first and last point within {dtype}; "
            f"got values from {cells.low} to {cells.high}",
            code="invalid_option",
            field="source",
        )
    first, weights = grid_weights(cells, exponent)
    places = np.arange(weights.size, dtype=np.float64)
    unit = 0.5 ** math.frexp(weights.size)[1]
    if weights.size == 1:
        chosen = np.zeros(num_levels)
    else:
        chosen = solve_row(places, weights, unit, num_levels, accelerated=False)
    integers = first + chosen.astype(np.int64)
    found = GridLevels(integers, exponent, levels_dtype(dtype).name)
    # All integers may be even: then there are fewer steps.
    return GridLevels.of(found.levels)


def grid_weights(cells: Cells, exponent: int) -> tuple[int, Floats]:
    """The values of unweighted `cells` split between the points of a grid; O(cells + points).

    Parameters
    ----------
    exponent
        Of the grid's step, which is at least as wide as the widest cell.

    Returns
    -------
    tuple of int and ndarray
        The first grid point, in steps, and each point's share of the values, from there to the
        last.
    """
    first, last = _first_step(cells, exponent), _last_step(cells, exponent)
    below = _steps_down(cells.minimum, exponent)
    # The place of the least value between the points, and the distances of the others from it.
    offset = np.ldexp(cells.minimum, -exponent) - below
    count = cells.count.astype(np.float64)
    upper = np.clip(count * offset + cells.above(-exponent), 0.0, count)
    place = below.astype(np.int64) - first
    weights = np.zeros(last - first + 2)
    np.add.at(weights, place, count - upper)
    np.add.at(weights, place + 1, upper)
    # Nothing lies above the last point.
    return first, weights[: last - first + 1]


def _shifted(number: int, bits: int) -> int:
    return number << bits if bits >= 0 else number >> -bits


def _steps_down(values: Floats, exponent: int) -> Floats:
    """floor(value / 2**exponent); negative values too small to be scaled are below 0."""
    steps = np.floor(np.ldexp(values, -exponent))
    return np.where(values < 0, np.minimum(steps, -1.0), steps)


def _first_step(cells: Cells, exponent: int) -> int:
    return int(_steps_down(np.array([cells.low]), exponent)[0])


def _last_step(cells: Cells, exponent: int) -> int:
    return -int(_steps_down(np.array([-cells.high]), exponent)[0])


def _steps(cells: Cells, exponent: int) -> int:
    """Steps of the grid over the range."""
    return _last_step(cells, exponent) - _first_step(cells, exponent)


def _fits(cells: Cells, exponent: int, dtype: str) -> bool:
    """Whether the first and the last point of a grid are numbers of a type."""
    outermost = max(-_first_step(cells, exponent), _last_step(cells, exponent))
    # No integer has more bits than the type's mantissa: it is the exponent that may not do.
    return outermost.bit_length() + exponent <= _TOP_EXPONENT[dtype]


def _finest(cells: Cells, dtype: str) -> int:
    """The finest step that the cells and the type of the levels allow."""
    top = max(abs(cells.low), abs(cells.high))
    exponent = cells.partition.exponent
    if top > 0:
        exponent = max(exponent, math.frexp(top)[1] - _LEVEL_BITS[dtype])
    if dtype == "float16":
        exponent = max(exponent, -24)
    while _steps(cells, exponent) > MAX_GRANULARITY:
        exponent += 1
    return exponent


def _check_options(num_levels: int, granularity: Granularity) -> None:
    if not MIN_LEVELS <= num_levels <= MAX_LEVELS:
        raise InvalidInput(
            f"num_levels must be {MIN_LEVELS}..{MAX_LEVELS}; got {num_levels}",
            code="invalid_option",
            field="num_levels",
        )
    check_granularity(granularity)
