"""Lloyd-Max tables: published numbers, the fixed point, and that nothing nearby is better."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes import lloyd_max

# Mean squared errors at unit variance: normal, Laplace.
ERRORS = {
    2: (0.363380, 0.500000),
    3: (0.190174, 0.264241),
    4: (0.117482, 0.176195),
    8: (0.034548, 0.054476),
    16: (0.009501, 0.015373),
    32: (0.0025047, 0.0041022),
    64: (0.00064424, 0.00106095),
    128: (0.00016348, 0.00026987),
    256: (0.00004119, 0.00006806),
}
# Levels above 0, or from 0 on.
LEVELS = {
    ("normal", 2): [0.7978846],
    ("normal", 3): [0, 1.2240064],
    ("normal", 4): [0.4527800, 1.5104176],
    ("normal", 8): [0.2450942, 0.7560053, 1.3439093, 2.1519457],
    ("normal", 16): [
        *(0.1283950, 0.3880483, 0.6567591, 0.9423405),
        *(1.2562312, 1.6180464, 2.0690172, 2.7325896),
    ],
    ("laplace", 2): [0.7071068],
    ("laplace", 3): [0, 1.4142136],
    ("laplace", 4): [0.4197557, 1.8339693],
    ("laplace", 8): [0.2334009, 0.8329618, 1.6724733, 3.0866868],
    ("laplace", 16): [
        *(0.1239860, 0.4048392, 0.7286504, 1.1109841),
        *(1.5777859, 2.1773468, 3.0168583, 4.4310718),
    ],
}
DENSITIES = {
    "normal": lambda x: np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi),
    "laplace": lambda x: np.exp(-np.sqrt(2) * x) / np.sqrt(2),
}


@pytest.mark.parametrize("num_levels", ERRORS)
def test_errors_are_the_published_ones(num_levels: int):
    for distribution, wanted in zip(lloyd_max.DISTRIBUTIONS, ERRORS[num_levels], strict=True):
        table = lloyd_max.table(num_levels, distribution)
        # Half of the last digit that is printed.
        digits = 8 if num_levels >= 64 else 7 if num_levels == 32 else 6
        assert lloyd_max.mean_squared_error(table, distribution) == pytest.approx(
            wanted, abs=0.51 * 10.0**-digits
        )


@pytest.mark.parametrize(("distribution", "num_levels"), LEVELS)
def test_levels_are_the_published_ones(distribution: str, num_levels: int):
    table = lloyd_max.table(num_levels, distribution)
    wanted = LEVELS[distribution, num_levels]

    # The printed ones were solved for to a residual of 2e-10.
    np.testing.assert_allclose(table[num_levels // 2 :], wanted, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(table, -table[::-1])
    assert not table.flags.writeable


def off_the_mean(table: np.ndarray, distribution: str) -> float:
    """How far a level lies from the mean of its cell, by Simpson's rule: another way."""
    half = table[table.size // 2 :]
    ends = np.array([0.0, *0.5 * (half[1:] + half[:-1]), 40.0])
    worst = 0.0
    for level, (low, high) in zip(half, itertools.pairwise(ends), strict=True):
        x = np.linspace(low, high, 4001 if high < 40 else 200001)
        weights = np.tile([2.0, 4.0], x.size // 2 + 1)[: x.size]
        weights[0] = weights[-1] = 1.0
        mass = DENSITIES[distribution](x) * weights
        mean = 0.0 if table.size % 2 and level == half[0] else (mass * x).sum() / mass.sum()
        worst = max(worst, abs(level - mean))
    return worst


@pytest.mark.parametrize("distribution", lloyd_max.DISTRIBUTIONS)
def test_levels_are_means_of_their_cells(distribution: str):
    for num_levels in (2, 3, 5, 16, 37, 64, 128, 255, 256):
        assert off_the_mean(lloyd_max.table(num_levels, distribution), distribution) < 1e-9
    # Levels a little off are seen.
    planted = lloyd_max.table(16, distribution) * (1 + 1e-7)
    assert off_the_mean(planted, distribution) > 1e-9


def test_every_length_has_a_table_that_is_better_than_the_one_before():
    for distribution in lloyd_max.DISTRIBUTIONS:
        errors = []
        for num_levels in range(1, 257):
            table = lloyd_max.table(num_levels, distribution)
            assert table.shape == (num_levels,)
            assert (np.diff(table) > 0).all()
            errors.append(lloyd_max.mean_squared_error(table, distribution))
        assert errors[0] == pytest.approx(1.0)
        assert (np.diff(errors) < 0).all()


def test_a_moved_level_is_worse():
    table = lloyd_max.table(8)
    best = lloyd_max.mean_squared_error(table)
    for i, step in itertools.product(range(4), (-1e-3, 1e-3)):
        moved = table.copy()
        moved[i] += step
        moved[7 - i] -= step
        assert lloyd_max.mean_squared_error(moved) > best


@pytest.mark.parametrize(("num_levels", "distribution"), [(0, "normal"), (257, "normal"), (4, "x")])
def test_what_is_no_table_is_refused(num_levels: int, distribution: str):
    with pytest.raises(InvalidInput, match="must be"):
        lloyd_max.table(num_levels, distribution)
