"""Lloyd-Max tables: the levels of least mean squared error for nearest rounding of a distribution.

A table of the normal or the Laplace distribution, unit variance, is a fixed function of its length,
so it need not travel. Every level is the mean of the values that are nearest to it; Newton's method
solves that from the levels that companding gives (Max 1960; Lloyd 1982; Panter and Dite 1951).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput

NORMAL = "normal"
LAPLACE = "laplace"
DISTRIBUTIONS = (NORMAL, LAPLACE)

_MAX_LEVELS = 256
_STEPS = 200
_CLOSE = 1e-12
_ROOT_2 = math.sqrt(2.0)
_Floats = NDArray[np.float64]


def table(num_levels: int, distribution: str = NORMAL) -> _Floats:
    """The best levels for nearest rounding, unit variance. Read-only; solved for once.

    Parameters
    ----------
    num_levels
        1..256.
    distribution
        ``normal`` or ``laplace``.

    Returns
    -------
    ndarray
        Ascending, symmetric, float64, shape (num_levels,); levels are means of their cells but for
        1e-12 or so. Thresholds between them are midpoints.

    Raises
    ------
    InvalidInput
        ``invalid_option``.
    """
    if not 1 <= num_levels <= _MAX_LEVELS:
        raise InvalidInput(
            f"num_levels must be 1..{_MAX_LEVELS}; got {num_levels}",
            code="invalid_option",
            field="num_levels",
        )
    if distribution not in DISTRIBUTIONS:
        raise InvalidInput(
            f"distribution must be one of {', '.join(DISTRIBUTIONS)}; got {distribution[:40]!r}",
            code="invalid_option",
            field="distribution",
        )
    return _table(num_levels, distribution)


def thresholds(levels: _Floats) -> _Floats:
    """Midpoints of neighbouring levels; a value on one belongs to the upper level."""
    return 0.5 * (levels[1:] + levels[:-1])


def mean_squared_error(levels: _Floats, distribution: str = NORMAL) -> float:
    """Mean squared error of nearest rounding to symmetric, ascending `levels` at unit variance."""
    model = _MODELS[distribution]
    ends = _ends(levels[len(levels) // 2 :])
    found = 0.0
    for level, low, high in zip(levels[len(levels) // 2 :], ends, ends[1:], strict=False):
        mass, first, second = model.moments(float(low), float(high))
        found += second - 2 * float(level) * first + float(level) ** 2 * mass
    return 2 * found


@dataclass(frozen=True, slots=True)
class _Model:
    """A symmetric density on its positive half: values, moments over a stretch, first guess."""

    density: Callable[[float], float]
    moments: Callable[[float, float], tuple[float, float, float]]
    quantile: Callable[[float], float]


def _normal_density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _normal_moments(low: float, high: float) -> tuple[float, float, float]:
    mass = 0.5 * (math.erfc(low / _ROOT_2) - math.erfc(high / _ROOT_2))
    below, above = _normal_density(low), _normal_density(high)
    edge = 0.0 if math.isinf(high) else high * above
    return mass, below - above, mass + low * below - edge


def _laplace_density(x: float) -> float:
    return math.exp(-_ROOT_2 * x) / _ROOT_2


def _laplace_moments(low: float, high: float) -> tuple[float, float, float]:
    # Of a tail from t on: mass e/2, first moment e/2 (t + r), second e/2 (t^2 + 2 t r + 2 r^2).
    r = 1 / _ROOT_2
    tails = []
    for t in (low, high):
        e = 0.0 if math.isinf(t) else 0.5 * math.exp(-_ROOT_2 * t)
        u = t if e else 0.0
        tails.append((e, e * (u + r), e * (u * u + 2 * u * r + 2 * r * r)))
    (mass, first, second), (mass_above, first_above, second_above) = tails
    return mass - mass_above, first - first_above, second - second_above


# Companding: the density of good levels is the cube root of the density, normalised.
_MODELS = {
    NORMAL: _Model(
        _normal_density, _normal_moments, lambda p: NormalDist(0, math.sqrt(3)).inv_cdf(0.5 + p / 2)
    ),
    LAPLACE: _Model(_laplace_density, _laplace_moments, lambda p: -3 / _ROOT_2 * math.log1p(-p)),
}


@functools.lru_cache(maxsize=2 * _MAX_LEVELS)
def _table(num_levels: int, distribution: str) -> _Floats:
    odd = num_levels % 2 == 1
    half = _positive_half(num_levels, _MODELS[distribution])
    levels = np.concatenate([-half[:0:-1] if odd else -half[::-1], half])
    levels.flags.writeable = False
    return levels


def _positive_half(num_levels: int, model: _Model) -> _Floats:
    """The levels from 0 on; of an odd number the first is 0."""
    odd = num_levels % 2 == 1
    places = range(num_levels // 2, num_levels)
    half = np.array([model.quantile((2 * i + 1) / num_levels - 1) for i in places])
    if odd:
        half[0] = 0.0
    # Lloyd's step moves every level to the mean of its cell: slow, but always towards the table.
    residual, slopes = _equations(half, model, odd=odd)
    for _ in range(_STEPS):
        least = float(np.abs(residual).max())
        if least < _CLOSE:
            break
        found = _moved(half, _solved(slopes, residual), least, model, odd=odd)
        half, residual, slopes = found or _lloyd(half, residual, model, odd=odd)
    return half


_Step = tuple[_Floats, _Floats, _Floats]


def _moved(half: _Floats, step: _Floats, least: float, model: _Model, *, odd: bool) -> _Step | None:
    """Newton's step, shortened until levels ascend and the residual falls; None: it does not."""
    for share in (1.0, 0.5, 0.25, 0.125):
        moved: _Floats = half - share * step
        if (np.diff(moved) > 0).all() and (odd or moved[0] > 0):
            residual, slopes = _equations(moved, model, odd=odd)
            if float(np.abs(residual).max()) < least:
                return moved, residual, slopes
    return None


def _lloyd(half: _Floats, residual: _Floats, model: _Model, *, odd: bool) -> _Step:
    moved: _Floats = half - residual
    return moved, *_equations(moved, model, odd=odd)


def _equations(half: _Floats, model: _Model, *, odd: bool) -> tuple[_Floats, _Floats]:
    """Level less the mean of its cell; its derivatives by the level below, itself, and above."""
    ends, n = _ends(half), half.size
    cells = np.array(
        [model.moments(float(low), float(high)) for low, high in itertools.pairwise(ends)]
    )
    mass, means = cells[:, 0], cells[:, 1] / cells[:, 0]
    density = np.array([model.density(float(end)) for end in ends[:-1]])
    # An end that moves by 1 takes its density's mass at its distance from the mean into the cell.
    above, below = np.zeros(n), np.zeros(n)
    above[:-1] = -0.5 * density[1:] * (ends[1:-1] - means[:-1]) / mass[:-1]
    below[1:] = -0.5 * density[1:] * (means[1:] - ends[1:-1]) / mass[1:]
    middle = 1.0 + above + below
    residual: _Floats = half - means
    if odd:
        # The middle level is 0 by symmetry.
        residual[0], middle[0], above[0] = half[0], 1.0, 0.0
    return residual, np.stack([below, middle, above])


def _solved(slopes: _Floats, residual: _Floats) -> _Floats:
    """Newton's step: three diagonals, eliminated from the top (a level's own slope is largest)."""
    below, middle, above = slopes.tolist()
    right = residual.tolist()
    for i in range(1, len(right)):
        share = below[i] / middle[i - 1]
        middle[i] -= share * above[i - 1]
        right[i] -= share * right[i - 1]
    for i in reversed(range(len(right))):
        ahead = above[i] * right[i + 1] if i + 1 < len(right) else 0.0
        right[i] = (right[i] - ahead) / middle[i]
    return np.array(right)


def _ends(half: _Floats) -> _Floats:
    """Ends of the cells of the levels from 0 on; of a level 0, of its right half."""
    return np.concatenate([[0.0], 0.5 * (half[1:] + half[:-1]), [math.inf]])
