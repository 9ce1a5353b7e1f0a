"""The best codes of values, by both quantizers and both lowest bits; then the best path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.ectcq.alphabet import Codes
from quiver_kernels.schemes.trellis.machine import Machine
from quiver_kernels.schemes.trellis.paths import best_paths, has_numba

Floats = NDArray[np.float64]


def quantize(values: Floats, step: float, rates: Floats, chunk: int, machine: Machine) -> Codes:
    """The codes of least squared error plus rates, over all paths through the trellis.

    Code k of quantizer q stands for (2 k - q sign(k)) step.

    Parameters
    ----------
    values, step
        Flat, and above 0.
    rates
        What codes cost in squared steps, shape (2, 2 reach + 1).
    chunk
        Values after which the trellis begins anew.
    machine
        The trellis.
    """
    if has_numba():
        from quiver_kernels.schemes.ectcq import kernels

        costs, picks = np.empty((values.size, 4)), np.empty((values.size, 4), np.int32)
        kernels.weigh(values, step, rates, costs, picks)
        codes = np.empty(values.size, np.int32)
        kernels.chosen(picks, best_paths(costs, chunk, machine), codes)
        return codes
    costs, picks = plain_weigh(values, step, rates)
    subsets = best_paths(costs, chunk, machine)
    return picks[np.arange(values.size), subsets]


def plain_weigh(values: Floats, step: float, rates: Floats) -> tuple[Floats, NDArray[np.int32]]:
    """What ``kernels.weigh`` writes, in NumPy."""
    reach = rates.shape[1] // 2
    size = np.abs(values) / step
    sign = np.where(values < 0, -1, 1)
    costs, picks = np.empty((values.size, 4)), np.empty((values.size, 4), np.int32)
    for subset in range(4):
        q, b = subset >> 1, subset & 1
        low = 2 * (size * 0.25 + (0.5 * b + 0.25 * q)).astype(np.int64) - b
        codes = [low, low + 2, *([np.zeros_like(low)] if b == 0 else [])]
        points = [2 * code - q * np.sign(code) for code in codes]
        places = [reach + np.clip(sign * code, -reach, reach) for code in codes]
        tried = [
            (size - point) * (size - point) + rates[q, place]
            for point, place in zip(points, places, strict=True)
        ]
        best = np.argmin(tried, axis=0)
        costs[:, subset] = np.min(tried, axis=0)
        picks[:, subset] = sign * np.choose(best, codes)
    return costs, picks
