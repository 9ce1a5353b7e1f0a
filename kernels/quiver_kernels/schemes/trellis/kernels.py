"""Kernels of the trellises: the path of least cost, and the quantizers along a path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Floats, kernel


@kernel
def best_paths(
    costs: Floats,
    chunk: int,
    back: NDArray[np.uint8],
    subsets: NDArray[np.uint8],
) -> None:
    """Write the subsets of the path of least total cost through each chunk.

    Parameters
    ----------
    costs
        costs[i, 2 q + b]: of the best code of value i by quantizer q with lowest bit b.
    back
        Ways into each state, as `machine.Machine.back_table`.
    subsets
        Out: 2 q + b of each value. Ties go to the lower state.
    """
    states = back.shape[0]
    taken = np.empty(chunk, np.uint8)
    ends = np.empty(8)
    for start in range(0, costs.shape[0], chunk):
        size = min(chunk, costs.shape[0] - start)
        if states == 8:
            _forward_eight(costs[start : start + size], taken, ends)
        else:
            _forward_four(costs[start : start + size], taken, ends)
        state = 0
        for s in range(1, states):
            if ends[s] < ends[state]:
                state = s
        for i in range(size - 1, -1, -1):
            way = back[state, taken[i] >> np.uint8(state) & 1]
            state = int(way & 7)
            quantizer = state & 1 if states == 8 else state >> 1
            subsets[start + i] = 2 * quantizer + (way >> 3)


@kernel
def _forward_eight(costs: Floats, taken: NDArray[np.uint8], ends: Floats) -> None:
    """Least costs of paths into 8 states; bit s of taken[i]: the second way into state s."""
    a0 = 0.0
    a1 = a2 = a3 = a4 = a5 = a6 = a7 = np.inf
    for i in range(costs.shape[0]):
        c0, c1, c2, c3 = costs[i, 0], costs[i, 1], costs[i, 2], costs[i, 3]
        f0, s0 = a0 + c0, a4 + c1
        f1, s1 = a2 + c0, a6 + c1
        f2, s2 = a0 + c1, a4 + c0
        f3, s3 = a2 + c1, a6 + c0
        f4, s4 = a3 + c3, a7 + c2
        f5, s5 = a1 + c3, a5 + c2
        f6, s6 = a3 + c2, a7 + c3
        f7, s7 = a1 + c2, a5 + c3
        taken[i] = (
            np.uint8(s0 < f0)
            | np.uint8(s1 < f1) << 1
            | np.uint8(s2 < f2) << 2
            | np.uint8(s3 < f3) << 3
            | np.uint8(s4 < f4) << 4
            | np.uint8(s5 < f5) << 5
            | np.uint8(s6 < f6) << 6
            | np.uint8(s7 < f7) << 7
        )
        a0, a1, a2, a3 = min(f0, s0), min(f1, s1), min(f2, s2), min(f3, s3)
        a4, a5, a6, a7 = min(f4, s4), min(f5, s5), min(f6, s6), min(f7, s7)
    ends[0], ends[1], ends[2], ends[3] = a0, a1, a2, a3
    ends[4], ends[5], ends[6], ends[7] = a4, a5, a6, a7


@kernel
def _forward_four(costs: Floats, taken: NDArray[np.uint8], ends: Floats) -> None:
    """The same with 4 states."""
    a0 = 0.0
    a1 = a2 = a3 = np.inf
    for i in range(costs.shape[0]):
        c0, c1, c2, c3 = costs[i, 0], costs[i, 1], costs[i, 2], costs[i, 3]
        f0, s0 = a0 + c0, a1 + c1
        f1, s1 = a2 + c2, a3 + c3
        f2, s2 = a0 + c1, a1 + c0
        f3, s3 = a2 + c3, a3 + c2
        taken[i] = (
            np.uint8(s0 < f0)
            | np.uint8(s1 < f1) << 1
            | np.uint8(s2 < f2) << 2
            | np.uint8(s3 < f3) << 3
        )
        a0, a1, a2, a3 = min(f0, s0), min(f1, s1), min(f2, s2), min(f3, s3)
    ends[0], ends[1], ends[2], ends[3] = a0, a1, a2, a3


@kernel
def quantizers_along(
    bits: NDArray[np.uint8],
    chunk: int,
    moves: NDArray[np.uint8],
    quantizers: NDArray[np.uint8],
    found: NDArray[np.uint8],
) -> None:
    """Write the quantizer of each value from the lowest bits of the codes."""
    for start in range(0, bits.size, chunk):
        state = np.uint8(0)
        for i in range(start, min(start + chunk, bits.size)):
            found[i] = quantizers[state]
            state = moves[state, bits[i]]
