"""Encoding of `eden`: turn, find the nearest levels, choose the scale. By kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import levels_dtype, widen, wire_name
from quiver_kernels.schemes.contract import Encoded
from quiver_kernels.schemes.eden.kernels import find_nearest, sum_products
from quiver_kernels.schemes.eden.layout import Layout, Span, write_codes
from quiver_kernels.schemes.eden.parts import EXPONENT, SCALES
from quiver_kernels.schemes.eden.tables import Table, normal
from quiver_kernels.schemes.rotation import rotate
from quiver_kernels.schemes.scaled import Bits
from quiver_kernels.sharing import run_parts

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class _Blocks:
    """What is known of some blocks, each in units of 2 to its exponent.

    Attributes
    ----------
    exponents
        Of the largest magnitude.
    norms
        Squared norm.
    scales
        What levels are multiplied by.
    dots, energies
        Scalar product of the levels that are sent with the turned values; their squared norm.
    """

    exponents: NDArray[np.int64]
    norms: _Floats
    scales: _Floats
    dots: _Floats
    energies: _Floats


def encode(
    x: NDArray[Any], layout: Layout, num_levels: int, seed: int, *, unbiased: bool
) -> Encoded:
    """The parts of a message of flat, finite `x`."""
    payload = np.zeros(layout.payload(), np.uint8)
    tables = [normal(num_levels)]
    if layout.longer.share:
        tables.append(normal(2 * num_levels))

    def encode_span(span: Span) -> _Blocks:
        return _encode_span(x, span, tables, seed, payload, unbiased=unbiased)

    found = run_parts(layout.spans(), encode_span)
    exponents = np.concatenate([part.exponents for part in found])
    shared = int(exponents.max())
    scales = np.empty(layout.blocks, levels_dtype(wire_name(x.dtype)))
    first, errors, norms = 0, [], []
    for part in found:
        down = (part.exponents - shared).astype(np.int32)
        own = scales[first : first + down.size]
        own[:] = np.ldexp(part.scales, down)
        # What was lost by storing it counts too; what is too small to be told from 0 is lost.
        kept = own.astype(np.float64)
        dots, energies = np.ldexp(part.dots, down), part.energies
        norm = np.ldexp(part.norms, 2 * down)
        errors.append(math.fsum((norm - 2 * kept * dots + kept * kept * energies).tolist()))
        norms.append(math.fsum(norm.tolist()))
        first += down.size
    error, total = max(0.0, math.fsum(errors)), math.fsum(norms)
    return Encoded(
        np.empty(0, scales.dtype),
        payload,
        {SCALES: scales, EXPONENT: np.array([shared], np.int16)},
        error / total if total > 0 else 0.0,
    )


def _encode_span(
    x: NDArray[Any],
    span: Span,
    tables: list[Table],
    seed: int,
    payload: NDArray[np.uint8],
    *,
    unbiased: bool,
) -> _Blocks:
    rows = np.empty((span.rows, span.length))
    rows.reshape(-1)[:] = widen(x[span.start : span.stop])
    exponents = _scale_down(rows)
    rotate(rows, seed, span.start)
    norms = _sums(rows, rows)
    # A block of zeros has no direction; its codes mean nothing, as its scale is 0.
    factors = np.zeros(span.rows)
    np.divide(math.sqrt(span.length), np.sqrt(norms), out=factors, where=norms > 0)
    room = np.zeros(-(-rows.size // 8) * 8, np.uint8)
    codes = room[: rows.size].reshape(rows.shape)
    levels = _nearest(rows, factors, tables[0], codes)
    layout = span.layout
    if layout.is_plain:
        dots, energies = _sums(levels, rows), _sums(levels, levels)
        all_dots = dots
        bits = Bits(layout.bits)
        bits.pack(room, rows.size, span.start, layout.block, payload)
    else:
        all_dots = _sums(levels, rows)
        kept, flat = span.kept(), levels.reshape(-1)
        if len(tables) > 1:
            other = np.empty_like(codes)
            longer = kept[span.longer()]
            finer = _nearest(rows, factors, tables[1], other)
            share = layout.longer.share / (1 << 32)
            # What is expected of all values; of those that are sent it is known below.
            all_dots = (1.0 - share) * all_dots + share * _sums(finer, rows)
            flat[longer] = finer.reshape(-1)[longer]
            codes.reshape(-1)[longer] = other.reshape(-1)[longer]
        sent = np.zeros_like(levels)
        sent.reshape(-1)[kept] = flat[kept]
        dots, energies = _sums(sent, rows), _sums(sent, sent)
        if layout.kept.is_all:
            all_dots = dots
        write_codes(span, codes.reshape(-1)[kept], payload)
    scales = np.zeros(span.rows)
    if unbiased:
        np.divide(norms, all_dots, out=scales, where=all_dots > 0)
        # Of the values that are sent, each stands for several.
        scales *= (1 << 32) / layout.kept.share
    else:
        np.divide(dots, energies, out=scales, where=energies > 0)
    return _Blocks(exponents, norms, scales, dots, energies)


def _scale_down(rows: _Floats) -> NDArray[np.int64]:
    """Bring the largest magnitude of each row into [1/2, 1); the exponents that this took.

    Powers of two in two steps, as one may be beyond float64: exact but for what is 2**-1000 of the
    largest.
    """
    tops = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    exponents = np.frexp(tops)[1]
    half = exponents // 2
    rows *= np.ldexp(1.0, -half)[:, np.newaxis]
    rows *= np.ldexp(1.0, half - exponents)[:, np.newaxis]
    # A row of zeros must not raise the exponent that all share.
    found: NDArray[np.int64] = np.where(tops > 0, exponents, -1100).astype(np.int64)
    return found


def _sums(a: _Floats, b: _Floats) -> _Floats:
    sums = np.empty(len(a))
    sum_products(a, b, sums)
    return sums


def _nearest(rows: _Floats, factors: _Floats, table: Table, codes: NDArray[np.uint8]) -> _Floats:
    levels = np.empty_like(rows)
    low = float(table.thresholds[0])
    find_nearest(
        rows, factors, table.thresholds, table.levels, low, table.cells, table.guess, codes, levels
    )
    return levels
