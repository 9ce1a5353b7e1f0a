"""The convex problem: two-way signs with feedback are as good as no compression.

`simulate` is Efficient-Adam in a few lines, five seeds at once; the package's optimizer takes the
same steps. `benchmarks/two_way.py` runs the package for all 4,000 steps.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from common.convex import COLUMNS, FIRST_STEP, WORKERS, Problem

import quiver_kernels as qk
from quiver_client.ps import EfficientAdam, Exact, PerArray, TwoWay, inverse_sqrt

pytestmark = pytest.mark.benchmarks

SEEDS = range(5)


def signs(u: np.ndarray) -> np.ndarray:
    return np.where(u >= 0, 1.0, -1.0) * np.abs(u).mean(axis=-1, keepdims=True)


@cache
def simulate(variant: str, marks: tuple[int, ...], seeds: range = SEEDS) -> np.ndarray:
    """Gaps of all seeds at the marked steps, shape (marks, seeds)."""
    problems = [Problem.draw(seed) for seed in seeds]
    rows = np.stack([p.rows for p in problems])
    targets = np.stack([p.targets for p in problems])
    x = np.zeros((len(seeds), COLUMNS))
    m, v, e = (np.zeros((len(seeds), WORKERS, COLUMNS)) for _ in range(3))
    owed = np.zeros_like(x)
    which, worker = np.arange(len(seeds))[:, None, None], np.arange(WORKERS)[:, None]
    up = down = (lambda u: u) if variant == "float" else signs
    feeds = variant != "no feedback"
    gaps = []
    for t in range(1, marks[-1] + 1):
        batch = np.stack([p.rng.integers(0, 200, (WORKERS, 16)) for p in problems])
        a = rows[which, worker, batch]
        errors = np.einsum("swbc,sc->swb", a, x) - targets[which, worker, batch]
        g = np.einsum("swb,swbc->swc", errors, a) / 16
        v = 0.99 * v + 0.01 * g * g
        m = 0.9 * m + 0.1 * g
        u = FIRST_STEP / np.sqrt(t) * m / np.sqrt(v + 1e-8) + e
        d = up(u)
        u_down = d.mean(axis=1) + owed
        d_down = down(u_down)
        if feeds:
            e, owed = u - d, u_down - d_down
        x = x - d_down
        if t in marks:
            gaps.append([p.gap(row) for p, row in zip(problems, x, strict=True)])
    return np.array(gaps)


# Medians of the five seeds that others found, to two digits.
KNOWN = {
    "float": (4.1e-2, 7.9e-3, 6.8e-4, 2.1e-4),
    "signs": (4.3e-2, 8.5e-3, 7.5e-4, 2.1e-4),
    "no feedback": (0.45, 0.35, 0.25, 0.146),
}


@pytest.mark.parametrize("variant", KNOWN)
def test_the_problem_is_the_known_one(variant):
    medians = np.median(simulate(variant, (500, 1000, 2000, 4000)), axis=1)
    assert medians == pytest.approx(KNOWN[variant], rel=0.05)


def test_signs_both_ways_are_within_ten_percent_of_float():
    marks = (500, 1000, 2000, 4000)
    exact, ours, without = (
        np.median(simulate(variant, marks)[-1]) for variant in ("float", "signs", "no feedback")
    )
    assert ours <= 1.1 * exact
    assert without >= 100 * ours


@pytest.mark.parametrize("variant", KNOWN)
def test_the_package_takes_these_steps(variant):
    sign = PerArray(qk.sign_quantize)
    two_way = {
        "float": TwoWay(Exact(), Exact()),
        "signs": TwoWay(sign, sign),
        "no feedback": TwoWay(sign, sign, feedback_up=False, feedback_down=False),
    }[variant]
    problem = Problem.draw(3)
    optimizer = EfficientAdam(two_way, workers=WORKERS, step_size=inverse_sqrt(FIRST_STEP))
    x, gaps = {"x": np.zeros(COLUMNS)}, []
    for t in range(1, 301):
        x = optimizer.step(x, [{"x": row} for row in problem.gradients(x["x"])])
        if t in {100, 300}:
            gaps.append(problem.gap(x["x"]))

    assert gaps == pytest.approx(simulate(variant, (100, 300), range(3, 4))[:, 0], rel=1e-9)
