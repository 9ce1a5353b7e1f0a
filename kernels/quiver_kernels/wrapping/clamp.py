"""Outliers: values beyond two quantiles are clamped to them, and kept exactly beside.

As in "Optimizing LLM Training Using FP4 Quantization" (arXiv 2501.17116), but that values are kept,
not what clamping takes off them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES, widen, wire_name
from quiver_kernels.stopping import checkpoint, slices
from quiver_kernels.wrapping.parts import Exact
from quiver_kernels.wrapping.ranks import values_at


@dataclass(frozen=True, eq=False, slots=True)
class Clamped:
    """A vector without its outliers.

    Attributes
    ----------
    inside
        The vector, flat, its outliers moved to the nearer quantile; itself where there are none.
    positions
        Of the outliers, ascending.
    exact
        The outliers; None: none.
    """

    inside: NDArray[Any]
    positions: NDArray[np.int64]
    exact: Exact | None


def clamp(x: NDArray[Any], share: float) -> Clamped:
    """Clamp flat, finite `x` to its values of ranks ``(1 - share) n`` and ``share n``. O(n).

    Both ranks are cut to integers and count from 0. About 2 (1 - share) n values are outliers.
    """
    flat = np.ascontiguousarray(x, WIRE_DTYPES[wire_name(x.dtype)])
    low, high = bounds(flat, share)
    checkpoint()
    found = []
    for part in slices(flat.size):
        values = widen(flat[part])
        found.append(np.flatnonzero((values < low) | (values > high)) + part.start)
    positions = np.concatenate(found).astype(np.int64)
    if not positions.size:
        return Clamped(flat, positions, None)
    kept = flat[positions]
    inside = flat.copy()
    inside[positions] = np.where(widen(kept) < low, low, high).astype(flat.dtype)
    return Clamped(inside, positions, Exact.of(positions, kept))


def bounds(flat: NDArray[Any], share: float) -> tuple[float, float]:
    """The values of the two ranks, which are values of the vector."""
    low, high = int((1.0 - share) * flat.size), int(share * flat.size)
    high = max(low, min(high, flat.size - 1))
    least, most = values_at(flat, (low, high))
    return least, most
