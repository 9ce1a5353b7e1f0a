"""Tables with scales against plain NumPy, value by value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype
from quiver_kernels.errors import InvalidInput
from quiver_kernels.packing import unpack_codes
from quiver_kernels.schemes import scaled
from quiver_kernels.schemes.contract import Choice, Coded
from quiver_kernels.sharing import threads

TABLES = {
    "ternary": np.array([-2 / 3, 0, 2 / 3]),
    "whole": np.arange(-8.0, 8.0),
    "uneven": np.array([-1.0, -0.1, 0.0, 0.4, 0.41, 2.0, 3.0]),
    "many": np.sinh(np.linspace(-2, 2, 200)),
}


def scales_of(x: NDArray[Any], block: int, dtype: str) -> NDArray[Any]:
    tops = [float(np.abs(x[i : i + block]).max()) for i in range(0, x.size, block)]
    return scaled.scales_from(0.6 * np.array(tops), dtype)


def coded_of(
    rounded: scaled.Rounded, x: NDArray[Any], scales: NDArray[Any], table: Any, block: int | None
) -> Coded:
    empty = np.empty(0, levels_dtype(x.dtype.name))
    choice = Choice(table.size, block)
    return Coded(x.size, x.dtype.name, choice, 5, empty, rounded.codes, {"scales": scales})


def codes_by_hand(x: float, row: list[float], ties_up: NDArray[np.bool_]) -> int:
    """The nearest entry, the lowest of equal ones but where a tie goes up."""
    distances = [abs(x - level) for level in row]
    best = min(range(len(row)), key=lambda k: distances[k])
    while (
        best + 1 < len(row)
        and (row[best + 1] == row[best] or distances[best + 1] == distances[best])
        and (row[best + 1] == row[best] or ties_up[best])
    ):
        best += 1
    return best


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", WIRE_DTYPES)
@pytest.mark.parametrize("block", [None, 1, 7, 64])
def test_nearest_takes_the_nearest(name: str, dtype: str, block: int | None):
    table = TABLES[name]
    rng = np.random.default_rng(1)
    x = rng.standard_t(3, 300).astype(WIRE_DTYPES[dtype])
    scales = scales_of(x, block or 300, dtype)
    rounded = scaled.encode(x, table, scales, block, 5, nearest=True)
    coded = coded_of(rounded, x, scales, table, block)
    scaled.check_sizes(coded)
    decoded = scaled.decode(coded, table)

    rows = scaled.decoded_rows(table, scales, dtype).astype(np.float64)
    rows = rows[np.arange(x.size) // (block or 300)]
    wide = x.astype(np.float64)
    assert decoded.dtype == x.dtype
    assert np.array_equal(
        np.abs(rows - wide[:, np.newaxis]).min(axis=1), np.abs(decoded.astype(np.float64) - wide)
    )
    error = math.fsum((decoded.astype(np.float64) - wide) ** 2) / math.fsum(wide**2)
    assert rounded.vnmse == pytest.approx(error, rel=1e-12)


@given(
    row=st.lists(st.integers(-20, 20), min_size=2, max_size=9, unique=True).map(sorted),
    up=st.lists(st.booleans(), min_size=8, max_size=8),
    x=st.lists(st.integers(-90, 90), min_size=1, max_size=40),
)
@settings(deadline=None, max_examples=150)
def test_ties_go_where_they_are_told(row: list[int], up: list[bool], x: list[int]):
    table, ties = np.array(row, float), np.array(up[: len(row) - 1])
    values = np.array(x, np.float32) / 4
    rounded = scaled.encode(
        values, table, np.ones(1, np.float32), None, 0, nearest=True, ties_up=ties
    )
    codes = unpack_codes(rounded.codes, values.size, (table.size - 1).bit_length())
    wanted = [codes_by_hand(float(v), [float(level) for level in row], ties) for v in values]
    assert codes.tolist() == wanted


def test_ties_to_even_count_from_the_lowest():
    assert scaled.ties_to_even(4, -2).tolist() == [False, True, False]
    assert scaled.ties_to_even(3, -1).tolist() == [True, False]


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_random_rounding_has_no_bias_within_the_table(dtype: str):
    table = TABLES["uneven"]
    x = np.linspace(-0.55, 1.7, 41).astype(WIRE_DTYPES[dtype])
    scales = np.full(1, 0.6, levels_dtype(dtype))
    many = np.tile(x, 20_000)
    rounded = scaled.encode(many, table, scales, None, 3, nearest=False)
    decoded = scaled.decode(coded_of(rounded, many, scales, table, None), table)
    decoded = decoded.astype(np.float64).reshape(-1, x.size)
    spread = decoded.std(axis=0) / math.sqrt(len(decoded)) + 1e-9
    assert (np.abs(decoded.mean(axis=0) - x.astype(np.float64)) < 5 * spread).all()
    measured = ((decoded - x.astype(np.float64)) ** 2).sum() / (
        len(decoded) * (x.astype(np.float64) ** 2).sum()
    )
    assert rounded.vnmse == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("nearest", [True, False])
def test_values_beyond_the_table_become_its_ends(nearest: bool):
    x = np.array([-9.0, -2.0, 5.0], np.float32)
    rounded = scaled.encode(
        x, np.array([-1.0, 1.0]), np.full(1, 2, np.float32), None, 1, nearest=nearest
    )
    assert unpack_codes(rounded.codes, 3, 1).tolist() == [0, 0, 1]
    assert rounded.vnmse == pytest.approx((49 + 9) / (81 + 4 + 25))


@pytest.mark.parametrize("block", [3, 4000, 300_000, None])
@pytest.mark.parametrize("nearest", [True, False])
def test_threads_and_parts_change_nothing(block: int | None, nearest: bool):
    x = np.random.default_rng(2).standard_normal(700_001).astype(np.float32)
    table = TABLES["whole"]
    scales = np.full(1 if block is None else -(-x.size // block), 0.3, np.float32)
    alone = scaled.encode(x, table, scales, block, 9, nearest=nearest)
    with threads(3):
        shared = scaled.encode(x, table, scales, block, 9, nearest=nearest)
        decoded = scaled.decode(coded_of(shared, x, scales, table, block), table)
    assert alone.codes.tobytes() == shared.codes.tobytes()
    assert (alone.error, alone.norm) == (shared.error, shared.norm)
    levels = table * float(scales[0])
    # One scale: blocks change nothing but where bytes begin.
    whole = scaled.encode(x, table, scales[:1], None, 9, nearest=nearest)
    codes = unpack_codes(whole.codes, x.size, 4)
    assert np.array_equal(decoded, levels[codes].astype(np.float32))


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_numpy_alone_decodes_the_same(monkeypatch: pytest.MonkeyPatch, dtype: str):
    x = np.random.default_rng(3).standard_normal(1000).astype(WIRE_DTYPES[dtype])
    for block in (None, 5, 333):
        scales = scales_of(x, block or 1000, dtype)
        rounded = scaled.encode(x, TABLES["whole"], scales, block, 1, nearest=True)
        coded = coded_of(rounded, x, scales, TABLES["whole"], block)
        fast = scaled.decode(coded, TABLES["whole"])
        with monkeypatch.context() as patch:
            patch.setattr(scaled, "has_numba", lambda: False)
            slow = scaled.decode(coded, TABLES["whole"])
        assert fast.tobytes() == slow.tobytes()


def test_decoded_values_are_finite_whatever_the_scale():
    rows = scaled.decoded_rows(np.array([-8.0, 0.0, 7.0]), np.full(1, 3e38, np.float32), "float32")
    top = float(np.finfo(np.float32).max)
    assert rows.tolist() == [[-top, 0.0, top]]
    assert not np.signbit(rows[0, 1])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"codes": np.zeros(3, np.uint8)}, "codes"),
        ({"codes": np.full(8, 255, np.uint8)}, None),
        ({"levels": np.zeros(3, np.float32)}, "levels"),
        ({"side": {}}, "side"),
        ({"side": {"scales": np.ones(2, np.float32), "more": np.ones(1, np.float32)}}, "side"),
        ({"side": {"scales": np.ones(2, np.float64)}}, "side.scales"),
        ({"side": {"scales": np.ones(3, np.float32)}}, "side.scales"),
        ({"side": {"scales": np.array([1, -1], np.float32)}}, "side.scales"),
        ({"side": {"scales": np.array([1, np.nan], np.float32)}}, "side.scales"),
        ({"size": 2**60}, "side.scales"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], field: str | None):
    parts: dict[str, Any] = {
        "size": 16,
        "dtype": "float32",
        "choice": Choice(16, 8),
        "seed": 0,
        "levels": np.empty(0, np.float32),
        "codes": np.zeros(8, np.uint8),
        "side": {"scales": np.ones(2, np.float32)},
    }
    scaled.check_sizes(Coded(**parts))
    broken = Coded(**parts | changes)
    if field is None:
        # All codes of 4 bits are entries of this table.
        scaled.check_sizes(broken)
        return
    with pytest.raises(InvalidInput) as caught:
        scaled.check_sizes(broken)
    assert caught.value.field == field


def test_codes_beyond_the_table_are_refused():
    codes = np.full(2, 0b11, np.uint8)
    coded = Coded(
        4, "float32", Choice(3), 0, np.empty(0), codes[:1], {"scales": np.ones(1, np.float32)}
    )
    with pytest.raises(InvalidInput, match="below num_levels=3; got 3"):
        scaled.decode(coded, TABLES["ternary"])
