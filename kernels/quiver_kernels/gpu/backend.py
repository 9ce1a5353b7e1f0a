"""The GPU backend: codes and values on a device, the same bits as the CPU's.

Levels are still solved for by the CPU, as is all that has no kernel yet: docs/gpu.md tells what.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range, check_aggregate, require_values
from quiver_kernels.cpu import coding, solving
from quiver_kernels.cpu.backend import CpuBackend
from quiver_kernels.dtypes import WIRE_DTYPES, wire_name
from quiver_kernels.errors import BackendUnavailable
from quiver_kernels.gpu import passes
from quiver_kernels.gpu.device import Device
from quiver_kernels.options import APPROX_FROM, SIMBA, QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rounding import rounding_table
from quiver_kernels.stopping import checkpoint
from quiver_kernels.strata import Strata
from quiver_kernels.wire import LevelsResult


class GpuBackend(CpuBackend):
    """Range, codes, errors and decoding on a device; the rest as the CPU does it. Thread-safe.

    Parameters
    ----------
    device
        Used by one call at a time.
    """

    name = "gpu"

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lane = threading.Lock()

    def levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        """See `dispatch.Backend`; computed by the CPU."""
        return replace(super().levels(x, options, weights), device=CpuBackend.name)

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """See `dispatch.Backend`; level sets are the CPU's."""
        if options.method == SIMBA:
            return replace(super().quantize(x, options, weights), device=CpuBackend.name)
        require_values(x, "vector")
        options = options.with_seed()
        assert options.seed is not None  # with_seed gives one
        with self._lane:
            begun = time.perf_counter()
            vector = passes.Vector.upload(self._device, x)
            bounds = passes.finite_range(self._device, vector)
            checkpoint()
            uploaded = time.perf_counter()
            levels = self._levels(x, vector, bounds, options, weights)
            solved = time.perf_counter()
            row = x.size if options.block_size is None else min(options.block_size, x.size)
            table = passes.Table.upload(self._device, rounding_table(np.atleast_2d(levels)))
            if not table.narrow:
                vector = passes.widened(self._device, vector)
            packed = passes.encode(
                self._device,
                vector,
                row,
                table,
                options.bits,
                options.seed,
                Strata.of(options),
            )
            checkpoint()
            error, norm = passes.errors(self._device, vector, row, table, bounds.unit)
            codes = np.empty(packed.nbytes, np.uint8)
            self._device.download(packed, codes)
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
            vnmse=max(error, 0.0) / norm if norm > 0 else 0.0,
            device=self.name,
            timings_ms={
                "upload": round(1e3 * (uploaded - begun), 3),
                "levels": round(1e3 * (solved - uploaded), 3),
                "encode": round(1e3 * (done - solved), 3),
            },
        )

    def _levels(
        self,
        x: NDArray[Any],
        vector: passes.Vector,
        bounds: Range,
        options: QuantizeOptions,
        weights: NDArray[Any] | None,
    ) -> NDArray[Any]:
        """The CPU's levels; where they follow from cells alone, the device counts these."""
        counted = weights is None and x.size <= passes.MOST_COUNTED
        if counted and solving.cells_suffice(options, x.size):
            cells = passes.count_cells(self._device, vector, bounds, 2 * options.bins)
            levels = solving.from_cells(cells, options, vector.dtype)
            if levels is not None:
                return levels
        return self.solve_levels(x, options, weights)

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """See `dispatch.Backend`; level sets are the CPU's."""
        if q.level_sets is not None:
            return super().dequantize(q)
        with self._lane:
            return passes.decode(self._device, q)

    def aggregate(
        self, vectors: Sequence[QuantizedVector], weights: Sequence[float] | None
    ) -> NDArray[Any]:
        """See `dispatch.Backend`; means with level sets among them are the CPU's."""
        shares = check_aggregate(vectors, weights)
        if any(q.level_sets is not None for q in vectors):
            return super().aggregate(vectors, weights)
        with self._lane:
            total = passes.mean(self._device, vectors, shares)
        return coding.within_levels(total, vectors)

    def warm_up(self) -> None:
        """See `dispatch.Backend`; every kernel of the device runs. The CPU's has its own."""
        for dtype in WIRE_DTYPES.values():
            for values in (np.arange(100.0), np.array([-3e38, 0.0, 3e38])):
                if not np.isfinite(x := _as(values, dtype)).all():
                    continue
                q = self.quantize(x, QuantizeOptions.create(bits=2, seed=1), None)
                self.dequantize(q)
                self.aggregate([q], None)
            many = _as(np.linspace(-1.0, 1.0, APPROX_FROM + 1), dtype)
            self.quantize(many, QuantizeOptions.create(bits=2, method="approx"), None)

    def verify(self) -> None:
        """Compare the device's bits with the CPU's.

        Raises
        ------
        BackendUnavailable
            They differ.
        """
        host = CpuBackend()
        values = np.sinh(np.linspace(-4.0, 4.0, 5001))
        for name, dtype in WIRE_DTYPES.items():
            for bits, block in ((3, None), (8, None), (4, 100)):
                options = QuantizeOptions.create(
                    bits=bits, method="uniform", block_size=block, seed=1
                )
                x = _as(values, dtype)
                ours, theirs = (one.quantize(x, options, None) for one in (self, host))
                same = ours.codes.tobytes() == theirs.codes.tobytes()
                decoded = self.dequantize(theirs).tobytes() == host.dequantize(theirs).tobytes()
                if not (same and decoded and ours.vnmse == theirs.vnmse):
                    raise BackendUnavailable(
                        f"device gpu ({self._device.name}) computes other bits than the CPU: "
                        f"{name}, {bits} bits, block size {block}"
                    )


def _as(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(dtype)
