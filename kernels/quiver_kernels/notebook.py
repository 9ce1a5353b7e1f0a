"""How a quantized vector looks in a notebook: a table of what it is, and its levels and codes."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from quiver_kernels.packing import unpack_codes
from quiver_kernels.plots.histogram import Histogram, weighted_histogram
from quiver_kernels.plots.levels_plot import levels_plot
from quiver_kernels.plots.svg import to_svg
from quiver_kernels.quantized import QuantizedVector

_WIDTH, _HEIGHT, _BARS = 420, 140, 105
# More codes are not counted: a notebook shows its results at once.
_MOST_CODES = 1 << 24


def to_html(q: QuantizedVector) -> str:
    """A ``<div>`` without scripts or references; O(d), of codes up to 16 million values."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in _facts(q)
    )
    counted = _counted(q)
    picture = ""
    if counted is not None:
        title = f"{q.method}, {q.num_levels} levels"
        picture = to_svg(levels_plot(counted, q.levels, title, width=_WIDTH, height=_HEIGHT))
    return f"<div><b>QuantizedVector</b><table>{rows}</table>{picture}</div>"


def _facts(q: QuantizedVector) -> Iterator[tuple[str, str]]:
    yield "method", q.method
    yield "vector", f"{' x '.join(str(size) for size in q.shape) or 'one value'}, {q.dtype}"
    yield "levels", f"{q.num_levels} ({q.bits} bits per code)"
    if q.block_size is not None:
        yield "values that share a table", f"{q.block_size:,}"
    yield "size", f"{q.nbytes:,} bytes, {q.bits_per_value:.3f} bits per value"
    yield "expected error over squared norm (vNMSE)", f"{q.vnmse:.4g}"
    yield "seed", str(q.seed)


def _counted(q: QuantizedVector) -> Histogram | None:
    """Codes by the values they stand for; None: they do not point straight into one table."""
    packed = q.wrap is None or q.wrap.entropy is None
    single = q.block_size is None and q.level_sets is None and not q.is_scheme
    if not (packed and single and q.size <= _MOST_CODES):
        return None
    codes = unpack_codes(q.codes, q.size, q.bits, None)
    counts = np.bincount(codes, minlength=q.num_levels)[: q.num_levels].astype(np.int64)
    low, high = float(q.levels[0]), float(q.levels[-1])
    return weighted_histogram(q.levels, counts, low, high, _BARS)
