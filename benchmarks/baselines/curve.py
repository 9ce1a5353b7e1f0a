"""The area form of the objective, as all exact baselines use it.

With A(t) the weight of the data at or below t, S is the integral of A. Between levels at
points k < j the expected squared error is ``x[j] S[k] - x[k] S[j]`` plus terms that telescope
along a set of levels. S is a sum of terms of one sign: nothing cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.compiled import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# The sum of squared errors is added up in pieces of this many values.
_PIECE = 4096


@dataclass(frozen=True)
class Curve:
    """The curve at n candidate positions of a level.

    Attributes
    ----------
    at
        Shape (n, 2): position (the first is 0) and S there, side by side in memory since every
        cost reads both.
    first
        What was subtracted from the positions.
    """

    at: Floats
    first: float

    def values(self, path: Ints) -> Floats:
        """The levels at these candidates."""
        return self.at[path, 0] + self.first


def of_sorted(values: Floats) -> Curve:
    """The curve of ascending `values`, each a candidate of weight one; O(d)."""
    at = np.empty((values.size, 2))
    _integrate(values, at)
    return Curve(at, float(values[0]))


def at_candidates(values: Floats, candidates: Floats) -> Curve:
    """The curve of ascending `values` at other ascending positions; O(d)."""
    at = np.empty((candidates.size, 2))
    _integrate_at(values, candidates, at)
    return Curve(at, float(candidates[0]))


def vnmse(values: NDArray[Any], levels: NDArray[Any]) -> float:
    """Expected squared error of stochastic rounding of ascending `values`, over their norm."""
    return float(_expected_error(values, np.sort(levels.astype(np.float64))))


@kernel
def _integrate(values: Floats, at: Floats) -> None:
    first = values[0]
    area, before = 0.0, 0.0
    for i in range(values.size):
        x = values[i] - first
        area += i * (x - before)
        at[i, 0], at[i, 1] = x, area
        before = x


@kernel
def _integrate_at(values: Floats, candidates: Floats, at: Floats) -> None:
    # Within [before, candidate], S grows by the weight below times the width, and each value
    # adds its own distance to the candidate.
    first = candidates[0]
    i, area, before = 0, 0.0, 0.0
    for c in range(candidates.size):
        x = candidates[c] - first
        area += i * (x - before)
        while i < values.size and values[i] <= candidates[c]:
            area += candidates[c] - values[i]
            i += 1
        at[c, 0], at[c, 1] = x, area
        before = x


@kernel
def _expected_error(values: NDArray[Any], levels: Floats) -> float:
    error, norm, top = 0.0, 0.0, 1
    for start in range(0, values.size, _PIECE):
        piece, squares = 0.0, 0.0
        for i in range(start, min(start + _PIECE, values.size)):
            x = np.float64(values[i])
            while top < levels.size - 1 and levels[top] < x:
                top += 1
            piece += (levels[top] - x) * (x - levels[top - 1])
            squares += x * x
        error += piece
        norm += squares
    return error / norm
