"""Two-way compression with error feedback: Efficient-Adam on a convex problem.

Eight workers, least squares in 100 unknowns (`common/convex.py`), step sizes .05 / sqrt(t). Figures
are the median of five seeds of (f - f*) / (f(0) - f*) after so many steps. "signs" is 1 bit a value
with the mean magnitude; "two levels" is unbiased rounding to the minimum and the maximum, which is
no contraction: fed back as it is, its residuals grow until they leave float64; scaled by
1 / (1 + vNMSE), as `ErrorFeedback` does by default, they do not.

Run ``python benchmarks/two_way.py``; it prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common.convex import COLUMNS, FIRST_STEP, WORKERS, Problem
from common.tables import table
from numpy.typing import NDArray

import quiver_kernels as qk
from quiver_client.ps import (
    EfficientAdam,
    Exact,
    FeedbackDiverged,
    Link,
    PerArray,
    TwoWay,
    inverse_sqrt,
)

SEEDS = 5
MARKS = (500, 1000, 2000, 4000)

Floats = NDArray[np.float64]


# Arrays have a row for each seed, and each row its own levels: one message is five.
def _signs() -> Link:
    return PerArray(lambda u: qk.sign_quantize(u, block_size=COLUMNS))


def _two_levels() -> Link:
    draws = np.random.default_rng(1)

    def quantize(u: Floats) -> qk.QuantizedVector:
        seed = int(draws.integers(2**53))
        return qk.quantize(u, num_levels=2, method="uniform", seed=seed, block_size=COLUMNS)

    return PerArray(quantize)


VARIANTS: dict[str, Callable[[], TwoWay]] = {
    "float64 both ways": lambda: TwoWay(Exact(), Exact()),
    "signs both ways, feedback both": lambda: TwoWay(_signs(), _signs()),
    "signs, feedback of workers only": lambda: TwoWay(_signs(), _signs(), feedback_down=False),
    "signs, feedback of server only": lambda: TwoWay(_signs(), _signs(), feedback_up=False),
    "signs, no feedback": lambda: TwoWay(
        _signs(), _signs(), feedback_up=False, feedback_down=False
    ),
    "two levels, no feedback": lambda: TwoWay(
        _two_levels(), _two_levels(), feedback_up=False, feedback_down=False
    ),
    "two levels, feedback both, scaled": lambda: TwoWay(_two_levels(), _two_levels()),
    "two levels, feedback both, as they are": lambda: TwoWay(
        _two_levels(), _two_levels(), contraction="unchecked"
    ),
}


def run(two_way: TwoWay, seeds: int, marks: Sequence[int]) -> list[list[float | None]]:
    """Gaps of all seeds at the marks; None from where one has diverged."""
    problems = [Problem.draw(seed) for seed in range(seeds)]
    optimizer = EfficientAdam(two_way, workers=WORKERS, step_size=inverse_sqrt(FIRST_STEP))
    x = {"x": np.zeros((seeds, COLUMNS))}
    gaps: list[list[float | None]] = []
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(1, marks[-1] + 1):
            rows = zip(problems, x["x"], strict=True)
            found = np.stack([problem.gradients(row) for problem, row in rows], axis=1)
            try:
                x = optimizer.step(x, [{"x": of_worker} for of_worker in found])
            except (FeedbackDiverged, qk.InvalidInput):
                return gaps + [[None] * seeds] * (len(marks) - len(gaps))
            if t in marks:
                at = [problem.gap(row) for problem, row in zip(problems, x["x"], strict=True)]
                gaps.append([gap if np.isfinite(gap) else None for gap in at])
    return gaps


def median(gaps: Sequence[float | None]) -> float | None:
    """The middle one, where divergence is worse than anything."""
    found = float(np.median([np.inf if gap is None else gap for gap in gaps]))
    return found if np.isfinite(found) else None


def main() -> None:
    """Measure, print Markdown, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description="Efficient-Adam on a convex problem.")
    parser.add_argument("--quick", action="store_true", help="few steps, for a test of this file")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    marks, seeds = ((5, 10), 2) if options.quick else (MARKS, SEEDS)
    results: list[dict[str, Any]] = []
    for name, make in VARIANTS.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        gaps = run(make(), seeds, marks)
        medians = [median(at) for at in gaps]
        results.append({"variant": name, "steps": list(marks), "medians": medians, "gaps": gaps})

    def shown(gap: float | None) -> str:
        return "diverged" if gap is None else f"{gap:.2e}"

    print(
        table(
            ["variant", *(f"{mark} steps" for mark in marks)],
            [[r["variant"], *(shown(gap) for gap in r["medians"])] for r in results],
        )
    )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
