"""Codes are those of the reference, bit for bit, however the work is cut up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.strategies import DTYPES, dtype_names, methods, properties, vectors

import quiver_kernels as qk
from quiver_kernels.cpu import backend, chunking
from quiver_kernels.dtypes import widen
from quiver_kernels.reference import round_codes
from quiver_kernels.rng import random_words
from quiver_kernels.rounding import rounding_table


def reference_codes(x: NDArray, q: qk.QuantizedVector) -> NDArray[np.uint8]:
    """The codes of `x` for the levels and the seed of `q`, by the oracle."""
    flat = widen(x).reshape(-1)
    block = q.block_size or flat.size
    tables = np.atleast_2d(q.levels)
    if not rounding_table(tables).narrow:
        # One extreme table makes all of them wide.
        tables = tables.astype(np.float64)
    return np.concatenate(
        [
            round_codes(flat[i : i + block], tables[i // block], q.seed, i)
            for i in range(0, flat.size, block)
        ]
    )


def sample(dtype: str, size: int) -> NDArray:
    rng = np.random.default_rng(size)
    return rng.normal(size=size).astype(DTYPES[dtype])


@pytest.mark.parametrize(
    "num_levels", [2, 3, 4, 5, 7, 8, 11, 16, 32, 33, 34, 63, 64, 100, 128, 129, 255, 256]
)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_number_of_levels(dtype: str, num_levels: int):
    x = sample(dtype, 5000)
    q = qk.quantize(x, num_levels=num_levels, method="uniform", seed=2**63 + num_levels)

    assert q.bits == (num_levels - 1).bit_length()
    assert np.array_equal(q.indices(), reference_codes(x, q))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_length(dtype: str):
    x = sample(dtype, 70)
    for size in range(1, 71):
        for bits in (1, 3, 8):
            q = qk.quantize(x[:size], bits=bits, seed=11)
            assert np.array_equal(q.indices(), reference_codes(x[:size], q))


@pytest.mark.parametrize("size", [511, 512, 513, 1024, 1500])
def test_lengths_around_a_tile(size: int):
    x = sample("float32", size)
    q = qk.quantize(x, bits=5, method="approx", seed=1)

    assert np.array_equal(q.indices(), reference_codes(x, q))


@properties
@given(
    vectors(max_size=60),
    dtype_names,
    methods,
    st.integers(2, 20),
    st.none() | st.integers(1, 70),
    st.integers(0, 2**64 - 1),
)
def test_codes_are_the_reference_codes(x, dtype: str, method: str, s: int, block, seed: int):
    x = x.astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())
    q = qk.quantize(x, num_levels=s, method=method, seed=seed, block_size=block)

    assert np.array_equal(q.indices().reshape(-1), reference_codes(x, q))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "scale", [2.0**-140, 1e-38, 2.0**-101, 2.0**-90, 1.0, 2.0**90, 2.0**101, 3e37]
)
def test_narrow_and_wide_tables(dtype: type, scale: float):
    rng = np.random.default_rng(3)
    x = (rng.normal(size=2000) * scale).astype(dtype)
    for method in ("exact", "uniform"):
        q = qk.quantize(x, bits=3, method=method, seed=5)
        assert np.array_equal(q.indices(), reference_codes(x, q))


def test_the_scales_of_that_test_take_both_paths():
    ways = {
        rounding_table(np.array([[-1.0, 0.5, 1.0]], dtype=np.float32) * np.float32(scale)).narrow
        for scale in (1e-38, 1.0, 3e37)
    }

    assert ways == {True, False}
    assert not rounding_table(np.array([[0.0, 1.0]])).narrow


@pytest.mark.parametrize(
    "values",
    [
        [-3.4028235e38, 3.4028235e38, 1.0, -1.0, 0.0, 1e-45],
        [1.0, 1.0000001, 1.0000002, 3e38],
        [0.0, 1e-45, 3e-45, 1e-38, 1.0],
        [-0.0, 0.0, 1e-45, -1e-45],
    ],
)
@pytest.mark.parametrize("method", ["exact", "approx", "uniform"])
def test_extreme_gaps(method: str, values: list[float]):
    x = np.repeat(np.array(values, dtype=np.float32), 40)
    for s in (2, 3, 5):
        q = qk.quantize(x, num_levels=s, method=method, seed=9)
        assert np.array_equal(q.indices(), reference_codes(x, q))
        assert np.isfinite(qk.dequantize(q)).all()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("method", ["exact", "uniform", "approx"])
def test_values_on_a_level_never_move(method: str, dtype: str):
    x = sample(dtype, 3000)
    levels = qk.optimal_levels(x, 16, method).astype(x.dtype)
    on_levels = np.concatenate([x, np.repeat(levels, 50)])
    for seed in range(5):
        q = qk.quantize(on_levels, num_levels=16, method="uniform", seed=seed)
        decoded = qk.dequantize(q)
        placed = np.isin(on_levels.astype(np.float64), q.levels.astype(np.float64))
        assert placed.sum() >= 100
        assert np.array_equal(decoded[placed], on_levels[placed])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_levels", [6, 16, 100, 256])
def test_levels_of_very_uneven_distance(dtype: str, num_levels: int):
    rng = np.random.default_rng(4)
    x = np.sinh(rng.normal(size=40_000) * 6)
    x[:3] = -1e25, 1e30, 1e-30
    for values in (x, np.append(rng.normal(size=40_000), 1e9), np.repeat([0.0, 1, 2], 20_000)):
        vector = values.astype(dtype)
        for method in ("exact", "uniform"):
            q = qk.quantize(vector, num_levels=num_levels, method=method, seed=8)
            assert np.array_equal(q.indices(), reference_codes(vector, q))


def test_codes_stay_between_the_neighbours():
    x = sample("float32", 20_000)
    q = qk.quantize(x, bits=4, seed=1)
    below = np.clip(np.searchsorted(q.levels, x, side="right") - 1, 0, 14)

    assert set((q.indices() - below).tolist()) <= {0, 1}


# -- the threshold, to the bit -------------------------------------------------------------


def around_the_words(dtype: str, top: float, seed: int) -> tuple[NDArray, NDArray[np.uint32]]:
    """Values whose probability to go up, in [0, `top`], is next to their own random word."""
    words = random_words(seed, 0, 60_000)
    x = (words / 2.0**32 * top).astype(DTYPES[dtype])
    for part, towards in ((x[:20_000], 0), (x[20_000:40_000], top)):
        part[:] = np.nextafter(part, part.dtype.type(towards))
    x[:2] = 0, top
    return x, words


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_word_next_to_the_threshold_decides_as_the_rule_says(dtype: str):
    x, words = around_the_words(dtype, 1.0, 21)
    q = qk.quantize(x, bits=1, seed=21)
    threshold = np.floor(x.astype(np.float64) * 2**32)

    assert np.array_equal(q.indices(), (words < threshold) | (x >= 1))
    assert not np.array_equal(q.indices(), (words <= threshold) | (x >= 1))


@pytest.mark.parametrize("top", [3.0, 1.1, 2.0**99 * 1.9, 2.0**-100 * 1.1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_thresholds_of_rounded_probabilities(dtype: str, top: float):
    top = float(DTYPES[dtype].type(top))
    for seed in range(5):
        x, _ = around_the_words(dtype, top, seed)
        x[2:200] = np.nextafter(x.dtype.type(top), x.dtype.type(0))
        q = qk.quantize(x, bits=1, seed=seed)
        assert np.array_equal(q.indices(), reference_codes(x, q))


# -- chunks and threads -------------------------------------------------------------------


def cut(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(chunking, "CHUNK", chunk)


@pytest.mark.parametrize("chunk", [8, 64, 1024])
@pytest.mark.parametrize("block", [None, 5, 8, 40, 64, 72, 100, 1024, 1030, 5000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_any_chunk_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: str, block: int | None, chunk: int
):
    x = sample(dtype, 2500)
    method = "exact" if chunk == 64 else "uniform"
    whole = qk.quantize(x, num_levels=11, method=method, seed=6, block_size=block)
    options = qk.QuantizeOptions.create(num_levels=11, method=method, block_size=block)
    levels = backend.CpuBackend().levels(x, options, None)
    cut(monkeypatch, chunk)
    pieces = qk.quantize(x, num_levels=11, method=method, seed=6, block_size=block)

    assert np.array_equal(pieces.levels, whole.levels)
    assert np.array_equal(pieces.codes, whole.codes)
    assert np.array_equal(pieces.indices(), reference_codes(x, whole))
    assert pieces.vnmse == pytest.approx(whole.vnmse, rel=1e-12)
    assert backend.CpuBackend().levels(x, options, None).vnmse == pytest.approx(
        levels.vnmse, rel=1e-12
    )
    assert np.array_equal(qk.dequantize(pieces), qk.dequantize(whole))
    assert np.array_equal(qk.aggregate([pieces, pieces]), qk.aggregate([whole, whole]))


@pytest.mark.parametrize("size", [-9, -8, -1, 0, 1, 7, 8, 9])
def test_lengths_around_the_true_chunk(size: int):
    x = np.random.default_rng(2).normal(size=chunking.CHUNK + size).astype(np.float32)
    q = qk.quantize(x, bits=3, method="uniform", seed=3)

    assert np.array_equal(q.indices(), reference_codes(x, q))


def test_blocks_larger_than_the_true_chunk():
    block = chunking.CHUNK + 40
    x = np.random.default_rng(2).normal(size=2 * block + 77).astype(np.float32)
    x[block:] += 100
    q = qk.quantize(x, bits=4, method="uniform", seed=3, block_size=block)
    decoded = qk.dequantize(q)

    assert np.array_equal(q.indices(), reference_codes(x, q))
    assert np.abs(decoded - x).max() <= np.diff(q.levels, axis=1).max()
    assert np.sum((decoded - x) ** 2) == pytest.approx(
        q.vnmse * np.sum(x.astype(float) ** 2), rel=0.02
    )


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_any_number_of_threads_gives_the_same(monkeypatch: pytest.MonkeyPatch, threads: int):
    cut(monkeypatch, 256)
    jobs = [
        (sample(dtype, 3000), method, block)
        for dtype in sorted(DTYPES)
        for method in ("exact", "approx")
        for block in (None, 96)
    ]

    def run(job):
        x, method, block = job
        q = qk.quantize(x, bits=4, method=method, seed=77, block_size=block)
        return q.levels.tobytes() + q.codes.tobytes(), q.vnmse, qk.dequantize(q).tobytes()

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(run, jobs * 3)) == alone * 3


def test_a_seed_repeats_and_another_differs():
    x = sample("float32", 1000)
    codes = [qk.quantize(x, bits=2, seed=seed).codes.tobytes() for seed in (1, 1, 2, 2**64 - 1)]

    assert codes[0] == codes[1]
    assert len(set(codes)) == 3


def test_seeds_are_drawn_and_returned():
    x = sample("float32", 1000)
    q, other = qk.quantize(x, bits=2), qk.quantize(x, bits=2)

    assert q.seed != other.seed
    assert max(q.seed, other.seed) < 2**53
    assert np.array_equal(qk.quantize(x, bits=2, seed=q.seed).codes, q.codes)
