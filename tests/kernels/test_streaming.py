"""Exact levels in passes over chunks: the same optimum as from the sorted vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_kernels import options
from quiver_kernels.cpu import cells as counting
from quiver_kernels.cpu import chunking, exact, streaming

Floats = NDArray[np.float64]
SIZE = 20_000
# Both searches prove a relative gap of at most 1e-8 and reach far less (docs/numerics.md).
RELATIVE = 1e-9
# Where values span many orders of magnitude, rounding of the costs' largest terms ends the search.
ROUNDED = {"wide": 1e-6}


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, coarse cells, few values at once, and every vector long enough to stream."""
    monkeypatch.setattr(options, "STREAM_FROM", 0)
    monkeypatch.setattr(chunking, "CHUNK", 1 << 10)
    monkeypatch.setattr(streaming, "CELLS", ((256, 256),))
    monkeypatch.setattr(streaming, "COLLECTED", 1 << 12)


@pytest.fixture
def never_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the vector is sorted as a whole after all."""

    def refuse(*_: object) -> Any:
        raise AssertionError("fell back to sorting the vector")

    monkeypatch.setattr(exact, "solve_row", refuse)


def kinds() -> Iterator[tuple[str, Floats]]:
    rng = np.random.default_rng(11)
    yield "normal", rng.normal(size=SIZE)
    yield "lognormal", rng.lognormal(0, 1, SIZE)
    yield "exponential", rng.exponential(1, SIZE)
    yield "student", rng.standard_t(2, SIZE)
    yield "wide", rng.lognormal(0, 5, SIZE)
    yield "outlier", np.append(rng.normal(size=SIZE), 1e6)
    yield "two outliers", np.append(rng.normal(size=SIZE), [1e6, -1e6])
    yield "offset", 1e7 + rng.normal(size=SIZE)
    yield "integers", rng.integers(0, 3000, SIZE).astype(float)
    yield "atom", np.where(rng.random(SIZE) < 0.9, 0.5, rng.normal(size=SIZE))
    yield "sorted", np.sort(rng.normal(size=SIZE))
    yield "reversed", np.sort(rng.normal(size=SIZE))[::-1].copy()
    yield "cluster", np.where(rng.random(SIZE) < 0.9, 1e-3, 1.0) * rng.random(SIZE)


KINDS = dict(kinds())


def cost(x: Floats, levels: Floats, weights: Floats | None = None) -> float:
    return qk.expected_mse(x, levels, weights)


@pytest.mark.parametrize("num_levels", [3, 4, 16, 64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("streamed", "never_sorted")
def test_equals_the_sorted_form(
    kind: str, num_levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = KINDS[kind]
    levels = qk.optimal_levels(x, num_levels)
    monkeypatch.undo()
    assert levels[0] == x.min()
    assert levels[-1] == x.max()
    assert np.isin(levels, x).all()
    allowed = ROUNDED.get(kind, RELATIVE)
    assert cost(x, levels) <= cost(x, qk.optimal_levels(x, num_levels)) * (1 + allowed)


@pytest.mark.parametrize("num_levels", [3, 4, 16, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_of_the_sorted_vector_give_the_same(
    kind: str, num_levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = KINDS[kind]
    monkeypatch.setattr(exact, "DIRECT", 1 << 20)
    best = qk.optimal_levels(x, num_levels)
    monkeypatch.setattr(exact, "DIRECT", 0)
    monkeypatch.setattr(exact, "certified_path", None)
    levels = qk.optimal_levels(x, num_levels)
    assert np.isin(levels, x).all()
    assert cost(x, levels) <= cost(x, best) * (1 + ROUNDED.get(kind, RELATIVE))


@pytest.mark.parametrize("kind", ["normal", "outlier", "integers"])
@pytest.mark.usefixtures("streamed", "never_sorted")
def test_weights(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = KINDS[kind]
    weights = np.random.default_rng(5).choice([0.0, 0.5, 1.0, 7.0], x.size)
    levels = qk.optimal_levels(x, 12, weights=weights)
    monkeypatch.undo()
    best = qk.optimal_levels(x, 12, weights=weights)
    assert cost(x, levels, weights) <= cost(x, best, weights) * (1 + RELATIVE)


@pytest.mark.usefixtures("streamed", "never_sorted")
def test_several_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    x = KINDS["lognormal"]
    passes = []
    refine = counting.refine

    def counted(*arguments: Any) -> Any:
        passes.append(1)
        return refine(*arguments)

    monkeypatch.setattr(streaming, "COLLECTED", 100)
    monkeypatch.setattr(streaming, "_MAX_PIECES", 1 << 10)
    monkeypatch.setattr(counting, "refine", counted)
    levels = qk.optimal_levels(x, 16)
    monkeypatch.undo()
    assert len(passes) > 1
    assert cost(x, levels) <= cost(x, qk.optimal_levels(x, 16)) * (1 + RELATIVE)


@pytest.mark.usefixtures("streamed")
def test_the_order_of_values_does_not_matter() -> None:
    x = KINDS["normal"]
    shuffled = np.random.default_rng(3).permutation(x)
    a, b = qk.optimal_levels(x, 16), qk.optimal_levels(shuffled, 16)
    assert cost(x, a) == pytest.approx(cost(x, b), rel=RELATIVE)


@pytest.mark.usefixtures("streamed")
def test_few_distinct_values_are_all_levels() -> None:
    x = np.tile([3.0, -1.0, 2.0], 5000)
    assert qk.optimal_levels(x, 8).tolist() == [-1, 2, 3, 3, 3, 3, 3, 3]
    assert qk.optimal_levels(np.full(9000, 4.0), 8).tolist() == [4.0] * 8


@pytest.mark.usefixtures("streamed", "never_sorted")
def test_wrong_sums_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = KINDS["lognormal"]
    count = counting.count

    def forgetful(chunks: counting.Chunks, *rest: Any, **options: Any) -> Any:
        halves = [(chunks[i][0][::2], chunks[i][1]) for i in range(len(chunks))]
        return count(halves, *rest, **options)

    monkeypatch.setattr(counting, "count", forgetful)
    levels = qk.optimal_levels(x, 16)
    monkeypatch.undo()
    assert cost(x, levels) > cost(x, qk.optimal_levels(x, 16)) * (1 + 1e-6)


def test_long_vectors_are_streamed_in_little_memory() -> None:
    x = np.random.default_rng(1).normal(size=options.STREAM_FROM + 7).astype(np.float32)
    levels = qk.optimal_levels(x, 16)
    best = exact.solve_row(np.sort(x), np.empty(0), 0.125, 16, accelerated=False)
    assert cost(x, levels) <= cost(x, best) * (1 + RELATIVE)


@pytest.mark.usefixtures("streamed", "never_sorted")
def test_rare_values_beside_a_few_frequent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    x = rng.choice([-1.0, 0.0, 1.0], 30_000)
    x[rng.choice(x.size, 40, replace=False)] = rng.uniform(-1, 1, 40)
    levels = qk.optimal_levels(x, 8)
    monkeypatch.undo()
    assert cost(x, levels) <= cost(x, qk.optimal_levels(x, 8)) * (1 + RELATIVE)


@pytest.mark.usefixtures("streamed")
def test_a_proof_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x = KINDS["lognormal"]
    monkeypatch.setattr(exact, "accepted", lambda _: False)
    levels = qk.optimal_levels(x, 16)
    monkeypatch.undo()
    assert levels.tolist() == qk.optimal_levels(x, 16).tolist()
