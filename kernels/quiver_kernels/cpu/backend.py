"""The CPU backend: checks a vector, then has its levels solved and its values coded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.batch import Naming, quantize_each
from quiver_kernels.checks import (
    check_aggregate,
    check_levels,
    check_weights,
    finite_range,
    mean_dtype,
)
from quiver_kernels.cpu import cells as counting
from quiver_kernels.cpu import chunking, coding, exact, exact_sum, layers, simba, solving, sorting
from quiver_kernels.cpu.area import Curve
from quiver_kernels.cpu.compile import Floats
from quiver_kernels.cpu.survey import Surveyed
from quiver_kernels.dtypes import WIRE_DTYPES, wire_name
from quiver_kernels.options import GRIDS, METHODS, SIMBA, QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import QuantizeRequest
from quiver_kernels.schemes import coding as schemes
from quiver_kernels.simba import refuse_unsupported
from quiver_kernels.wire import LevelsResult
from quiver_kernels.wrapping import around


class CpuBackend:
    """Numba kernels; calls may run side by side, and share passes (`sharing`)."""

    name = "cpu"

    def solve_levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        found = solving.surveyed(x, options, weights)
        return _solve(x, found, options, check_weights(x, weights))

    def levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        """See `dispatch.Backend`."""
        found = solving.surveyed(x, options, weights)
        bounds = found.bounds
        flat_weights = check_weights(x, weights)
        levels = _solve(x, found, options, flat_weights)
        if options.method == SIMBA:
            plain, norm = simba.errors(x, bounds, levels)
            error = plain / bounds.unit / bounds.unit
            return self._levels_result(x, levels, options, error, _ratio(plain, norm))
        block = chunking.block_size(x, options)
        error, plain, norm = coding.errors(x, bounds, np.atleast_2d(levels), block, flat_weights)
        return self._levels_result(x, levels, options, error, _ratio(plain, norm))

    def _levels_result(
        self,
        x: NDArray[Any],
        levels: NDArray[Any],
        options: QuantizeOptions,
        error: float,
        vnmse: float,
    ) -> LevelsResult:
        return LevelsResult(
            levels=levels,
            num_levels=options.num_levels,
            method=options.method,
            expected_mse=error / x.size,
            vnmse=vnmse,
            device=self.name,
        )

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """See `dispatch.Backend`."""
        if options.is_wrapped:
            return around.quantize(self.quantize, self.dequantize, x, options, weights)
        if options.is_scheme:
            return schemes.quantize(x, options, weights)
        options = options.with_seed()
        assert options.seed is not None  # with_seed gives one
        begun = time.perf_counter()
        found = solving.surveyed(x, options, weights)
        levels = _solve(x, found, options, check_weights(x, weights))
        solved = time.perf_counter()
        codes, error, norm = coding.encode(
            x, found.bounds, options, np.atleast_2d(levels), options.seed
        )
        done = time.perf_counter()
        return QuantizedVector(
            method=options.method,
            bits=options.bits,
            num_levels=options.num_levels,
            shape=x.shape,
            dtype=wire_name(x.dtype),
            block_size=options.block_size,
            seed=options.seed,
            levels=levels,
            codes=codes,
            vnmse=_ratio(error, norm),
            device=self.name,
            timings_ms={
                "levels": round(1e3 * (solved - begun), 3),
                "encode": round(1e3 * (done - solved), 3),
            },
            level_sets=options.level_sets if options.method == SIMBA else None,
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
        table = check_levels(levels, bounds)[np.newaxis, :]
        return coding.errors(x, bounds, table, x.size, check_weights(x, weights))[0] / x.size

    def dequantize(self, q: QuantizedVector, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        if q.wrap is not None:
            return around.dequantize(self.dequantize, q, out)
        if q.is_scheme:
            return schemes.filled(out, schemes.decode(q))
        return coding.dequantize(q, out)

    def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        shares, dtype = check_aggregate(vectors, weights), mean_dtype(vectors)
        if any(q.is_scheme or q.wrap is not None for q in vectors):
            return schemes.filled(out, schemes.mean(vectors, shares, dtype, self.dequantize))
        return coding.mean(vectors, shares, dtype, out)

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
        coding.add_codes(q, start, stop, tables, totals)

    def extent(self, values: NDArray[Any]) -> tuple[float, float]:
        """See `dispatch.Backend`."""
        return exact_sum.extent(chunking.piece(values, 0, values.size))

    def add_scaled(self, values: NDArray[Any], factor: float, total: NDArray[np.int64]) -> None:
        """See `dispatch.Backend`."""
        exact_sum.add_scaled(chunking.piece(values, 0, values.size), factor, total)

    def add_cut(
        self,
        values: NDArray[Any],
        factor: float,
        cut: float,
        high: NDArray[np.int64],
        low: NDArray[np.int64],
    ) -> None:
        """See `dispatch.Backend`."""
        exact_sum.add_cut(chunking.piece(values, 0, values.size), factor, cut, high, low)

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
        exact_sum.divide(np.stack(numbers), np.array(scales), wide, tail, out, unclear)

    def warm_up(self) -> None:
        """See `dispatch.Backend`."""
        # Enough values that every solver has its turn.
        values = np.sinh(np.linspace(-3.0, 3.0, exact.DIRECT + 1))
        weights = np.ones(values.size)
        for dtype in WIRE_DTYPES.values():
            x = values.astype(dtype)
            self._warm_sets(x)
            for method in (name for name in METHODS if name != SIMBA):
                options = QuantizeOptions.create(bits=3, method=method, seed=1)
                q = self.quantize(x, options, weights)
                self.quantize(x, replace(options, block_size=64), None)
                self.levels(x, options, weights)
            self.dequantize(q)
            self.aggregate([q], None)
            whole = np.ones((1, q.num_levels), np.int64)
            self.add_codes(q, 0, q.size, [whole], [np.zeros(q.size, np.int64)])
        for x in (np.ones(2, np.float32), np.ones(2)):
            self.extent(x)
            self.add_scaled(x, 2.0, np.zeros(2, np.int64))
            self.add_cut(x, 0.5, 2.0, np.zeros(2, np.int64), np.zeros(2, np.int64))
        self.divide([np.ones(2, np.int64)], [1.0], 3.0, 0.0, np.zeros(2), np.zeros(2, np.bool_))
        self._warm_solvers(values, weights)
        # Codes of 4 bits, and blocks that end within a byte, are packed by kernels of their own.
        for bits, block in ((4, None), (3, 5)):
            uniform = QuantizeOptions.create(bits=bits, method="uniform", block_size=block, seed=1)
            self.dequantize(self.quantize(values, uniform, None))
        # Levels too far apart for float32 arithmetic take the float64 path.
        extreme = np.array([-3e38, 0, 3e38], np.float32)
        self.quantize(extreme, replace(options, num_levels=2, bits=1), None)

    def _warm_sets(self, x: NDArray[Any]) -> None:
        """Level sets: rounded to alone and together, read back."""
        options = QuantizeOptions.create(bits=1, method=SIMBA, level_sets=2, seed=1)
        together = replace(options, world_size=2, rank=1, shared_seed=1)
        q = self.quantize(x[:100], together, None)
        self.levels(x[:100], options, None)
        self.dequantize(q)
        self.aggregate([q], None)
        whole = np.ones((2, q.num_levels), np.int64)
        self.add_codes(q, 0, q.size, [whole], [np.zeros(q.size, np.int64)])

    def _warm_solvers(self, values: Floats, weights: Floats) -> None:
        # What many values take to be sorted, and many points to be solved for.
        for x in (values.astype(np.float32), values):
            for given in (chunking.NO_WEIGHTS, weights):
                sorting.merged_pairs(x, given, exact.DIRECT)
        for doubles in (0, 2):
            layers.layered_path(Curve.of(values, weights), 8, doubles, unit_weights=False)
        # Short vectors go to the dynamic programme, longer ones to a search over all values.
        for count in (100, exact.SMALL_WORK // 4):
            self.quantize(values[:count], QuantizeOptions.create(bits=3, seed=1), None)
        for x in (values.astype(np.float32), values):
            bounds = finite_range(x)
            for method, grid, given in itertools.product(
                ("exact", "approx"), GRIDS, (chunking.NO_WEIGHTS, weights)
            ):
                options = QuantizeOptions.create(bits=3, method=method, grid=grid)
                solving.streamed(x, bounds, options, given)
                self.levels(x, options, given if given.size else None)
                # Coarse cells, so that there is something to look into.
                stream = solving.stream_of(x, bounds, given)
                cells = stream.count(64)
                every = np.ones(cells.index.size, np.bool_)
                stream.outline(64)
                counting.collect(stream.chunks, cells, every)
                counting.refine(stream.chunks, cells, every, 2)


def _solve(
    x: NDArray[Any], found: Surveyed, options: QuantizeOptions, weights: Floats
) -> NDArray[Any]:
    """Level tables, or sets of them."""
    if options.is_scheme:
        schemes.refuse_levels(options.method)
    refuse_unsupported(options, weighted=weights.size > 0)
    if options.method == SIMBA:
        return simba.solve_sets(x, found.bounds, options)
    return solving.solve(x, found.bounds, options, weights, found.cells)


def _ratio(error: float, norm: float) -> float:
    """Error over norm; 0 for a vector of zeros, whose error is 0 too."""
    return max(error, 0.0) / norm if norm > 0 else 0.0
