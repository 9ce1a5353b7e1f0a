"""Powers of two: each value is a sign and an exponent, decoded by adding exponents.

With b bits a block has K = 2^(b-1) - 1 magnitudes, 2^top and the next K - 1 powers below, and 0. A
code's highest bit is the sign; the others are 0 for zero and m for 2^(top - K + m).
"""

from __future__ import annotations

from quiver_kernels.schemes.pow2.scheme import PowersOfTwo
from quiver_kernels.schemes.pow2.sums import PowerSum, power_sum

__all__ = ["PowerSum", "PowersOfTwo", "power_sum", "scheme"]


def scheme() -> PowersOfTwo:
    """The scheme ``pow2``."""
    return PowersOfTwo()
