"""Promised additivity: decoded values of a block lie on one grid, so that codes can be added."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import api
from quiver_kernels.schemes.conformance import vectors
from quiver_kernels.schemes.conformance.subject import Subject

_SIZE = 600
# Of the span of decoded values: below the first, differences are roundings; a step below the
# second is no step of a grid whose multiples fit integers with room for a sum.
_ZERO = 1e-10
_STEP = 2.0**-24


def additive(subject: Subject) -> Iterator[str]:
    """Differences of decoded values are whole multiples of a step."""
    if not subject.promises.additive:
        return
    block = subject.choice.block_size or _SIZE
    x = vectors.normal(_SIZE, "float64")
    decoded = api.dequantize(subject.quantize(x)).astype(np.float64)
    for start in range(0, x.size, block):
        values = np.unique(decoded[start : start + block])
        step = _common_step(values)
        if step is not None and step < _STEP:
            yield (
                f"promised to be additive, but {values.size} decoded values from {start} "
                "are no points of one grid"
            )
            return


def _common_step(values: NDArray[np.float64]) -> float | None:
    """Greatest step of which all differences are multiples, over the span; None: one value."""
    span = float(values[-1] - values[0])
    if span == 0:
        return None
    step = 0.0
    for difference in np.diff(values) / span:
        step = _divisor(float(difference), step)
    return step


def _divisor(a: float, b: float) -> float:
    """Euclid's algorithm on reals, up to rounding."""
    while b > _ZERO:
        a, b = b, math.fmod(a, b)
        # A remainder that misses the divisor by a rounding is none.
        b = 0.0 if a - b < _ZERO else b
    return a
