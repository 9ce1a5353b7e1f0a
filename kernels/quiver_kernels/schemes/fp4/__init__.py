"""Four-bit floating point: E2M1 numbers times a scale for each block."""

from __future__ import annotations

from quiver_kernels.schemes.fp4.scheme import Fp4


def scheme() -> Fp4:
    """The scheme ``fp4``."""
    return Fp4()
