"""Vectors that break quantizers: ties, offsets, outliers, denormals, the ends of the range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Generator = np.random.Generator
Vector = NDArray[np.float64]


def _one_outlier(size: float) -> Callable[[Generator, int], Vector]:
    def make(rng: Generator, n: int) -> Vector:
        x = rng.normal(size=n)
        x[rng.integers(n)] = size
        return x

    return make


def _outliers_of_both_signs(rng: Generator, n: int) -> Vector:
    x = rng.normal(size=n)
    x[:2] = [-1e30, 1e30][:n]
    return rng.permutation(x)


KINDS: dict[str, Callable[[Generator, int], Vector]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "lognormal": lambda rng, n: rng.lognormal(0.0, 5.0, n),
    "integers": lambda rng, n: rng.integers(-50, 50, n).astype(np.float64),
    "ties": lambda rng, n: rng.integers(0, 5, n).astype(np.float64),
    "two values": lambda rng, n: rng.choice([-1.5, 2.0], n),
    "sorted duplicates": lambda rng, n: np.sort(np.repeat(rng.normal(size=n), 2)[:n]),
    "reversed": lambda rng, n: np.sort(rng.normal(size=n))[::-1].copy(),
    "offset 1e7": lambda rng, n: rng.normal(size=n) + 1e7,
    "outlier 1e6": _one_outlier(1e6),
    "outlier -1e6": _one_outlier(-1e6),
    "denormal": lambda rng, n: rng.integers(-40, 40, n) * 5e-324,
    "huge": lambda rng, n: rng.uniform(-1.0, 1.0, n) * 1.7e308,
}
"""Generators of vectors whose optimum float64 finds to the last digits."""

EXTREME: dict[str, Callable[[Generator, int], Vector]] = {
    "outlier 1e30": _one_outlier(1e30),
    "outlier -1e30": _one_outlier(-1e30),
    "outliers of both signs": _outliers_of_both_signs,
    "magnitudes 1e-30 to 1e30": lambda rng, n: (
        rng.normal(size=n) * 10.0 ** rng.integers(-30, 30, n)
    ),
    "all magnitudes": lambda rng, n: rng.choice(
        [-1e308, 1e308, -1.0, 0.0, 5e-324, 1e-300, 1.0, 2.0, 3.0, 1e100], n
    ),
}
"""Generators of vectors whose small values lie below the rounding of their large ones."""


def weights_of(rng: Generator, n: int, kind: int) -> Vector | None:
    """No weights, positive ones, or small integers with zeros, by `kind` modulo 3."""
    if kind % 3 == 0:
        return None
    return rng.random(n) + 0.01 if kind % 3 == 1 else rng.integers(0, 4, n).astype(np.float64)
