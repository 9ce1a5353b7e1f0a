"""A small convex problem of eight workers, on which optimizers with compression are compared.

Least squares: worker i has 200 rows of 100 columns whose scales fall from 1 to 0.1, and its own
offset, so that workers disagree. Gradients are of 16 rows drawn at each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORKERS, ROWS, COLUMNS, BATCH = 8, 200, 100, 16
FIRST_STEP = 0.05

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows (8, 200, 100), targets (8, 200), the loss at 0 and at the optimum, and the draws."""

    rows: Floats
    targets: Floats
    worst: float
    best: float
    rng: np.random.Generator

    @classmethod
    def draw(cls, seed: int) -> Problem:
        """One generator draws, in this order, the rows, the solution, noise, offsets, batches."""
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((WORKERS, ROWS, COLUMNS)) * np.logspace(0, -1, COLUMNS)
        solution = rng.standard_normal(COLUMNS)
        noise = rng.standard_normal((WORKERS, ROWS))
        offset = rng.standard_normal((WORKERS, 1))
        targets = rows @ solution + 0.1 * noise + 0.5 * offset
        flat, wanted = rows.reshape(-1, COLUMNS), targets.reshape(-1)
        found = np.linalg.lstsq(flat, wanted, rcond=None)[0]
        return cls(
            rows, targets, _loss(flat, wanted, np.zeros(COLUMNS)), _loss(flat, wanted, found), rng
        )

    def gradients(self, x: Floats) -> Floats:
        """Of every worker's next batch at `x`, shape (8, 100); draws from the generator."""
        batches = self.rng.integers(0, ROWS, (WORKERS, BATCH))
        workers = np.arange(WORKERS)[:, np.newaxis]
        rows = self.rows[workers, batches]
        errors = rows @ x - self.targets[workers, batches]
        found: Floats = np.einsum("wb,wbc->wc", errors, rows) / BATCH
        return found

    def gap(self, x: Floats) -> float:
        """(f(x) - f*) / (f(0) - f*)."""
        loss = _loss(self.rows.reshape(-1, COLUMNS), self.targets.reshape(-1), x)
        return (loss - self.best) / (self.worst - self.best)


def _loss(rows: Floats, targets: Floats, x: Any) -> float:
    return 0.5 * float(np.mean(np.square(rows @ x - targets)))
