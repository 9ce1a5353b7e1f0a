"""The GPU backend: levels, codes and values on a device, the same bits as the CPU's.

What has no kernel yet is the CPU's: docs/gpu.md tells what.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.batch import Naming, quantize_each
from quiver_kernels.checks import (
    Range,
    check_aggregate,
    check_levels,
    check_weights,
    mean_dtype,
)
from quiver_kernels.cpu import coding
from quiver_kernels.cpu.backend import CpuBackend
from quiver_kernels.dlpack import Lent
from quiver_kernels.dtypes import WIRE_DTYPES, wire_name
from quiver_kernels.errors import BackendUnavailable
from quiver_kernels.gpu import many, means, passes
from quiver_kernels.gpu.agreement import kernels_agree
from quiver_kernels.gpu.arrays import DeviceArray
from quiver_kernels.gpu.device import Device, Download
from quiver_kernels.gpu.inputs import Input, Values, writable
from quiver_kernels.gpu.levels import run_kernels, solve
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import QuantizeRequest
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

    @property
    def device(self) -> Device:
        """What it computes on."""
        return self._device

    def levels(
        self, x: Values, options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        """See `dispatch.Backend`; with weights, of blocks, and level sets, the CPU's."""
        if weights is not None or not options.is_plain or options.block_size is not None:
            host = self._host(x)
            return replace(super().levels(host, options, weights), device=CpuBackend.name)
        with self._lane:
            given = Input(self._device, x)
            found = self._levels(given, options, None)
            checkpoint()
            error, norm = self._rounding_errors(given, found.astype(np.float64))
        unit = given.bounds.unit
        return LevelsResult(
            levels=found,
            num_levels=options.num_levels,
            method=options.method,
            expected_mse=error / unit / unit / given.size,
            vnmse=max(error, 0.0) / norm if norm > 0 else 0.0,
            device=self.name,
        )

    def quantize(
        self, x: Values, options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """See `dispatch.Backend`; level sets and schemes are the CPU's."""
        if not options.is_plain:
            host = self._host(x)
            return replace(super().quantize(host, options, weights), device=CpuBackend.name)
        options = options.with_seed()
        assert options.seed is not None  # with_seed gives one
        with self._lane:
            begun = time.perf_counter()
            given = Input(self._device, x)
            bounds = given.bounds
            checkpoint()
            uploaded = time.perf_counter()
            levels = self._levels(given, options, weights)
            solved = time.perf_counter()
            codes, vnmse = self._encode(given, bounds, options, options.seed, levels)
            done = time.perf_counter()
        return QuantizedVector(
            method=options.method,
            bits=options.bits,
            num_levels=options.num_levels,
            shape=given.shape,
            dtype=given.dtype,
            block_size=options.block_size,
            seed=options.seed,
            levels=levels,
            codes=codes,
            vnmse=vnmse,
            device=self.name,
            timings_ms={
                "upload": round(1e3 * (uploaded - begun), 3),
                "levels": round(1e3 * (solved - uploaded), 3),
                "encode": round(1e3 * (done - solved), 3),
            },
        )

    def _host(self, x: Values) -> NDArray[Any]:
        """A vector in memory of the host."""
        if not isinstance(x, DeviceArray):
            return x
        with self._lane:
            return Input(self._device, x).host()

    def _levels(
        self, given: Input, options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> NDArray[Any]:
        """The CPU's levels, with as much of the work as `gpu.levels` has kernels for."""
        # A value that is not finite is told of before weights are looked at, as on the CPU.
        vector, bounds = given.vector, given.bounds
        heavy = check_weights(given, weights)
        return solve(self._device, vector, bounds, options, given.host, heavy)

    def _encode(
        self,
        given: Input,
        bounds: Range,
        options: QuantizeOptions,
        seed: int,
        levels: NDArray[Any],
    ) -> tuple[NDArray[np.uint8], float]:
        """Codes and vNMSE; the codes are on their way while errors are added up."""
        device, vector = self._device, given.vector
        row = given.size if options.block_size is None else min(options.block_size, given.size)
        table = passes.Table.upload(device, rounding_table(np.atleast_2d(levels)))
        if not table.narrow:
            vector = passes.widened(device, vector)
        packed = passes.encode(device, vector, row, table, options.bits, seed, Strata.of(options))
        encoded = device.mark()
        checkpoint()
        errors = passes.errors(device, vector, row, table, bounds.unit)
        codes, sums = np.empty(packed.nbytes, np.uint8), errors.empty()
        device.download_all([Download(packed, codes, encoded), Download(errors.sums, sums)])
        error, norm = passes.total_errors(sums)
        return codes, max(error, 0.0) / norm if norm > 0 else 0.0

    def solve_levels(
        self, x: Values, options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        if not options.is_plain:
            return super().solve_levels(self._host(x), options, weights)
        with self._lane:
            return self._levels(Input(self._device, x), options, weights)

    def expected_mse(self, x: Values, levels: NDArray[Any], weights: NDArray[Any] | None) -> float:
        """See `dispatch.Backend`; with weights, and of vectors in host memory, the CPU's."""
        if weights is not None or not isinstance(x, DeviceArray):
            return super().expected_mse(self._host(x), levels, weights)
        with self._lane:
            given = Input(self._device, x)
            unit = given.bounds.unit
            table = check_levels(levels, given.bounds)
            return self._rounding_errors(given, table)[0] / unit / unit / given.size

    def _rounding_errors(self, given: Input, levels: NDArray[np.float64]) -> tuple[float, float]:
        """Expected squared error and squared norm of a table, times the squared unit."""
        vector = passes.widened(self._device, given.vector)
        errors = passes.errors_of_levels(self._device, vector, levels, given.bounds.unit)
        sums = errors.empty()
        self._device.download(errors.sums, sums)
        return passes.total_errors(sums)

    def quantize_many(
        self, requests: Sequence[QuantizeRequest], naming: Naming
    ) -> list[QuantizedVector]:
        """See `dispatch.Backend`; short vectors share launches."""
        found: dict[int, QuantizedVector] = {}
        items = [many.Item.of(number, request) for number, request in enumerate(requests)]
        for group in many.groups([item for item in items if item is not None]):
            checkpoint()
            with self._lane:
                found.update(many.quantize(self._device, group))
        # Those that share no launch, and those that have a fault: in order, so the first is told.
        rest = [number for number in range(len(requests)) if number not in found]
        alone = quantize_each(
            self, [requests[number] for number in rest], lambda place: naming(rest[place])
        )
        found.update(zip(rest, alone, strict=True))
        return [found[number] for number in range(len(requests))]

    def dequantize(self, q: QuantizedVector, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `dispatch.Backend`; level sets and schemes are the CPU's."""
        if not q.is_plain:
            return super().dequantize(q, out)
        with self._lane:
            return passes.decode(self._device, q, out)

    def dequantize_to(self, q: QuantizedVector, out: DeviceArray) -> None:
        """As `dequantize`, to memory of the device, which is filled when this returns."""
        with self._lane:
            target = writable(self._device, out, q.shape, q.dtype)
            if q.is_plain:
                passes.decode_to(self._device, q, target)
                return
        # What is in a wrapped message may be decoded on the device, in its turn.
        decoded = super().dequantize(q)
        with self._lane:
            self._device.fill(target, decoded)
            self._device.finish()

    def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See `dispatch.Backend`; means with level sets or schemes among them are the CPU's."""
        shares = check_aggregate(vectors, weights)
        if not all(q.is_plain for q in vectors):
            return super().aggregate(vectors, weights, out)
        with self._lane:
            total = means.total(self._device, vectors, shares)
        return coding.within_levels(total, vectors, out)

    def aggregate_to(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None,
        out: DeviceArray,
    ) -> None:
        """As `aggregate`, to memory of the device, which is filled when this returns.

        The mean takes the way over the host, which clips and converts it.
        """
        check_aggregate(vectors, weights)
        with self._lane:
            dtype = wire_name(mean_dtype(vectors))
            target = writable(self._device, out, vectors[0].shape, dtype)
        mean = self.aggregate(vectors, weights)
        with self._lane:
            self._device.fill(target, mean)
            self._device.finish()

    def warm_up(self) -> None:
        """See `dispatch.Backend`; every kernel of the device runs. The CPU's has its own."""
        for dtype in WIRE_DTYPES.values():
            for values in (np.arange(100.0), np.array([-3e38, 0.0, 3e38])):
                if not np.isfinite(x := _as(values, dtype)).all():
                    continue
                q = self.quantize(x, QuantizeOptions.create(bits=2, seed=1), None)
                self.dequantize(q)
                self.aggregate([q], None)
                self._gather(x)
                each = QuantizeRequest(x, None, QuantizeOptions.create(bits=2, seed=1))
                self.quantize_many([each, each], lambda _: contextlib.nullcontext())
                with self._lane:
                    run_kernels(self._device, passes.Vector.upload(self._device, x))

    def _gather(self, x: NDArray[Any]) -> None:
        """Put every other value of a copy on the device in order, to warm up."""
        with self._lane:
            vector = passes.Vector.upload(self._device, x)
            address = self._device.address(vector.values)
            strides, shape = (2 * x.itemsize,), (-(-x.size // 2),)
            lent = Lent(address, shape, strides, vector.dtype, x.itemsize, True, vector.values)
            passes.borrowed(self._device, lent).to_host(self._device)

    def verify(self) -> None:
        """Compare the device's bits with the CPU's.

        Raises
        ------
        BackendUnavailable
            They differ.
        """
        host = CpuBackend()
        # In no order, so that one that does not sort is found.
        values = np.sinh(np.linspace(-4.0, 4.0, 5001))[np.arange(5001) * 2003 % 5001]
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
            with self._lane:
                found = kernels_agree(self._device, _as(values, dtype))
            if not found:
                raise BackendUnavailable(
                    f"device gpu ({self._device.name}) finds other cells than the CPU: {name}"
                )
            if not self._many_agree(_as(values, dtype)[:300]):
                raise BackendUnavailable(
                    f"device gpu ({self._device.name}) computes other bits than the CPU: {name}, "
                    "many vectors at once"
                )

    def _many_agree(self, x: NDArray[Any]) -> bool:
        """Whether vectors that share launches, and their mean, are the CPU's."""
        host = CpuBackend()
        chosen = (
            QuantizeOptions.create(bits=2, seed=1),
            QuantizeOptions.create(bits=3, seed=2, method="uniform"),
            QuantizeOptions.create(
                bits=2, seed=3, method="approx", grid="uniform", bins=50, block_size=100
            ),
        )
        requests = [QuantizeRequest(x, None, options) for options in chosen]
        ours, theirs = (
            one.quantize_many(requests, lambda _: contextlib.nullcontext()) for one in (self, host)
        )
        same = all(
            a.levels.tobytes() == b.levels.tobytes()
            and a.codes.tobytes() == b.codes.tobytes()
            and a.vnmse == b.vnmse
            for a, b in zip(ours, theirs, strict=True)
        )
        found = {one.aggregate(theirs, None).tobytes() for one in (self, host)}
        return same and len(found) == 1


def _as(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(dtype)
