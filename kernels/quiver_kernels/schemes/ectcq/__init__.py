"""Entropy-coded trellis quantization (ECTCQ).

`alphabet` turns codes into symbols, `costs` finds the best codes of each value, `model` what codes
cost, `search` the step for a number of bits, `coding` does it all to a vector and back.
"""

from quiver_kernels.schemes.ectcq.scheme import Ectcq


def scheme() -> Ectcq:
    """The scheme."""
    return Ectcq()


__all__ = ["Ectcq", "scheme"]
