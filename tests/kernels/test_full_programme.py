"""Exact levels of long vectors against the dynamic programme over all of their values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels import options
from quiver_kernels.cpu import exact, solving
from quiver_kernels.cpu.area import Curve

Vector = NDArray[np.float64]
Make = Callable[[np.random.Generator, int], Vector]
# Both sides round sums over up to a million points; the proof's own gap is at most 1e-8.
RELATIVE = 1e-9


def with_one(value: float) -> Make:
    return lambda rng, n: np.append(rng.normal(size=n - 1), value)


KINDS: dict[str, Make] = {
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n),
    "normal": lambda rng, n: rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "truncated normal": lambda rng, n: np.clip(rng.normal(size=n), -1, 1),
    "weibull": lambda rng, n: rng.weibull(1.5, n),
    "integers": lambda rng, n: rng.integers(-3000, 3000, n).astype(np.float64),
    "constant": lambda rng, n: np.full(n, 3.25),
    "two values": lambda rng, n: rng.choice([-1.5, 2.0], n),
    "outlier 1e6": with_one(1e6),
    "outlier 1e30": with_one(1e30),
    "subnormal": lambda rng, n: rng.integers(-(10**6), 10**6, n) * 5e-324,
    "sorted": lambda rng, n: np.sort(rng.normal(size=n)),
    "reversed": lambda rng, n: np.sort(rng.lognormal(size=n))[::-1].copy(),
}


def programme(x: Vector, num_levels: int) -> Vector:
    points, counts = np.unique(x, return_counts=True)
    if points.size <= num_levels:
        return points
    weights = counts.astype(np.float64)
    weights[[0, -1]] = 0.0
    return points[exact.programme(Curve.of(points, weights), num_levels)]


@pytest.mark.parametrize("size", [1 << 12, 1 << 16, 1 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_equal_the_programme(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = KINDS[kind](np.random.default_rng(size), size)
    sizes = (4, 16) if size == 1 << 20 else (3, 5, 16, 33)
    best = {s: qk.expected_mse(x, padded(programme(x, s), s)) for s in sizes}
    monkeypatch.setattr(exact, "DIRECT", 1 << 13)
    for form in ("sorted", "streamed"):
        if form == "streamed":
            monkeypatch.setattr(options, "STREAM_FROM", 0)
            monkeypatch.setattr(solving, "_sorted_levels", None)
        for s in sizes:
            levels = qk.optimal_levels(x, s)
            assert np.isin(levels, x).all()
            assert qk.expected_mse(x, levels) <= best[s] * (1 + RELATIVE), (form, s)


def padded(levels: Vector, num_levels: int) -> Vector:
    return np.concatenate([levels, np.full(num_levels - levels.size, levels[-1])])


def test_a_worse_level_is_seen() -> None:
    x = KINDS["normal"](np.random.default_rng(1), 1 << 16)
    levels = programme(x, 16)
    ordered = np.sort(x)
    moved = levels.copy()
    moved[7] = ordered[np.searchsorted(ordered, levels[7]) + 20]
    assert qk.expected_mse(x, moved) > qk.expected_mse(x, levels) * (1 + RELATIVE)
