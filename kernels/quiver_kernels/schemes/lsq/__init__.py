"""Learned step size's table (LSQ) as a codec: 3 and 4 bits per value, deterministic.

A decoded value is a scale times a whole number from -2^(b-1) to 2^(b-1) - 1. The scale is searched
for here, not learned.
"""

from __future__ import annotations

from quiver_kernels.schemes.nearest import Entries, NearestScheme, tables


def scheme() -> NearestScheme:
    """The scheme ``lsq``."""
    return NearestScheme(
        name="lsq",
        summary="whole numbers of 3 or 4 bits with a scale per block, nearest",
        source="ParetoQ, arXiv 2502.02631, LSQ; Learned Step Size Quantization, ICLR 2020",
        entries=tables(_entries(3, 0.754275), _entries(4, 0.424382)),
        default_levels=16,
    )


def _entries(bits: int, per_mean: float) -> Entries:
    half = 1 << (bits - 1)
    values = tuple(float(value) for value in range(-half, half))
    return Entries(values, -half, per_top=1 / (half - 1), per_mean=per_mean)
