"""Cells of a vector against slow sums over exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hostile import EXTREME, KINDS
from quiver_kernels.cells import Cells, Cut, coarsen, merge, times
from quiver_kernels.cpu import cells as counting
from quiver_kernels.partition import LAYOUTS, Partition, layout_of

Vector = NDArray[Any]
NONE = np.empty(0)
COLUMNS = ("index", "count", "whole", "part", "nearest", "farthest")
TYPES = (np.float32, np.float64)
ALL = KINDS | EXTREME | {"constant": lambda _, n: np.full(n, -0.99999)}
# A quotient of exact sums is rounded twice (docs of `Cells.above`).
ROUNDING = 2.0**-51


def vector(kind: str, dtype: type, n: int = 500) -> Vector:
    """Values of a kind, squeezed into the type's range."""
    rng = np.random.default_rng(3)
    values = ALL[kind](rng, n)
    if dtype is np.float32 and np.abs(values).max() > 3e38:
        values = values / 1e271
    if dtype is np.float32 and kind == "denormal":
        values = values * 2.0**925
    with np.errstate(under="ignore"):
        return values.astype(dtype)


def pieces(x: Vector, weights: Vector, size: int = 150) -> list[tuple[Vector, Vector]]:
    """Chunks of a vector and its weights."""
    return [
        (x[start : start + size], weights[start : start + size] if weights.size else weights)
        for start in range(0, x.size, size)
    ]


def partition_of(x: Vector, cells: int = 64) -> Partition:
    return Partition.of(float(x.min()), float(x.max()), cells, layout_of(x.dtype))


def counted(x: Vector, cells: int = 64, weights: Vector = NONE) -> Cells:
    low, high = float(x.min()), float(x.max())
    chunks = pieces(x, weights)
    return counting.count(chunks, partition_of(x, cells), low, high, weighted=weights.size > 0)


def width_of(value: float, partition: Partition) -> Fraction:
    """The rule of the partition, word by word."""
    uniform = Fraction(2) ** partition.exponent
    least = 1 - partition.layout.bias
    binade = max(math.frexp(value)[1] - 1, least) if value else least
    return min(uniform, Fraction(2) ** (binade - 7))


def slowly(x: Vector, partition: Partition) -> list[list[float]]:
    """The values of each cell, cells ascending."""
    found: dict[tuple[bool, Fraction, int], list[float]] = {}
    for value in x.tolist():
        width = width_of(value, partition)
        number = abs(Fraction(value)) // width
        found.setdefault((value < 0, number * width, number), []).append(value)
    return sorted(found.values(), key=min)


def check_rows(cells: Cells, groups: list[list[float]]) -> None:
    assert cells.count.tolist() == [len(group) for group in groups]
    assert cells.minimum.tolist() == [min(group) for group in groups]
    assert cells.maximum.tolist() == [max(group) for group in groups]
    # Times a power of two that keeps sums of huge values within float64.
    above, below = cells.above(-60), cells.below(-60)
    for row, group in enumerate(groups):
        values = [Fraction(value) for value in group]
        for got, exact in (
            (above[row], sum(value - min(values) for value in values)),
            (below[row], sum(max(values) - value for value in values)),
        ):
            scaled = exact / 2**60
            assert abs(Fraction(got) - scaled) <= scaled * Fraction(ROUNDING) + Fraction(5e-324)


def same(a: Cells, b: Cells) -> bool:
    return a.partition == b.partition and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS
    )


@pytest.mark.parametrize("cells", [2, 64, 4096])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ALL)
def test_rows_are_those_of_the_rule(kind: str, dtype: type, cells: int) -> None:
    x = vector(kind, dtype)
    check_rows(counted(x, cells), slowly(x, partition_of(x, cells)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ALL)
def test_kernel_and_partition_agree_and_lose_nothing(kind: str, dtype: type) -> None:
    x = vector(kind, dtype)
    partition = partition_of(x)
    index, offset = partition.locate(x)
    found = counting.Rows(partition, float(x.min()), float(x.max())).locate(x)
    assert np.array_equal(found[0], index)
    assert np.array_equal(found[1], offset)
    assert np.array_equal(partition.value(index, offset), x.astype(np.float64))
    order = np.argsort(x)
    assert (np.diff(index[order]) >= 0).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ALL)
def test_the_width_is_the_least_that_suffices(kind: str, dtype: type) -> None:
    x = vector(kind, dtype)
    for cells in (2, 100, 4096):
        partition = partition_of(x, cells)
        steps = [
            math.floor(Fraction(float(x.max())) / Fraction(2) ** e)
            - math.floor(Fraction(float(x.min())) / Fraction(2) ** e)
            for e in (partition.exponent, partition.exponent - 1)
        ]
        largest = math.frexp(float(np.abs(x).max()))[1] - 1
        layout = partition.layout
        finest = max(largest - layout.mantissa, 1 - layout.bias)
        assert steps[0] < cells
        assert steps[1] >= cells or partition.exponent == finest


@settings(deadline=None, max_examples=500)
@given(
    values=st.lists(
        st.floats(allow_nan=False, allow_infinity=False, width=32)
        | st.floats(-1.015625, -0.984375, width=32),
        min_size=4,
        max_size=4,
    ),
    cells=st.integers(2, 5000),
    name=st.sampled_from(sorted(LAYOUTS)),
)
def test_a_part_never_has_wider_cells(values: list[float], cells: int, name: str) -> None:
    low, inner, other, high = sorted(values)
    whole = Partition.of(low, high, cells, LAYOUTS[name])
    for part in ((low, inner), (inner, other), (inner, inner), (low, low), (high, high)):
        assert Partition.of(*part, cells, LAYOUTS[name]).exponent <= whole.exponent


def test_zero_has_no_sign() -> None:
    for dtype in TYPES:
        x = np.array([-0.0, 0.0, -1.0, 1.0], dtype)
        cells = counted(x)
        assert cells.count.tolist() == [1, 2, 1]
        assert not np.signbit(cells.minimum[1])
        assert same(cells, counted(np.abs(x) * np.array([1, 1, -1, 1], dtype)))


@pytest.mark.parametrize("dtype", TYPES)
def test_sums_are_carried(dtype: type) -> None:
    # The largest offsets of a cell, more of them than 63 bits hold for float64.
    edge = np.nextafter(dtype(2), dtype(0))
    x = np.full((1 << 18) + 5, edge)
    cells = counting.count([(x, NONE)] * 9, partition_of(x), float(edge), float(edge))
    values = 9 * x.size
    bits = cells.partition.layout.offset_bits
    exact = values * int(cells.nearest[0])
    assert (int(cells.whole[0]) << bits) + int(cells.part[0]) == exact
    assert cells.above()[0] == cells.below()[0] == 0


@settings(deadline=None, max_examples=300)
@given(
    count=st.integers(0, 2**40 - 1),
    factor=st.integers(0, 2**45 - 1),
)
def test_products_are_exact(count: int, factor: int) -> None:
    for bits in (16, 45):
        whole, part = times(np.array([count]), np.array([factor % 2**bits]), bits)
        assert (int(whole[0]) << bits) + int(part[0]) == count * (factor % 2**bits)
        assert 0 <= part[0] < 2**bits


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ALL)
def test_coarser_cells_are_sums_of_finer_ones(kind: str, dtype: type) -> None:
    x = vector(kind, dtype)
    fine = counted(x, 4096)
    for cells in (4096, 1000, 64, 2):
        partition = partition_of(x, cells)
        assert same(coarsen(fine, partition), counted(x, cells))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ALL)
def test_parts_merge_to_the_whole(kind: str, dtype: type) -> None:
    x = vector(kind, dtype)
    rng = np.random.default_rng(1)
    parts = np.split(rng.permutation(x), np.sort(rng.integers(1, x.size, 5)))
    cells = [counted(part) for part in parts if part.size]
    rng.shuffle(cells)
    assert same(merge(cells), counted(x))
    assert same(merge([merge(cells[:2]), *cells[2:]]), counted(x))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ALL)
def test_chosen_rows_are_collected_and_refined(kind: str, dtype: type) -> None:
    x = vector(kind, dtype)
    cells = whole = counted(x, 16)
    rng = np.random.default_rng(2)
    for bits in (2, 5, 3):
        chosen = rng.random(cells.index.size) < 0.7
        chosen[rng.integers(chosen.size)] = True
        values, _ = counting.collect(pieces(x, NONE), cells, chosen)
        lows, highs = cells.minimum[chosen], cells.maximum[chosen]
        inside = ((x[:, None] >= lows) & (x[:, None] <= highs)).any(axis=1)
        assert np.array_equal(values, x[inside])
        before, cells = cells, counting.refine(pieces(x, NONE), cells, chosen, bits)
        assert cells.index.size >= before.index.size
        bounds = zip(cells.minimum, cells.maximum, strict=True)
        check_rows(cells, [x[(x >= low) & (x <= high)].tolist() for low, high in bounds])
        assert cells.size == x.size
        assert (cells.minimum[1:] > cells.maximum[:-1]).all()
    assert same(coarsen(cells, whole.partition), whole)


@pytest.mark.parametrize("dtype", TYPES)
def test_refining_ends_at_single_values(dtype: type) -> None:
    x = vector("normal", dtype)
    cells = counted(x, 16)
    for _ in range(12):
        cells = counting.refine(pieces(x, NONE), cells, ~cells.known, 6)
        if cells.known.all():
            break
    ends = np.concatenate([cells.minimum, cells.maximum])
    assert np.array_equal(np.unique(ends), np.unique(x).astype(np.float64))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["normal", "offset 1e7", "integers", "outlier 1e6"])
def test_weights(kind: str, dtype: type) -> None:
    x = vector(kind, dtype)
    weights = np.random.default_rng(5).choice([0.0, 0.5, 1.0, 7.0], x.size)
    weights[[np.argmin(x), np.argmax(x)]] = 0.0
    cells = counted(x, 64, weights)
    for _ in range(3):
        assert cells.minimum[0] == x.min()
        assert cells.maximum[-1] == x.max()
        assert cells.size == np.count_nonzero(weights)
        above, below = cells.above(), cells.below()
        for row, (low, high) in enumerate(zip(cells.minimum, cells.maximum, strict=True)):
            inside = (x >= low) & (x <= high)
            heavy, values = weights[inside], x[inside].astype(np.float64)
            noise = 1e-13 * heavy.sum() * float(width_of(high, cells.partition))
            assert cells.mass[row] == heavy.sum()
            assert above[row] == pytest.approx((heavy * (values - low)).sum(), abs=noise)
            assert below[row] == pytest.approx((heavy * (high - values)).sum(), abs=noise)
            ends = {x.min(), x.max(), *values[heavy > 0]}
            assert {low, high} <= ends
        chosen = ~cells.known
        got, got_weights = counting.collect(pieces(x, weights), cells, chosen)
        assert (got_weights > 0).all()
        assert got_weights.sum() == pytest.approx(cells.mass[chosen].sum())
        assert got.size == cells.count[chosen].sum()
        cells = counting.refine(pieces(x, weights), cells, chosen, 3)


def test_values_that_were_not_counted_are_in_no_row() -> None:
    x = vector("normal", np.float32)
    cells = counted(x)
    cut = Cut.of(cells, cells.count > 1, 4)
    inner = np.sort(x)[1:-1]
    between = ((inner[1:] + inner[:-1]) / 2).astype(np.float32)
    found = counting.count_pieces([(between, NONE)], cut)
    lows, highs = cells.minimum[cells.count > 1], cells.maximum[cells.count > 1]
    assert found.size == ((between[:, None] >= lows) & (between[:, None] <= highs)).sum()


def test_a_forgotten_value_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = vector("normal", np.float32)
    tally = counting.count_cells

    def forgetful(values: Vector, bits: Vector, *rest: Any) -> None:
        tally(values[1:], bits[1:], *rest)

    monkeypatch.setattr(counting, "count_cells", forgetful)
    with pytest.raises(AssertionError):
        check_rows(counted(x), slowly(x, partition_of(x)))


def test_sums_in_float_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = vector("offset 1e7", np.float64)

    def rounded(cells: Cells, exponent: int = 0) -> NDArray[np.float64]:
        groups = slowly(x, cells.partition)
        sums = [math.fsum(group) - len(group) * min(group) for group in groups]
        return np.ldexp(np.array(sums), exponent)

    monkeypatch.setattr(Cells, "above", rounded)
    with pytest.raises(AssertionError):
        check_rows(counted(x), slowly(x, partition_of(x)))


def test_layouts_are_those_of_the_types() -> None:
    for layout in LAYOUTS.values():
        info = np.finfo(layout.dtype)
        assert layout.mantissa == info.nmant
        assert layout.bias == info.maxexp - 1
