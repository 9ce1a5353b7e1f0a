"""The quick search finds the interval that the definition says, however levels lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.strategies import properties

from quiver_kernels.cpu import intervals
from quiver_kernels.cpu.intervals import IntervalTable, interval_table
from quiver_kernels.reference import interval_of


def found(x: NDArray, levels: NDArray, table: IntervalTable) -> NDArray[np.int64]:
    """Intervals of `x` by a table, as the kernels read it: a guess, then halvings."""
    if table.first_step == 0:
        return sum((x >= level).astype(np.int64) for level in levels[1:-1]) + np.zeros(x.size, int)
    k = np.zeros(x.size, np.int64)
    cells = table.guess.shape[1] - 1
    if cells:
        begin, scale = table.cells[0]
        with np.errstate(over="ignore"):
            place = np.clip((x - begin) * scale, 0, levels.dtype.type(cells))
        k += table.guess[0][place.astype(np.int32)]
    step = table.first_step
    while step:
        k += step * (x >= table.inner[0][k + step])
        step //= 2
    return k


def check(x: NDArray, levels: NDArray) -> IntervalTable:
    table = interval_table(levels[np.newaxis, :], 10_000_000)
    assert np.array_equal(found(x, levels, table), interval_of(x, levels))
    return table


SHAPES = {
    "even": np.linspace(-1, 1, 256),
    "one outlier": np.append(np.linspace(-1, 1, 255), 1e9),
    "outliers on both sides": np.concatenate([[-1e30], np.linspace(-1, 1, 254), [1e20]]),
    "heavy tails": np.sinh(np.linspace(-40, 40, 200)),
    "far from zero": 1e7 + np.linspace(0, 300, 100),
    "all inner ones the same": np.array([0.0, *[1.0] * 20, 2.0]),
    "repeated at the end": np.array([0.0, 1.0, 2.0, *[3.0] * 30]),
    "steps of one bit": np.float32(1) + np.arange(60) * np.spacing(np.float32(1)),
    "subnormal": np.arange(40) * 1e-44,
    "the whole range": np.linspace(-3e38, 3e38, 50),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_any_shape_of_table(shape: str, dtype: type):
    levels = SHAPES[shape].astype(dtype)
    low, high = levels[0], levels[-1]
    rng = np.random.default_rng(1)
    between = levels[:-1] / 2 + levels[1:] / 2
    x = np.concatenate([levels, np.nextafter(levels, low), np.nextafter(levels, high), between])
    x = np.append(x, low / 2 + rng.random(5000).astype(dtype) * (high / 2 - low / 2))
    check(np.clip(x, low, high).astype(dtype), levels)


@properties
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=80),
    st.sampled_from([np.float32, np.float64]),
)
def test_any_levels(values: list[float], dtype: type):
    levels = np.sort(np.array(values, dtype))
    x = np.concatenate([levels, levels[:-1] / 2 + levels[1:] / 2])
    check(np.clip(x, levels[0], levels[-1]), levels)


def test_even_levels_need_one_halving_and_an_outlier_changes_nothing():
    assert check(np.zeros(1), SHAPES["even"]).first_step == 1
    assert check(np.zeros(1), SHAPES["one outlier"]).first_step == 1
    assert check(np.zeros(1), SHAPES["outliers on both sides"]).first_step == 1


def test_short_rows_have_no_cells():
    levels = np.linspace(0, 1, 64)[np.newaxis, :]

    assert interval_table(levels, 64).guess.shape == (1, 1)
    assert interval_table(levels, 64 * intervals._VALUES_PER_LEVEL).guess.shape[1] > 1


def test_a_guess_beyond_the_interval_is_noticed():
    levels = SHAPES["even"]
    table = interval_table(levels[np.newaxis, :], 10_000_000)
    x = np.linspace(-1, 1, 999)
    late = IntervalTable(table.inner, table.cells, table.guess + (table.guess < 200), 1)

    assert not np.array_equal(found(x, levels, late), interval_of(x, levels))
