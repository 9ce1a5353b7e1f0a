"""ParetoQ's stretched elastic quantization (SEQ): 1, 1.58 and 2 bits per value, deterministic.

A decoded value is ``alpha (round(u n - shift) + shift) / n`` with u the value over alpha: ternary
n = 3/2, shift 0: alpha times -2/3, 0, 2/3; 2 bits n = 2, shift 1/2: alpha times -3/4, -1/4, 1/4,
3/4. One bit is alpha times the sign, 0 counting as positive. What lies beyond is clipped.
"""

from __future__ import annotations

from quiver_kernels.schemes.nearest import Entries, NearestScheme, tables
from quiver_kernels.schemes.seq.trits import Trits


def scheme() -> NearestScheme:
    """The scheme ``seq``."""
    return NearestScheme(
        name="seq",
        summary="1, 1.58 or 2 bits per value with a scale per block, nearest",
        source="ParetoQ, arXiv 2502.02631, SEQ",
        entries=tables(
            # Ties count whole numbers of round(): -1 is the lower of the two signs.
            Entries((-1.0, 1.0), -1, per_top=1.0, per_mean=1.0),
            Entries((-2 / 3, 0.0, 2 / 3), -1, per_top=1.0, per_mean=2.301097, packing=Trits()),
            Entries((-0.75, -0.25, 0.25, 0.75), -2, per_top=1.0, per_mean=2.495816),
        ),
        default_levels=4,
    )
