"""Tables times norms: QSGD, TernGrad, NUQSGD, AMQ and ALQ."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels.schemes.normed import fitting, tables
from quiver_kernels.schemes.normed.kernels import compand, descend, integrals
from quiver_kernels.schemes.normed.norms import counts_of, norms_of, statistics_of
from quiver_kernels.schemes.normed.statistics import Mixture, Statistics

Floats = NDArray[np.float64]
METHODS = ("qsgd", "terngrad", "nuqsgd", "amq", "alq")


def cut_off(deviation: float, mean: float = 0.0) -> Mixture:
    return Mixture(np.array([mean]), np.array([deviation]), np.ones(1))


# -- integrals ---------------------------------------------------------------------------


def slow_integrals(mixture: Mixture, t: float, cells: int = 200_000) -> Floats:
    """A, S and T by sums over many thin cells."""
    x = -1 + (np.arange(cells) + 0.5) * (2.0 / cells)
    total = np.zeros(cells)
    for mean, deviation, share in zip(
        mixture.means, mixture.deviations, mixture.shares, strict=True
    ):
        density = np.exp(-0.5 * ((x - mean) / deviation) ** 2)
        total += share * density / density.sum()
    below = x < t
    gaps = t - x[below]
    return np.array([total[below].sum(), total[below] @ gaps, total[below] @ gaps**2 / 2])


@pytest.mark.parametrize("t", [-1.0, -0.3, -0.01, 0.0, 0.02, 0.4, 1.0])
@pytest.mark.parametrize(
    "mixture",
    [
        cut_off(0.03),
        cut_off(0.5, 0.2),
        cut_off(3.0, -0.9),
        cut_off(0.1, 0.95),
        Mixture(np.array([-0.2, 0.1]), np.array([0.05, 0.3]), np.array([0.25, 0.75])),
    ],
)
def test_integrals_equal_sums_over_thin_cells(mixture: Mixture, t: float):
    found = np.empty(4)
    integrals(t, fitting.prepared(mixture), found)
    np.testing.assert_allclose(found[1:], slow_integrals(mixture, t), atol=2e-5)


def sampled_error(levels: Floats, x: Floats) -> float:
    k = np.clip(np.searchsorted(levels, x, side="right") - 1, 0, levels.size - 2)
    return float(np.mean((levels[k + 1] - x) * (x - levels[k])))


def test_the_expected_error_is_that_of_a_sample():
    rng = np.random.default_rng(3)
    x = rng.normal(0.05, 0.2, 2_000_000)
    x = x[np.abs(x) <= 1]
    levels = np.array([-1.0, -0.4, -0.1, 0.0, 0.3, 1.0])
    found = fitting.expected_error(cut_off(0.2, 0.05), levels)
    assert found == pytest.approx(sampled_error(levels, x), rel=2e-3)


# -- AMQ and NUQSGD: the reference's figures ---------------------------------------------


@pytest.mark.parametrize(
    ("n", "bits", "multiplier", "best", "half", "nuqsgd"),
    [
        (1024, 2, 0.05152, 3.111, 255.0, 24.5),
        (1024, 3, 0.24691, 0.3657, 15.0, 5.38),
        (1024, 4, 0.50839, 0.0889, 0.0897, 0.0955),
        (8192, 2, 0.02228, 4.569, 2047.0, 71.2),
        (8192, 3, 0.15654, 0.5271, 127.0, 17.1),
        (8192, 4, 0.44626, 0.1295, 0.2556, 0.335),
    ],
)
def test_multipliers_and_errors_of_cut_off_normal_values(
    n: int, bits: int, multiplier: float, best: float, half: float, nuqsgd: float
):
    mixture = cut_off(n**-0.5)
    found = fitting.amq_multiplier(mixture, 1 << bits)
    assert found == pytest.approx(multiplier, abs=6e-6)
    for table, expected in (
        (tables.powers(found, 1 << bits), best),
        (tables.powers(0.5, 1 << bits), half),
        (tables.powers_of_two(1 << bits), nuqsgd),
    ):
        assert n * fitting.expected_error(mixture, table) == pytest.approx(expected, rel=3e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.8), st.sampled_from([4, 8, 16]))
def test_no_other_multiplier_is_better(deviation: float, num_levels: int):
    mixture = cut_off(deviation)
    best = fitting.expected_error(
        mixture, tables.powers(fitting.amq_multiplier(mixture, num_levels), num_levels)
    )
    for multiplier in np.linspace(0.005, 0.995, 100):
        other = fitting.expected_error(mixture, tables.powers(multiplier, num_levels))
        assert best <= other * (1 + 1e-9)


# -- ALQ ---------------------------------------------------------------------------------

MIXTURES = [
    cut_off(1 / 32),
    cut_off(8192**-0.5),
    cut_off(0.3, 0.2),
    Mixture(
        np.random.default_rng(1).normal(0, 0.01, 20),
        np.random.default_rng(2).uniform(0.02, 0.05, 20),
        np.full(20, 0.05),
    ),
]


def residual(levels: Floats, mixture: Mixture) -> float:
    """The largest derivative of the expected error by an inner level, halved."""
    at = np.empty((levels.size, 4))
    for level, row in zip(levels, at, strict=True):
        integrals(level, fitting.prepared(mixture), row)
    slopes = at[1:-1, 1] * (levels[2:] - levels[:-2]) - (at[2:, 2] - at[:-2, 2])
    return float(np.abs(slopes).max())


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("num_levels", [3, 4, 8, 16, 64])
def test_the_error_never_rises_and_ends_at_a_fixed_point(mixture: Mixture, num_levels: int):
    levels, costs = np.empty(num_levels), np.empty(61)
    parts = fitting.prepared(mixture)
    compand(levels, parts, 512)
    # A single inner level begins where it belongs, by symmetry.
    assert num_levels == 3 or residual(levels, mixture) > 1e-7
    steps = descend(levels, parts, costs)
    assert steps < 60
    assert (np.diff(costs[: steps + 1]) <= 0).all()
    assert (np.diff(levels) > 0).all()
    assert residual(levels, mixture) < 1e-9


def test_the_closed_form_of_the_paper_gives_the_same_levels():
    # l_j <- F^-1(F(e) - int_c^e (r - c) / (e - c) dF), over a fine sample in place of F.
    x = np.sort(np.random.default_rng(5).normal(0, 0.2, 100_000))
    x = x[np.abs(x) <= 1]
    levels = np.linspace(-1, 1, 8)
    for _ in range(60):
        for j in range(1, 7):
            c, e = levels[j - 1], levels[j + 1]
            inside = x[(x > c) & (x <= e)]
            wanted = (x <= e).sum() - ((inside - c) / (e - c)).sum()
            levels[j] = x[min(int(wanted), x.size - 1)]
    found = fitting.alq_table(cut_off(0.2), 8)
    np.testing.assert_allclose(found, levels, atol=5e-3)


def test_three_inner_levels_beat_all_others_tried():
    mixture = cut_off(0.25, 0.1)
    best = fitting.expected_error(mixture, fitting.alq_table(mixture, 5))
    rng = np.random.default_rng(7)
    for _ in range(500):
        inner = np.sort(np.clip(rng.normal(0.1, 0.3, 3), -0.999, 0.999))
        assert best <= fitting.expected_error(mixture, np.array([-1.0, *inner, 1.0]))


@pytest.mark.parametrize("num_levels", [4, 8, 16])
def test_shared_tables_never_beat_exact_and_come_within_a_percent_on_smooth_data(num_levels: int):
    x = np.random.default_rng(11).standard_normal(1 << 18).astype(np.float32)
    top = np.abs(x).max()
    exact = qk.quantize(np.append(x, -top), num_levels=num_levels, seed=1).vnmse
    found = qk.quantize(
        x, num_levels=num_levels, method="alq", parameters={"norm": "linf"}, seed=1
    ).vnmse
    assert exact * (1 - 1e-6) <= found <= 1.01 * exact


def test_a_refresh_from_statistics_takes_less_than_a_millisecond():
    means, deviations = np.random.default_rng(1).normal(0, 0.01, 20), np.full(20, 0.03)
    mixture = Mixture(means, deviations, np.full(20, 0.05))
    fitting.alq_table(mixture, 16)
    times = []
    for _ in range(20):
        begun = time.thread_time()
        fitting.alq_table(mixture, 16)
        times.append(time.thread_time() - begun)
    assert min(times) < 1e-3


# -- fixed tables ------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "vnmse"), [(1, 50.1), (3, 16.0), (7, 6.29), (15, 2.41)])
def test_qsgd_errors_on_normal_values(steps: int, vnmse: float):
    x = np.random.default_rng(0).standard_normal(4096)
    q = qk.quantize(x, num_levels=2 * steps + 1, method="qsgd", seed=1)
    assert q.vnmse == pytest.approx(vnmse, rel=0.02)
    assert q.vnmse <= min(x.size / steps**2, np.sqrt(x.size) / steps)


def test_terngrad_errors_follow_its_formula():
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    q = qk.quantize(x, method="terngrad", seed=1)
    wide = x.astype(np.float64)
    expected = np.abs(wide).max() * np.abs(wide).sum() / (wide @ wide) - 1
    assert q.num_levels == 3
    assert q.vnmse == pytest.approx(expected, rel=1e-6)
    top = np.float32(np.abs(x).max())
    assert set(np.unique(qk.dequantize(q)).tolist()) <= {-float(top), 0.0, float(top)}


@pytest.mark.parametrize("num_levels", [3, 4, 16, 17, 255, 256])
def test_tables_ascend_from_minus_one_to_one(num_levels: int):
    for table in (tables.even_steps(num_levels), tables.powers_of_two(num_levels)):
        assert table.shape == (num_levels,)
        assert table[[0, -1]].tolist() == [-1, 1]
        assert (np.diff(table) >= 0).all()
        assert 0.0 in table
    assert np.allclose(tables.powers(0.5, 8), [-1, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 1])


# -- norms and statistics ----------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 70),
    st.sampled_from(["float16", "float32", "float64"]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-300, 1e-40, 1.0, 1e38, 1e300]),
)
def test_norms_bracket_the_values(size: int, block: int, dtype: str, seed: int, scale: float):
    x = np.random.default_rng(seed).standard_normal(size) * scale
    with np.errstate(over="ignore", under="ignore"):
        x = x.astype(dtype)
    top = np.finfo(dtype).max
    x = np.clip(x, -top, top)
    block = min(block, size)
    for kind in ("l2", "linf"):
        norms = norms_of(x, block, kind)
        for i, norm in enumerate(norms):
            part = x[i * block : (i + 1) * block].astype(np.longdouble)
            exact = np.sqrt((part**2).sum()) if kind == "l2" else np.abs(part).max()
            assert norm >= np.abs(part).max()
            wanted = min(exact, np.longdouble(np.finfo(norms.dtype).max))
            assert abs(norm - wanted) <= 3e-7 * wanted + 1.5e-45


def test_statistics_are_those_of_the_ratios():
    x = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    norms = norms_of(x, 300, "l2")
    found = statistics_of(x, 300, norms)
    for i in range(4):
        ratios = x[300 * i : 300 * (i + 1)].astype(np.float64) / norms[i]
        assert found.means[i] == pytest.approx(ratios.mean(), abs=1e-12)
        assert found.variances[i] == pytest.approx(ratios.var(), rel=1e-9)
    assert counts_of(1000, 300).tolist() == [300, 300, 300, 100]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"means": [0.0]}, "statistics.means"),
        ({"variances": [-0.1, 0.1]}, "statistics.variances"),
        ({"norms": [np.inf, 1.0]}, "statistics.norms"),
        ({"norms": [], "means": [], "variances": []}, "statistics.means"),
        ({"means": [2.0, 0.0]}, "statistics.means"),
    ],
)
def test_wrong_statistics_are_named(change: dict[str, list[float]], field: str):
    fine = {"means": [0.0, 0.1], "variances": [0.1, 0.2], "norms": [1.0, 2.0]}
    Statistics.checked(**fine)
    with pytest.raises(qk.InvalidInput) as error:
        Statistics.checked(**{**fine, **change})
    assert error.value.field == field


# -- messages ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block_size", [None, 1, 100])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_messages_come_back_and_values_are_those_of_the_table(
    method: str, block_size: int | None, dtype: str
):
    x = np.random.default_rng(4).standard_normal(333).astype(dtype)
    bits = 2 if method == "terngrad" else 4
    q = qk.quantize(x, bits=bits, method=method, block_size=block_size, seed=5)
    read = qk.QuantizedVector.from_bytes(q.to_bytes())
    y = qk.dequantize(read)
    assert y.dtype == x.dtype
    assert np.array_equal(y, qk.dequantize(q))
    blocks = 1 if block_size is None else -(-x.size // block_size)
    assert read.side["scales"].size == blocks
    expected = bits + (32 if dtype != "float64" else 64) * blocks / x.size
    assert q.bits_per_value == pytest.approx(
        expected + 8 * q.levels.nbytes / x.size, abs=8 * (blocks + 1) / x.size
    )


def test_a_shared_table_is_taken_and_travels():
    x = np.random.default_rng(4).standard_normal(4000).astype(np.float32)
    table = fitting.alq_table(cut_off(0.3), 16)
    q = qk.quantize(
        x, method="alq", levels=table, parameters={"norm": "linf"}, block_size=500, seed=1
    )
    assert np.array_equal(q.levels, table.astype(np.float32))
    assert np.abs(qk.dequantize(q) - x).max() < np.abs(x).max()
    with pytest.raises(qk.InvalidInput, match="from -1 to 1"):
        qk.quantize(x, method="alq", levels=2 * table)
    with pytest.raises(qk.InvalidInput, match="takes no levels"):
        qk.quantize(x, method="qsgd", levels=table)


def test_a_table_that_does_not_span_is_refused_in_a_message():
    x = np.random.default_rng(4).standard_normal(100).astype(np.float32)
    q = qk.quantize(x, bits=2, method="alq", seed=1)
    blob = bytearray(q.to_bytes())
    place = blob.index(q.levels.tobytes())
    blob[place + 2 : place + 4] = b"\x00\xc0"  # -1 becomes -2.
    with pytest.raises(qk.InvalidInput, match="from -1 to 1"):
        qk.QuantizedVector.from_bytes(bytes(blob))
