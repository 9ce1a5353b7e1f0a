"""Decoding of `eden`: levels times scales, turned back, rounded once. NumPy, or kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.schemes.eden.layout import Layout, Span, read_codes
from quiver_kernels.schemes.eden.parts import EXPONENT, SCALES
from quiver_kernels.schemes.eden.tables import normal
from quiver_kernels.schemes.rotation import rotate_back
from quiver_kernels.schemes.scaled import Bits, checked, has_numba, largest
from quiver_kernels.sharing import run_parts

if TYPE_CHECKING:
    from quiver_kernels.schemes.contract import Coded

_Floats = NDArray[np.float64]


def decode(coded: Coded, layout: Layout) -> NDArray[Any]:
    """The decoded vector of a message that was checked."""
    out = np.empty(coded.size, WIRE_DTYPES[coded.dtype])
    exponent = int(coded.side[EXPONENT][0])
    top = largest(coded.dtype)

    def decode_span(span: Span) -> None:
        rows = _turned(coded, span)
        rotate_back(rows, coded.seed, span.start)
        # In two steps: one power of two may be beyond float64.
        rows *= np.ldexp(1.0, exponent // 2)
        with np.errstate(over="ignore"):
            rows *= np.ldexp(1.0, exponent - exponent // 2)
        # An estimate may be beyond the type's numbers where the vector itself nearly is.
        np.clip(rows, -top, top, out=rows)
        out[span.start : span.stop] = rows.reshape(-1)

    run_parts(layout.spans(), decode_span)
    return out


def _turned(coded: Coded, span: Span) -> _Floats:
    """The values of a span before they are turned back."""
    layout = span.layout
    scales = coded.side[SCALES][span.blocks].astype(np.float64)
    if layout.is_plain:
        codes = Bits(layout.bits).unpack(coded.codes, span.start, span.stop, layout.block)
        checked(codes, coded.num_levels)
        return _levels(codes.reshape(span.rows, span.length), coded.num_levels, scales)
    # Values without a code are 0.
    rows = np.zeros((span.rows, span.length))
    codes, kept, longer = read_codes(span, coded.codes), span.kept(), span.longer()
    for chosen, count in ((~longer, coded.num_levels), (longer, 2 * coded.num_levels)):
        if chosen.any():
            found, places = codes[chosen], kept[chosen]
            levels = normal(count).levels[checked(found, count)]
            rows.reshape(-1)[places] = levels * scales[places // span.length]
    return rows


def _levels(codes: NDArray[np.uint8], num_levels: int, scales: _Floats) -> _Floats:
    table = normal(num_levels).levels
    if not has_numba():
        found: _Floats = table[codes] * scales[:, np.newaxis]
        return found
    from quiver_kernels.cpu.compile import frozen
    from quiver_kernels.schemes.eden.kernels import look_up

    values = np.empty(codes.shape)
    look_up(frozen(codes), table, scales, values)
    return values
