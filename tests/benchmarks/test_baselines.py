"""The baselines are what they are called: exact ones optimal, the others as good as published."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from baselines import alq, approx, candidates, curve, merging, quiver, uniform, zipml
from numpy.typing import NDArray

pytestmark = pytest.mark.benchmarks

Floats = NDArray[np.float64]

PATHS = {
    "zipml": zipml.path,
    "quiver": quiver.path,
    "quiver, every row": partial(quiver.path, every_row=True),
    "accelerated": quiver.accelerated_path,
    "accelerated, every row": partial(quiver.accelerated_path, every_row=True),
}

# vNMSE of the optimum for 4,096 and 65,536 values of one generator; see `series`.
OPTIMA = {
    ("lognormal", 1 << 12): {
        2: 4.61762997,
        3: 0.768111161,
        4: 0.319523621,
        8: 0.0548153136,
        16: 0.0113474087,
        32: 2.41173637e-3,
        64: 5.16561909e-4,
    },
    ("normal", 1 << 12): {3: 2.30085879, 4: 0.825552012, 16: 0.0236455749, 64: 1.19459465e-3},
    ("exponential", 1 << 12): {3: 0.618750638, 4: 0.245777903, 16: 8.17037795e-3},
    ("lognormal", 1 << 16): {4: 0.711844106, 16: 0.0208057269},
    ("normal", 1 << 16): {3: 2.72393471, 16: 0.0252429417},
}


@pytest.fixture(scope="module")
def series() -> dict[tuple[str, int], Floats]:
    """Three distributions at two lengths, drawn in this order from one generator."""
    rng = np.random.default_rng(42)
    found = {}
    for d in (1 << 12, 1 << 16):
        for name in ("lognormal", "normal", "exponential"):
            x = getattr(rng, name)(size=d).astype(np.float32)
            found[name, d] = np.sort(x).astype(np.float64)
    return found


def naive_error(x: Floats, levels: NDArray[Any]) -> float:
    """The expected squared error over the squared norm, value by value."""
    total = 0.0
    for value in x:
        low = max(level for level in levels if level <= value)
        high = min(level for level in levels if level >= value)
        total += (high - value) * (value - low)
    return total / float(np.square(x).sum())


def least_error(x: Floats, num_levels: int) -> float:
    """The best of all sets of levels on data points."""
    return min(
        naive_error(x, x[[0, *inner, -1]])
        for inner in itertools.combinations(range(1, x.size - 1), num_levels - 2)
    )


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_the_exact_ones_agree_with_brute_force(path: Callable[..., NDArray[Any]]):
    rng = np.random.default_rng(7)
    for round_ in range(24):
        n = int(rng.integers(6, 10))
        # Every other one with ties, and with a far offset.
        x = np.sort(rng.integers(0, 9, n) + 100.0 if round_ % 2 else rng.lognormal(size=n))
        built = curve.of_sorted(x)
        for num_levels in (2, 3, 4, 5, 6):
            found = path(built, num_levels)
            assert found.size == num_levels
            assert np.all(np.diff(found) >= 0)
            error = naive_error(x, built.values(found))
            assert error == pytest.approx(least_error(x, num_levels), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("key", OPTIMA, ids=str)
def test_the_exact_ones_reach_the_known_optima(
    series: dict[tuple[str, int], Floats], key: tuple[str, int]
):
    x = series[key]
    built = curve.of_sorted(x)
    names = ("quiver", "accelerated") if key[1] > 1 << 12 else PATHS
    for num_levels, optimum in OPTIMA[key].items():
        for name in names:
            levels = built.values(PATHS[name](built, num_levels))
            assert curve.vnmse(x, levels) == pytest.approx(optimum, rel=1e-8), (name, num_levels)


def test_the_error_is_that_of_every_value():
    x = np.sort(np.random.default_rng(3).normal(size=60))
    levels = x[[0, 7, 20, 41, -1]]

    assert curve.vnmse(x, levels) == pytest.approx(naive_error(x, levels), rel=1e-12)


def test_the_curve_at_candidates_is_that_of_the_data():
    x = np.sort(np.random.default_rng(4).exponential(size=50))
    places = np.linspace(x[0], x[-1], 9)

    found = curve.at_candidates(x, places).at

    assert found[:, 0] == pytest.approx(places - x[0])
    expected = [np.maximum(place - x, 0).sum() for place in places]
    assert found[:, 1] == pytest.approx(expected, abs=1e-9)
    assert curve.at_candidates(x, x).at == pytest.approx(curve.of_sorted(x).at, abs=1e-9)


def test_a_grid_holds_the_optimum_among_its_points():
    x = np.sort(np.random.default_rng(5).lognormal(size=200))
    grid = np.linspace(x[0], x[-1], 13)
    best = min(
        naive_error(x, grid[[0, *inner, -1]]) for inner in itertools.combinations(range(1, 12), 3)
    )

    assert naive_error(x, approx.levels(x[::-1], 5, 12)) == pytest.approx(best, rel=1e-9)
    among = candidates.uniform(x, 5, 12, among=True)
    assert naive_error(x, among) == pytest.approx(best, rel=1e-9)


# Of 65,536 LogNormal(0, 1) values at 16 levels with 400 cells; the optimum is .02081.
PUBLISHED = {
    "approx": (lambda x: approx.levels(x, 16, 400), 0.02193, 0.01),
    "candidates, uniform": (lambda x: candidates.uniform(x, 16, 400), 1.31, 0.05),
    "candidates, quantiles": (lambda x: candidates.quantiles(x, 16, 400), 0.262, 0.01),
    "merging": (lambda x: merging.levels(x, 16), 0.0214, 0.01),
    # The best of three starts; a single one reaches .745.
    "alq": (lambda x: alq.levels(x, 16), 0.69, 0.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_heuristics_do_as_well_as_others_found(
    series: dict[tuple[str, int], Floats], name: str
):
    choose, expected, tolerance = PUBLISHED[name]
    x = series["lognormal", 1 << 16]

    levels = choose(x)

    assert levels.size == 16
    assert (levels[0], levels[-1]) == (x[0], x[-1])
    assert np.all(np.diff(levels) >= 0)
    assert curve.vnmse(x, levels) == pytest.approx(expected, rel=tolerance)


def test_twice_the_levels_of_merging_have_at_most_twice_the_error(
    series: dict[tuple[str, int], Floats],
):
    for key, optima in OPTIMA.items():
        for num_levels, optimum in optima.items():
            error = curve.vnmse(series[key], merging.levels(series[key], 2 * num_levels))
            assert error <= 2 * optimum


def test_alq_is_the_optimum_of_what_it_assumes():
    """Many values of a truncated normal: the model holds, and descent finds the optimum."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=60_000)
    x = np.sort(x[np.abs(x) < 2])
    built = curve.of_sorted(x)

    optimum = curve.vnmse(x, built.values(quiver.path(built, 8)))

    assert curve.vnmse(x, alq.levels(x, 8)) == pytest.approx(optimum, rel=0.01)


def test_uniform_steps_are_equal():
    assert uniform.levels(np.array([3.0, -1.0, 0.0]), 5).tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "choose",
    [
        lambda x, s: approx.levels(x, s, 10),
        lambda x, s: candidates.uniform(x, s, 10),
        lambda x, s: candidates.quantiles(x, s, 10),
        merging.levels,
        alq.levels,
        uniform.levels,
        lambda x, s: curve.of_sorted(x).values(quiver.accelerated_path(curve.of_sorted(x), s)),
    ],
)
def test_equal_values_are_no_problem(choose: Callable[[Floats, int], NDArray[Any]]):
    x = np.full(30, 2.5)

    levels = choose(x, 4)

    assert levels.tolist() == [2.5] * 4
