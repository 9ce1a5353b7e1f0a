"""Powers of two: figures of the normal distribution, invariants, and sums in integers."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import InvalidInput, QuiverError
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes import scaled
from quiver_kernels.schemes.pow2 import power_sum

NORMAL = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
ROUNDINGS = ("linear", "log", "unbiased")


def quantized(x: Any, bits: int = 4, block: int | None = None, **parameters: str) -> Any:
    return qk.quantize(
        np.asarray(x), bits, "pow2", block_size=block, seed=11, parameters=parameters
    )


def decoded(x: Any, bits: int = 4, block: int | None = None, **parameters: str) -> NDArray[Any]:
    return qk.dequantize(quantized(x, bits, block, **parameters)).astype(np.float64)


def by_hand(v: float, tops: int, count: int, threshold: float) -> float:
    """The power that a value goes to, by its logarithm."""
    size = abs(v)
    floor = tops - count + 1
    if size < 2.0 ** (floor - 1):
        return 0.0
    power = math.frexp(size)[1] - 1
    power += size / 2.0**power >= threshold
    return math.copysign(2.0 ** min(max(power, floor), tops), v)


@pytest.mark.parametrize(
    ("rounding", "error"), [("log", 0.04122), ("linear", 0.03775), ("unbiased", 0.0816)]
)
def test_many_powers_have_the_known_error(rounding: str, error: float):
    q = quantized(NORMAL, 6, rounding=rounding)
    assert q.vnmse == pytest.approx(error, rel=4e-3)


def test_few_powers_have_the_known_error():
    # The greatest power is 2 sigma.
    assert quantized(NORMAL, 3, rounding="log").vnmse == pytest.approx(0.0504, rel=5e-3)
    assert quantized(NORMAL, 4, rounding="log").vnmse == pytest.approx(0.0412, rel=5e-3)


@pytest.mark.parametrize("how", ["linear", "log"])
def test_relative_errors_are_bounded(how: str):
    x = np.linspace(1, 2, 10_001)
    worst = np.abs(decoded(x, 8, rounding=how, top="max") / x - 1).max()
    limit = {"linear": 1 / 3, "log": math.sqrt(2) - 1}[how]
    assert limit * 0.999 < worst <= limit * (1 + 1e-12)


@pytest.mark.parametrize(("how", "threshold"), [("linear", 1.5), ("log", math.sqrt(2.0))])
@pytest.mark.parametrize("dtype", WIRE_DTYPES)
@pytest.mark.parametrize("block", [None, 5, 64])
def test_each_value_goes_to_its_power(how: str, threshold: float, dtype: str, block: int | None):
    x = np.random.default_rng(1).standard_t(2, 200).astype(WIRE_DTYPES[dtype])
    for bits in (2, 3, 5):
        q = quantized(x, bits, block, rounding=how)
        tops = q.side["tops"][np.arange(200) // (block or 200)]
        wanted = [
            by_hand(float(v), int(top), 2 ** (bits - 1) - 1, threshold)
            for v, top in zip(x, tops, strict=True)
        ]
        got = qk.dequantize(q).astype(np.float64)
        assert got.tolist() == wanted
        wide = x.astype(np.float64)
        assert q.vnmse == pytest.approx(float(((got - wide) ** 2).sum() / (wide @ wide)), rel=1e-12)


@pytest.mark.parametrize("how", ["linear", "log"])
@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_no_other_top_exponent_is_better(how: str, tail: str):
    rng = np.random.default_rng(2)
    threshold = 1.5 if how == "linear" else math.sqrt(2.0)
    for bits, size in itertools.product((2, 3, 4), (1, 7, 60)):
        x = rng.standard_normal(size) if tail == "normal" else rng.standard_t(0.7, size)
        found = quantized(x, bits, rounding=how).vnmse * float(x @ x)
        top = math.frexp(float(np.abs(x).max()))[1]
        errors = [
            sum((by_hand(float(v), e, 2 ** (bits - 1) - 1, threshold) - float(v)) ** 2 for v in x)
            for e in range(top - 24, top + 2)
        ]
        assert found == pytest.approx(min(errors), rel=1e-9, abs=1e-12 * float(x @ x))


@given(
    x=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50),
    bits=st.integers(2, 6),
    block=st.none() | st.integers(1, 20),
    how=st.sampled_from(["linear", "log"]),
    shift=st.integers(-60, 60),
)
@settings(deadline=None, max_examples=120)
def test_powers_of_two_are_kept_and_scale(
    x: list[float], bits: int, block: int | None, how: str, shift: int
):
    values = np.array([v if abs(v) > 1e-30 else 0.0 for v in x])
    once = decoded(values, bits, block, rounding=how)
    assert decoded(once, bits, block, rounding=how).tolist() == once.tolist()
    moved = decoded(values * 2.0**shift, bits, block, rounding=how)
    assert moved.tolist() == (once * 2.0**shift).tolist()


def test_unbiased_rounding_has_the_right_mean():
    x = np.concatenate([np.linspace(-3.9, 3.9, 79), [1e-3, -1e-4, 0.0]])
    many = np.tile(x, 20_000)
    got = decoded(many, 4, rounding="unbiased").reshape(-1, x.size)
    spread = got.std(axis=0) / math.sqrt(len(got)) + 1e-12
    assert (np.abs(got.mean(axis=0) - x) < 5 * spread).all()
    # At most an eighth of the square, between powers of two.
    inside = np.abs(x) >= 0.1
    assert (((got - x) ** 2).mean(axis=0)[inside] < 0.127 * x[inside] ** 2).all()


def test_rounding_to_the_nearest_is_biased():
    # The test above would notice.
    x = np.full(20_000, 1.3)
    got = decoded(np.append(x, 2.0), 4, rounding="linear")[:-1]
    assert abs(got.mean() - 1.3) > 0.2


def test_the_seed_draws_and_threads_change_nothing():
    first = qk.quantize(NORMAL, 3, "pow2", seed=1, parameters={"rounding": "unbiased"})
    again = qk.quantize(NORMAL, 3, "pow2", seed=1, parameters={"rounding": "unbiased"}, threads=3)
    other = qk.quantize(NORMAL, 3, "pow2", seed=2, parameters={"rounding": "unbiased"})
    assert first.codes.tobytes() == again.codes.tobytes() != other.codes.tobytes()
    assert first.vnmse == again.vnmse == other.vnmse
    # An element's word is its own, whatever the blocks.
    blocks = qk.quantize(
        NORMAL[:1000], 3, "pow2", seed=1, block_size=8, parameters={"rounding": "unbiased"}
    )
    tops = blocks.side["tops"] == first.side["tops"][0]
    wide, narrow = (qk.dequantize(q)[:1000].reshape(-1, 8) for q in (first, blocks))
    assert tops.sum() == 0 or np.array_equal(wide[tops], narrow[tops])


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_numpy_alone_decodes_the_same(monkeypatch: pytest.MonkeyPatch, dtype: str):
    x = np.random.default_rng(3).standard_t(1, 500).astype(WIRE_DTYPES[dtype])
    for block in (None, 4, 100):
        q = quantized(x, 4, block)
        fast = qk.dequantize(q)
        with monkeypatch.context() as patch:
            patch.setattr(scaled, "has_numba", lambda: False)
            assert qk.dequantize(q).tobytes() == fast.tobytes()


@pytest.mark.parametrize("how", ROUNDINGS)
def test_the_ends_of_the_types(how: str):
    for dtype, top, least in (
        ("float16", 65504.0, 2.0**-24),
        ("bfloat16", 3e38, 2.0**-133),
        ("float32", 3.4e38, 2.0**-149),
        ("float64", 1.7e308, 5e-324),
    ):
        for values in ([top, -top, 1.0], [least, -3 * least, 0.0], [0.0] * 3, [-0.0, 1.0, -1.0]):
            x = np.array(values).astype(WIRE_DTYPES[dtype])
            q = QuantizedVector.from_bytes(quantized(x, 4, rounding=how).to_bytes())
            got = qk.dequantize(q)
            assert np.isfinite(got.astype(np.float64)).all()
            assert not np.signbit(got.astype(np.float64)[got == 0]).any()


@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
    bits=st.lists(st.integers(2, 5), min_size=6, max_size=6),
    block=st.none() | st.integers(1, 30),
    how=st.sampled_from(ROUNDINGS),
)
@settings(deadline=None, max_examples=60)
def test_sums_in_integers_are_exact_in_any_order(
    seeds: list[int], bits: list[int], block: int | None, how: str
):
    vectors = []
    for seed, width in zip(seeds, bits, strict=False):
        x = np.random.default_rng(seed).standard_normal(25) * 2.0 ** (seed % 7)
        x[: seed % 25] = 0
        vectors.append(quantized(x, width, block, rounding=how))
    total = power_sum(vectors)
    back = power_sum(vectors[::-1])
    assert total.sums.tolist() == back.sums.tolist()
    assert total.units.tolist() == back.units.tolist()
    values = total.values()
    for i in range(25):
        exact = sum(Fraction(float(qk.dequantize(q)[i])) for q in vectors)
        assert Fraction(float(values[i])) == exact


def test_sums_that_do_not_fit_are_refused():
    far = [quantized([2.0**exponent]) for exponent in (0, 70)]
    with pytest.raises(InvalidInput, match="fits 62 bits; got"):
        power_sum(far)
    with pytest.raises(InvalidInput, match="at least one"):
        power_sum([])
    with pytest.raises(InvalidInput, match="must be of method pow2; got exact"):
        power_sum([qk.quantize(np.ones(3), 4)])
    with pytest.raises(InvalidInput, match="shape and block size"):
        power_sum([quantized([1.0]), quantized([1.0, 2.0])])


def test_bits_are_what_is_said():
    q = quantized(NORMAL[:4096], 4, 128)
    assert q.bits_per_value == 4 + 8 / 128
    assert q.side["tops"].dtype == np.int8
    assert quantized(NORMAL[:64].astype(np.float64)).side["tops"].dtype == np.int16


def test_hostile_parts_are_refused():
    q = quantized(NORMAL[:40], 4, 16)
    data = q.to_bytes()
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
