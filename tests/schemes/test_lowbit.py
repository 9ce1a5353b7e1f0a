"""SEQ, LSQ and signs: figures of the normal distribution, exact tables, ties, the best scale."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import InvalidInput, QuiverError, Stopped
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes import magnitudes, registry, scaled, search
from quiver_kernels.schemes.nearest import NearestScheme
from quiver_kernels.schemes.seq.trits import Trits
from quiver_kernels.sign import sign_quantize

NORMAL = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
SIZES = [("seq", 2), ("seq", 3), ("seq", 4), ("lsq", 8), ("lsq", 16), ("sign", 2)]


def entries(method: str, num_levels: int) -> NDArray[np.float64]:
    scheme = registry.find(method)
    assert isinstance(scheme, NearestScheme)
    return scheme.entries[num_levels].table


def least_error(x: NDArray[np.float64], table: NDArray[np.float64]) -> float:
    """The least squared error over all scales: every set of codes of nearest rounding is tried."""
    middles = (table[1:] + table[:-1]) / 2
    # A table whose only threshold is 0 has one set of codes.
    corners = np.concatenate([np.ones(1), *(x[x * m > 0] / m for m in middles if m != 0)])
    corners = np.unique(corners)
    tries = np.concatenate(
        [corners[:1] / 2, (corners[1:] + corners[:-1]) / 2, corners[-1:] * 2, corners]
    )
    best = float(x @ x)
    for scale in tries:
        c = table[np.searchsorted(middles * scale, x)]
        if c @ c > 0 and x @ c > 0:
            best = min(best, float(np.square(x - (x @ c) / (c @ c) * c).sum()))
    return best


def error_at(x: NDArray[np.float64], scale: float, table: NDArray[np.float64]) -> float:
    middles = (table[1:] + table[:-1]) / 2
    return float(np.square(x - scale * table[np.searchsorted(middles * scale, x)]).sum())


@pytest.mark.parametrize(
    ("method", "num_levels", "scale", "error"),
    [
        ("seq", 2, 0.79788, 0.36338),
        ("seq", 3, 1.836, 0.19017),
        ("seq", 4, 1.991, 0.11885),
        ("lsq", 8, 0.6018, 0.040638),
        ("lsq", 16, 0.3386, 0.011864),
        ("sign", 2, 0.79788, 0.36338),
    ],
)
@pytest.mark.parametrize("how", ["search", "mean"])
def test_normal_data_have_the_known_scale_and_error(
    method: str, num_levels: int, scale: float, error: float, how: str
):
    parameters = {} if method == "sign" else {"scale": how}
    q = qk.quantize(NORMAL, method=method, num_levels=num_levels, parameters=parameters)
    assert float(q.side["scales"][0]) == pytest.approx(scale, rel=4e-3)
    assert q.vnmse == pytest.approx(error, rel=5e-3)


@pytest.mark.parametrize(("num_levels", "error"), [(3, 0.506), (4, 0.308)])
def test_scales_by_the_greatest_magnitude_are_poor(num_levels: int, error: float):
    q = qk.quantize(
        NORMAL, method="seq", num_levels=num_levels, block_size=4096, parameters={"scale": "max"}
    )
    assert q.vnmse == pytest.approx(error, rel=0.02)


def test_one_bit_has_the_closed_form():
    x = np.random.default_rng(4).laplace(size=5000)
    q = qk.quantize(x, method="sign", num_levels=2)
    closed = 1 - np.abs(x).sum() ** 2 / (x.size * (x @ x))
    assert q.vnmse == pytest.approx(closed, abs=1e-9)
    assert qk.quantize(NORMAL, method="sign").vnmse == pytest.approx(0.3634, abs=1e-3)


@pytest.mark.parametrize(
    ("method", "num_levels", "values"),
    [
        ("seq", 2, [-3, 3]),
        ("seq", 3, [-2, 0, 2]),
        ("seq", 4, [-2.25, -0.75, 0.75, 2.25]),
        ("lsq", 8, [3.0 * k / 3 for k in range(-4, 4)]),
        ("lsq", 16, [3.0 * k / 7 for k in range(-8, 8)]),
    ],
)
def test_decoded_values_are_the_tables(method: str, num_levels: int, values: list[float]):
    x = np.linspace(-9, 9, 2001)
    x = np.concatenate([x, [3.0]])[np.abs(np.concatenate([x, [3.0]])) <= 3]
    parameters = {"scale": "max"}
    q = qk.quantize(x, method=method, num_levels=num_levels, parameters=parameters)
    # All lie on the table; the lowest entry of lsq lies beyond the greatest magnitude.
    found = np.unique(qk.dequantize(q))
    wanted = [v for v in values if abs(v) <= 3.3]
    assert found == pytest.approx(wanted, rel=1e-15)


@pytest.mark.parametrize(
    ("num_levels", "x", "wanted"),
    [
        # Halves go to the even whole number: u n = +-1/2 to 0, u n - 1/2 = -3/2 to -2, 1/2 to 0.
        (3, [3, 1, -1, 1.01, -1.01], [2, 0, 0, 2, -2]),
        (4, [4, 2, -2, 0, 2.01, -1.99], [3, 1, -3, 1, 3, -1]),
        (2, [1, -1, 0.0, -0.0], [1, -1, 1, 1]),
    ],
)
def test_ties_are_paretoqs(num_levels: int, x: list[float], wanted: list[float]):
    parameters = {"scale": "max"}
    q = qk.quantize(np.array(x), method="seq", num_levels=num_levels, parameters=parameters)
    assert qk.dequantize(q).tolist() == pytest.approx(wanted)


def test_lsq_rounds_halves_to_even():
    x = np.array([7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -7.0])
    q = qk.quantize(x, method="lsq", num_levels=16, parameters={"scale": "max"})
    assert qk.dequantize(q).tolist() == np.rint(x).tolist()


@given(
    x=st.lists(
        st.floats(-1e3, 1e3, allow_subnormal=False) | st.integers(-3, 3).map(float),
        min_size=1,
        max_size=40,
    ),
    which=st.sampled_from(SIZES[1:5]),
)
@settings(deadline=None, max_examples=200)
def test_the_search_finds_the_least_error(x: list[float], which: tuple[str, int]):
    table, values = entries(*which), np.array(x)
    assume(float(np.abs(values).max()) > 1e-100)
    values = values * (np.abs(values) > 1e-100)
    scale = float(search.best_scales(values, values.size, table)[0])
    square = float(values @ values)
    assert error_at(values, scale, table) <= least_error(values, table) + 2e-9 * square


def test_a_worse_scale_is_noticed():
    # What the test above compares tells scales apart that are a hundredth off.
    x = np.random.default_rng(5).standard_normal(40)
    table = entries("lsq", 8)
    scale = float(search.best_scales(x, x.size, table)[0])
    least = least_error(x, table)
    for factor in (0.97, 1.03):
        assert error_at(x, factor * scale, table) > least + 2e-9 * float(x @ x)


@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_long_blocks_lose_little_by_cells(tail: str):
    rng = np.random.default_rng(6)
    x = rng.standard_normal(1 << 18) if tail == "normal" else rng.standard_t(2.5, 1 << 18)
    for method, num_levels in SIZES[1:5]:
        table = entries(method, num_levels)
        cells = float(search.best_scales(x, x.size, table)[0])
        ordered = np.sort(x)[np.newaxis, :] / 2.0 ** int(np.frexp(np.abs(x).max())[1])
        exact = np.empty((2, 1))
        from quiver_kernels.cpu.compile import frozen
        from quiver_kernels.schemes.search_kernels import search_rows

        search_rows(frozen(ordered), frozen(np.empty(0)), frozen(table), exact[0], exact[1])
        least = float(x @ x) * (1 - float(exact[1, 0]) / float((ordered @ ordered.T)[0, 0]))
        assert error_at(x, cells, table) <= least + 1e-6 * float(x @ x)


@pytest.mark.parametrize(("method", "num_levels"), SIZES)
@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_no_scale_is_better_for_whole_blocks(method: str, num_levels: int, dtype: str):
    x = np.random.default_rng(7).laplace(size=130).astype(WIRE_DTYPES[dtype])
    q = qk.quantize(x, method=method, num_levels=num_levels, block_size=50)
    table, wide = entries(method, num_levels), x.astype(np.float64)
    least = sum(least_error(wide[i : i + 50], table) for i in range(0, 130, 50))
    # Decoded values have the vector's type.
    slack = {"float16": 1e-3, "bfloat16": 1e-2}.get(dtype, 1e-6)
    assert q.vnmse <= (least / float(wide @ wide)) * (1 + slack) + slack / 50


@pytest.mark.parametrize(("method", "num_levels"), SIZES)
def test_bits_are_what_is_said(method: str, num_levels: int):
    q = qk.quantize(NORMAL[:4000], method=method, num_levels=num_levels, block_size=1000)
    bits = {2: 1, 3: 1.6, 4: 2, 8: 3, 16: 4}[num_levels]
    assert q.bits_per_value == pytest.approx(bits + 32 / 1000)


def test_signs_are_those_of_sign_quantize():
    for dtype in WIRE_DTYPES:
        x = np.random.default_rng(8).standard_normal(333).astype(WIRE_DTYPES[dtype])
        for block in (None, 1, 50):
            old = sign_quantize(x, block_size=block)
            new = qk.quantize(x, method="sign", block_size=block)
            wanted, got = (qk.dequantize(q).astype(np.float64) for q in (old, new))
            # Sums of float64 may be added in another order.
            assert got == pytest.approx(wanted, rel=1e-15 if dtype == "float64" else 0)
            # Old messages have levels and no parameters.
            again = QuantizedVector.from_bytes(old.to_bytes())
            assert not again.is_scheme
            assert np.array_equal(qk.dequantize(again), qk.dequantize(old))


def test_magnitudes_are_exact_where_squares_are_not():
    x = np.array([1e300, -3e300, 1e-300, 5e-324, 0.0, 1.5])
    tops = magnitudes.tops(x, 2)
    assert tops.tolist() == [3e300, 1e-300, 1.5]
    assert magnitudes.means(x, 2, tops) == pytest.approx([2e300, 5e-301, 0.75], rel=1e-15)


@given(
    codes=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    block=st.integers(1, 70),
)
@settings(deadline=None, max_examples=150)
def test_trits_come_back(codes: list[int], block: int):
    given_codes = np.array([*codes, *[0] * (-len(codes) % 8)], np.uint8)
    block = min(block, len(codes))
    packed = np.empty(Trits().size(len(codes), block), np.uint8)
    Trits().pack(given_codes, len(codes), 0, block, packed)
    assert Trits().unpack(packed, 0, len(codes), block).tolist() == codes
    # Five to a byte, the first the lowest digit; each block from a byte on.
    rows = [codes[i : i + block] for i in range(0, len(codes), block)]
    wanted = [
        sum(code * 3**k for k, code in enumerate(row[i : i + 5]))
        for row in rows
        for i in range(0, len(row), 5)
    ]
    assert packed.tolist() == wanted


def test_bytes_that_are_no_trits_are_refused():
    q = qk.quantize(NORMAL[:10], method="seq", num_levels=3)
    data = bytearray(q.to_bytes())
    data[-1] = 250
    with pytest.raises(InvalidInput, match="bytes below 243; got 250"):
        qk.dequantize(QuantizedVector.from_bytes(bytes(data)))


@pytest.mark.parametrize(("method", "num_levels"), SIZES)
def test_any_flipped_byte_is_read_or_refused(method: str, num_levels: int):
    x = NORMAL[:40]
    data = qk.quantize(x, method=method, num_levels=num_levels, block_size=16).to_bytes()
    refused = 0
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x81
        try:
            decoded = qk.dequantize(QuantizedVector.from_bytes(bytes(broken)))
        except QuiverError:
            refused += 1
        else:
            assert np.isfinite(decoded.astype(np.float64)).all()
    assert refused > len(data) // 4


@pytest.mark.parametrize("method", ["seq", "lsq", "sign"])
def test_the_seed_does_not_matter_and_zeros_stay(method: str):
    first, second = (qk.quantize(NORMAL[:99], method=method, seed=seed) for seed in (1, 2))
    assert first.codes.tobytes() == second.codes.tobytes()
    zeros = qk.quantize(np.zeros(9), method=method, block_size=4)
    assert qk.dequantize(zeros).tolist() == [0.0] * 9
    assert zeros.vnmse == 0


@pytest.mark.parametrize("method", ["seq", "lsq", "sign", "pow2", "signed_binary"])
@pytest.mark.parametrize("block", [None, 64])
def test_long_work_looks_whether_to_stop(method: str, block: int | None):
    looks = itertools.count()

    def stop() -> bool:
        return next(looks) >= 12

    with pytest.raises(Stopped), qk.stopping_when(stop):
        qk.quantize(NORMAL, method=method, block_size=block)
    assert next(looks) == 13


def test_wrong_choices_are_named():
    with pytest.raises(InvalidInput, match=r"num_levels of method seq must be .*; got 5"):
        qk.quantize(NORMAL[:9], method="seq", num_levels=5)
    with pytest.raises(InvalidInput, match="one of search, max, mean"):
        qk.quantize(NORMAL[:9], method="lsq", parameters={"scale": "best"})
    with pytest.raises(InvalidInput, match="parameters of method sign are none"):
        qk.quantize(NORMAL[:9], method="sign", parameters={"scale": "mean"})


def test_extreme_values_do_not_overflow():
    for values in ([1e300, -1e300, 3.0], [5e-324, 0.0], [1e-310, -3e-310]):
        x: NDArray[Any] = np.array(values)
        for method, num_levels in SIZES:
            q = qk.quantize(x, method=method, num_levels=num_levels)
            assert math.isfinite(q.vnmse)
            assert np.isfinite(qk.dequantize(q)).all()
            assert scaled.unit_of(x) > 0
