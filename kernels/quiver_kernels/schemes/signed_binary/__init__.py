"""Signed binary: each block has one sign; a value is 0 or the block's signed scale. 1 bit each.

For data of one sign: activations behind a rectifier, counts, second moments. Of all thresholds the
one with the least squared error is searched for, for both signs, and the better sign is taken; the
scale is then the mean of the values that are kept.
"""

from __future__ import annotations

from quiver_kernels.schemes.signed_binary.scheme import SignedBinary, density

__all__ = ["SignedBinary", "density", "scheme"]


def scheme() -> SignedBinary:
    """The scheme ``signed_binary``."""
    return SignedBinary()
