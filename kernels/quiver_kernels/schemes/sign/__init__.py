"""Signs and the mean magnitude of each block: 1 bit per value, deterministic.

The numbers of `quiver_kernels.sign.sign_quantize`, whose messages (tables of two levels) stay
readable, as a scheme's message.
"""

from __future__ import annotations

from quiver_kernels.schemes.nearest import Entries, NearestScheme, tables


def scheme() -> NearestScheme:
    """The scheme ``sign``."""
    return NearestScheme(
        name="sign",
        summary="signs times the mean magnitude, for error feedback",
        source="Error Feedback Fixes SignSGD, ICML 2019",
        entries=tables(Entries((-1.0, 1.0), -1, per_top=1.0, per_mean=1.0)),
        default_levels=2,
        parameters=(),
        rounding="sign, 0 counts as positive",
    )
