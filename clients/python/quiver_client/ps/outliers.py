"""The largest entries of a leaf, to be sent exactly beside the quantized rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import widen
from quiver_kernels.tree import Outliers


def largest(stream: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Ascending positions of the `count` largest magnitudes; of equal ones, the first. O(n)."""
    if count == 0:
        return np.empty(0, np.int64)
    magnitudes = np.abs(widen(stream))
    threshold = np.partition(magnitudes, stream.size - count)[stream.size - count]
    above = np.flatnonzero(magnitudes > threshold)
    ties = np.flatnonzero(magnitudes == threshold)[: count - above.size]
    return np.sort(np.concatenate([above, ties])).astype(np.int64)


def without(values: NDArray[Any], indices: NDArray[np.int64]) -> tuple[NDArray[Any], Outliers]:
    """A section's values with those at `indices` (not all of them) replaced, and these.

    In their places stands the least of the others: it is a level, whatever the table, so it is
    rounded without error and moves no other level.
    """
    kept = np.ones(values.size, np.bool_)
    kept[indices] = False
    rest = values.copy()
    rest[indices] = values[kept].min()
    return rest, Outliers(indices, values[indices])
