"""What codes cost: tables of bits, made from codes of a sample until both agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes import entropy
from quiver_kernels.schemes.ectcq.alphabet import MAX_CLASSES, Alphabet, Codes
from quiver_kernels.schemes.ectcq.costs import Floats, quantize
from quiver_kernels.schemes.trellis.machine import Machine
from quiver_kernels.stopping import checkpoint

# Codes further out, or so far beyond those with a symbol of their own, cost as the last.
_REACH, _BEYOND = 2047, 64
# So many codes apart, costs hardly differ: in root mean squares of the codes.
_SMOOTH = 8
# A symbol that does not occur in the sample counts as so many.
_UNSEEN = 0.2
# Of the sample: runs of so many values, so many in all.
_RUN, _SAMPLE = 512, 1 << 16
# Passes over so many values of the sample, until bits change by less, or are so many that costs
# are soon right and a part has too few values of each code; then over more of it, or all.
_PART, _TRIES, _NEAR, _HIGH = 1 << 13, 16, 0.004, 2.0
_FEW, _LAST = 1 << 15, 2


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """Costs of codes.

    Attributes
    ----------
    bits
        bits[q, k + reach]: of code k by quantizer q.
    per_value
        Bits of a value of the sample, as these codes' entropy is.
    """

    bits: Floats
    per_value: float


def sample_of(x: NDArray[np.generic]) -> Floats:
    """Runs of values evenly spread over `x`, as float64; all of a short vector."""
    if x.size <= _SAMPLE:
        return x.astype(np.float64)
    starts = np.linspace(0, x.size - _RUN, _SAMPLE // _RUN).astype(np.int64)
    # So that its beginning is spread over `x` as well.
    starts = starts.reshape(-1, _SAMPLE // _PART).T.reshape(-1)
    return np.concatenate([x[start : start + _RUN].astype(np.float64) for start in starts])


def train(sample: Floats, step: float, multiplier: float, machine: Machine) -> Model:
    """Costs that the codes of `sample` have which these costs lead to.

    Begun from codes that cost nothing; a part of the sample will do until costs are nearly right.
    """
    model = Model(np.zeros((2, 3)), math.inf)
    settled = False
    for tried in range(_TRIES):
        before = model.per_value
        model = _again(sample[:_PART], step, multiplier, machine, model)
        settled = abs(model.per_value - before) < _NEAR
        if settled or (tried and model.per_value > _HIGH):
            break
    for _ in range(_LAST if settled else _LAST + 1):
        part = sample[:_FEW] if settled else sample
        model = _again(part, step, multiplier, machine, model)
    return model


def _again(sample: Floats, step: float, multiplier: float, machine: Machine, model: Model) -> Model:
    checkpoint()
    codes = quantize(sample, step, multiplier * model.bits, _RUN, machine)
    return fitted(codes, _RUN, machine)


def fitted(codes: Codes, chunk: int, machine: Machine) -> Model:
    """What codes cost where they occur as often as here."""
    alphabet = Alphabet(Alphabet.of(codes).direct, MAX_CLASSES)
    symbols = alphabet.symbols(codes)
    counts = entropy.count(symbols, alphabet.walk(machine), chunk)
    seen = _smoothed(counts, alphabet.direct)
    shares = (seen + _UNSEEN) / (counts.sum(axis=1, keepdims=True) + _UNSEEN * alphabet.size)
    further = np.zeros(alphabet.size)
    further[2 * alphabet.direct + 1 :] = np.arange(2 * MAX_CLASSES) // 2 + 1
    bits = further - np.log2(shares)
    used = counts.sum(axis=1, keepdims=True)
    total = (counts * (further + np.log2(np.maximum(used, 1) / np.maximum(counts, 1)))).sum()
    reach = min(_REACH, alphabet.direct + _BEYOND)
    reached = alphabet.symbols(np.arange(-reach, reach + 1, dtype=np.int32))
    return Model(np.ascontiguousarray(bits[:, reached]), float(total) / codes.size)


def _smoothed(counts: NDArray[np.int64], direct: int) -> Floats:
    """Counts of a sample, averaged over codes of one parity where there are many different ones.

    Else codes that happen to be frequent become cheap, hence more frequent, and so on.
    """
    seen = counts.astype(np.float64)
    used = slice(0, 2 * direct + 1)
    middle = seen[:, used].sum(axis=0)
    codes = np.arange(-direct, direct + 1)
    spread = math.sqrt(float((middle * codes**2).sum()) / max(1.0, float(middle.sum())))
    radius = min(int(spread / _SMOOTH), direct // 4)
    if radius:
        window = np.zeros(4 * radius + 1)
        window[::2] = 1 / (2 * radius + 1)
        for row in seen:
            # Mirrored at the ends, so that nothing is lost there.
            row[used] = np.convolve(np.pad(row[used], 2 * radius, "reflect"), window, "valid")
    return seen
