"""The multiple-choice knapsack: against all combinations, its bounds, and where work is limited."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiver_kernels import allocation
from quiver_kernels.allocation import Allocation, Choice, allocate
from quiver_kernels.errors import InvalidInput

Items = Sequence[Sequence[Choice]]

numbers = st.integers(0, 12)
errors = st.one_of(numbers.map(float), st.floats(0, 10))
choices = st.builds(Choice, nbytes=numbers, error=errors)
problems = st.lists(st.lists(choices, min_size=1, max_size=4), min_size=0, max_size=5)


def totals(items: Items) -> list[tuple[int, float]]:
    """Bytes and error of every combination: slow and obvious."""
    return [
        (sum(c.nbytes for c in taken), math.fsum(c.error for c in taken))
        for taken in itertools.product(*items)
    ]


def check(items: Items, found: Allocation) -> None:
    """The result says what it is."""
    taken = [item[k] for item, k in zip(items, found.chosen, strict=True)]
    assert found.nbytes == sum(c.nbytes for c in taken)
    assert found.error == math.fsum(c.error for c in taken)


@given(problems, st.data())
def test_least_error_within_a_number_of_bytes(items: Items, data: st.DataObject):
    every = totals(items)
    limit = data.draw(st.integers(min(b for b, _ in every), max(b for b, _ in every)))
    found = allocate(items, max_bytes=limit)
    best = min(error for nbytes, error in every if nbytes <= limit)

    check(items, found)
    assert found.optimal
    assert found.nbytes <= limit
    assert found.error == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert found.bound == pytest.approx(best, rel=1e-9, abs=1e-12)


@given(problems, st.floats(1, 3))
def test_fewest_bytes_within_an_error(items: Items, factor: float):
    every = totals(items)
    limit = min(error for _, error in every) * factor + 1e-9
    found = allocate(items, max_error=limit)
    best = min(nbytes for nbytes, error in every if error <= limit)

    check(items, found)
    assert found.optimal
    assert found.error <= limit * (1 + 1e-9)
    assert found.nbytes == found.bound == best


def curves(count: int, seed: int) -> list[list[Choice]]:
    """Like the error curves of tensors: sizes and scales that differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        size, scale = int(2 ** rng.uniform(10, 22)), 10 ** rng.uniform(-4, 1)
        found.append(
            [
                Choice(
                    size * bits // 8 + 4 * 2**bits + 150,
                    float(size * scale * 3 * 4.0**-bits * rng.uniform(0.8, 1.2)),
                )
                for bits in range(1, 9)
            ]
            + [Choice(4 * size, 0.0)]
        )
    return found


@pytest.mark.parametrize("count", [3, 6])
def test_error_curves_against_all_combinations(count: int):
    items = [item[::2] for item in curves(count, count)]
    every = totals(items)
    for share in (0.15, 0.3, 0.7):
        limit = int(share * max(nbytes for nbytes, _ in every))
        found = allocate(items, max_bytes=limit)
        best = min(error for nbytes, error in every if nbytes <= limit)
        assert found.error == pytest.approx(best, rel=1e-12)


def test_a_greedy_choice_is_not_enough():
    """The control: the walk along the hulls alone misses what the search finds."""
    items = [[Choice(0, 10.0), Choice(5, 6.0)], [Choice(0, 10.0), Choice(6, 5.0)]]
    items[0].append(Choice(6, 5.5))
    sizes = [np.array([c.nbytes for c in item], float) for item in items]
    costs = [np.array([c.error for c in item]) for item in items]
    missed = 0
    for seed in range(20):
        problem = curves(12, seed)
        sizes = [np.array([c.nbytes for c in item], float) for item in problem]
        costs = [np.array([c.error for c in item]) for item in problem]
        limit = sum(item[3].nbytes for item in problem)
        greedy = allocation._Relaxation.of(costs, sizes, float(limit))
        found = allocate(problem, max_bytes=limit)
        assert found.optimal
        assert found.error <= greedy.cost * (1 + 1e-12)
        missed += found.error < greedy.cost * (1 - 1e-9)
    assert missed >= 5


def test_many_items_are_solved_and_beat_equal_bits():
    items = curves(300, 1)
    equal = sum(item[3].nbytes for item in items)
    found = allocate(items, max_bytes=equal)

    assert found.optimal
    assert found.nbytes <= equal
    assert found.error < 0.1 * sum(item[3].error for item in items)
    # The same error takes fewer bytes, too.
    reverse = allocate(items, max_error=found.error)
    assert reverse.nbytes <= found.nbytes
    assert reverse.optimal


def test_where_work_is_limited_the_gap_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocation, "_WORK", 500)
    monkeypatch.setattr(allocation, "_FEW_STATES", 2)
    hurried = 0
    for seed in range(6):
        items = curves(60, seed)
        limit = sum(item[3].nbytes for item in items) + 1000
        best = allocate(items, max_bytes=limit, states=1 << 16)
        few = allocate(items, max_bytes=limit, states=2)
        with monkeypatch.context() as full:
            full.setattr(allocation, "_WORK", 1 << 30)
            best = allocate(items, max_bytes=limit, states=1 << 20)
        assert best.optimal
        assert few.bound <= best.error * (1 + 1e-12) <= few.error * (1 + 2e-12)
        assert few.optimal == (few.bound == few.error)
        assert few.error <= 1.01 * best.error
        hurried += not few.optimal
    assert hurried >= 3


def test_the_same_problem_has_the_same_answer():
    items = curves(80, 3)
    limit = sum(item[2].nbytes for item in items)
    assert allocate(items, max_bytes=limit) == allocate(items, max_bytes=limit)
    # Equal items are no trouble.
    same = [items[0]] * 40
    found = allocate(same, max_bytes=40 * items[0][3].nbytes)
    assert found.optimal


@pytest.mark.parametrize(
    ("items", "limits", "match"),
    [
        ([], {}, "max_bytes or max_error"),
        ([], {"max_bytes": 1, "max_error": 1.0}, "max_bytes or max_error"),
        ([[]], {"max_bytes": 1}, r"items\[0\] must have at least one"),
        ([[Choice(-1, 0.0)]], {"max_bytes": 1}, r"nbytes of items\[0\]"),
        ([[Choice(1, math.nan)]], {"max_bytes": 1}, r"error of items\[0\]"),
        ([[Choice(1, math.inf)]], {"max_bytes": 1}, r"error of items\[0\]"),
        ([[Choice(5, 1.0)], [Choice(6, 0.0)]], {"max_bytes": 10}, "at least 11"),
        ([[Choice(5, 1.5)]], {"max_error": 1.0}, "at least 1.5"),
        ([[Choice(5, 1.5)]], {"max_error": math.nan}, "at least"),
    ],
)
def test_what_is_refused(items: Items, limits: dict[str, float], match: str):
    with pytest.raises(InvalidInput, match=match):
        allocate(items, **limits)


def test_a_limit_that_is_a_sum_is_kept_by_that_sum():
    """However its terms were added up."""
    items = curves(30, 7)
    for bits in range(8):
        for order in (items, items[::-1]):
            limit = sum(item[bits].error for item in order)
            found = allocate(items, max_error=limit)
            assert found.nbytes <= sum(item[bits].nbytes for item in items)


def test_nothing_to_choose():
    assert allocate([], max_bytes=0) == Allocation((), 0, 0.0, 0.0, True)
