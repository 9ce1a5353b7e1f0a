"""Reported errors are the objective: against sums of exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.support import brute
from tests.support.strategies import (
    DTYPES,
    dtype_names,
    methods,
    properties,
    vectors,
    weighted_vectors,
)

import quiver_kernels as qk
from quiver_kernels.dispatch import Backend
from quiver_kernels.options import QuantizeOptions

# Each of the d terms is rounded a few times and terms of one tile are added in order.
RELATIVE = 1e-12


def as_floats(x: np.ndarray) -> list[float]:
    return x.astype(np.float64).ravel().tolist()


def exact_vnmse(x: np.ndarray, levels: np.ndarray, block: int | None) -> float:
    values = as_floats(x)
    step = block or len(values)
    tables = np.atleast_2d(levels).astype(np.float64)
    error = sum(
        brute.objective(values[i : i + step], tables[i // step].tolist())
        for i in range(0, len(values), step)
    )
    norm = brute.squared_norm(values)
    return float(error / norm) if norm else 0.0


@properties
@given(
    vectors(max_size=60), dtype_names, methods, st.integers(2, 9), st.none() | st.integers(1, 70)
)
def test_vnmse_is_error_over_squared_norm(x, dtype: str, method: str, s: int, block):
    x = x.astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())
    q = qk.quantize(x, num_levels=s, method=method, seed=1, block_size=block)

    assert q.vnmse == pytest.approx(exact_vnmse(x, q.levels, block), rel=RELATIVE, abs=1e-300)


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1.0, 1e150, 1e300])
@pytest.mark.parametrize("block", [None, 100])
def test_vnmse_of_any_magnitude(scale: float, block: int | None):
    x = np.random.default_rng(2).normal(size=1000) * scale
    q = qk.quantize(x, bits=3, seed=1, block_size=block)

    assert q.vnmse == pytest.approx(exact_vnmse(x, q.levels, block), rel=RELATIVE)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e7])
def test_vnmse_of_a_large_vector(offset: float):
    x = np.random.default_rng(2).lognormal(size=100_000) + offset
    q = qk.quantize(x, bits=4, method="approx", seed=1)

    assert q.vnmse == pytest.approx(exact_vnmse(x, q.levels, None), rel=RELATIVE)


@properties
@given(weighted_vectors(), st.integers(2, 8), methods)
def test_expected_mse_is_the_objective_over_d(
    cpu: Backend, reference: Backend, problem, s: int, method: str
):
    x, weights = problem
    levels = qk.optimal_levels(x, s, method, weights)
    plain = None if weights is None else weights.tolist()
    wanted = float(brute.objective(x.tolist(), levels.tolist(), plain) / x.size)

    assert qk.expected_mse(x, levels, weights) == pytest.approx(wanted, rel=RELATIVE, abs=1e-300)
    for backend in (cpu, reference):
        found = backend.expected_mse(x, levels, weights)
        assert found == pytest.approx(wanted, rel=RELATIVE, abs=1e-300)


@properties
@given(weighted_vectors(), st.integers(2, 8), methods, dtype_names)
def test_levels_report_both_errors(cpu: Backend, problem, s: int, method: str, dtype: str):
    x, weights = problem
    x = x.astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())
    options = QuantizeOptions.create(num_levels=s, method=method)
    result = cpu.levels(x, options, weights)
    plain = None if weights is None else weights.tolist()
    wanted = float(brute.objective(as_floats(x), result.levels.tolist(), plain) / x.size)

    assert result.expected_mse == pytest.approx(wanted, rel=RELATIVE, abs=1e-300)
    assert result.vnmse == pytest.approx(
        exact_vnmse(x, result.levels, None), rel=RELATIVE, abs=1e-300
    )
    assert np.array_equal(result.levels, qk.optimal_levels(x, s, method, weights))
    assert (result.num_levels, result.method) == (s, method)


def test_levels_report_the_error_of_blocks(cpu: Backend):
    x = np.random.default_rng(0).normal(size=1000)
    options = QuantizeOptions.create(num_levels=5, block_size=64)
    result = cpu.levels(x, options, None)
    q = qk.quantize(x, num_levels=5, block_size=64, seed=0)

    assert result.vnmse == pytest.approx(q.vnmse, rel=RELATIVE)
    norm = float(brute.squared_norm(x.tolist()))
    assert result.expected_mse == pytest.approx(q.vnmse * norm / 1000, rel=RELATIVE)


def test_any_bracketing_table_has_an_expected_mse():
    # One value in the middle of [0, 4], one in the middle of [4, 6], one on a level.
    assert qk.expected_mse([2.0, 5.0, 4.0], [0.0, 4.0, 6.0]) == (4.0 + 1.0) / 3
    assert qk.expected_mse([2.0], [0.0, 4.0], weights=[0.25]) == 1.0
    assert qk.expected_mse([4.0], [4.0, 4.0]) == 0.0


def test_a_value_on_no_level_of_a_dense_table_costs_something():
    x = np.array([1.0, 1.5, 2.0])

    assert qk.expected_mse(x, [1.0, 1.5, 2.0]) == 0.0
    assert qk.expected_mse(x, [1.0, 1.5 + 1e-9, 2.0]) == pytest.approx(0.5e-9 / 3, rel=1e-6)


@pytest.mark.parametrize("magnitude", [1e-170, 1e170])
def test_errors_beyond_the_range_of_float64_are_zero_or_infinite(magnitude: float):
    x = np.array([0.0, 0.4, 1.0]) * magnitude
    found = qk.expected_mse(x, [0.0, magnitude])

    assert found == (0.0 if magnitude < 1 else np.inf)


def test_the_oracle_itself():
    assert brute.objective([2.0, 5.0], [0.0, 4.0, 6.0]) == 5
    assert brute.objective([0.1], [0.0, 1.0]) == Fraction(0.1) * (1 - Fraction(0.1))
    assert brute.optimum([0.0, 1.0, 2.0, 10.0], 3) == 1
    assert brute.optimum([0.0, 1.0, 2.0, 10.0], 3, [1.0, 1.0, 0.0, 1.0]) == 0
    assert brute.squared_norm([3.0, 4.0]) == 25
    with pytest.raises(ValueError, match="bracket"):
        brute.objective([2.0], [0.0, 1.0])


@pytest.mark.parametrize("size", [256, 257, 300, 5000])
@pytest.mark.parametrize("weighted", [False, True])
def test_expected_errors_of_tables_longer_than_any_code(size: int, weighted: bool):
    rng = np.random.default_rng(size)
    x = rng.standard_normal(200_000)
    levels = np.sort(np.append(rng.uniform(-5, 5, size - 2), [-6.0, 6.0]))
    weights = rng.uniform(0, 2, x.size) if weighted else None
    k = np.searchsorted(levels, x, side="right") - 1
    each = (levels[k + 1] - x) * (x - levels[k])
    expected = np.mean(each if weights is None else weights * each)
    assert qk.expected_mse(x, levels, weights) == pytest.approx(expected, rel=1e-12)
