"""Whether a figure grows: a line through its second half, with the error of its slope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

BATCHES = 12
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Trend:
    """A slope per unit of x, its standard error, and its bounds (one-sided, 95 % each)."""

    slope: float
    error: float
    low: float
    high: float


def trend(x: Sequence[float], y: Sequence[float]) -> Trend:
    """The trend of the second half of a run.

    Samples that follow each other are alike, so their scatter about a line would promise too small
    an error. The line goes through the means of some batches, which are nearly independent.
    """
    half = len(x) // 2
    if half < BATCHES:
        raise ValueError(f"a trend needs {2 * BATCHES} samples; got {len(x)}")
    places = [float(np.mean(part)) for part in np.array_split(np.asarray(x[-half:]), BATCHES)]
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(y[-half:]), BATCHES)]
    if min(means) == max(means):
        # No scatter at all, of which a fit would say nothing.
        return Trend(0.0, 0.0, 0.0, 0.0)
    fit = stats.linregress(places, means)
    slope, error = float(fit.slope), float(fit.stderr)
    margin = float(stats.t.ppf(CONFIDENCE, BATCHES - 2)) * error
    return Trend(slope, error, slope - margin, slope + margin)
