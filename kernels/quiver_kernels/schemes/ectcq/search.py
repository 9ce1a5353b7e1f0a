"""The step for a number of bits a value, found on a sample."""

from __future__ import annotations

import math

from quiver_kernels.schemes.ectcq.costs import Floats
from quiver_kernels.schemes.ectcq.model import Model, train
from quiver_kernels.schemes.trellis.machine import Machine

# Steps tried, and how near the bits must come.
_TRIES, _NEAR = 6, 0.004


def step_for(
    sample: Floats, start: float, least: float, bits: float, multiplier: float, machine: Machine
) -> tuple[float, Model]:
    """A step of at least `least` whose codes take about `bits` a value, and what they cost.

    `start` is the first one tried. At high rates a step twice as large saves a bit of each value.
    """
    step = max(start, least)
    model = train(sample, step, multiplier, machine)
    for _ in range(_TRIES):
        excess = model.per_value - bits
        if abs(excess) < _NEAR or (excess < 0 and step <= least):
            break
        step = max(least, step * math.exp2(max(-4.0, min(4.0, excess))))
        model = train(sample, step, multiplier, machine)
    return step, model
