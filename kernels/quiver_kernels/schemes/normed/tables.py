"""Symmetric tables on [-1, 1] that follow from the number of levels, and from one multiplier."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def even_steps(num_levels: int) -> Floats:
    """QSGD: j / K for j = -K..K, the last repeated where `num_levels` is even."""
    half = (num_levels - 1) // 2
    return _padded(np.arange(-half, half + 1) / half, num_levels)


def powers_of_two(num_levels: int) -> Floats:
    """NUQSGD: 0 and +-2**-j for j = 0..K - 1, the last repeated where `num_levels` is even."""
    half = (num_levels - 1) // 2
    positive = 0.5 ** np.arange(half - 1, -1, -1)
    return _padded(np.concatenate([-positive[::-1], [0.0], positive]), num_levels)


def powers(multiplier: float, num_levels: int) -> Floats:
    """AMQ: +-p**j for j = 0..s, without zero; `num_levels` is 2 (s + 1)."""
    positive = multiplier ** np.arange(num_levels // 2 - 1, -1, -1, dtype=np.float64)
    return np.concatenate([-positive[::-1], positive])


def _padded(table: Floats, num_levels: int) -> Floats:
    return np.append(table, np.ones(num_levels - table.size))
