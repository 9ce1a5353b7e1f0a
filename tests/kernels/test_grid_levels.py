"""Levels on an integer grid: optimal for it, exact as float32, close to the free optimum."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quiver_kernels as qk
from brute import Problem
from quiver_kernels import GridLevels, Sketch, grid_levels
from quiver_kernels.cellerror import error_of
from quiver_kernels.errors import InvalidInput
from quiver_kernels.gridlevels import grid_weights
from strategies import properties, vectors


def cost(x: np.ndarray, levels: list[int], exponent: int) -> float:
    """The objective of a table of integers times a power of two, exactly."""
    scaled = [math.ldexp(float(value), -exponent) for value in x]
    problem = Problem.of([*scaled, *map(float, levels)])
    points, table = problem.points[: len(x)], problem.points[len(x) :]
    total = 0
    for point in points:
        lower = max(level for level in table if level <= point)
        upper = min(level for level in table if level >= point)
        total += (upper - point) * (point - lower)
    return float(total * problem.unit)


def least_cost(x: np.ndarray, first: int, last: int, num_levels: int, exponent: int) -> float:
    inner = range(first + 1, last)
    count = min(num_levels - 2, len(inner))
    return min(
        cost(x, [first, *chosen, last], exponent) for chosen in itertools.combinations(inner, count)
    )


@properties
@given(
    x=vectors(2, 12),
    num_levels=st.integers(2, 5),
    granularity=st.integers(2, 9),
    from_sketch=st.booleans(),
)
def test_no_table_on_the_grid_is_better(
    x: np.ndarray, num_levels: int, granularity: int, from_sketch: bool
) -> None:
    x = x.astype(np.float32)
    source = Sketch.from_vector(x, 64) if from_sketch else x

    table = grid_levels(source, num_levels, granularity)

    first, last = int(table.integers[0]), int(table.integers[-1])
    assert table.granularity <= granularity
    assert 0 <= float(x.min()) - first * table.step < table.step
    assert 0 <= last * table.step - float(x.max()) < table.step
    found = cost(x, table.integers.tolist(), table.exponent)
    best = least_cost(x, first, last, num_levels, table.exponent)
    assert found <= best * (1 + 1e-9)


def test_a_worse_table_is_told_from_the_best():
    x = np.random.default_rng(0).normal(size=12).astype(np.float32)
    table = grid_levels(x, 4, 9)
    shifted = table.integers.copy()
    shifted[1] += 1 if shifted[1] + 1 < shifted[2] else -1

    best = least_cost(x, int(shifted[0]), int(shifted[-1]), 4, table.exponent)
    assert cost(x, shifted.tolist(), table.exponent) > best * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["normal", "lognormal", "signed", "uniform"])
@pytest.mark.parametrize("num_levels", [2, 3, 4, 16, 64, 256])
def test_the_default_grid_loses_less_than_a_hundredth(kind: str, num_levels: int):
    rng = np.random.default_rng(3)
    size = 60_000
    x = {
        "normal": lambda: rng.normal(size=size),
        "lognormal": lambda: rng.lognormal(size=size),
        "signed": lambda: rng.lognormal(size=size) * rng.choice([-1, 1], size),
        "uniform": lambda: rng.random(size) + 5,
    }[kind]().astype(np.float32)
    free = qk.expected_mse(x, qk.optimal_levels(x, num_levels))

    table = grid_levels(x, num_levels)
    coarser = grid_levels(x, num_levels, max(table.granularity // 2, 2))

    assert qk.expected_mse(x, table.levels) < 1.011 * free
    assert table.granularity < 1 << 15
    # The next coarser grid is either too coarse, or has fewer points than levels.
    too_coarse = qk.expected_mse(x, coarser.levels) > 1.009 * free
    assert too_coarse or coarser.granularity <= num_levels


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("centre", [0.0, 1000.0])
def test_levels_are_values_of_the_type_and_sums_of_them_exact(dtype: type, centre: float):
    x = (centre + np.random.default_rng(4).normal(size=3000)).astype(dtype)

    table = grid_levels(x, 16)

    levels = table.levels.astype(np.float64)
    assert np.array_equal(levels.astype(dtype).astype(np.float64), levels)
    assert np.array_equal(levels.astype(np.float32).astype(np.float64), levels)
    assert levels[0] <= x.min().astype(np.float64)
    assert levels[-1] >= x.max().astype(np.float64)
    assert np.abs(table.integers).max() <= 1 << 24
    assert qk.quantize(x, levels=table.levels, seed=1).method == "given"


@pytest.mark.parametrize(
    "x",
    [
        [0.0],
        [5.0, 5.0],
        [-0.1] * 3,
        [1e-45, 2e-45],
        [-1e-45, 1e38],
        [-1e30, 1e30, 0.25],
        [1.0, 1.0 + 2**-23],
        [0.0, 1e-300],
        [-5e-324, 1e300],
        [1e300, 1e300 * (1 + 2**-50)],
    ],
    ids=str,
)
def test_extreme_vectors(x: list[float]):
    with np.errstate(over="ignore"):
        narrow = np.array(x, np.float32)
    for values in (narrow, np.array(x)) if np.isfinite(narrow).all() else (np.array(x),):
        for granularity in ("auto", 2, 1000):
            table = grid_levels(values, 4, granularity)
            assert table.levels[0] <= values.min()
            assert table.levels[-1] >= values.max()
            assert np.isfinite(table.levels).all()


def test_a_range_without_room_is_refused():
    limit = np.finfo(np.float32).max
    with pytest.raises(InvalidInput, match="leave room") as refusal:
        grid_levels(np.array([0, limit], np.float32), 4, 5)
    assert refusal.value.field == "source"
    fitting = np.array([0, 0.75 * limit], np.float32)
    assert np.isfinite(grid_levels(fitting, 4).levels).all()


@properties
@given(x=vectors(1, 40), exponent=st.integers(0, 12))
def test_weights_of_grid_points_keep_number_and_sum(x: np.ndarray, exponent: int):
    cells = Sketch.from_vector(x.astype(np.float32), 64).rows
    exponent += cells.partition.exponent
    first, weights = grid_weights(cells, exponent)

    points = (first + np.arange(weights.size)) * 2.0**exponent
    values = x.astype(np.float32).astype(np.float64)
    top = max(np.abs(values).max(), 1e-30)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(x.size)
    assert weights @ points == pytest.approx(values.sum(), abs=1e-9 * top * x.size)


@properties
@given(x=vectors(1, 60), num_levels=st.integers(2, 6), cells=st.sampled_from([2, 8, 64, 4096]))
def test_the_error_lies_within_what_the_cells_tell(x: np.ndarray, num_levels: int, cells: int):
    x = x.astype(np.float32)
    sketch = Sketch.from_vector(x, cells)
    levels = sketch.levels(num_levels)

    found = error_of(sketch.rows, levels)

    true = qk.expected_mse(x, levels)
    top = float(np.abs(x).max()) ** 2
    assert found.low <= true * (1 + 1e-9) + 1e-12 * top
    assert found.high >= true * (1 - 1e-9) - 1e-12 * top
    if sketch.rows.known.all():
        assert found.low == pytest.approx(found.high, rel=1e-9, abs=1e-12 * top)


def test_the_bounds_of_the_error_are_reached():
    # One cell of the values -0.5 and 0.5 and others between: all at the ends, or all equal.
    ends = Sketch.from_vector(np.array([4.0, 4.5, 4.0, 4.5, 0.0, 8.0], np.float32), 2)
    middle = Sketch.from_vector(np.array([4.0, 4.25, 4.25, 4.5, 0.0, 8.0], np.float32), 2)
    levels = np.array([0.0, 8.0])
    for sketch, reached in ((ends, "low"), (middle, "high")):
        values = [4.0, 4.5, 4.0, 4.5] if reached == "low" else [4.0, 4.25, 4.25, 4.5]
        true = sum((8 - v) * v for v in values) / 6
        assert getattr(error_of(sketch.rows, levels), reached) == pytest.approx(true)


def test_any_table_lies_on_a_grid():
    rng = np.random.default_rng(5)
    for _ in range(100):
        levels = np.sort(rng.normal(size=9)).astype(np.float32)
        table = GridLevels.of(levels)
        assert np.array_equal(table.levels, levels)
        assert table.levels.dtype == levels.dtype
        assert (table.integers % 2 == 1).any()
        assert GridLevels.of(table.levels).same_as(table)
    assert GridLevels.of([0.0, 0.0]).granularity == 0
    assert GridLevels.of([-6.0, 0.0, 10.0]).integers.tolist() == [-3, 0, 5]
    with pytest.raises(InvalidInput, match="53 bits"):
        GridLevels.of([1e-20, 1.0])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_levels": 1}, "num_levels"),
        ({"granularity": 1}, "granularity"),
        ({"granularity": 65537}, "granularity"),
        ({"granularity": "fine"}, "granularity"),
        ({"granularity": True}, "granularity"),
        ({"granularity": 2.5}, "granularity"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, field: str):
    with pytest.raises(InvalidInput) as refusal:
        grid_levels(np.arange(5.0), **options)
    assert refusal.value.field == field
