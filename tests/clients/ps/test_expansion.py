"""Sums of arrays without rounding, against rational numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quiver_client.ps.expansion import Expansion, two_sum

# Sums of 60 of them stay within float64.
FINITE = st.floats(-1e300, 1e300, allow_nan=False)


def exact(expansion: Expansion, index: int) -> Fraction:
    return sum((Fraction(float(part[index])) for part in expansion.parts), Fraction(0))


@given(st.lists(st.tuples(FINITE, FINITE, FINITE), min_size=1, max_size=60))
def test_sums_are_exact_whatever_the_magnitudes(rows):
    total = Expansion((3,))
    for row in rows:
        total = total.plus(np.array(row))

    for i in range(3):
        truth = sum((Fraction(row[i]) for row in rows), Fraction(0))
        assert exact(total, i) == truth
        rounded = float(truth)
        assert abs(total.value()[i] - rounded) <= np.spacing(abs(rounded))
    assert all(part.any() for part in total.parts)


@given(FINITE, FINITE)
def test_a_sum_and_its_error_are_the_sum(a, b):
    s, errors = two_sum(np.array([a]), np.array([b]))
    error = 0.0 if errors is None else float(errors[0])

    assert s[0] == a + b
    assert Fraction(float(s[0])) + Fraction(error) == Fraction(a) + Fraction(b)
    assert errors is None or error != 0


def test_what_cancels_leaves_no_parts():
    x = np.random.default_rng(0).standard_normal(40_000) * 1e-30
    y = np.random.default_rng(1).standard_normal(40_000) * 1e10
    total = Expansion(x.shape).plus(x).plus(y)
    assert len(total.parts) == 2

    total = total.minus(y).minus(x)

    assert total.parts == ()
    assert total.nbytes == 0
    assert not total.value().any()


def test_float32_values_need_one_part():
    rng = np.random.default_rng(2)
    total = Expansion((1000,))
    for _ in range(50):
        total = total.plus(rng.standard_normal(1000).astype(np.float32))
    assert len(total.parts) == 1


def test_overflow_is_seen():
    big = np.array([1.7e308])
    assert not Expansion((1,)).plus(big).plus(big).is_finite()


def test_the_argument_is_not_kept():
    x = np.ones(3)
    total = Expansion((3,)).plus(x)
    x[:] = 7
    assert total.value().tolist() == [1, 1, 1]


def test_scaling_rounds_to_one_part():
    total = Expansion((2,)).plus(np.array([1.0, 2.0])).plus(np.array([1e-30, 0.0]))
    assert total.scaled(0.25).value().tolist() == [0.25, 0.5]
    assert total.scaled(0.0).parts == ()


def test_an_error_in_one_piece_of_many():
    a, b = np.ones(50_000), np.zeros(50_000)
    b[40_000] = 1e-30
    total = Expansion(a.shape).plus(a).plus(b)
    assert len(total.parts) == 2
    assert np.flatnonzero(total.parts[1]).tolist() == [40_000]
    assert exact(total, 40_000) == 1 + Fraction(1e-30)
