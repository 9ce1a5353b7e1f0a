"""Every operation once more in plain NumPy: slow, obvious, the oracle of the tests.

It is also a backend: where Numba is not installed, decoding, aggregation and expected
errors run here, at a few nanoseconds per value. Level solving is O(s n^2) and only for
small vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import doubles
from quiver_kernels.batch import Naming, quantize_each
from quiver_kernels.checks import (
    Range,
    check_aggregate,
    check_levels,
    check_weights,
    finite_range,
    given_table,
    mean_dtype,
)
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, widen, wire_name
from quiver_kernels.errors import BackendUnavailable, InvalidInput
from quiver_kernels.options import SIMBA, QuantizeOptions
from quiver_kernels.packing import pack_codes, unpack_codes
from quiver_kernels.partition import LAYOUTS, Layout, Partition, layout_of
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import QuantizeRequest
from quiver_kernels.rng import random_words
from quiver_kernels.rounding import rounding_table
from quiver_kernels.schemes import coding as schemes
from quiver_kernels.simba import shared_sets
from quiver_kernels.strata import Strata
from quiver_kernels.wire import LevelsResult
from quiver_kernels.wrapping import around

_MAX_CANDIDATES = 4096


def squared_errors(x: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected squared rounding error of each value: (b - x)(x - a), neighbours a <= x <= b."""
    k = interval_of(x, levels)
    return (levels[k + 1] - x) * (x - levels[k])


def interval_of(x: NDArray[Any], levels: NDArray[Any]) -> NDArray[np.int64]:
    """Index k of the last level at or below x, at most s - 2."""
    return np.clip(np.searchsorted(levels, x, side="right") - 1, 0, levels.size - 2)


def best_of_candidates(
    x: NDArray[np.float64],
    weights: NDArray[np.float64],
    candidates: NDArray[np.float64],
    num_levels: int,
) -> NDArray[np.float64]:
    """The best `num_levels` of ascending `candidates` that include both ends; O(s m^2 + m n).

    The layered dynamic programme of the paper's section 3 on the full cost matrix, each
    entry summed directly over the data.
    """
    m = candidates.size
    if m > _MAX_CANDIDATES:
        raise InvalidInput(
            f"the reference solver takes at most {_MAX_CANDIDATES} candidates; got {m}",
            code="too_many_elements",
            field="vector",
        )
    cost = np.full((m, m), np.inf)
    for a in range(m):
        for b in range(a + 1, m):
            inside = (x > candidates[a]) & (x < candidates[b])
            part = x[inside]
            cost[a, b] = np.sum(weights[inside] * ((candidates[b] - part) * (part - candidates[a])))
    best = cost[0].copy()
    choices = []
    for _ in range(num_levels - 2):
        total = best[:, np.newaxis] + cost
        choices.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    path = [m - 1]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    path.append(0)
    return candidates[path[::-1]]


def outermost_of_cells(
    x: NDArray[np.float64], weights: NDArray[np.float64], bins: int, layout: Layout
) -> NDArray[np.float64]:
    """Candidates of the robust grid, ascending: the minimum and the maximum of each cell.

    Values of weight 0 are none, but for the ends of the vector.
    """
    low, high = float(x.min()), float(x.max())
    counted = x[(weights > 0) | (x == low) | (x == high)]
    cells, _ = Partition.of(low, high, 2 * bins, layout).locate(counted)
    ends = [
        end
        for cell in np.unique(cells)
        for part in [counted[cells == cell]]
        for end in (part.min(), part.max())
    ]
    return np.unique(ends)


def levels_of(
    x: NDArray[np.float64],
    weights: NDArray[np.float64],
    options: QuantizeOptions,
    layout: Layout = LAYOUTS["float64"],
) -> NDArray[np.float64]:
    """Levels of one table, float64, shape (s,), by any method; `layout` is that of `x`'s type."""
    s = options.num_levels
    distinct = np.unique(x)
    if distinct.size <= s:
        return np.concatenate([distinct, np.full(s - distinct.size, distinct[-1])])
    bounds = Range(float(distinct[0]), float(distinct[-1]))
    scaled, unit = x * bounds.unit, bounds.unit
    if options.method == "uniform":
        return _steps(bounds, s - 1)
    if options.method != "approx" or options.sorts(x.size):
        return best_of_candidates(scaled, weights, distinct * unit, s) / unit
    if options.grid == "robust":
        ends = outermost_of_cells(x, weights, options.bins, layout)
        if ends.size <= s:
            return np.concatenate([ends, np.full(s - ends.size, bounds.high)])
        return best_of_candidates(scaled, weights, ends * unit, s) / unit
    edges = _steps(bounds, options.bins)
    if s == 2 or edges.size <= s:
        chosen = edges if s > 2 else edges[[0, -1]]
        return np.concatenate([chosen, np.full(s - chosen.size, bounds.high)])
    return best_of_candidates(scaled, weights, edges * unit, s) / unit


def round_codes(
    x: NDArray[Any],
    levels: NDArray[Any],
    seed: int,
    first_index: int = 0,
    strata: Strata | None = None,
) -> NDArray[np.uint8]:
    """Unbiased codes of `x` for one table, by the rule of `quiver_kernels.rounding`."""
    table = rounding_table(levels[np.newaxis, :])
    values = x.astype(table.levels.dtype)
    row, inverse = table.levels[0], table.inverse[0]
    k = interval_of(values, row)
    if table.narrow:
        p = (values - row[k]) * inverse[k]
    else:
        scale = table.scale[0][k]
        p = (values * scale - row[k] * scale) * inverse[k]
    threshold = (p * p.dtype.type(2.0**32)).astype(np.int64)
    words = random_words(seed, first_index, x.size)
    if strata is not None:
        words = strata.words(words, first_index)
    up = (words.astype(np.int64) < threshold) | (values >= row[k + 1])
    codes: NDArray[np.uint8] = (k + up).astype(np.uint8)
    return codes


class ReferenceBackend:
    """The same operations as any backend, without Numba."""

    name = "reference"

    def solve_levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> NDArray[Any]:
        """See `dispatch.Backend`; O(s n^2) per table."""
        if options.is_scheme:
            schemes.refuse_levels(options.method)
        bounds = finite_range(x)
        if options.method == SIMBA:
            raise BackendUnavailable("the levels of method simba are found by the cpu backend only")
        if options.levels is not None:
            weighted = weights is not None
            return given_table(options.levels, wire_name(x.dtype), bounds, weighted=weighted)
        flat = widen(x).astype(np.float64).reshape(-1)
        given = check_weights(x, weights)
        flat_weights = given if given.size else np.ones(flat.size)
        block = options.block_size or flat.size
        layout = layout_of(x.dtype)
        rows = [
            levels_of(flat[i : i + block], flat_weights[i : i + block], options, layout)
            for i in range(0, flat.size, block)
        ]
        name = wire_name(x.dtype)
        # Zero has no sign: which of -0 and 0 is the least is a matter of their order.
        table = np.stack(rows).astype(WIRE_DTYPES[name]).astype(levels_dtype(name)) + 0.0
        return table[0] if options.block_size is None else table

    def levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        """See `dispatch.Backend`."""
        levels = self.solve_levels(x, options, weights)
        given = check_weights(x, weights)
        error, norm = self._error_and_norm(x, levels, options.block_size, None)
        weighted, _ = self._error_and_norm(
            x, levels, options.block_size, given if given.size else None
        )
        unit = finite_range(x).unit
        return LevelsResult(
            levels=levels,
            num_levels=options.num_levels,
            method=options.method,
            expected_mse=weighted / unit / unit / x.size,
            vnmse=error / norm if norm else 0.0,
            device=self.name,
        )

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """See `dispatch.Backend`; O(s n^2) per table."""
        if options.is_wrapped:
            return around.quantize(self.quantize, self.dequantize, x, options, weights)
        if options.is_scheme:
            return schemes.quantize(x, options, weights)
        options = options.with_seed()
        assert options.seed is not None  # with_seed gives one
        levels = self.solve_levels(x, options, weights)
        flat = widen(x).reshape(-1)
        block = options.block_size or flat.size
        tables = np.atleast_2d(levels)
        strata = Strata.of(options)
        codes = np.concatenate(
            [
                round_codes(flat[i : i + block], tables[i // block], options.seed, i, strata)
                for i in range(0, flat.size, block)
            ]
        )
        error, norm = self._error_and_norm(x, levels, options.block_size, None)
        return QuantizedVector(
            method=options.method,
            bits=options.bits,
            num_levels=options.num_levels,
            shape=x.shape,
            dtype=wire_name(x.dtype),
            block_size=options.block_size,
            seed=options.seed,
            levels=levels,
            codes=pack_codes(codes, options.bits, options.block_size),
            vnmse=error / norm if norm else 0.0,
            device=self.name,
        )

    def quantize_many(
        self, requests: Sequence[QuantizeRequest], naming: Naming
    ) -> list[QuantizedVector]:
        """See `dispatch.Backend`."""
        return quantize_each(self, requests, naming)

    def expected_mse(
        self, x: NDArray[Any], levels: NDArray[Any], weights: NDArray[Any] | None
    ) -> float:
        """See `dispatch.Backend`."""
        bounds = finite_range(x)
        table = check_levels(levels, bounds)
        given = check_weights(x, weights)
        error, _ = self._error_and_norm(x, table, None, given if given.size else None)
        return error / bounds.unit / bounds.unit / x.size

    def dequantize(self, q: QuantizedVector, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        if q.wrap is not None:
            return around.dequantize(self.dequantize, q, out)
        if q.is_scheme:
            return _in(out, schemes.decode(q))
        return _in(out, _decoded(q, WIRE_DTYPES[q.dtype]).reshape(q.shape))

    def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        shares = check_aggregate(vectors, weights)
        if any(q.is_scheme or q.wrap is not None for q in vectors):
            dtype = mean_dtype(vectors)
            return _in(out, schemes.mean(vectors, shares, dtype, self.dequantize))
        total = np.zeros(vectors[0].size)
        for q, share in zip(vectors, shares, strict=True):
            total += share * _decoded(q, np.dtype(np.float64))
        # Shares add up to 1 but for rounding, which must not leave the levels' range.
        low = min(float(q.levels.min()) for q in vectors)
        high = max(float(q.levels.max()) for q in vectors)
        mean = np.clip(total, low, high).astype(mean_dtype(vectors))
        return _in(out, mean.reshape(vectors[0].shape))

    def add_codes(
        self,
        q: QuantizedVector,
        start: int,
        stop: int,
        tables: Sequence[NDArray[np.int64]],
        totals: Sequence[NDArray[np.int64]],
    ) -> None:
        """See `dispatch.Backend`."""
        around.require_plain(q)
        codes = _checked_codes(q)[start:stop]
        rows: NDArray[Any] = np.arange(start, stop) // (q.block_size or q.size)
        if q.level_sets is not None:
            rows = shared_sets(q.seed, start, stop - start, q.level_sets)
        for table, total in zip(tables, totals, strict=True):
            np.add(total, table[rows, codes], out=total)

    def extent(self, values: NDArray[Any]) -> tuple[float, float]:
        """See `dispatch.Backend`."""
        sizes = np.abs(values.astype(np.float64))
        if not np.isfinite(sizes).all():
            return math.nan, math.nan
        return float(np.min(sizes[sizes > 0], initial=math.inf)), float(sizes.max())

    def add_scaled(self, values: NDArray[Any], factor: float, total: NDArray[np.int64]) -> None:
        """See `dispatch.Backend`."""
        total += (values.astype(np.float64) * factor).astype(np.int64)

    def add_cut(
        self,
        values: NDArray[Any],
        factor: float,
        cut: float,
        high: NDArray[np.int64],
        low: NDArray[np.int64],
    ) -> None:
        """See `dispatch.Backend`."""
        scaled = values.astype(np.float64) * factor
        whole = np.trunc(scaled)
        high += whole.astype(np.int64)
        low += ((scaled - whole) * cut).astype(np.int64)

    def divide(
        self,
        numbers: Sequence[NDArray[np.int64]],
        scales: Sequence[float],
        wide: float,
        tail: float,
        out: NDArray[np.float64],
        unclear: NDArray[np.bool_],
    ) -> None:
        """See `dispatch.Backend`."""
        doubles.divide(numbers, scales, wide, tail, out, unclear)

    def warm_up(self) -> None:
        """Nothing to compile."""

    def _error_and_norm(
        self,
        x: NDArray[Any],
        levels: NDArray[Any],
        block_size: int | None,
        weights: NDArray[np.float64] | None,
    ) -> tuple[float, float]:
        """Expected squared error and squared norm, in squared units of the vector's range."""
        unit = finite_range(x).unit
        flat = widen(x).astype(np.float64).reshape(-1) * unit
        tables = np.atleast_2d(levels).astype(np.float64) * unit
        block = block_size or flat.size
        errors = np.concatenate(
            [
                squared_errors(flat[i : i + block], tables[i // block])
                for i in range(0, flat.size, block)
            ]
        )
        if weights is not None:
            errors = errors * weights
        return max(math.fsum(errors.tolist()), 0.0), math.fsum((flat * flat).tolist())


def _steps(bounds: Range, count: int) -> NDArray[np.float64]:
    t = np.arange(count + 1) / count
    return bounds.low * (1.0 - t) + bounds.high * t


def _in(out: NDArray[Any] | None, values: NDArray[Any]) -> NDArray[Any]:
    """`values`, copied to `out` if that is given."""
    if out is None:
        return values
    out[...] = values
    return out


def _decoded(q: QuantizedVector, dtype: np.dtype[Any]) -> NDArray[Any]:
    codes = _checked_codes(q)
    tables: NDArray[Any] = np.atleast_2d(q.levels).astype(dtype)
    if q.level_sets is None:
        rows: NDArray[Any] = np.arange(q.size) // (q.block_size or q.size)
    else:
        rows = shared_sets(q.seed, 0, q.size, q.level_sets)
    decoded: NDArray[Any] = tables[rows, codes]
    return decoded


def _checked_codes(q: QuantizedVector) -> NDArray[np.uint8]:
    codes = unpack_codes(q.codes, q.size, q.bits, q.block_size)
    largest = int(codes.max())
    if largest >= q.num_levels:
        raise InvalidInput(
            f"codes must be below num_levels={q.num_levels}; got {largest}",
            code="invalid_codes",
            field="codes",
        )
    return codes
