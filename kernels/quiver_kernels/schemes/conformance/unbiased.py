"""Promised unbiasedness, and the expected error that a message states, by statistics over seeds.

Seeds are fixed, so a verdict does not change from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import api
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.schemes.conformance import vectors
from quiver_kernels.schemes.conformance.subject import Subject

# Of these the stated error is checked.
_STATED_SEEDS, _SAME_SEEDS = 24, 2
_SIZE = 1000
_SIGMAS = 5.0
# A sum of squares of one normal number is as rarely so many sigmas above its mean.
_SQUARE_SIGMAS = 17.0
# Beside statistics: roundings of decoded values, and of the error's float64 sums.
_ULPS = 4.0
_ERROR_SLACK = 1e-4


def unbiased(subject: Subject) -> Iterator[str]:
    """The mean of decoded vectors is the vector; the mean error is what messages state.

    Two tests. Errors summed along a few directions, as normal numbers; and the squared length of
    the mean error, of which inner products of different seeds' errors are unbiased samples: it
    sees a bias in any direction.
    """
    for kind, x in (("normal", vectors.normal(_SIZE)), ("heavy", vectors.heavy(_SIZE))):
        if not subject.promises.unbiased:
            continue
        errors = subject.errors(x, subject.seeds)
        yield from _along(errors, x.astype(np.float64), kind, _slack(x))
        yield from _anywhere(errors, kind, _slack(x) ** 2)


def stated(subject: Subject) -> Iterator[str]:
    """The vnmse of messages is the error: of this seed, or on average over seeds."""
    for kind, x in (("normal", vectors.normal(_SIZE)), ("heavy", vectors.heavy(_SIZE))):
        norm = float(np.sum(x.astype(np.float64) ** 2))
        found = []
        same = subject.promises.deterministic
        for seed in range(_SAME_SEEDS if same else min(subject.seeds, _STATED_SEEDS)):
            q = subject.quantize(x, seed)
            error = api.dequantize(q).astype(np.float64) - x
            found.append((float(error @ error) / norm, q.vnmse))
        actual, told = np.array(found).T
        off = actual - told
        allowed = _ERROR_SLACK * told.mean() + _slack(x) ** 2 / norm
        allowed += _deviations(off.size) * float(off.std(ddof=1)) / math.sqrt(off.size)
        if abs(off.mean()) > allowed:
            yield (
                f"{kind} values: messages state a vnmse of {told.mean():.6g}, "
                f"the errors of {off.size} seeds have {actual.mean():.6g} (+-{allowed:.2g})"
            )


def _along(
    errors: NDArray[np.float64], x: NDArray[np.float64], kind: str, slack: float
) -> Iterator[str]:
    rng = np.random.default_rng(7)
    directions = {
        "the vector": x,
        "its signs": np.sign(x),
        "the mean": np.ones(x.size),
        "its large values": np.where(np.abs(x) > np.quantile(np.abs(x), 0.9), x, 0.0),
        "its small values": np.where(np.abs(x) < np.quantile(np.abs(x), 0.5), x, 0.0),
        "random signs": rng.choice([-1.0, 1.0], x.size),
    }
    for name, direction in directions.items():
        unit = direction / np.linalg.norm(direction)
        sums = errors @ unit
        spread = float(sums.std(ddof=1)) / math.sqrt(sums.size)
        mean = float(sums.mean())
        if abs(mean) > _deviations(sums.size) * spread + slack:
            yield (
                f"{kind} values: biased along {name}: the mean error of {sums.size} seeds is "
                f"{mean:.3g} +- {spread:.2g} for a norm of {np.linalg.norm(x):.3g}"
            )


def _deviations(count: int) -> float:
    """Of so many samples' mean, in measured standard errors: as rare as so many sigmas.

    Student's distribution by its Cornish-Fisher expansion.
    """
    z, free = _SIGMAS, count - 1
    first = (z**3 + z) / (4 * free)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)


def _anywhere(errors: NDArray[np.float64], kind: str, slack: float) -> Iterator[str]:
    gram = errors @ errors.T
    pairs = gram[np.triu_indices(len(gram), 1)]
    squared = float(pairs.mean())
    spread = math.sqrt(float(np.mean(pairs**2)) / pairs.size)
    if squared > _SQUARE_SIGMAS * spread + slack:
        yield (
            f"{kind} values: biased: the squared norm of the mean error of {len(gram)} seeds is "
            f"{squared:.3g} +- {spread:.2g}"
        )


def _slack(x: NDArray[Any]) -> float:
    """Norm of an error that rounding to the vector's type may make."""
    half = 2.0 ** -{"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}[_name(x)]
    return _ULPS * half * float(np.linalg.norm(x.astype(np.float64)))


def _name(x: NDArray[Any]) -> str:
    return next(name for name, dtype in WIRE_DTYPES.items() if dtype == x.dtype)
