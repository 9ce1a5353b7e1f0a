"""Wrappers around what a backend does: before it quantizes, and after it decodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range, finite_range
from quiver_kernels.dtypes import widen
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.stopping import slices
from quiver_kernels.wrapping import feedback, payload
from quiver_kernels.wrapping.clamp import Clamped, clamp
from quiver_kernels.wrapping.parts import Wrap

# A position takes at most 6 bytes on the wire, 8 when it is read, and some more while it is found.
_OUTLIER_BYTES, _SCALE_BYTES = 64, 8
# Of a vector that is put in order, clamped, decoded again and compared.
_CLAMPED_BYTES = 40
# Of values that are scaled at a time.
_PART_BYTES = 1 << 22

Quantize = Callable[[NDArray[Any], QuantizeOptions, NDArray[Any] | None], QuantizedVector]
Dequantize = Callable[[QuantizedVector, NDArray[Any] | None], NDArray[Any]]


def quantize(
    own: Quantize,
    decode: Dequantize,
    x: NDArray[Any],
    options: QuantizeOptions,
    weights: NDArray[Any] | None,
) -> QuantizedVector:
    """The message of `x` with the wrappers that `options` ask for, where they change anything.

    Parameters
    ----------
    own, decode
        What the backend does without them.

    Notes
    -----
    With outliers ``vnmse`` is the actual error of this message; else expected, as the method's.
    """
    bounds = finite_range(x)
    clamped, inside = None, x
    if options.outliers is not None:
        clamped = clamp(x.reshape(-1), options.outliers)
        inside = clamped.inside.reshape(x.shape)
    q = own(inside, options.without_wrappers(), weights)
    wrap = Wrap(outliers=None if clamped is None else clamped.exact)
    if options.feedback_scale:
        wrap = replace(wrap, scale=_feedback(q, options, bounds, clamped))
        if wrap.scale is not None:
            q = replace(q, vnmse=q.vnmse / (1 + q.vnmse))
    if clamped is not None and clamped.exact is not None:
        error = _error(decode(replace(q, wrap=wrap), None), x, bounds)
        q = replace(q, vnmse=error)
    if options.entropy:
        found = payload.coded(q.codes, q.size, q.bits, q.block_size)
        if found is not None:
            q, wrap = replace(q, codes=found[0]), replace(wrap, entropy=found[1])
    return q if wrap.is_empty else replace(q, wrap=wrap)


def dequantize(
    own: Dequantize, q: QuantizedVector, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The decoded vector of a wrapped message; `own` decodes what is in it."""
    wrap = q.wrap
    assert wrap is not None  # else there is nothing around it
    # A message may have been made by hand: nothing is decoded for positions that do not fit.
    positions = None if wrap.outliers is None else wrap.outliers.positions(q.size)
    decoded = own(unwrapped(q), out)
    if not decoded.flags.writeable:
        decoded = decoded.copy()
    flat = decoded.reshape(-1)
    if wrap.scale is not None:
        feedback.scale_in_place(flat, wrap.scale)
    if wrap.outliers is not None:
        flat[positions] = wrap.outliers.values
    return decoded


def unwrapped(q: QuantizedVector) -> QuantizedVector:
    """The method's own message in a wrapped one; its payload is decoded if need be."""
    if q.wrap is None or q.wrap.entropy is None:
        return replace(q, wrap=None)
    codes = payload.payload(q.codes, q.wrap.entropy, q.size, q.bits, q.block_size)
    return replace(q, codes=codes, wrap=None)


def require_plain(q: QuantizedVector, field: str = "vector") -> None:
    """Refuse a wrapped message where codes are used as they are."""
    if q.wrap is not None:
        parts = (
            ("outliers", q.wrap.outliers),
            ("entropy", q.wrap.entropy),
            ("scale", q.wrap.scale),
        )
        found = ", ".join(name for name, part in parts if part is not None)
        raise InvalidInput(
            f"{field} must not be wrapped, since its codes are used without decoding; got {found}",
            code="invalid_option",
            field=field,
        )


def message_bytes(size: int, options: QuantizeOptions) -> int:
    """Bytes that wrappers may add to a message; an upper bound."""
    if options.outliers is None:
        return _SCALE_BYTES
    outliers = min(size, 2 + math.ceil(2 * (1 - options.outliers) * size))
    return _SCALE_BYTES + _OUTLIER_BYTES * outliers


def quantize_bytes(size: int, options: QuantizeOptions) -> int:
    """Bytes that wrapping takes beside the method's own memory and its result; an upper bound."""
    clamping = 0 if options.outliers is None else _CLAMPED_BYTES * size
    # Counts of digits.
    clamping += min(clamping, 2 * _PART_BYTES)
    return clamping + (payload.working_bytes(size, size) if options.entropy else 0)


def dequantize_bytes(q: QuantizedVector) -> int:
    """Bytes that unwrapping takes beside the method's own memory and its result; an upper bound."""
    wrap = q.wrap
    if wrap is None:
        return 0
    found = 0 if wrap.outliers is None else _OUTLIER_BYTES * wrap.outliers.values.size
    if wrap.entropy is not None:
        found += wrap.entropy.size + payload.working_bytes(q.size, wrap.entropy.size)
    return found + _PART_BYTES


def _feedback(
    q: QuantizedVector, options: QuantizeOptions, bounds: Range, clamped: Clamped | None
) -> float | None:
    """The scale for a message without bias; what has one contracts by itself."""
    if not feedback.promises_of(options.method, options.choice).unbiased:
        return None
    if clamped is None or clamped.exact is None:
        return feedback.scale_of(q.vnmse)
    # Of the values that are not kept exactly: no more than the error of all.
    unit = bounds.unit
    all_of_them = _norm(clamped.inside, unit)
    at_outliers = _norm(clamped.inside[clamped.positions], unit)
    rest = all_of_them - at_outliers
    return feedback.scale_of(q.vnmse * all_of_them / rest) if rest > 0 else None


def _norm(flat: NDArray[Any], unit: float) -> float:
    """Squared norm in squared units."""
    return float(sum(float(np.sum((_wide(flat[part]) * unit) ** 2)) for part in slices(flat.size)))


def _error(decoded: NDArray[Any], x: NDArray[Any], bounds: Range) -> float:
    """Squared error over squared norm."""
    ours, theirs, unit = decoded.reshape(-1), x.reshape(-1), bounds.unit
    error = norm = 0.0
    for part in slices(theirs.size):
        values = _wide(theirs[part]) * unit
        error += float(np.sum((_wide(ours[part]) * unit - values) ** 2))
        norm += float(np.sum(values**2))
    return error / norm if norm > 0 else 0.0


def _wide(values: NDArray[Any]) -> NDArray[np.float64]:
    return widen(values).astype(np.float64)
