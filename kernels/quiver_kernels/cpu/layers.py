"""The dynamic programme over many points: its layers one by one, so that it can be stopped.

What `path.best_path` and `path.accelerated_path` do in one call, which takes seconds where
points and levels are many; the same path, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.area import Curve
from quiver_kernels.cpu.compile import Floats, Ints
from quiver_kernels.cpu.path import cheapest, double_step, step, widest
from quiver_kernels.stopping import checkpoint

# Costs between two looks whether to go on, some 10 ms: of single steps, of double ones, and of
# these where every cost takes a bisection.
_SINGLE, _DOUBLE, _BISECTED = 1 << 21, 1 << 18, 1 << 15


@dataclass(frozen=True, slots=True)
class _Rows:
    """Consecutive rows of a stride, or all of some strides."""

    stride: int
    narrowest: int
    first: int
    stop: int


def layered_path(curve: Curve, num_levels: int, doubles: int, unit_weights: bool) -> Ints:
    """Numbers of the best `num_levels` >= 3 points of a curve of more.

    Parameters
    ----------
    doubles
        How many layers add two levels at once; the others are the first ones.
    unit_weights
        Every point weighs 1.
    """
    n = curve.x.size
    layers = num_levels - 3 - doubles
    choices = np.empty((layers, n), np.int32)
    middles = np.empty((doubles, n), np.int32)
    best, after = curve.first.copy(), np.empty(n)
    # Inner levels keep off both ends: costs measured from a far outlier carry its rounding.
    best[0] = np.inf
    for layer in range(layers):
        middle = middles[layer - layers + doubles] if layer >= layers - doubles else None
        _layer(curve, best, after, choices[layer], middle, unit_weights)
        best, after = after, best
    end = int(cheapest(best, curve.last)[1])
    path = [n - 1, end]
    for layer in reversed(range(layers)):
        if layer >= layers - doubles:
            path.append(int(middles[layer - layers + doubles, end]))
        end = int(choices[layer, end])
        path.append(end)
    return np.array([0, *reversed(path)])


def _layer(
    curve: Curve,
    best: Floats,
    after: Floats,
    choice: NDArray[np.int32],
    middle: NDArray[np.int32] | None,
    unit_weights: bool,
) -> None:
    x, slope, area = curve.x, curve.slope, curve.area
    double = _DOUBLE if unit_weights else _BISECTED
    for rows in _parts(choice, _SINGLE if middle is None else double):
        checkpoint()
        part = (rows.stride, rows.narrowest, rows.first, rows.stop)
        if middle is None:
            step(x, area, best, after, choice, *part)
        else:
            double_step(x, slope, area, best, after, choice, middle, unit_weights, *part)


def _parts(choice: NDArray[np.int32], work: int) -> Iterator[_Rows]:
    """All rows of a layer, some at a time: as many as have about `work` costs, or a single one.

    Row j of a stride has those from choice[j - stride] to choice[j + stride], which must be
    filled when the stride's turn comes.
    """
    n = choice.size
    stride = widest(n)
    # A stride has a cost for each of its rows, and as many again as there are points.
    together = work // (2 * n)
    while stride > 0:
        if together > 0:
            narrowest = max(1, stride >> (together - 1))
            yield _Rows(stride, narrowest, 0, n)
            stride = narrowest // 2
            continue
        count = (n - stride) // (2 * stride) + 1 if n >= stride else 0
        # What the rows before each have in all, of the rows that have a filled one after them.
        after = choice[2 * stride - 1 :: 2 * stride]
        first = 0
        while first < count:
            before = int(after[first - 1]) if first else 0
            stop = min(first + work, count)
            reach = int(np.searchsorted(after[first:stop], before + work, side="right"))
            stop = min(first + max(reach, 1), stop)
            yield _Rows(stride, stride, first, stop)
            first = stop
        stride //= 2
