"""The solvers find the optimum: exhaustive search in exact arithmetic says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support import brute
from tests.support.hostile import EXTREME, KINDS, weights_of
from tests.support.strategies import level_counts, properties, weighted_vectors

import quiver_kernels as qk
from quiver_kernels import options
from quiver_kernels.cpu import chunking, exact, ordered, solving, streaming
from quiver_kernels.dispatch import Backend
from quiver_kernels.options import QuantizeOptions

# The returned table may cost this much more than the optimum, relatively. Costs are rounded to
# about 2**-52 of the terms they are made of, so only near-ties may be told apart wrongly.
RELATIVE = 1e-12
# Where values span more than float64 resolves: relative to total weight times squared range.
OF_THE_WHOLE = 2.0**-50
CASES_PER_KIND = 1700
EXTREME_CASES = 120

Solver = Callable[[NDArray[np.float64], int, NDArray[np.float64] | None], NDArray[np.float64]]


@dataclass(frozen=True)
class Case:
    """One small problem and its true optimum."""

    kind: str
    x: NDArray[np.float64]
    num_levels: int
    weights: NDArray[np.float64] | None
    best: Fraction
    whole: Fraction

    def cost(self, levels: NDArray[np.float64]) -> Fraction:
        weights = None if self.weights is None else self.weights.tolist()
        return brute.objective(self.x.tolist(), levels.tolist(), weights)

    def accepts(self, levels: NDArray[np.float64]) -> bool:
        return self.cost(levels) <= self.best * (1 + Fraction(RELATIVE))

    def accepts_roughly(self, levels: NDArray[np.float64]) -> bool:
        slack = self.best * Fraction(RELATIVE) + self.whole * Fraction(OF_THE_WHOLE)
        return self.cost(levels) <= self.best + slack


def make_cases(
    kinds: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]], per_kind: int
) -> list[Case]:
    rng = np.random.default_rng(2024)
    cases = []
    for kind, make in kinds.items():
        for number in range(per_kind):
            n, s = int(rng.integers(1, 11)), int(rng.integers(2, 5))
            x, weights = make(rng, n), weights_of(rng, n, number)
            plain = None if weights is None else weights.tolist()
            best = brute.optimum(x.tolist(), s, plain)
            spread = Fraction(float(x.max())) - Fraction(float(x.min()))
            total = n if plain is None else sum(map(Fraction, plain))
            cases.append(Case(kind, x, s, weights, best, total * spread**2))
    return cases


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return make_cases(KINDS, CASES_PER_KIND)


@pytest.fixture(scope="module")
def extreme_cases() -> list[Case]:
    return make_cases(EXTREME, EXTREME_CASES)


def refused(cases: list[Case], solve: Solver) -> Counter[str]:
    """How many tables of each kind of case the exhaustive search refuses."""
    return Counter(
        case.kind
        for case in cases
        if not case.accepts(solve(case.x, case.num_levels, case.weights))
    )


def solver(method: str) -> Solver:
    return lambda x, s, weights: qk.optimal_levels(x, s, method, weights)


def test_cost_equals_exhaustive_search(cases: list[Case]):
    assert len(cases) >= 20_000
    assert sum(case.best > 0 for case in cases) >= 11_000

    assert refused(cases, solver("exact")) == Counter()


def test_the_accelerated_programme_is_optimal(cases: list[Case]):
    assert refused(cases[::3], solver("accelerated")) == Counter()


def search_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """No vector is short enough for the dynamic programme."""
    monkeypatch.setattr(exact, "SMALL_WORK", 0)


def sum_over_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sorted vector in cells of some values, cut in two where levels may be."""
    search_all(monkeypatch)
    monkeypatch.setattr(exact, "DIRECT", 0)
    monkeypatch.setattr(ordered, "_LONGEST", 4)
    monkeypatch.setattr(ordered, "_CELLS", 0.5)
    monkeypatch.setattr(ordered, "_PARTS", 2)


def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over chunks of three values: few cells, cut in two until few values are left."""
    search_all(monkeypatch)
    monkeypatch.setattr(options, "STREAM_FROM", 0)
    monkeypatch.setattr(chunking, "CHUNK", 3)
    monkeypatch.setattr(streaming, "CELLS", ((256, 2),))
    monkeypatch.setattr(streaming, "COLLECTED", 3)
    monkeypatch.setattr(streaming, "_MAX_BITS", 1)


FORMS = {"search": search_all, "cells": sum_over_cells, "stream": stream}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_search_is_optimal(
    cases: list[Case], form: str, monkeypatch: pytest.MonkeyPatch
):
    # A third each: together they see all.
    cases = cases[list(FORMS).index(form) :: len(FORMS)]
    used = Counter[str]()
    for module, name in ((exact, "best_path"), (solving, "_sorted_levels")):
        spy(monkeypatch, module, name, used)
    FORMS[form](monkeypatch)

    assert refused(cases, solver("exact")) == Counter()
    # The programme and the sorted form stand in where a proof fails: it hardly ever does.
    assert used["best_path"] <= 0.01 * len(cases)
    if form == "stream":
        assert used["_sorted_levels"] <= 0.01 * len(cases)


def spy(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, used: Counter[str]) -> None:
    original = getattr(module, name)

    def counted(*arguments: object) -> object:
        used[name] += 1
        return original(*arguments)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("method", ["exact", "accelerated"])
def test_extreme_ranges_cost_no_more_than_rounding(extreme_cases: list[Case], method: str):
    for case in extreme_cases:
        levels = qk.optimal_levels(case.x, case.num_levels, method, case.weights)
        assert case.accepts_roughly(levels), case


@pytest.mark.parametrize("kind", ["outlier 1e30", "outlier -1e30", "outliers of both signs"])
def test_exact_is_optimal_beside_an_outlier(extreme_cases: list[Case], kind: str):
    chosen = [case for case in extreme_cases if case.kind == kind]
    assert len(chosen) >= 100

    assert refused(chosen, solver("exact")) == Counter()


def test_a_worse_solver_is_refused(cases: list[Case]):
    # The same check on solvers that are almost right: it must notice each of them.
    def next_best_point(x, s, weights):
        levels = qk.optimal_levels(x, s, "exact", weights).copy()
        distinct = np.unique(x)
        if s > 2 and distinct.size > s:
            levels[1] = distinct[np.searchsorted(distinct, levels[1]) - 1]
        return levels

    def without_weights(x, s, weights):
        return qk.optimal_levels(x, s, "exact")

    def on_a_grid(x, s, weights):
        return qk.optimal_levels(x, s, "approx", weights, bins=64, grid="uniform")

    cases = cases[::4]
    with_a_choice = sum(np.unique(case.x).size > case.num_levels > 2 for case in cases)
    assert refused(cases, next_best_point).total() > 0.9 * with_a_choice
    assert refused(cases, without_weights).total() > 100
    assert refused(cases, on_a_grid).total() > 400


@pytest.mark.parametrize("relative", [1e-9, 1e-6])
def test_a_level_a_little_off_is_refused(cases: list[Case], relative: float):
    # Off by less than any neighbouring point: still not the optimum, and seen.
    seen = tried = 0
    for case in cases:
        if case.kind != "normal" or case.best == 0 or case.num_levels == 2:
            continue
        levels = qk.optimal_levels(case.x, case.num_levels, "exact", case.weights).copy()
        levels[1] += relative * (levels[2] - levels[1])
        tried += 1
        seen += not case.accepts(levels)
    assert tried > 100
    assert seen > 0.9 * tried


@properties
@given(weighted_vectors(max_size=40), level_counts, st.sampled_from(["exact", "accelerated"]))
def test_cost_equals_the_reference_programme(
    cpu: Backend, reference: Backend, problem, num_levels: int, method: str
):
    x, weights = problem
    chosen = QuantizeOptions.create(num_levels=num_levels, method=method)
    plain = None if weights is None else weights.tolist()
    found, wanted = (
        brute.objective(x.tolist(), backend.solve_levels(x, chosen, weights).tolist(), plain)
        for backend in (cpu, reference)
    )
    # Costs below the rounding of the whole area cannot be told apart.
    total = x.size if weights is None else weights.sum()
    rounding = 2.0**-50 * float(total) * float(x.max() - x.min()) ** 2
    assert brute.gap(found, wanted) <= 1e-12 or found <= rounding


@pytest.mark.parametrize("num_levels", [3, 5, 8, 16, 33])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_both_recurrences_agree_on_larger_vectors(num_levels: int, weighted: bool):
    rng = np.random.default_rng(num_levels)
    for x in (rng.normal(size=3000), rng.lognormal(0, 2, 3000), np.round(rng.normal(size=3000), 1)):
        weights = rng.exponential(size=x.size) if weighted else None
        one, two = (
            qk.expected_mse(x, qk.optimal_levels(x, num_levels, method, weights), weights)
            for method in ("exact", "accelerated")
        )
        assert one == pytest.approx(two, rel=1e-11, abs=1e-15)


def test_no_random_neighbour_of_a_large_optimum_is_better():
    rng = np.random.default_rng(7)
    x = rng.standard_t(3, size=20_000)
    levels = qk.optimal_levels(x, 16)
    least = qk.expected_mse(x, levels)
    ordered = np.sort(x)
    places = np.searchsorted(ordered, levels)
    for _ in range(200):
        moved = places.copy()
        chosen = rng.integers(1, 15)
        moved[chosen] += rng.choice([-1, 1]) * rng.integers(1, 30)
        moved = np.clip(np.sort(moved), 0, x.size - 1)
        assert qk.expected_mse(x, ordered[moved]) >= least * (1 - 1e-12)
