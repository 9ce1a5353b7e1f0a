"""Level sets: near the best known errors, unbiased, read back alike, refused when malformed."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.strategies import DTYPES, dtype_names, properties

import quiver_kernels as qk
from quiver_kernels import reference as plain
from quiver_kernels.checks import finite_range
from quiver_kernels.cpu import chunking, simba, simba_levels
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import BackendUnavailable, InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.rng import philox4x32
from quiver_kernels.simba import Thresholds, round_to_sets, shared_sets, squared_errors
from quiver_kernels.strata import Strata

RNG = np.random.default_rng(0)
# The samples of the published anchors, in their order.
NORMAL, LOGNORMAL = RNG.standard_normal(4096), RNG.lognormal(0, 1, 4096)


def data_of(x: NDArray[np.float64]) -> simba_levels.Data:
    return simba_levels.Data(np.sort(x), np.ones(x.size))


def solved(x: NDArray[np.float64], s: int, sets: int) -> NDArray[np.float64]:
    table = qk.optimal_levels(x, s).astype(np.float64)
    return simba_levels.best_sets(data_of(x), table, sets)


# -- the scheme, once more, straight from its words ----------------------------------------


def obvious(x: float, levels: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """For each set h the value to expect, and its expected square, by walking up the states."""
    sets, s = levels.shape
    at = [0] * sets
    for i in range(sets * (s - 1)):
        low = sum(levels[h, at[h]] for h in range(sets)) / sets
        turn = i % sets
        left, right = levels[turn, at[turn]], levels[turn, at[turn] + 1]
        if x <= low + (right - left) / sets or i == sets * (s - 1) - 1:
            p = min(max(sets * (x - low) / (right - left), 0.0), 1.0) if right > left else 0.0
            expected = [float(levels[h, at[h]]) for h in range(sets)]
            squares = [value**2 for value in expected]
            expected[turn] = (1 - p) * left + p * right
            squares[turn] = (1 - p) * left**2 + p * right**2
            return expected, squares
        at[turn] += 1
    raise AssertionError("no state")


@properties
@given(st.integers(2, 6), st.integers(2, 8), st.integers(0, 10**6))
def test_errors_are_those_of_the_scheme(s: int, sets: int, seed: int):
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.normal(size=s * sets)).reshape(s, sets).T.copy()
    low, high = levels[:, 0].mean(), levels[:, -1].mean()
    x = rng.uniform(low, high, 20)
    for value, error in zip(x, squared_errors(x, levels, 1.0), strict=True):
        expected, squares = obvious(float(value), levels)
        assert np.mean(expected) == pytest.approx(value, abs=1e-12)
        assert error == pytest.approx(np.mean(squares) - value**2, abs=1e-12)


@properties
@given(st.integers(2, 5), st.integers(1, 8), st.integers(0, 10**6))
def test_the_descent_knows_its_error_and_its_slope(s: int, sets: int, seed: int):
    rng = np.random.default_rng(seed)
    a = np.sort(rng.normal(size=s * sets))
    levels = a.reshape(s, sets).T
    points = np.sort(rng.uniform(levels[:, 0].mean(), levels[:, -1].mean(), 200))
    points[[0, -1]] = levels[:, 0].mean(), levels[:, -1].mean()
    data = data_of(points)
    grad, work = np.empty(a.size), [np.empty(a.size) for _ in range(3)]
    args = data.points, data.counts, data.sums

    def error(levels_now: NDArray[np.float64]) -> float:
        found = simba_levels.error_and_slope(levels_now, sets, *args, grad, *work)
        return float(found) - data.squares

    moved = a - data.center
    expected = squared_errors(points, levels, 1.0).sum()
    assert error(moved) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    slope = grad.copy()
    # Ways on which the ends stay.
    way = rng.normal(size=a.size)
    way[:sets] -= way[:sets].mean()
    way[-sets:] -= way[-sets:].mean()
    step = 1e-7
    numeric = (error(moved + step * way) - error(moved - step * way)) / (2 * step)
    assert numeric == pytest.approx(slope @ way, rel=1e-3, abs=1e-3)


# -- levels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "s", "two", "four"),
    [
        (NORMAL, 2, 4.08, 2.34),
        (NORMAL, 4, 0.3553, 0.2697),
        (LOGNORMAL, 2, 1.728, 1.148),
        (LOGNORMAL, 4, 0.1755, 0.1446),
    ],
    ids=["normal 2", "normal 4", "lognormal 2", "lognormal 4"],
)
def test_the_errors_known_from_another_search(
    x: NDArray[np.float64], s: int, two: float, four: float
):
    for sets, known in ((2, two), (4, four)):
        q = qk.quantize(x, num_levels=s, method="simba", level_sets=sets, seed=1)
        assert q.vnmse == pytest.approx(known, rel=2.5e-3)


@pytest.mark.parametrize("x", [NORMAL, LOGNORMAL], ids=["normal", "lognormal"])
def test_more_sets_are_no_worse_and_one_is_the_optimum(x: NDArray[np.float64]):
    for s in (2, 3, 7, 16):
        errors = [squared_errors(x, solved(x, s, sets), 1.0).sum() for sets in (1, 2, 4, 8)]
        exact = qk.expected_mse(x, qk.optimal_levels(x, s)) * x.size

        assert errors[0] == pytest.approx(exact, rel=1e-9)
        assert all(more <= fewer * (1 + 1e-9) for fewer, more in itertools.pairwise(errors))
        assert errors[1] < 0.7 * errors[0]


def test_the_descent_never_rises():
    data, table = data_of(NORMAL), qk.optimal_levels(NORMAL, 5)
    a = simba_levels._spread(table - data.center, 3, 1.0)
    errors = [data.error(a, 3), *(data.descended(a, 3, 2) for _ in range(20))]

    assert all(after <= before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
@pytest.mark.parametrize("s", [2, 4, 16])
def test_half_the_error_at_equal_bits(kind: str, s: int):
    x = getattr(np.random.default_rng(1), kind)(size=2**18).astype(np.float32)
    exact = qk.quantize(x, num_levels=s, seed=1)
    q = qk.quantize(x, num_levels=s, method="simba", seed=1)

    # Side information: three tables more.
    assert q.nbytes - exact.nbytes == 3 * s * 4
    assert q.vnmse <= 0.55 * exact.vnmse


def test_cells_serve_as_well_as_values(monkeypatch: pytest.MonkeyPatch):
    x = np.random.default_rng(2).lognormal(size=30_000)
    whole = qk.quantize(x, 4, "simba", seed=1).vnmse
    monkeypatch.setattr(simba, "POINTS", 4096)

    assert qk.quantize(x, 4, "simba", seed=1).vnmse == pytest.approx(whole, rel=0.01)


HARD: list[Any] = [
    [3.0],
    [1.0, 1.0, 1.0],
    [0.0, 0.0],
    [1.0, 2.0],
    [-1.0, 0.0, 0.0, 5.0],
    [1e-45, 0.0, 3e-45] * 9,
    [3.4e38, -3.4e38, 1.0, 7.0] * 9,
    [1e30, *np.linspace(-1, 1, 50)],
    [6e4, -6e4, *np.linspace(-6e4, 6e4, 77)],
    np.linspace(3e4, 3e4 + 1, 200),
    np.r_[np.zeros(1000), 1.0],
]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("number", range(len(HARD)))
def test_hard_vectors(dtype: str, number: int):
    with np.errstate(over="ignore"):
        x = np.array(HARD[number]).astype(DTYPES[dtype])
    x = x[np.isfinite(x.astype(np.float64))]
    wide = x.astype(np.float64)
    for s in (2, 5):
        for sets in (2, 3, 8):
            q = qk.quantize(x, num_levels=s, method="simba", level_sets=sets, seed=3)
            levels = q.levels.astype(np.float64)
            assert levels.shape == (sets, s)
            assert (np.diff(levels, axis=1) >= 0).all()
            # Thresholds span the values, so that the ends are unbiased, too.
            assert math.fsum([*levels[:, 0], *[-wide.min()] * sets]) <= 0
            assert math.fsum([*levels[:, -1], *[-wide.max()] * sets]) >= 0
            assert np.isfinite(qk.dequantize(q).astype(np.float64)).all()
            exact = qk.quantize(x, num_levels=s, seed=3)
            assert q.vnmse <= exact.vnmse * (1 + 1e-3)
            if np.unique(wide).size <= s:
                assert q.vnmse == 0
                assert np.array_equal(qk.dequantize(q), x)


# -- codes ---------------------------------------------------------------------------------


def test_the_sets_are_those_of_the_wire_format():
    seed, sets = 2**63 + 5, 5
    words = philox4x32(np.array([[7, 0, 3, 0]], np.uint32), (seed & 0xFFFFFFFF, seed >> 32))
    expected = [int(word) * sets >> 32 for word in words[0]]

    assert shared_sets(seed, 28, 4, sets).tolist() == expected
    counts = np.bincount(shared_sets(1, 0, 2**18, sets))
    assert np.abs(counts - 2**18 / sets).max() < 5 * math.sqrt(2**18 * 0.2 * 0.8)


@properties
@given(
    st.integers(1, 1200),
    dtype_names,
    st.integers(2, 256),
    st.integers(2, 8),
    st.integers(0, 2**64 - 1),
    st.sampled_from([8, 64, 512, 1 << 15]),
    st.booleans(),
)
def test_codes_and_values_are_those_of_the_reference(
    size: int, dtype: str, s: int, sets: int, seed: int, span: int, together: bool
):
    rng = np.random.default_rng(size)
    x = rng.normal(size=size).astype(DTYPES[dtype])
    chosen = {"world_size": 9, "rank": 4, "shared_seed": seed ^ 3} if together else {}
    options = QuantizeOptions.create(
        num_levels=s, method="simba", level_sets=sets, seed=seed, **chosen
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(simba, "SPAN", span)
        patched.setattr(chunking, "CHUNK", max(span, 64))
        # Any sets that span the vector will do; the search is not what is tested.
        for name in ("_ROUNDS", "_STEPS", "_SWEEPS", "_LEAST_SWEEPS"):
            patched.setattr(simba_levels, name, 0)
        q = qk.dispatch.load("cpu").quantize(x, options, None)
        decoded, mean = qk.dequantize(q), qk.aggregate([q, q])
        loaded = qk.QuantizedVector.from_bytes(q.to_bytes())
    wide, unit = x.astype(np.float64), finite_range(x).unit

    assert np.array_equal(
        q.indices(), round_to_sets(wide, q.levels, seed, unit, Strata.of(options))
    )
    oracle = plain.ReferenceBackend()
    assert np.array_equal(decoded, oracle.dequantize(loaded))
    assert np.array_equal(mean, oracle.aggregate([q, q], None))
    norm = (wide**2).sum()
    error = squared_errors(wide, q.levels, unit).sum() / unit**2
    assert q.vnmse == pytest.approx(error / norm if norm else 0.0, rel=1e-12)


def test_sums_of_codes_take_the_sets_into_account(cpu: Backend, reference: Backend):
    q = qk.quantize(np.random.default_rng(1).normal(size=999), 3, "simba", seed=4)
    table = np.arange(q.levels.size, dtype=np.int64).reshape(q.levels.shape)
    sums = [np.zeros(500, np.int64) for _ in range(2)]
    for backend, total in zip((cpu, reference), sums, strict=True):
        backend.add_codes(q, 11, 511, [table], [total])

    assert np.array_equal(*sums)
    assert sums[0].max() >= q.num_levels


def test_threads_change_nothing():
    x = np.random.default_rng(1).normal(size=2 * chunking.CHUNK + 5).astype(np.float32)
    one, three = (qk.quantize(x, 4, "simba", 5, threads=n) for n in (1, 3))

    assert np.array_equal(one.codes, three.codes)
    assert one.vnmse == three.vnmse
    assert np.array_equal(qk.dequantize(one, threads=3), qk.dequantize(one))


def worst_sigmas(found: NDArray[Any], x: NDArray[Any], error: NDArray[Any], trials: int) -> float:
    """How far the worst mean of `trials` decoded values is off, in its standard deviations."""
    spread = np.sqrt(error / trials)
    return float((np.abs(found - x)[spread > 0] / spread[spread > 0]).max())


@pytest.mark.parametrize("sets", [2, 4, 8])
@pytest.mark.parametrize("s", [2, 4])
def test_the_mean_is_the_value(s: int, sets: int):
    # Many equal values in one vector: the words of different elements serve as the trials.
    trials = 10_000
    x = np.sort(np.random.default_rng(3).normal(size=60))
    q = qk.quantize(np.tile(x, trials), num_levels=s, method="simba", seed=5, level_sets=sets)
    unit = finite_range(x).unit
    error = squared_errors(x, q.levels, unit) / unit**2
    found = qk.dequantize(q).reshape(trials, x.size).mean(axis=0)

    assert worst_sigmas(found, x, error, trials) < 5
    # Whoever does not know the sets decodes with a bias.
    blind = q.levels[0][q.indices()].reshape(trials, x.size).mean(axis=0)
    assert worst_sigmas(blind, x, error, trials) > 5


def test_the_squared_error_is_what_vnmse_says():
    x = np.random.default_rng(8).normal(size=2**17).astype(np.float32)
    for sets in (2, 4):
        q = qk.quantize(x, 2, "simba", 6, level_sets=sets)
        errors = (qk.dequantize(q).astype(float) - x) ** 2
        spread = errors.std() * math.sqrt(x.size)

        assert abs(errors.sum() - q.vnmse * (x.astype(float) ** 2).sum()) < 5 * spread
        # A wrong seed decodes with other sets: the error is larger by far.
        wrong = (qk.dequantize(replace(q, seed=7)).astype(float) - x) ** 2
        assert wrong.sum() > errors.sum() + 100 * spread


def test_thresholds_ascend_whatever_is_rounded():
    rng = np.random.default_rng(5)
    for _ in range(200):
        levels = np.sort(rng.normal(1e8, 1e-7, size=(7, 9)), axis=1)
        assert (np.diff(Thresholds.of(levels, 2.0**-27).at) >= 0).all()


# -- messages and options ------------------------------------------------------------------


def fields(**changed: Any) -> bytes:
    q = qk.quantize(np.arange(20.0), 2, "simba", 1, level_sets=3)
    message = msgpack.unpackb(q.to_bytes())
    message.update(changed)
    return msgpack.packb({name: value for name, value in message.items() if value != "drop"})


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"level_sets": "drop"}, "level_sets"),
        ({"level_sets": None}, "level_sets"),
        ({"level_sets": 1}, "level_sets"),
        ({"level_sets": 9}, "level_sets"),
        ({"level_sets": 2}, "levels.shape"),
        ({"level_sets": 2**63}, "level_sets"),
        ({"level_sets": True}, "level_sets"),
        ({"method": "exact"}, "level_sets"),
        ({"method": "exact", "level_sets": "drop"}, "levels.shape"),
        ({"block_size": 7}, "block_size"),
        ({"num_levels": 3}, "levels.shape"),
    ],
)
def test_messages_that_are_refused(changed: dict[str, Any], field: str):
    with pytest.raises(InvalidInput) as caught:
        qk.QuantizedVector.from_bytes(fields(**changed))

    assert caught.value.field == field


def test_other_methods_have_the_messages_they_had():
    assert qk.QuantizedVector.from_bytes(fields()).level_sets == 3
    q = qk.quantize(np.arange(20.0), 2, seed=1)
    assert "level_sets" not in msgpack.unpackb(q.to_bytes())
    assert qk.QuantizedVector.from_bytes(q.to_bytes()).level_sets is None


@pytest.mark.parametrize(
    ("chosen", "field"),
    [
        ({"block_size": 5}, "block_size"),
        ({"weights": [1.0, 2.0, 3.0]}, "weights"),
        ({"level_sets": 1}, "level_sets"),
        ({"level_sets": 9}, "level_sets"),
        ({"level_sets": True}, "level_sets"),
    ],
)
def test_options_that_are_refused(chosen: dict[str, Any], field: str):
    for call in (qk.quantize, qk.optimal_levels):
        with pytest.raises(InvalidInput) as caught:
            call([1.0, 2.0, 4.0], method="simba", **chosen)
        assert caught.value.field == field


def test_levels_come_with_their_error(cpu: Backend, reference: Backend):
    options = QuantizeOptions.create(bits=3, method="simba", level_sets=2, seed=1)
    result, q = cpu.levels(NORMAL, options, None), cpu.quantize(NORMAL, options, None)

    assert np.array_equal(result.levels, q.levels)
    assert result.vnmse == q.vnmse
    assert result.expected_mse * NORMAL.size == pytest.approx(q.vnmse * (NORMAL**2).sum())
    with pytest.raises(BackendUnavailable, match="simba"):
        reference.quantize(NORMAL, options, None)
