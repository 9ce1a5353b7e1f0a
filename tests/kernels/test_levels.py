"""What every level table has in common, for any method, type, shape and layout."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support import brute
from tests.support.strategies import (
    DTYPES,
    METHODS,
    dtype_names,
    level_counts,
    methods,
    properties,
    vectors,
    weighted_vectors,
)

import quiver_kernels as qk
from quiver_kernels.dispatch import Backend
from quiver_kernels.options import GRIDS, QuantizeOptions


def cost(x, levels, weights=None) -> Fraction:
    return brute.objective(
        np.asarray(x, dtype=np.float64).ravel().tolist(),
        np.asarray(levels, dtype=np.float64).tolist(),
        None if weights is None else weights.tolist(),
    )


def close(a: Fraction, b: Fraction, relative: float = 1e-12) -> bool:
    return abs(a - b) <= max(a, b) * Fraction(relative)


@properties
@given(weighted_vectors(), level_counts, methods, dtype_names)
def test_tables_ascend_between_the_minimum_and_the_maximum(problem, s: int, method: str, dtype):
    x, weights = problem
    x = x.astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())
    levels = qk.optimal_levels(x, s, method, weights, bins=37)

    assert levels.shape == (s,)
    assert levels.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert (np.diff(levels) >= 0).all()
    assert levels[0] == x.min()
    assert levels[-1] == x.max()
    # Decoding gives values of the vector's type, so levels are such values.
    assert np.array_equal(levels.astype(x.dtype).astype(levels.dtype), levels)


@properties
@given(weighted_vectors(), level_counts, st.sampled_from(["exact", "accelerated"]))
def test_exact_levels_are_data_points(problem, s: int, method: str):
    x, weights = problem

    assert set(qk.optimal_levels(x, s, method, weights).tolist()) <= set(x.tolist())


@properties
@given(vectors(max_size=10), st.integers(10, 40), methods, dtype_names)
def test_few_distinct_values_become_the_table(x, s: int, method: str, dtype: str):
    x = x.astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())
    levels = qk.optimal_levels(x, s, method)
    distinct = np.unique(x.astype(np.float64))

    assert levels[: distinct.size].tolist() == distinct.tolist()
    assert (levels[distinct.size :] == distinct[-1]).all()


@properties
@given(weighted_vectors())
def test_more_levels_never_cost_more(problem):
    x, weights = problem
    costs = [cost(x, qk.optimal_levels(x, s, "exact", weights), weights) for s in range(2, 10)]

    assert all(more <= less for less, more in itertools.pairwise(costs))


@properties
@given(vectors(), level_counts, st.sampled_from(["exact", "accelerated"]), st.randoms())
def test_order_does_not_matter(x, s: int, method: str, random):
    shuffled = x.copy()
    random.shuffle(shuffled)

    assert np.array_equal(qk.optimal_levels(shuffled, s, method), qk.optimal_levels(x, s, method))


@properties
@given(weighted_vectors(), level_counts, st.randoms())
def test_order_does_not_matter_with_weights(problem, s: int, random):
    x, weights = problem
    assume(weights is not None)
    order = list(range(x.size))
    random.shuffle(order)
    levels = qk.optimal_levels(x, s, "exact", weights)

    assert np.array_equal(qk.optimal_levels(x[order], s, "exact", weights[order]), levels)


@properties
@given(weighted_vectors(), level_counts, st.integers(-300, 300))
def test_scaling_by_a_power_of_two_scales_the_levels(problem, s: int, exponent: int):
    x, weights = problem
    factor = 2.0**exponent

    assert np.array_equal(
        qk.optimal_levels(x * factor, s, "exact", weights),
        qk.optimal_levels(x, s, "exact", weights) * factor,
    )


@properties
@given(
    st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=24),
    level_counts,
    st.integers(21, 50),
    st.sampled_from([-1.0, 1.0]),
)
def test_an_offset_moves_the_levels(values, s: int, exponent: int, sign: float):
    x, offset = np.array(values, dtype=np.float64), sign * 2.0**exponent

    assert np.array_equal(qk.optimal_levels(x + offset, s), qk.optimal_levels(x, s) + offset)


@properties
@given(vectors(), level_counts)
def test_mirroring_keeps_the_cost(x, s: int):
    assert close(cost(-x, qk.optimal_levels(-x, s)), cost(x, qk.optimal_levels(x, s)))


@properties
@given(weighted_vectors(), level_counts, st.integers(-200, 200), methods)
def test_a_common_factor_of_the_weights_changes_nothing(problem, s, exponent, method):
    x, weights = problem
    assume(weights is not None)

    assert np.array_equal(
        qk.optimal_levels(x, s, method, weights * 2.0**exponent),
        qk.optimal_levels(x, s, method, weights),
    )


@pytest.mark.parametrize("method", ["exact", "accelerated", "approx"])
@pytest.mark.parametrize("factor", [1e300, 1e307, 2.0**-1060])
def test_weights_near_the_ends_of_the_range(method: str, factor: float):
    x = np.random.default_rng(1).normal(size=40)
    weights = np.arange(1.0, 41.0) / 40
    levels = qk.optimal_levels(x, 6, method, weights * factor)
    wanted = qk.optimal_levels(x, 6, method, weights)

    assert close(cost(x, levels, weights), cost(x, wanted, weights), 1e-6)


@properties
@given(vectors(), level_counts)
def test_equal_weights_are_no_weights(x, s: int):
    plain = qk.optimal_levels(x, s)
    weighted = qk.optimal_levels(x, s, weights=np.full(x.size, 0.75))

    assert close(cost(x, weighted), cost(x, plain))


@properties
@given(vectors(), level_counts, st.data())
def test_integer_weights_are_repetitions(x, s: int, data):
    repeats = data.draw(st.lists(st.integers(1, 4), min_size=x.size, max_size=x.size))
    weighted = qk.optimal_levels(x, s, weights=np.array(repeats, dtype=float))
    repeated = qk.optimal_levels(np.repeat(x, repeats), s)

    weights = np.array(repeats, dtype=float)
    assert close(cost(x, weighted, weights), cost(x, repeated, weights))


# -- the grid -----------------------------------------------------------------------------


@properties
@given(weighted_vectors(), level_counts, st.integers(2, 200), st.sampled_from(GRIDS))
def test_no_grid_is_better_than_the_optimum(problem, s: int, bins: int, grid: str):
    x, weights = problem
    exact = cost(x, qk.optimal_levels(x, s, "exact", weights), weights)
    approx = cost(x, qk.optimal_levels(x, s, "approx", weights, bins=bins, grid=grid), weights)

    assert approx >= exact * (1 - Fraction(1e-12))


@properties
@given(vectors(min_size=4, max_size=60), st.integers(2, 10), st.integers(16, 300))
def test_the_uniform_grid_keeps_the_bound_of_the_paper(x, s: int, bins: int):
    # Twice the levels on the grid cost at most the optimum and d range^2 / (4 m^2).
    optimum = cost(x, qk.optimal_levels(x, s))
    approx = optimum
    if s > 2:
        approx = cost(x, qk.optimal_levels(x, 2 * s - 2, "approx", bins=bins, grid="uniform"))
    spread = Fraction(float(x.max())) - Fraction(float(x.min()))

    assert approx <= (optimum + x.size * spread**2 / (4 * bins**2)) * (1 + Fraction(1e-12))


def test_the_uniform_grid_comes_close_to_the_optimum():
    rng = np.random.default_rng(3)
    x = rng.normal(size=100_000)
    least = qk.expected_mse(x, qk.optimal_levels(x, 16))
    gaps = [
        qk.expected_mse(x, qk.optimal_levels(x, 16, "approx", bins=bins, grid="uniform")) / least
        - 1
        for bins in (256, 1024, 4096)
    ]

    # About 0.5 (cell / distance of levels)^2: sixteen times less for four times the cells.
    assert gaps[0] < 5e-3
    assert gaps[1] < 4e-4
    assert gaps[2] < 4e-5


@properties
@given(
    st.lists(st.integers(0, 1024), min_size=1, max_size=60),
    level_counts,
    st.integers(-20, 20),
    st.randoms(),
    st.sampled_from(GRIDS),
)
def test_no_grid_sees_the_order(values, s: int, exponent: int, random, grid: str):
    # Dyadic data on a dyadic grid: every sum is exact, so the tables must be equal bit for bit.
    x = np.array([0, 1024, *values], dtype=np.float64) * 2.0**exponent
    shuffled = x.copy()
    random.shuffle(shuffled)

    assert np.array_equal(
        qk.optimal_levels(shuffled, s, "approx", bins=256, grid=grid),
        qk.optimal_levels(x, s, "approx", bins=256, grid=grid),
    )


@properties
@given(weighted_vectors(min_size=2), level_counts, st.integers(2, 60), st.sampled_from(GRIDS))
def test_each_grid_is_searched_to_its_optimum(
    cpu: Backend, reference: Backend, problem, s: int, bins: int, grid: str
):
    x, weights = problem
    options = QuantizeOptions.create(num_levels=s, method="approx", bins=bins, grid=grid)
    found, wanted = (
        cost(x, backend.solve_levels(x, options, weights), weights) for backend in (cpu, reference)
    )

    assert close(found, wanted, 1e-9)


@pytest.mark.parametrize("s", [2, 3, 7, 256])
def test_uniform_steps_are_equal(s: int):
    x = np.random.default_rng(0).uniform(-3.0, 5.0, 1000)
    levels = qk.optimal_levels(x, s, "uniform")

    np.testing.assert_allclose(levels, np.linspace(x.min(), x.max(), s), rtol=1e-14, atol=1e-14)


# -- types, shapes and layouts ------------------------------------------------------------


@properties
@given(weighted_vectors(max_size=40), level_counts, methods, st.integers(1, 50), dtype_names)
def test_blocks_are_solved_one_by_one(problem, s: int, method: str, block: int, dtype: str):
    x, weights = problem
    x = x.astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())
    tables = qk.optimal_levels(x, s, method, weights, bins=50, block_size=block)
    parts = [slice(i, i + block) for i in range(0, x.size, block)]
    alone = [
        qk.optimal_levels(x[part], s, method, None if weights is None else weights[part], bins=50)
        for part in parts
    ]

    assert tables.shape == (len(parts), s)
    assert np.array_equal(tables, np.stack(alone))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("method", METHODS)
def test_16_bit_types_are_solved_as_what_they_are(method: str, dtype: str):
    x = np.random.default_rng(5).normal(size=500).astype(DTYPES[dtype])
    levels = qk.optimal_levels(x, 9, method)
    widened = qk.optimal_levels(x.astype(np.float64), 9, method)

    assert np.array_equal(levels, widened.astype(x.dtype).astype(levels.dtype))


def layouts(x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The same 60 values in other places and orders of memory."""
    spaced = np.zeros((60, 3), dtype=x.dtype)
    spaced[:, 1] = x
    raw = bytearray(1 + x.nbytes)
    raw[1:] = x.tobytes()
    unaligned = np.frombuffer(raw, dtype=x.dtype, offset=1)
    read_only = x.copy()
    read_only.flags.writeable = False
    return {
        "strided": spaced[:, 1],
        "backwards": x[::-1].copy()[::-1],
        "big-endian": x.astype(x.dtype.newbyteorder(">")),
        "unaligned": unaligned,
        "read-only": read_only,
        "matrix": x.reshape(4, 15),
        "Fortran order": np.asfortranarray(x.reshape(4, 15)),
        "transposed": x.reshape(15, 4).T.copy().T.reshape(60),
        "four axes": x.reshape(2, 3, 1, 10),
    }


@pytest.mark.parametrize("layout", list(layouts(np.zeros(60, dtype=np.float32))))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("block", [None, 16])
def test_the_layout_in_memory_does_not_matter(layout: str, dtype: type, block: int | None):
    plain = np.random.default_rng(9).normal(size=60).astype(dtype)
    x = layouts(plain)[layout]
    before = x.tobytes()
    for method in METHODS:
        q = qk.quantize(x, bits=3, method=method, seed=5, block_size=block)
        wanted = qk.quantize(plain, bits=3, method=method, seed=5, block_size=block)

        assert np.array_equal(q.levels, wanted.levels)
        assert np.array_equal(q.codes, wanted.codes)
        assert q.vnmse == wanted.vnmse
        assert q.shape == x.shape
        assert np.array_equal(qk.dequantize(q), qk.dequantize(wanted).reshape(x.shape))
    assert x.tobytes() == before


def test_weights_may_lie_anywhere_too():
    rng = np.random.default_rng(4)
    x, weights = rng.normal(size=60), rng.random(60).astype(np.float32)
    wanted = qk.optimal_levels(x, 5, weights=weights)
    for layout in layouts(weights).values():
        if layout.ndim == 1:
            assert np.array_equal(qk.optimal_levels(x, 5, weights=layout), wanted)


@pytest.mark.parametrize("given", [[1, 2, 3, 10], (1.0, 2.0, 3.0, 10.0), np.array([1, 2, 3, 10])])
def test_lists_and_integers_are_float64(given):
    levels = qk.optimal_levels(given, 3)

    assert levels.dtype == np.float64
    assert levels.tolist() in ([1.0, 3.0, 10.0], [1.0, 2.0, 10.0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "values",
    [
        [-1.7e308, 1.7e308, 0.0],
        [-1.7976931348623157e308, 1.7976931348623157e308, 1.0, 2.0, 1e300],
        [5e-324, 0.0, 1e-323],
    ],
)
def test_the_ends_of_the_range(method: str, values: list[float]):
    x = np.array(values)
    q = qk.quantize(x, bits=1, method=method, seed=3)

    assert q.levels.tolist() == [x.min(), x.max()]
    assert set(qk.dequantize(q).tolist()) <= {x.min(), x.max()}
    assert np.isfinite(q.vnmse)
