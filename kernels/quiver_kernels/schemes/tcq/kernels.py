"""Kernel of TCQ: the nearest point of each kind to each value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel


@kernel
def nearest(values: Floats, points: Floats, costs: Floats, picks: NDArray[np.uint16]) -> None:
    """Write the nearest of every fourth of the ascending points, and its squared distance.

    Points 4 n + j go to place 2 (j mod 2) + j // 2. Of equally near ones, the lower.
    """
    first_step = 1
    while first_step * 2 <= points.size:
        first_step *= 2
    for i in range(values.size):
        value = values[i]
        # How many points are below the value.
        below, step = 0, first_step
        while step:
            ahead = below + step
            if ahead <= points.size and points[ahead - 1] < value:
                below = ahead
            step >>= 1
        for j in range(4):
            # The last of its kind below the value, and the next.
            low = max(j, (below - 1 - j) // 4 * 4 + j)
            high = min(low + 4, points.size - 4 + j)
            near, far = value - points[low], points[high] - value
            near, far = near * near, far * far
            place = 2 * (j & 1) + (j >> 1)
            costs[i, place] = min(near, far)
            picks[i, place] = low + (high - low) * (far < near)
