"""Encoding with a table that was given: the codes of any backend, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quiver_kernels as qk
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import METHODS, QuantizeOptions
from strategies import DTYPES, dtype_names, properties


@properties
@given(data=st.data(), name=dtype_names, size=st.integers(1, 60), count=st.integers(2, 40))
def test_both_backends_give_the_same_codes(
    data: st.DataObject, name: str, size: int, count: int, cpu: Backend, reference: Backend
) -> None:
    numbers = st.floats(-100, 100, width=16, allow_subnormal=False)
    levels = np.sort(data.draw(st.lists(numbers, min_size=count, max_size=count)))
    levels = levels.astype(DTYPES[name]).astype(np.float64)
    share = np.array(data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size)))
    x = (levels[0] + share * (levels[-1] - levels[0])).astype(DTYPES[name])
    x = np.clip(x.astype(np.float64), levels[0], levels[-1]).astype(DTYPES[name])
    options = QuantizeOptions.create(levels=levels, seed=7)

    found, expected = (backend.quantize(x, options, None) for backend in (cpu, reference))

    assert found.method == expected.method == "given"
    assert np.array_equal(found.levels.astype(np.float64), levels)
    assert np.array_equal(found.codes, expected.codes)
    assert found.vnmse == pytest.approx(expected.vnmse, rel=1e-12, abs=1e-300)
    assert np.array_equal(qk.dequantize(found), reference.dequantize(found))


def test_rounding_is_unbiased_and_the_error_is_as_stated():
    rng = np.random.default_rng(0)
    x = rng.normal(size=64)
    levels = np.linspace(-5, 5, 11)
    seeds = 1000
    decoded = np.stack([qk.dequantize(qk.quantize(x, levels=levels, seed=s)) for s in range(seeds)])

    k = np.searchsorted(levels, x, side="right") - 1
    variance = (levels[k + 1] - x) * (x - levels[k])
    assert np.all(np.abs(decoded.mean(axis=0) - x) <= 5 * np.sqrt(variance / seeds))
    q = qk.quantize(x, levels=levels, seed=1)
    assert q.vnmse == pytest.approx(variance.sum() / (x @ x), rel=1e-12)
    assert q.vnmse * (x @ x) / x.size == pytest.approx(qk.expected_mse(x, levels), rel=1e-12)


def test_the_table_of_another_vector_gives_its_codes_again():
    x = np.random.default_rng(1).lognormal(size=5000).astype(np.float32)
    q = qk.quantize(x, bits=3, seed=9)

    again = qk.quantize(x, levels=q.levels, seed=9)

    assert np.array_equal(again.codes, q.codes)
    assert again.vnmse == q.vnmse
    assert (again.bits, again.num_levels, again.block_size) == (3, 8, None)


X = np.array([0.0, 0.25, 1.0], np.float32)
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "bits": ({"bits": 2}, "bits", "invalid_option"),
    "num_levels": ({"num_levels": 2}, "num_levels", "invalid_option"),
    "method": ({"method": "approx"}, "method", "invalid_option"),
    "block_size": ({"block_size": 2}, "block_size", "invalid_option"),
    "weights": ({"weights": [1.0, 1.0, 1.0]}, "weights", "invalid_option"),
    "below": ({"levels": [0.5, 1.0]}, "levels", "invalid_levels"),
    "above": ({"levels": [0.0, 0.5]}, "levels", "invalid_levels"),
    "no float32": ({"levels": [0.0, 0.1, 1.0]}, "levels", "invalid_levels"),
    "descends": ({"levels": [1.0, 0.0]}, "levels", "invalid_levels"),
    "one": ({"levels": [1.0]}, "levels", "invalid_levels"),
    "257": ({"levels": np.linspace(0, 1, 257)}, "levels", "invalid_levels"),
    "two-dimensional": ({"levels": [[0.0, 1.0]]}, "levels", "invalid_levels"),
    "nan": ({"levels": [0.0, np.nan]}, "levels", "invalid_levels"),
    "infinity": ({"levels": [0.0, np.inf]}, "levels", "invalid_levels"),
    "text": ({"levels": ["a", "b"]}, "levels", "unsupported_dtype"),
    "ragged": ({"levels": [[0.0], [1.0, 2.0]]}, "levels", "unsupported_dtype"),
    "16 bits": ({"levels": np.array([0, 1], ml_dtypes.bfloat16)}, "levels", "unsupported_dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str):
    options, field, code = REFUSED[name]

    with pytest.raises(InvalidInput) as refusal:
        qk.quantize(X, **{"levels": [0.0, 0.5, 1.0], "seed": 1, **options})

    assert (refusal.value.field, refusal.value.code) == (field, code)
    assert "got" in str(refusal.value)


def test_levels_must_be_values_of_a_16_bit_vector():
    x = np.array([0.0, 1.0], ml_dtypes.bfloat16)

    assert qk.quantize(x, levels=[0.0, 0.5, 1.0], seed=1).num_levels == 3
    with pytest.raises(InvalidInput, match=r"values of the vector's type, bfloat16; got 1\.001953"):
        qk.quantize(x, levels=[0.0, 1.001953125], seed=1)


def test_given_is_no_method_to_choose():
    assert "given" not in METHODS
    with pytest.raises(InvalidInput, match="method"):
        qk.quantize(X, method="given")
    assert qk.quantize(X, method="given", levels=[0.0, 1.0], seed=1).method == "given"
