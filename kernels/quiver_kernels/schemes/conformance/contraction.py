"""Promised contraction: the squared error is below the squared norm, whatever the vector."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quiver_kernels.schemes.conformance import vectors
from quiver_kernels.schemes.conformance.subject import Subject

_SEEDS = 12
# Rounding of decoded values.
_SLACK = 1e-6


def contraction(subject: Subject) -> Iterator[str]:
    """Vectors that are hard on a shared scale; of stochastic schemes the mean error of seeds."""
    if not subject.promises.contraction:
        return
    seeds = 1 if subject.promises.deterministic else _SEEDS
    for kind, x in vectors.adversarial():
        errors = subject.errors(x, seeds)
        ratio = float(np.mean(np.sum(errors**2, axis=1)) / np.sum(x.astype(np.float64) ** 2))
        if ratio >= 1 - _SLACK:
            yield f"promised to contract, but {kind}: error {ratio:.6g} of the norm, squared"
