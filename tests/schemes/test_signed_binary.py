"""One sign per block: known optimum, brute force over all sets of values, density."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quiver_kernels as qk
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import InvalidInput, QuiverError
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.signed_binary import density

NORMAL = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)


def least_error(x: list[float]) -> float:
    """Of all sets of one sign: the greatest values of each, kept as their mean."""
    best = sum(v * v for v in x)
    square = best
    for sign in (1, -1):
        kept = sorted((sign * v for v in x if sign * v > 0), reverse=True)
        for count in range(1, len(kept) + 1):
            best = min(best, square - sum(kept[:count]) ** 2 / count)
    return best


def test_normal_data_have_the_known_threshold_and_error():
    q = qk.quantize(NORMAL, method="signed_binary")
    assert q.vnmse == pytest.approx(0.59509, rel=3e-3)
    # Kept: what lies above .612 sigma, half the scale.
    assert abs(float(q.side["scales"][0])) / 2 == pytest.approx(0.6120, rel=5e-3)
    assert density(q) == pytest.approx(0.27026, rel=1e-2)


def test_half_normal_data_have_the_ternary_error():
    q = qk.quantize(np.abs(NORMAL), method="signed_binary")
    assert q.vnmse == pytest.approx(0.19017, rel=3e-3)
    assert float(q.side["scales"][0]) / 2 == pytest.approx(0.6120, rel=5e-3)


@given(
    x=st.lists(st.floats(-100, 100, width=16) | st.integers(-2, 2).map(float), min_size=1),
    block=st.none() | st.integers(1, 20),
)
@settings(deadline=None, max_examples=150)
def test_no_set_of_values_is_better(x: list[float], block: int | None):
    values = np.array(x)
    q = qk.quantize(values, method="signed_binary", block_size=block)
    size = block or len(x)
    least = sum(least_error(x[i : i + size]) for i in range(0, len(x), size))
    square = float(values @ values)
    assert q.vnmse * square <= least + 3e-9 * square
    got = qk.dequantize(q)
    assert float(((got - values) ** 2).sum()) == pytest.approx(
        q.vnmse * square, rel=1e-9, abs=1e-12
    )
    for start in range(0, len(x), size):
        assert set(got[start : start + size].tolist()) <= {
            0.0,
            float(q.side["scales"][start // size]),
        }


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_the_sign_is_that_of_more_energy(dtype: str):
    x = np.array([3, 3.5, -1, 0, -4, -4.5, -5, 1], WIRE_DTYPES[dtype])
    q = qk.quantize(x, method="signed_binary", block_size=4)
    assert qk.dequantize(q).astype(float).tolist() == [3.25, 3.25, 0, 0, -4.5, -4.5, -4.5, 0]
    # 1 is what is kept, whatever the sign.
    assert np.unpackbits(q.codes, bitorder="little").tolist()[:4] == [1, 1, 0, 0]
    assert np.unpackbits(q.codes, bitorder="little").tolist()[8:12] == [1, 1, 1, 0]
    assert density(q) == 5 / 8


def test_zeros_are_not_kept():
    q = qk.quantize(np.zeros(10, np.float32), method="signed_binary", block_size=3)
    assert density(q) == 0
    assert qk.dequantize(q).tolist() == [0.0] * 10


def test_density_is_of_this_method_alone():
    with pytest.raises(InvalidInput, match="must be signed_binary"):
        density(qk.quantize(NORMAL[:9], 1))


def test_hostile_messages_are_read_or_refused():
    data = qk.quantize(NORMAL[:40], method="signed_binary", block_size=16).to_bytes()
    refused = 0
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x81
        try:
            got = qk.dequantize(QuantizedVector.from_bytes(bytes(broken)))
        except QuiverError:
            refused += 1
        else:
            assert np.isfinite(got.astype(np.float64)).all()
    assert refused > len(data) // 4
