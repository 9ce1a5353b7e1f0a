"""ALQ's and AMQ's tables from statistics alone: no values, no sorting."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.normed.statistics import Mixture

Floats = NDArray[np.float64]

STEPS = 60
_CELLS = 512
_TRIES = 24


def alq_table(mixture: Mixture, num_levels: int) -> Floats:
    """Levels from -1 to 1 whose expected error no single level can lower. Needs Numba.

    The descent begins with levels as dense as the cube root of the density, which is best where
    they are many, and takes Newton's steps, O(levels * parts) each; `STEPS` at most, mostly 10.
    """
    from quiver_kernels.schemes.normed import kernels

    parts = prepared(mixture)
    levels = np.empty(num_levels)
    kernels.compand(levels, parts, _CELLS)
    kernels.descend(levels, parts, np.empty(STEPS + 1))
    return levels


def amq_multiplier(mixture: Mixture, num_levels: int) -> float:
    """The multiplier of AMQ's table with least expected error. Needs Numba."""
    from quiver_kernels.schemes.normed import kernels

    return float(kernels.fit_multiplier(num_levels, prepared(mixture), _TRIES))


def expected_error(mixture: Mixture, levels: Floats) -> float:
    """Expected squared error of unbiased rounding of the mixture to `levels`. Needs Numba."""
    from quiver_kernels.schemes.normed import kernels

    return float(kernels.expected_error(levels, prepared(mixture), np.empty((levels.size, 4))))


def mean_square(mixture: Mixture) -> float:
    """Mean square of the mixture's values. Needs Numba."""
    # Rounding to -1 and 1 alone costs 1 - r**2 each.
    return 1.0 - expected_error(mixture, np.array([-1.0, 1.0]))


def prepared(mixture: Mixture) -> Floats:
    """The mixture as kernels take it."""
    from quiver_kernels.schemes.normed import kernels

    parts = np.empty((mixture.means.size, 7))
    kernels.prepare(mixture.means, mixture.deviations, mixture.shares, parts)
    return parts
