"""Trellis-coded quantization at a fixed rate (TCQ).

`points` has the table of 2^(R+1) points and fits it to a vector, `costs` finds the nearest points
of each value, `coding` does it all to a vector and back.
"""

from quiver_kernels.schemes.tcq.scheme import Tcq


def scheme() -> Tcq:
    """The scheme."""
    return Tcq()


__all__ = ["Tcq", "scheme"]
