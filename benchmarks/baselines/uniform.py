"""Plain stochastic rounding (QSGD with the range as scale): levels at equal steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.curve import Floats


def levels(values: NDArray[Any], num_levels: int) -> Floats:
    """Levels of `values` (any order). O(d)."""
    return np.linspace(float(values.min()), float(values.max()), num_levels)
