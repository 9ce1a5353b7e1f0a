"""ALQ: levels for a truncated normal with the data's mean and deviation. O(d + s).

After Faghri et al. (NeurIPS 2020): each level in turn goes where the model's expected variance
of stochastic rounding between its neighbours is least; several sweeps from three starts (even,
quantiles, exponential), and the best of them. In closed form instead of by quadrature. The
customary scaling by the norm changes nothing here and is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from baselines.curve import Floats

_SWEEPS = 10


def levels(values: NDArray[Any], num_levels: int) -> Floats:
    """Levels of `values` (any order)."""
    low, high = float(values.min()), float(values.max())
    mean, deviation = float(values.mean(dtype=float)), float(values.std(dtype=float))
    if deviation == 0.0 or num_levels < 3:
        return np.linspace(low, high, num_levels)
    model = _TruncatedNormal((low - mean) / deviation, (high - mean) / deviation)
    found = [model.sweep(start) for start in model.starts(num_levels)]
    inner = min(found, key=model.variance) * deviation + mean
    inner[0], inner[-1] = low, high
    return np.maximum.accumulate(np.clip(inner, low, high))


class _TruncatedNormal:
    """The standard normal on [low, high]."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.below = float(ndtr(low))
        self.mass = float(ndtr(high)) - self.below

    def cdf(self, z: Any) -> Any:
        return (ndtr(z) - self.below) / self.mass

    def density(self, z: Any) -> Any:
        return np.exp(-0.5 * np.square(z)) / (np.sqrt(2 * np.pi) * self.mass)

    def quantile(self, share: Any) -> Any:
        inside = np.clip(share, 0.0, 1.0)
        return np.clip(ndtri(self.below + inside * self.mass), self.low, self.high)

    def starts(self, num_levels: int) -> list[Floats]:
        """Even steps, even ranks, and halving towards zero from both ends."""
        ranks = self.quantile(np.linspace(0.0, 1.0, num_levels))
        ranks[0], ranks[-1] = self.low, self.high
        half = num_levels // 2
        down = self.low * 0.5 ** np.arange(half)
        up = self.high * 0.5 ** np.arange(num_levels - half)
        found = [np.linspace(self.low, self.high, num_levels), ranks]
        if self.low < 0.0 < self.high:
            found.append(np.concatenate([down, up[::-1]]))
        return found

    def sweep(self, start: Floats) -> Floats:
        """Coordinate descent: the level where F is that of the upper neighbour, less the mean way
        from the lower one over the distance.
        """
        q = start.copy()
        for _ in range(_SWEEPS):
            for i in range(1, q.size - 1):
                a, c = q[i - 1], q[i + 1]
                if c <= a:
                    continue
                mass = self.cdf(c) - self.cdf(a)
                moment = self.density(a) - self.density(c) - a * mass
                q[i] = min(max(self.quantile(self.cdf(c) - moment / (c - a)), a), c)
        return q

    def variance(self, q: Floats) -> float:
        """Expected squared error of stochastic rounding under the model."""
        a, c = q[:-1], q[1:]
        mass = self.cdf(c) - self.cdf(a)
        first = self.density(a) - self.density(c)
        second = mass + a * self.density(a) - c * self.density(c)
        return float(np.sum((a + c) * first - a * c * mass - second))
