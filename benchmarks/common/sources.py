"""The vectors: the distributions of the QUIVER paper, and data that is hard on solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Vector = NDArray[np.float32]
Rng = np.random.Generator


def _truncated_normal(rng: Rng, size: int) -> NDArray[Any]:
    low, high = ndtr(-1.0), ndtr(1.0)
    return ndtri(rng.uniform(low, high, size))


DISTRIBUTIONS: dict[str, Callable[[Rng, int], NDArray[Any]]] = {
    "LogNormal(0, 1)": lambda rng, size: rng.lognormal(size=size),
    "Normal(0, 1)": lambda rng, size: rng.normal(size=size),
    "Exponential(1)": lambda rng, size: rng.exponential(size=size),
    "TruncNorm(-1, 1)": _truncated_normal,
    "Weibull(1, 1)": lambda rng, size: rng.weibull(1.0, size),
}


def _with_outlier(rng: Rng, size: int) -> NDArray[Any]:
    x = rng.normal(size=size)
    x[rng.integers(size)] = 1e6
    return x


def _mostly_narrow(rng: Rng, size: int) -> NDArray[Any]:
    x = rng.uniform(size=size)
    x[rng.random(size) < 0.9] *= 1e-3
    return x


HARD: dict[str, Callable[[Rng, int], NDArray[Any]]] = {
    "Normal(0, 1) and one value of 1e6": _with_outlier,
    "LogNormal(0, 5)": lambda rng, size: rng.lognormal(sigma=5.0, size=size),
    "90 % of values in 1/1000 of the range": _mostly_narrow,
}


def draw(name: str, size: int, seed: int = 42) -> Vector:
    """`size` float32 values of a distribution, unsorted."""
    make = DISTRIBUTIONS.get(name) or HARD[name]
    return make(np.random.default_rng(seed), size).astype(np.float32)


def ascending(x: Vector) -> NDArray[np.float64]:
    """The values sorted, as float64; sorting before widening is faster."""
    return np.sort(x).astype(np.float64)
