"""The scale that makes of unbiased rounding a contraction: 1 / (1 + omega).

Raw error feedback converges with quantizers whose squared error is below the squared norm. Of
rounding without bias, with the error omega over the squared norm, the decoded vector divided by
1 + omega has the expected error omega / (1 + omega) (Horváth et al., arXiv 1904.05115).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes.contract import Choice, Promises
from quiver_kernels.stopping import slices


def require_possible(method: str, promises: Promises) -> None:
    """Refuse methods of which no scale makes a contraction for sure."""
    if not (promises.unbiased or promises.contraction):
        raise InvalidInput(
            f"feedback_scale must be false with method {method} and these parameters, which has a "
            "bias and is no contraction; got true",
            code="invalid_option",
            field="feedback_scale",
        )


def promises_of(method: str, choice: Choice) -> Promises:
    """What a method of the backends, or a scheme, holds."""
    from quiver_kernels.schemes import registry

    scheme = registry.find(method)
    # Levels that were given: rounding among them has no bias.
    return Promises(unbiased=True) if scheme is None else scheme.promises(choice)


def scale_of(omega: float) -> float | None:
    """The scale for an expected error of omega times the squared norm; None: it is 1."""
    scale = 1.0 / (1.0 + omega)
    return scale if 0 < scale < 1 else None


def scale_in_place(decoded: NDArray[Any], scale: float) -> None:
    """Multiply flat values in float64, rounded once to their type."""
    for part in slices(decoded.size):
        products = decoded[part].astype(np.float64) * scale
        # Zeros have no sign.
        decoded[part] = products.astype(decoded.dtype) + decoded.dtype.type(0)
