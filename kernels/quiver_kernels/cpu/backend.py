"""The CPU backend: checks a vector, then has its levels solved and its values coded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import (
    check_aggregate,
    check_levels,
    check_weights,
    finite_range,
    mean_dtype,
)
from quiver_kernels.cpu import cells as counting
from quiver_kernels.cpu import chunking, coding, exact, layers, solving, sorting
from quiver_kernels.cpu.area import Curve
from quiver_kernels.cpu.compile import Floats
from quiver_kernels.dtypes import WIRE_DTYPES, wire_name
from quiver_kernels.options import GRIDS, METHODS, QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import LevelsResult


class CpuBackend:
    """Numba kernels on one thread per call; calls may run side by side."""

    name = "cpu"

    def solve_levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        bounds = finite_range(x)
        return solving.solve(x, bounds, options, check_weights(x, weights))

    def levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        """See `dispatch.Backend`."""
        bounds = finite_range(x)
        flat_weights = check_weights(x, weights)
        levels = solving.solve(x, bounds, options, flat_weights)
        block = chunking.block_size(x, options)
        error, plain, norm = coding.errors(x, bounds, np.atleast_2d(levels), block, flat_weights)
        return LevelsResult(
            levels=levels,
            num_levels=options.num_levels,
            method=options.method,
            expected_mse=error / x.size,
            vnmse=_ratio(plain, norm),
            device=self.name,
        )

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """See `dispatch.Backend`."""
        options = options.with_seed()
        assert options.seed is not None  # with_seed gives one
        begun = time.perf_counter()
        bounds = finite_range(x)
        levels = solving.solve(x, bounds, options, check_weights(x, weights))
        solved = time.perf_counter()
        codes, error, norm = coding.encode(x, bounds, options, np.atleast_2d(levels), options.seed)
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
        )

    def expected_mse(
        self, x: NDArray[Any], levels: NDArray[Any], weights: NDArray[Any] | None
    ) -> float:
        """See `dispatch.Backend`."""
        bounds = finite_range(x)
        table = check_levels(levels, bounds)[np.newaxis, :]
        return coding.errors(x, bounds, table, x.size, check_weights(x, weights))[0] / x.size

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        return coding.dequantize(q)

    def aggregate(
        self, vectors: Sequence[QuantizedVector], weights: Sequence[float] | None
    ) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        return coding.mean(vectors, check_aggregate(vectors, weights), mean_dtype(vectors))

    def warm_up(self) -> None:
        """See `dispatch.Backend`."""
        # Enough values that every solver has its turn.
        values = np.sinh(np.linspace(-3.0, 3.0, exact.DIRECT + 1))
        weights = np.ones(values.size)
        for dtype in WIRE_DTYPES.values():
            x = values.astype(dtype)
            for method in METHODS:
                options = QuantizeOptions.create(bits=3, method=method, seed=1)
                q = self.quantize(x, options, weights)
                self.quantize(x, replace(options, block_size=64), None)
                self.levels(x, options, weights)
            self.dequantize(q)
            self.aggregate([q], None)
        self._warm_solvers(values, weights)
        # Codes of 4 bits, and blocks that end within a byte, are packed by kernels of their own.
        for bits, block in ((4, None), (3, 5)):
            uniform = QuantizeOptions.create(bits=bits, method="uniform", block_size=block, seed=1)
            self.dequantize(self.quantize(values, uniform, None))
        # Levels too far apart for float32 arithmetic take the float64 path.
        extreme = np.array([-3e38, 0, 3e38], np.float32)
        self.quantize(extreme, replace(options, num_levels=2, bits=1), None)

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
                counting.collect(stream.chunks(), cells, every)
                counting.refine(stream.chunks(), cells, every, 2)


def _ratio(error: float, norm: float) -> float:
    """Error over norm; 0 for a vector of zeros, whose error is 0 too."""
    return max(error, 0.0) / norm if norm > 0 else 0.0
