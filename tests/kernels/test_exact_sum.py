"""Exact sums: the right mean, rounded once, whatever the order; against fractions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.strategies import DTYPES, properties

import quiver_kernels as qk
from quiver_kernels import dispatch, exact_round, exact_terms
from quiver_kernels.dispatch import Backend
from quiver_kernels.exact_sum import TILE, ExactSum, tiled_mean
from quiver_kernels.exact_terms import Term, joined, split
from quiver_kernels.exact_tile import LIMIT, Tile
from quiver_kernels.stopping import stopping_when
from quiver_kernels.tree import Outliers, QuantizedSection, RawSection

Floats = np.ndarray

# Magnitudes from the least to the largest, ties, and numbers that cancel.
anything = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.one_of(
    st.floats(-4, 4),
    anything,
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, 1.7976931348623157e308, 1.0, -1.0]),
    st.integers(-(2**53), 2**53).map(float),
)
weights = st.one_of(
    st.just(1.0), st.integers(0, 10**6).map(float), st.floats(0, 1e300), st.just(5e-324)
)


def exact(columns: Sequence[float], shares: Sequence[float]) -> float:
    """The definition; integers of any length are divided with correct rounding."""
    total = sum(map(Fraction, shares), Fraction(0))
    pairs = zip(columns, shares, strict=True)
    mean = sum((Fraction(w) * Fraction(x) for x, w in pairs), Fraction(0)) / total
    return mean.numerator / mean.denominator


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Exact sums on either backend."""
    chosen = dispatch.load(request.param)
    for module in ("exact_sources", "exact_round", "tree"):
        target = f"quiver_kernels.{module}.pick_decoder"
        if module == "tree":
            target = "quiver_kernels.dispatch.pick_decoder"
        monkeypatch.setattr(target, lambda: chosen)
    return chosen


@properties
@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.sampled_from(sorted(DTYPES)))
def test_the_mean_is_the_exact_one_rounded_once(
    backend: Backend, data: st.DataObject, size: int, count: int, name: str
):
    vectors = []
    for _ in range(count):
        with np.errstate(over="ignore", invalid="ignore"):
            x = np.array(data.draw(st.lists(numbers, min_size=size, max_size=size))).astype(
                DTYPES[name]
            )
        vectors.append(np.where(np.isfinite(x), x, np.ones_like(x)))
    shares = data.draw(st.lists(weights, min_size=count, max_size=count).filter(any))
    whole = ExactSum(size)
    for vector, share in zip(vectors, shares, strict=True):
        whole.add(vector, share)

    expected = [exact([float(x[i]) for x in vectors], shares) for i in range(size)]
    assert whole.mean().tolist() == expected
    # Any order, and any tree of merges.
    order = list(range(count))
    data.draw(st.randoms(use_true_random=False)).shuffle(order)
    cut = data.draw(st.integers(0, count))
    parts = [ExactSum(size), ExactSum(size), ExactSum(size)]
    for number in order[:cut]:
        parts[0].add(vectors[number], shares[number])
    for number in order[cut:]:
        parts[1].add(vectors[number], shares[number])
    parts[2].merge(parts[1])
    parts[2].merge(parts[0])
    assert parts[2].mean().tobytes() == whole.mean().tobytes()
    # What is taken back was never there.
    parts[2].add(vectors[0][::-1].copy(), 3.0)
    parts[2].remove(vectors[0][::-1].copy(), 3.0)
    assert parts[2].mean().tobytes() == whole.mean().tobytes()


def messages(rng: np.random.Generator, count: int, size: int) -> list[QuantizedSection]:
    """Quantized vectors of every width, some in blocks, some with exact values."""
    found = []
    for number in range(count):
        x = (rng.normal(size=size) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
        bits = 1 + number % 8
        block = [None, 100, 3][number % 3]
        method = "simba" if number % 7 == 6 else "uniform"
        if method == "simba":
            block, bits = None, max(bits, 2)
        q = qk.quantize(x, bits=bits, method=method, seed=number, block_size=block)
        places = np.sort(rng.choice(size, 5, replace=False)).astype(np.int64)
        outliers = Outliers(places, x[places]) if number % 2 else None
        found.append(QuantizedSection(q, outliers))
    return found


def decoded(section: QuantizedSection) -> Floats:
    values = qk.dequantize(section.vector).astype(np.float64)
    if section.outliers is not None:
        values[section.outliers.indices] = section.outliers.values
    return values


def test_quantized_vectors_are_added_as_they_decode(backend: Backend):
    rng = np.random.default_rng(3)
    sections = messages(rng, 16, 300)
    shares = [float(w) for w in rng.choice([1.0, 0.1, 1 / 3, 1000.0, 17.0], 16)]
    total = ExactSum(300)
    for section, share in zip(sections, shares, strict=True):
        total.add(section, share)
    columns = np.stack([decoded(section) for section in sections])

    assert total.mean().tolist() == [exact(column, shares) for column in columns.T.tolist()]


def test_a_float64_sum_depends_on_the_order_and_this_does_not():
    rng = np.random.default_rng(4)
    sections = messages(rng, 24, 500)
    plain, ours = [], []
    for order in (range(24), list(reversed(range(24)))):
        total = np.zeros(500)
        exactly = ExactSum(500)
        for number in order:
            total += 0.1 * decoded(sections[number])
            exactly.add(sections[number], 0.1)
        plain.append(total.tobytes())
        ours.append(exactly.mean().tobytes())

    assert plain[0] != plain[1]
    assert ours[0] == ours[1]


def test_cancellation_leaves_what_is_left():
    total = ExactSum(3)
    for x in ([1e308, 2.0**60, 1.0], [1e-308, 2.0**-60, 1e-30], [-1e308, -(2.0**60), -1.0]):
        total.add(np.array(x), 1.0)
    assert total.mean().tolist() == [1e-308 / 3, 2.0**-60 / 3, 1e-30 / 3]


def test_sections_and_tiles_may_lie_anywhere():
    rng = np.random.default_rng(5)
    size = 2 * TILE + 1001
    x = rng.normal(size=size).astype(np.float32)
    cuts = [0, 7, TILE - 3, TILE + 10_000, size - 1, size]
    sections = [
        QuantizedSection(qk.quantize(x[a:b], bits=3, method="uniform", seed=1))
        if number % 2 == 0
        else RawSection(x[a:b])
        for number, (a, b) in enumerate(itertools.pairwise(cuts))
    ]
    values = np.concatenate(
        [
            qk.dequantize(part.vector) if isinstance(part, QuantizedSection) else part.values
            for part in sections
        ]
    )
    total = ExactSum(size)
    total.add(sections, 3.0)
    total.add(x, 1.0)
    expected = (3 * values.astype(np.float64) + x) / 4
    pieces = [[(a, part, 0, part.size) for a, part in zip(cuts[:-1], sections, strict=True)]]
    pieces.append([(0, RawSection(x), 0, size)])

    assert np.array_equal(total.mean(), expected)
    assert np.array_equal(tiled_mean(pieces, [3.0, 1.0], size, "float64"), expected)


# -- no number overflows, no rounding is taken for granted ---------------------------------


def test_planes_are_carried_before_they_overflow():
    tile, amount = Tile(2), (1 << 58) - 1
    for _ in range(1000):
        tile.add(0, [Term(0, np.array([amount, -amount]))])
    sums = [sum(int(plane.numbers[i]) << plane.lsb for plane in tile.planes()) for i in range(2)]
    assert sums == [1000 * amount, -1000 * amount]
    assert all(abs(plane.numbers).max() <= LIMIT for plane in tile.planes())
    # Without carrying they would not fit.
    assert 1000 * amount >= 1 << 63


@properties
@given(st.lists(numbers, min_size=1, max_size=9), weights, st.lists(st.integers(-900, 900)))
def test_terms_add_up_exactly(values: list[float], weight: float, known: list[int]):
    terms = split(np.array(values), weight, known)
    for found in (terms, joined(terms, known)):
        for i, value in enumerate(values):
            got = sum(Fraction(int(t.numbers[i])) * Fraction(2) ** t.lsb for t in found)
            assert got == Fraction(value) * Fraction(weight)
        assert all(abs(int(n)) < 1 << 58 for t in found for n in t.numbers)
    assert len(joined(terms, known)) <= len(terms)


@properties
@given(
    st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=8),
    # The mean of finite numbers is finite.
    st.integers(-1100, 800),
    st.integers(-200, 60),
    st.one_of(st.integers(1, 9), st.integers(1, 2**70), st.integers(1, 2**53).map(lambda n: n | 1)),
    st.integers(-60, 60),
)
def test_quotients_are_rounded_correctly(
    backend: Backend, high: list[int], lsb: int, step: int, n: int, k: int
):
    lower = [(31 * abs(x)) % 2**61 for x in high]
    planes = [Term(lsb, np.array(high)), Term(lsb - 100 + step, np.array(lower))]
    total = Fraction(n) * Fraction(2) ** k
    found = exact_round.quotients(planes, total, len(high))
    for i, got in enumerate(found.tolist()):
        value = sum(Fraction(int(p.numbers[i])) * Fraction(2) ** p.lsb for p in planes) / total
        assert got == value.numerator / value.denominator


def test_ties_are_left_to_integers(monkeypatch: pytest.MonkeyPatch):
    # Half way between two float64 numbers, and less than float64's digits twice off it.
    planes = [Term(0, np.array([3 * (2**54 + 2)] * 2)), Term(-120, np.array([0, 1]))]
    found = exact_round.quotients(planes, Fraction(3), 2)
    assert found.tolist() == [2.0**54, 2.0**54 + 4]
    # Without the integers the second one is wrong.
    monkeypatch.setattr(exact_round, "_settle", lambda *_: None)
    assert exact_round.quotients(planes, Fraction(3), 2)[1] == 2.0**54


@properties
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.data())
def test_integers_are_rounded_half_to_even(values: list[int], data: st.DataObject):
    shares = data.draw(st.lists(weights, min_size=2, max_size=2).filter(any))
    x = np.array(values)
    section, other = RawSection(x), RawSection(np.zeros_like(x))
    total = sum(map(Fraction, shares), Fraction(0))
    pieces = [[(0, part, 0, x.size)] for part in (section, other)]
    found = tiled_mean(pieces, shares, x.size, "int64")

    assert found.tolist() == [round(Fraction(shares[0]) * value / total) for value in values]


# -- refusals -----------------------------------------------------------------------------


def test_an_addition_is_all_or_nothing(backend: Backend):
    size = TILE + 10
    x = np.random.default_rng(6).normal(size=size).astype(np.float32)
    total = ExactSum(size)
    total.add(x, 2.0)
    before = total.mean().tobytes()
    q = qk.quantize(x, num_levels=9, method="uniform", seed=1)
    codes = q.codes.copy()
    codes[-1] = 0xFF
    bad = x.copy()
    bad[-1] = np.nan
    for values in (bad, replace(q, codes=codes), [RawSection(x[:5]), RawSection(bad[5:])]):
        with pytest.raises(qk.InvalidInput):
            total.add(values, 5.0)
        assert total.mean().tobytes() == before
    calls = iter([False, False, True])
    with stopping_when(lambda: next(calls, True)), pytest.raises(qk.Stopped):
        total.add([RawSection(x[:5]), RawSection(x[5:])])
    assert total.mean().tobytes() == before
    assert total.total_weight == 2.0


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, "x"])
def test_bad_weights(weight: float):
    total = ExactSum(2)
    with pytest.raises(qk.InvalidInput) as caught:
        total.add(np.ones(2), weight)
    assert caught.value.code == "invalid_weights"


def test_bad_sums():
    total = ExactSum(2)
    total.add(np.ones(2), 0.0)
    for call, code in (
        (total.mean, "invalid_weights"),
        (lambda: total.add(np.ones(3)), "size_mismatch"),
        (lambda: total.remove(np.ones(2)), "invalid_weights"),
        (lambda: total.merge(ExactSum(3)), "size_mismatch"),
        (lambda: total.add(np.array([1.0, np.inf])), "non_finite"),
    ):
        with pytest.raises(qk.InvalidInput) as caught:
            call()
        assert caught.value.code == code


def test_weights_beyond_float64_add_up():
    total = ExactSum(1)
    for _ in range(3):
        total.add(np.array([1.0]), 1.7e308)
    assert total.mean().tolist() == [1.0]
    assert total.total_weight == math.inf


def test_like_vectors_take_one_plane():
    rng = np.random.default_rng(7)
    total = ExactSum(5000)
    for number in range(12):
        total.add(qk.quantize(rng.normal(size=5000).astype(np.float32), bits=4, seed=number))
    assert total.nbytes == 8 * 5000
    assert exact_terms.split(np.zeros(3), 1.0) == []
