"""``approx`` on the robust grid: as the reference has it, and near the optimum for any data."""

from __future__ import annotations

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support import brute
from tests.support.hostile import EXTREME, KINDS, weights_of

import quiver_kernels as qk
from quiver_kernels import options as choices
from quiver_kernels.checks import finite_range
from quiver_kernels.cpu import exact
from quiver_kernels.cpu.approx import add_to_grid, grid_points
from quiver_kernels.dispatch import Backend
from quiver_kernels.options import APPROX_FROM, QuantizeOptions
from quiver_kernels.partition import Partition, layout_of
from quiver_kernels.reference import outermost_of_cells

SIZE = 1 << 16

# Cost over the optimum's, less 1, that is allowed at s = 4, 16, 64; twice or more of what is found.
LIMITS = {
    "lognormal": (5e-5, 5e-4, 5e-3),
    "normal": (2e-5, 4e-4, 5e-3),
    "outlier 1e6": (1e-5, 1e-3, 5e-3),
    "offset 1e6": (5e-5, 2e-3, 2.5e-2),
    "lognormal 5": (1e-6, 1e-6, 2e-4),
    "student 2": (1e-5, 5e-5, 1e-3),
}


def drawn(kind: str) -> NDArray[np.float64]:
    rng = np.random.default_rng(2024)
    if kind == "student 2":
        return rng.standard_t(2, SIZE)
    if kind.startswith("lognormal"):
        return rng.lognormal(0.0, 5.0 if kind.endswith("5") else 1.0, SIZE)
    x = rng.normal(size=SIZE)
    if kind == "outlier 1e6":
        x[SIZE // 3] = 1e6
    return x + 1e6 if kind == "offset 1e6" else x


def gaps(x: NDArray[np.float64], grid: str) -> list[float]:
    """Cost over that of the optimum, less 1, for each number of levels."""
    return [
        qk.expected_mse(x, qk.optimal_levels(x, s, "approx", grid=grid))
        / qk.expected_mse(x, qk.optimal_levels(x, s))
        - 1
        for s in (4, 16, 64)
    ]


def within(found: list[float], kind: str) -> list[bool]:
    return [-1e-12 <= gap <= limit for gap, limit in zip(found, LIMITS[kind], strict=True)]


@pytest.mark.parametrize("kind", list(LIMITS))
def test_it_comes_close_to_the_optimum(kind: str):
    assert within(gaps(drawn(kind), "robust"), kind) == [True] * 3


@pytest.mark.parametrize("kind", ["outlier 1e6", "lognormal 5", "student 2"])
def test_a_uniform_grid_would_be_refused(kind: str):
    # The same check must see what an outlier does to equally spaced points.
    assert within(gaps(drawn(kind), "uniform"), kind) == [False] * 3


def test_more_bins_come_closer():
    x = drawn("offset 1e6")
    least = qk.expected_mse(x, qk.optimal_levels(x, 16))
    found = [
        qk.expected_mse(x, qk.optimal_levels(x, 16, "approx", bins=bins)) / least - 1
        for bins in (64, 256, 1024, 4096)
    ]

    assert all(finer < coarser / 2 for coarser, finer in itertools.pairwise(found))
    assert found[-1] < 1e-4


@pytest.mark.parametrize("size", [17, APPROX_FROM])
def test_short_vectors_are_solved_exactly(size: int):
    x = np.random.default_rng(size).lognormal(0.0, 3.0, size)
    for block in (None, size):
        exact, approx = (
            qk.optimal_levels(np.tile(x, 2) if block else x, 8, method, bins=2, block_size=block)
            for method in ("exact", "approx")
        )
        assert np.array_equal(exact, approx)


def test_longer_ones_are_not():
    x = np.random.default_rng(0).normal(size=APPROX_FROM + 1) + 1e6

    assert not np.array_equal(qk.optimal_levels(x, 8, "approx", bins=16), qk.optimal_levels(x, 8))


def test_blocks_have_grids_of_their_own():
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=5000), rng.lognormal(0, 4, 5000), rng.normal(size=4100)])
    tables = qk.optimal_levels(x, 9, "approx", bins=60, block_size=5000)

    for table, start in zip(tables, (0, 5000, 10_000), strict=True):
        alone = qk.optimal_levels(x[start : start + 5000], 9, "approx", bins=60)
        assert np.array_equal(table, alone)


# -- against the reference ------------------------------------------------------------------


def cost(x: NDArray[np.float64], levels: NDArray[np.float64], weights) -> Fraction:
    return brute.objective(
        x.tolist(), levels.tolist(), None if weights is None else weights.tolist()
    )


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of any length have a grid: the reference is for small ones."""
    monkeypatch.setattr(choices, "APPROX_FROM", 0)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("kind", [*KINDS, *EXTREME])
def test_it_is_searched_to_its_optimum(cpu: Backend, reference: Backend, kind: str):
    rng = np.random.default_rng(len(kind))
    make = {**KINDS, **EXTREME}[kind]
    coarse = 0
    for number in range(24):
        x = make(rng, int(rng.integers(2, 90)))
        weights = weights_of(rng, x.size, number)
        chosen = QuantizeOptions.create(
            num_levels=int(rng.integers(2, 12)), method="approx", bins=int(rng.integers(2, 40))
        )
        found, wanted = (
            cost(x, backend.solve_levels(x, chosen, weights), weights)
            for backend in (cpu, reference)
        )
        spread = Fraction(x.max()) - Fraction(x.min())
        mass = Fraction(x.size if weights is None else float(weights.sum()))
        floor = mass * spread * spread / 2**50 if kind in EXTREME else 0
        assert abs(found - wanted) <= wanted * Fraction(1e-9) + floor, (number, chosen)
        ones = np.ones(x.size) if weights is None else weights
        ends = outermost_of_cells(x, ones, chosen.bins, layout_of(x.dtype))
        coarse += ends.size < np.unique(x).size
    if kind in ("normal", "offset 1e7", "huge", "sorted duplicates"):
        assert coarse > 0


@pytest.mark.usefixtures("short")
def test_other_candidates_would_be_refused(cpu: Backend, reference: Backend):
    rng = np.random.default_rng(1)
    robust = QuantizeOptions.create(num_levels=6, method="approx", bins=20)
    others = [
        QuantizeOptions.create(num_levels=6, method="approx", bins=20, grid="uniform"),
        QuantizeOptions.create(num_levels=6, method="approx", bins=21),
        QuantizeOptions.create(num_levels=6, method="approx", bins=40),
        QuantizeOptions.create(num_levels=6),
    ]
    seen = np.zeros(len(others))
    for _ in range(20):
        x = KINDS["offset 1e7"](rng, 80)
        wanted = cost(x, reference.solve_levels(x, robust, None), None)
        found = [cost(x, cpu.solve_levels(x, other, None), None) for other in others]
        seen += [abs(one - wanted) > wanted * Fraction(1e-9) for one in found]

    # One more bin rarely changes a power of two.
    assert (seen[[0, 2, 3]] >= 12).all(), seen


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_other_types_are_counted_as_float32(cpu: Backend, reference: Backend, dtype: type):
    rng = np.random.default_rng(8)
    for bins in (2, 5, 17, 40):
        x = (100 + rng.normal(size=300)).astype(dtype)
        chosen = QuantizeOptions.create(num_levels=5, method="approx", bins=bins)
        found, wanted = (
            cost(x.astype(np.float64), backend.solve_levels(x, chosen, None), None)
            for backend in (cpu, reference)
        )
        assert abs(found - wanted) <= wanted * Fraction(1e-9)


def test_what_weighs_nothing_is_no_candidate():
    x = np.array([8.0, 8.02, 8.04, 8.06, 9.0, 9.03])
    layout = layout_of(x.dtype)
    cells = Partition.of(8.0, 9.03, 8, layout).locate(x)[0]
    assert cells[:4].tolist() == cells[:1].tolist() * 4
    assert cells[4] == cells[5] != cells[0]

    ends = outermost_of_cells(x, np.array([0.0, 1, 1, 0, 0, 0]), 8, layout)
    assert ends.tolist() == [8.0, 8.04, 9.03]
    assert outermost_of_cells(x, np.ones(6), 8, layout).tolist() == [8.0, 8.06, 9.0, 9.03]


# -- weights of the uniform grid ---------------------------------------------------------------


def shares_of(x: NDArray[np.float64], rounded: bool = True) -> NDArray[np.float64]:
    """Weights of 65 points from the values, added one by one as they come."""
    bounds = finite_range(x)
    grid = np.zeros(65)
    if rounded:
        add_to_grid(x, np.empty(0), bounds.low, bounds.high, bounds.unit, grid)
        return grid
    for place in (x - bounds.low) * (64 / (bounds.high - bounds.low)):
        c = min(int(place), 63)
        grid[c] += 1.0 - (place - c)
        grid[c + 1] += place - c
    return grid


def test_weights_of_a_uniform_grid_do_not_depend_on_the_order():
    rng = np.random.default_rng(5)
    x = rng.normal(size=5000)
    shuffled = rng.permutation(x)
    found = shares_of(x)

    assert found.tobytes() == shares_of(shuffled).tobytes()
    assert found.sum() == x.size
    assert np.array_equal(found * 2.0**20, np.rint(found * 2.0**20))
    # Without rounding they do depend on it, a little.
    plain = shares_of(x, rounded=False)
    assert plain.tobytes() != shares_of(shuffled, rounded=False).tobytes()
    np.testing.assert_allclose(found, plain, rtol=0, atol=x.size * 2.0**-21)


@pytest.mark.parametrize("kind", ["normal", "lognormal 5", "offset 1e6"])
@pytest.mark.parametrize("bins", [100, 4000])
def test_rounded_shares_cost_nothing(kind: str, bins: int):
    x = drawn(kind)
    bounds = finite_range(x)
    grid = np.zeros(bins + 1)
    c = np.minimum((place := (x - x.min()) * (bins / np.ptp(x))).astype(int), bins - 1)
    np.add.at(grid, c, 1.0 - (place - c))
    np.add.at(grid, c + 1, place - c)
    points = np.arange(bins + 1, dtype=np.float64)
    chosen = exact.solve_row(points, grid, 2.0**-13, 16, accelerated=False).astype(int)
    plain = qk.expected_mse(x, grid_points(bounds, bins + 1)[chosen])

    levels = qk.optimal_levels(x, 16, "approx", bins=bins, grid="uniform")
    assert qk.expected_mse(x, levels) == pytest.approx(plain, rel=1e-6)
