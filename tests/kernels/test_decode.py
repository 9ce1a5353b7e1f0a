"""Decoding and aggregation: a table look-up, and a mean in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.strategies import DTYPES, properties

import quiver_kernels as qk
from quiver_kernels.dispatch import Backend
from quiver_kernels.packing import pack_codes


def made(
    codes: np.ndarray, levels: np.ndarray, bits: int, dtype: str, block: int | None
) -> qk.QuantizedVector:
    """A quantized vector of given codes and levels, without quantizing anything."""
    return qk.QuantizedVector(
        method="exact",
        bits=bits,
        num_levels=levels.shape[-1],
        shape=codes.shape,
        dtype=dtype,
        block_size=block,
        seed=0,
        levels=levels,
        codes=pack_codes(codes.reshape(-1), bits, block),
        vnmse=0.0,
    )


@st.composite
def quantized(draw: st.DrawFn, size: int | None = None) -> qk.QuantizedVector:
    """Any quantized vector of up to 70 values."""
    size = draw(st.integers(1, 70)) if size is None else size
    bits = draw(st.integers(1, 8))
    num_levels = draw(st.integers(2, 2**bits))
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    block = draw(st.none() | st.integers(1, 80))
    blocks = 1 if block is None else -(-size // block)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = np.sort(rng.normal(size=(blocks, num_levels))).astype(DTYPES[dtype])
    levels = levels.astype(np.float64 if dtype == "float64" else np.float32)
    codes = rng.integers(0, num_levels, size).astype(np.uint8)
    return made(codes, levels if block else levels[0], bits, dtype, block)


def decoded(q: qk.QuantizedVector) -> np.ndarray:
    """The definition: every value is its block's level of its code."""
    tables = np.atleast_2d(q.levels).astype(np.float64)
    block = q.block_size or q.size
    codes = q.indices().reshape(-1)
    return np.array([tables[i // block][code] for i, code in enumerate(codes)]).reshape(q.shape)


@properties
@given(quantized())
def test_decoding_looks_levels_up(cpu: Backend, reference: Backend, q: qk.QuantizedVector):
    for backend in (cpu, reference):
        y = backend.dequantize(q)
        assert y.dtype == DTYPES[q.dtype]
        assert y.shape == q.shape
        assert np.array_equal(y.astype(np.float64), decoded(q))
        assert y.flags.writeable


@properties
@given(st.data(), st.integers(1, 70), st.integers(1, 5))
def test_aggregation_is_the_weighted_mean(cpu: Backend, reference: Backend, data, size, count):
    vectors = [data.draw(quantized(size)) for _ in range(count)]
    weights = data.draw(
        st.none() | st.lists(st.integers(1, 9).map(float), min_size=count, max_size=count)
    )
    shares = np.ones(count) if weights is None else np.array(weights)
    mean = np.average([decoded(q) for q in vectors], axis=0, weights=shares)
    names = {q.dtype for q in vectors}
    dtype = names.pop() if len(names) == 1 else "float64" if "float64" in names else "float32"
    for backend in (cpu, reference):
        found = backend.aggregate(vectors, weights)
        assert found.dtype == DTYPES[dtype]
        # Rounded once to the result's type, after sums in float64.
        tolerance = {"float64": 1e-15, "float32": 6e-8, "float16": 5e-4, "bfloat16": 4e-3}[dtype]
        np.testing.assert_allclose(
            found.astype(np.float64), mean, rtol=tolerance, atol=tolerance * 1e-3 + 1e-14
        )


def test_the_mean_is_taken_in_float64():
    # In float32 the small vector would vanish beside the large ones.
    large = qk.quantize(np.full(10, 2.0**24, dtype=np.float32), bits=1, seed=0)
    small = qk.quantize(np.full(10, 1.0, dtype=np.float32), bits=1, seed=0)
    minus = qk.quantize(np.full(10, -(2.0**24), dtype=np.float32), bits=1, seed=0)

    assert qk.aggregate([large, small, minus, small]).tolist() == [0.5] * 10


def test_the_mean_of_one_vector_is_its_decoding():
    for dtype in DTYPES.values():
        x = np.random.default_rng(1).normal(size=(7, 9)).astype(dtype)
        q = qk.quantize(x, bits=3, seed=2, block_size=10)
        mean = qk.aggregate([q], [0.1])
        assert mean.dtype == x.dtype
        assert mean.tobytes() == qk.dequantize(q).tobytes()


def test_weights_count_by_their_ratio():
    rng = np.random.default_rng(1)
    pair = [qk.quantize(rng.normal(size=50), bits=4, seed=i) for i in range(2)]
    wanted = qk.aggregate(pair, [1.0, 3.0])

    for scale in (1e-308, 2.0**-40, 1e300):
        np.testing.assert_allclose(qk.aggregate(pair, [scale, 3 * scale]), wanted, rtol=1e-13)
    assert np.array_equal(qk.aggregate(pair, [0.0, 5.0]), qk.dequantize(pair[1]))
    np.testing.assert_allclose(qk.aggregate(pair, (1, 3)), wanted)
    np.testing.assert_allclose(qk.aggregate(pair, np.array([1, 3])), wanted)


def test_types_methods_and_blocks_may_differ():
    x = np.random.default_rng(1).normal(size=(5, 20))
    vectors = [
        qk.quantize(x.astype(np.float16), bits=8, method="uniform", seed=1),
        qk.quantize(x.astype(np.float32), bits=7, method="approx", seed=2, block_size=33),
        qk.quantize(x.astype(DTYPES["bfloat16"]), num_levels=200, seed=3, block_size=8),
    ]

    assert qk.aggregate(vectors).dtype == np.float32
    wide = qk.aggregate([*vectors, qk.quantize(x, bits=8, seed=4)])
    assert wide.dtype == np.float64
    assert np.abs(wide - x).max() < 0.05


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("place", [0, 49, 99])
def test_codes_beyond_the_table_are_refused(
    cpu: Backend, reference: Backend, place: int, block: int | None
):
    codes = np.zeros(100, dtype=np.uint8)
    codes[place] = 5
    levels = np.arange(5, dtype=np.float32)
    q = made(codes, levels if block is None else np.tile(levels, (7, 1)), 3, "float32", block)
    for backend in (cpu, reference):
        for use in (backend.dequantize, lambda q, b=backend: b.aggregate([q, q], None)):
            with pytest.raises(qk.InvalidInput, match=r"codes .*num_levels=5; got 5") as caught:
                use(q)
            assert caught.value.code == "invalid_codes"


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.7976931348623157e308] * 2])
@pytest.mark.parametrize("count", [3, 11, 49])
def test_the_mean_of_equal_vectors_is_finite(values: list[float], count: int):
    q = qk.quantize(values, bits=1, seed=0)

    np.testing.assert_allclose(qk.aggregate([q] * count), qk.dequantize(q), rtol=1e-14)


@pytest.mark.parametrize(
    ("weights", "code", "text"),
    [
        ([1.0], "size_mismatch", r"weights must hold one number per vector, 2; got 1"),
        ([1.0, 2.0, 3.0], "size_mismatch", r"got 3"),
        ([0.0, 0.0], "invalid_weights", r"not all zero"),
        ([1.0, -1.0], "invalid_weights", r"not negative"),
        ([1.0, float("nan")], "invalid_weights", r"finite"),
        ([1.0, float("inf")], "invalid_weights", r"finite"),
    ],
)
def test_bad_weights_are_refused(
    cpu: Backend, reference: Backend, weights: list[float], code: str, text: str
):
    q = qk.quantize([1.0, 2.0], bits=1, seed=0)
    for backend in (cpu, reference):
        with pytest.raises(qk.InvalidInput, match=text) as caught:
            backend.aggregate([q, q], weights)
        assert (caught.value.code, caught.value.field) == (code, "weights")


def test_shapes_must_agree():
    a, b = (qk.quantize(np.ones(shape), bits=1, seed=0) for shape in ((2, 3), (3, 2)))
    with pytest.raises(qk.InvalidInput, match=r"vectors\[1\] has \[3, 2\]") as caught:
        qk.aggregate([a, b])
    assert caught.value.code == "shape_mismatch"


def test_nothing_has_no_mean():
    with pytest.raises(qk.InvalidInput, match="at least one") as caught:
        qk.aggregate([])
    assert caught.value.code == "empty_vector"


def test_a_quantized_vector_does_not_change():
    q = qk.quantize([1.0, 2.0, 3.0], bits=1, seed=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        q.bits = 2  # type: ignore[misc]
    assert q.size == 3
    assert q.nbytes == q.codes.nbytes + q.levels.nbytes
    assert q.bits_per_value == pytest.approx(8 * q.nbytes / 3)
