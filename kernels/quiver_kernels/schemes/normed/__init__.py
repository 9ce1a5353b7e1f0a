"""Tables on [-1, 1] times the norm of each block: QSGD, TernGrad, NUQSGD, AMQ and ALQ."""

from quiver_kernels.schemes.normed.scheme import alq, amq, nuqsgd, qsgd, terngrad

__all__ = ["alq", "amq", "nuqsgd", "qsgd", "terngrad"]
