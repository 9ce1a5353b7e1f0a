"""The sign quantizer against its closed form and a slow one, for every type and block size."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import quiver_kernels as qk
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.packing import pack_codes

DTYPES = list(WIRE_DTYPES.values())


def slow(x: np.ndarray, block: int) -> tuple[list[list[float]], list[int], float]:
    """Levels, codes and vNMSE by the definition, in rational numbers but for the rounding of m."""
    values = [Fraction(float(v)) for v in x.reshape(-1)]
    levels, codes, error = [], [], Fraction(0)
    for start in range(0, len(values), block):
        part = values[start : start + block]
        exact = sum(abs(v) for v in part) / len(part)
        mean = Fraction(float(np.float64(float(exact)).astype(x.dtype)))
        levels.append([-float(mean), float(mean)])
        codes += [int(v >= 0) for v in part]
        error += sum((abs(v) - mean) ** 2 for v in part)
    norm = sum(v * v for v in values)
    return levels, codes, float(error / norm) if norm else 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [None, 1, 3, 8, 64, 1000])
def test_levels_codes_and_error_are_those_of_the_definition(dtype, block):
    x = np.random.default_rng(3).standard_normal((7, 31)).astype(dtype)
    x[0, 0], x[1, 1] = 0.0, -0.0

    q = qk.sign_quantize(x, block_size=block)
    levels, codes, vnmse = slow(x, block or x.size)

    assert (q.method, q.bits, q.num_levels, q.seed, q.shape) == ("sign", 1, 2, 0, (7, 31))
    # A sum in float64 may round to the other neighbour; the definition's sum is exact.
    spacing = 2 * float(ml_dtypes.finfo(dtype).eps)
    assert np.allclose(np.atleast_2d(q.levels), levels, rtol=spacing, atol=0)
    assert q.levels.shape == ((2,) if block is None else (len(levels), 2))
    expected = pack_codes(np.array(codes, np.uint8), 1, block)
    assert np.array_equal(q.codes, expected)
    assert q.vnmse == pytest.approx(vnmse, rel=1e-3 if dtype.itemsize == 2 else 1e-6, abs=1e-12)


def test_the_error_is_the_closed_form():
    """vNMSE = 1 - |x|_1^2 / (d |x|_2^2); .3634 for a normal, .5 for a Laplace."""
    rng = np.random.default_rng(0)
    for x, known in ((rng.standard_normal(1 << 18), 0.36338), (rng.laplace(size=1 << 18), 0.5)):
        q = qk.sign_quantize(x)
        delta = math.fsum(np.abs(x)) ** 2 / (x.size * math.fsum(x * x))
        assert abs(q.vnmse - (1 - delta)) < 1e-12
        assert q.vnmse == pytest.approx(known, abs=3e-3)
        error = math.fsum((x - qk.dequantize(q)) ** 2) / math.fsum(x * x)
        assert q.vnmse == pytest.approx(error, rel=1e-12)


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.integers(1, 40),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    ),
    st.one_of(st.none(), st.integers(1, 50)),
)
def test_it_is_a_contraction_whatever_the_values(x, block):
    q = qk.sign_quantize(x, block_size=block)
    values, decoded = x.astype(np.float64), qk.dequantize(q).astype(np.float64)
    norm = float(np.sum(np.square(values / 1e15)))
    error = float(np.sum(np.square((values - decoded) / 1e15)))

    assert error <= norm * (1 + 1e-9)
    assert 0 <= q.vnmse <= 1 + 1e-9
    assert qk.QuantizedVector.from_bytes(q.to_bytes()).to_bytes() == q.to_bytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_stay_zeros(dtype):
    q = qk.sign_quantize(np.zeros(11, dtype), block_size=4)

    assert not qk.dequantize(q).any()
    assert q.vnmse == 0.0
    assert not np.signbit(q.levels).any()


def test_one_block_of_zeros_does_not_disturb_the_others():
    q = qk.sign_quantize([0.0, 0.0, 1.0, -3.0], block_size=2)

    assert q.levels.tolist() == [[0.0, 0.0], [-2.0, 2.0]]
    assert qk.dequantize(q).tolist() == [0.0, 0.0, 2.0, -2.0]
    assert q.vnmse == pytest.approx(2 / 10)


def test_equal_magnitudes_have_no_error():
    x = np.where(np.arange(100) % 3, 0.1, -0.1)
    assert qk.sign_quantize(x).vnmse < 1e-30


def test_extreme_values_do_not_overflow():
    x = np.array([1.7e308, -1.7e308, 1.5e308])
    q = qk.sign_quantize(x)
    assert np.isfinite(qk.dequantize(q)).all()
    assert 0 < q.vnmse < 0.01
    tiny = qk.sign_quantize(np.array([5e-324, -5e-324]))
    assert qk.dequantize(tiny).tolist() == [5e-324, -5e-324]


def test_pieces_of_a_long_vector_are_one_vector():
    """Longer than what is worked on at once, in blocks that lie across those pieces."""
    x = np.random.default_rng(1).standard_normal(200_001).astype(np.float32)
    for block in (None, 7, 1000, 70_000):
        q = qk.sign_quantize(x, block_size=block)
        starts = np.arange(0, x.size, block or x.size)
        means = np.add.reduceat(np.abs(x).astype(np.float64), starts) / np.diff([*starts, x.size])
        assert np.allclose(np.atleast_2d(q.levels)[:, 1], means, rtol=1e-6)
        decoded = qk.dequantize(q)
        assert np.array_equal(decoded >= 0, x >= 0)
        error = np.sum(np.square(x.astype(np.float64) - decoded)) / np.sum(
            np.square(x.astype(np.float64))
        )
        assert q.vnmse == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "block", "code"),
    [
        ([], None, "empty_vector"),
        ([1.0, math.nan], None, "non_finite"),
        ([1.0, -math.inf], None, "non_finite"),
        ([1.0], 0, "invalid_option"),
        (np.ones(3, complex), None, "unsupported_dtype"),
    ],
)
def test_bad_input_is_named(x, block, code):
    with pytest.raises(qk.InvalidInput) as caught:
        qk.sign_quantize(x, block_size=block)
    assert caught.value.code == code
