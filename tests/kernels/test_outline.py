"""Loose cells, and the search that begins with them, against tight cells and sorted vectors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quiver_kernels as qk
from hostile import EXTREME, KINDS
from quiver_kernels import options, sharing
from quiver_kernels.cells import Cells, loosened
from quiver_kernels.checks import finite_range
from quiver_kernels.cpu import cells as counting
from quiver_kernels.cpu import chunking, exact, outline, streaming, windows
from quiver_kernels.cpu.windows import Windows
from quiver_kernels.partition import LAYOUTS, Partition
from quiver_kernels.sharded import HeldShards, quantize_shards

Vector = NDArray[Any]
NONE = np.empty(0)
ALL = KINDS | EXTREME
COLUMNS = ("index", "count", "whole", "part", "nearest", "farthest")
RELATIVE = 1e-8


def vector(kind: str, n: int) -> Vector:
    """Values of a kind, squeezed into float32."""
    values = ALL[kind](np.random.default_rng(3), n)
    if np.abs(values).max() > 3e38:
        values = values / 1e271
    if kind == "denormal":
        values = values * 2.0**925
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return values.astype(np.float32)


def pieces(x: Vector, size: int = 150) -> list[tuple[Vector, Vector]]:
    return [(x[start : start + size], NONE) for start in range(0, x.size, size)]


def counted(x: Vector, cells: int) -> tuple[Cells, Cells]:
    """Tight and loose cells of a vector."""
    bounds = finite_range(x)
    partition = Partition.of(bounds.low, bounds.high, cells, LAYOUTS["float32"])
    arguments = (pieces(x), partition, bounds.low, bounds.high)
    return counting.count(*arguments), outline.outline(*arguments)


def check_loose(tight: Cells, loose: Cells) -> None:
    """What is promised of loose rows, from tight ones."""
    bits = tight.partition.layout.offset_bits
    for name in COLUMNS[:4]:
        assert (getattr(loose, name) == getattr(tight, name)).all()
    assert (loose.nearest <= tight.nearest).all()
    assert (loose.farthest >= tight.farthest).all()
    single = (tight.count == 1) | ((tight.whole == 0) & (tight.part == 0))
    assert (loose.known == (loose.nearest == loose.farthest)).all()
    assert loose.known[single].all()
    inner = ~single[1:-1]
    assert (loose.nearest[1:-1][inner] == 0).all()
    assert (loose.farthest[1:-1][inner] == 1 << bits).all()
    assert (loose.low, loose.high) == (tight.low, tight.high)
    assert (loose.maximum[:-1] <= loose.minimum[1:]).all()


@pytest.mark.parametrize("cells", [2, 64, 4096])
@pytest.mark.parametrize("kind", ALL)
def test_loose_rows_are_those_of_the_rule(kind: str, cells: int) -> None:
    for n in (3, 10, 2000):
        tight, loose = counted(vector(kind, n), cells)
        check_loose(tight, loose)
        same = loosened(tight)
        for name in COLUMNS:
            assert (getattr(loose, name) == getattr(same, name)).all(), name
        assert same.loose
        assert loose.loose


def test_threads_give_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = vector("normal", 50_000)
    alone = counted(x, 4096)[1]
    monkeypatch.setattr(outline, "_FULL", 1000)
    with sharing.threads(4):
        together = counted(x, 4096)[1]
    for name in COLUMNS:
        assert (getattr(alone, name) == getattr(together, name)).all()


def test_64_bits_and_weights_stay_tight() -> None:
    x = np.random.default_rng(1).normal(size=500)
    bounds = finite_range(x)
    partition = Partition.of(bounds.low, bounds.high, 64, LAYOUTS["float64"])
    tight = counting.count(pieces(x), partition, bounds.low, bounds.high)
    assert loosened(tight) is tight
    narrow = x.astype(np.float32)
    partition = Partition.of(-10.0, 10.0, 64, LAYOUTS["float32"])
    chunks = [(narrow, np.ones(500))]
    low, high = float(narrow.min()), float(narrow.max())
    weighed = counting.count(chunks, partition, low, high, weighted=True)
    assert loosened(weighed) is weighed


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize("cells", [2, 64, 4096])
@pytest.mark.parametrize("kind", ALL)
def test_windows_hold_the_values_of_their_rows(kind: str, cells: int, loose: bool) -> None:
    rng = np.random.default_rng(5)
    x = vector(kind, 1003)
    x[:7] *= -0.0
    rows = counted(x, cells)[loose]
    index, _ = rows.partition.locate(x)
    for share in (0.02, 0.5, 1.0):
        chosen = rng.random(rows.index.size) < share
        ends = np.flatnonzero(np.diff(chosen.astype(int), prepend=0) == 1)
        found = Windows.of(rows, chosen)
        if ends.size > windows.MOST_WINDOWS:
            assert found is None
            continue
        assert found is not None
        expected = x[np.isin(index, rows.index[chosen])]
        picked = found.pick(x)
        assert np.array_equal(picked, expected)
        assert np.array_equal(np.signbit(picked), np.signbit(expected))


def test_collecting_takes_the_same_with_and_without_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = vector("normal", 5000)
    for rows in counted(x, 256):
        chosen = np.zeros(rows.index.size, np.bool_)
        chosen[[3, 50, 51, 52, 120]] = True
        fast, _ = counting.collect(pieces(x), rows, chosen)
        with monkeypatch.context() as patch:
            patch.setattr(counting, "can_pick", lambda: False)
            slow, _ = counting.collect(pieces(x), rows, chosen)
        assert fast.size == rows.count[chosen].sum()
        assert np.array_equal(np.sort(fast), np.sort(slow))


@pytest.fixture
def outlined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every vector is long enough for loose cells; says which cells were counted."""
    counts: list[str] = []

    def noted(name: str) -> None:
        method = getattr(streaming.ChunkStream, name)

        def call(self: Any, cells: int) -> Any:
            counts.append(name)
            return method(self, cells)

        monkeypatch.setattr(streaming.ChunkStream, name, call)

    monkeypatch.setattr(options, "STREAM_FROM", 0)
    monkeypatch.setattr(chunking, "CHUNK", 1 << 10)
    monkeypatch.setattr(streaming, "OUTLINES", ((256, 256),))
    monkeypatch.setattr(streaming, "OUTLINED", 0)
    noted("outline")
    noted("count")
    return counts


def optimal(x: Vector, num_levels: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """The least error, from the sorted vector."""
    with monkeypatch.context() as patch:
        patch.setattr(options, "STREAM_FROM", 1 << 30)
        return qk.expected_mse(x, qk.optimal_levels(x, num_levels))


@pytest.mark.parametrize("num_levels", [3, 4, 16, 40])
@pytest.mark.parametrize("kind", ["normal", "lognormal", "exponential", "uniform", "outlier"])
def test_levels_are_optimal(
    kind: str, num_levels: int, outlined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("fell back to sorting the vector")

    x = make(kind)
    with monkeypatch.context() as patch:
        patch.setattr(exact, "solve_row", refuse)
        levels = qk.optimal_levels(x, num_levels)
    assert outlined[0] == "outline"
    assert np.isin(levels, x).all()
    assert levels[0] == x.min()
    assert levels[-1] == x.max()
    best = optimal(x, num_levels, monkeypatch)
    assert qk.expected_mse(x, levels) <= best * (1 + RELATIVE)


def make(kind: str, n: int = 20_000) -> Vector:
    rng = np.random.default_rng(11)
    values = {
        "normal": lambda: rng.normal(size=n),
        "lognormal": lambda: rng.lognormal(0, 1, n),
        "exponential": lambda: -rng.exponential(1, n),
        "uniform": lambda: rng.random(n) - 0.5,
        "outlier": lambda: np.append(rng.normal(size=n), 1e4),
        "atoms": lambda: np.round(rng.normal(size=n) * 30) * 0.0123,
    }
    return values[kind]().astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "atoms"])
def test_where_much_is_left_tight_cells_take_over(
    kind: str, outlined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = make(kind)
    monkeypatch.setattr(streaming, "COLLECTED", 100)
    levels = qk.optimal_levels(x, 16)
    assert outlined == ["outline", "count"]
    monkeypatch.setattr(streaming, "OUTLINES", ())
    assert np.array_equal(levels, qk.optimal_levels(x, 16))
    assert outlined[2:] == ["count"]


@pytest.mark.usefixtures("outlined")
def test_shards_have_the_same_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    x = make("lognormal")
    parts = [x[:5000], x[5000:7000], x[7000:]]
    whole = qk.quantize(x, bits=4, seed=1)
    shared = quantize_shards(HeldShards(parts), bits=4, seed=1)
    assert np.array_equal(whole.levels, shared.levels)


def test_forgotten_values_are_noticed(outlined: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    x = make("lognormal")
    whole = outline._Outliner.add

    def forgetful(table: Any, values: Vector) -> None:
        ends = (values == x.min()) | (values == x.max())
        whole(table, values[ends | (np.arange(values.size) % 2 == 0)])

    monkeypatch.setattr(outline._Outliner, "add", forgetful)
    levels = qk.optimal_levels(x, 16)
    assert outlined[0] == "outline"
    assert qk.expected_mse(x, levels) > optimal(x, 16, monkeypatch) * (1 + 1e-6)


def test_a_window_that_is_too_narrow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = vector("normal", 5000)
    rows = counted(x, 256)[1]
    chosen = np.zeros(rows.index.size, np.bool_)
    chosen[100:104] = True
    found = Windows.of(rows, chosen)
    assert found is not None
    narrow = Windows(found.low + np.float32(0.01), found.high)
    assert narrow.pick(x).size < found.pick(x).size == rows.count[chosen].sum()
