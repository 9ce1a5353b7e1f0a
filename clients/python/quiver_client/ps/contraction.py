"""Whether a quantizer may be used with error feedback, and how it is made fit.

Feedback adds the error of one message to the next. Errors stay bounded if the quantizer is a
contraction: ``|x - Q(x)|^2 <= (1 - delta) |x|^2`` with delta > 0 ("Error Feedback Fixes
SignSGD", ICML 2019). An unbiased quantizer of expected squared error ``omega |x|^2`` need not
be: with omega >= 1 the errors can grow without bound. Its output divided by ``1 + omega`` is
one in expectation, ``delta = 1 / (1 + omega)``, and better than without scaling for every omega.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_client.ps.residuals import FeedbackError
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.contract import Promises
from quiver_kernels.sign import METHOD as SIGN
from quiver_kernels.wrapping.feedback import promises_of
from quiver_kernels.wrapping.parts import Wrap

POLICIES = ("scale", "refuse", "unchecked")
DEFAULT_THRESHOLD = 0.25
DETERMINISTIC = (SIGN,)
"""Methods that are contractions by themselves; others but schemes round without bias."""
UNBIASED = Promises(unbiased=True)

_ROUNDING = 1e-6


class NotAContraction(FeedbackError):
    """The quantizer's error is too large for feedback, and the policy is not to scale it."""

    default_code = "not_a_contraction"


def check_policy(policy: str, threshold: float) -> None:
    """`Invalid` for a policy or threshold that there is not."""
    if policy not in POLICIES:
        raise Invalid(
            f"contraction must be one of {', '.join(POLICIES)}; got {str(policy)[:40]!r}",
            code="invalid_option",
            field="contraction",
        )
    if not 0 <= threshold < 1:
        raise Invalid(
            f"threshold must be a number from 0 to below 1; got {str(threshold)[:40]}",
            code="invalid_option",
            field="threshold",
        )


def contracted(q: QuantizedVector, *, policy: str, threshold: float, where: str) -> QuantizedVector:
    """`q` as a contraction: itself if it is one, scaled, or refused.

    Parameters
    ----------
    q
        As quantized.
    policy, threshold
        As for `ErrorFeedback`.
    where
        What errors call it.

    Raises
    ------
    NotAContraction
        ``vnmse`` is above `threshold` and the policy is ``refuse``, or a deterministic
        quantizer's is above 1.
    """
    if policy == "unchecked":
        return q
    promises = promises_of(q.method, q.coded.choice) if q.is_scheme else UNBIASED
    if q.method in DETERMINISTIC or promises.contraction:
        # Never by its mean magnitude, but a message may come from elsewhere. A mean that rounds to
        # 0 sends nothing and has the error 1: all of it stays owed.
        if q.vnmse > 1 + _ROUNDING:
            raise NotAContraction(
                f"{where}: {q.method} must have an error of at most the values' norm; "
                f"its vNMSE is {q.vnmse:.3g}"
            )
        return q
    if q.vnmse <= threshold:
        return q
    if policy == "refuse":
        raise NotAContraction(
            f"{where}: unbiased rounding with vNMSE {q.vnmse:.3g} is no contraction that "
            f"feedback may rely on (threshold {threshold:g}): use more bits, or scale"
        )
    if not promises.unbiased:
        raise NotAContraction(
            f"{where}: {q.method} with its parameters has a bias and does not contract; its vNMSE "
            f"is {q.vnmse:.3g} (threshold {threshold:g}), and no scale makes it fit"
        )
    return scaled(q)


def scaled(q: QuantizedVector) -> QuantizedVector:
    """`q` with its levels divided by ``1 + vnmse``, and the error that it then has.

    Receivers need not know: it is an ordinary message. Exactly as scaling what it decodes to, but
    for the rounding of the levels to their type. Schemes, and what is wrapped already, are scaled
    by a wrapper (`quiver_kernels.wrapping`) instead.
    """
    omega = q.vnmse
    if q.is_scheme or q.wrap is not None:
        wrap = Wrap() if q.wrap is None else q.wrap
        scale = (1.0 if wrap.scale is None else wrap.scale) / (1.0 + omega)
        if scale == 1:
            # The error is less than a rounding.
            return q
        return replace(q, wrap=replace(wrap, scale=scale), vnmse=omega / (1.0 + omega))
    wide: NDArray[Any] = q.levels.astype(np.float64) / (1.0 + omega)
    rounded = wide.astype(WIRE_DTYPES[q.dtype]).astype(levels_dtype(q.dtype))
    return replace(q, levels=rounded, vnmse=omega / (1.0 + omega))
