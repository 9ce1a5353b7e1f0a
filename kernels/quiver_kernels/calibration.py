"""Measure what operations cost on the CPU and on a GPU: the lines of a `CostModel`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.costs import OPERATIONS, CostModel, Line, Work
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.gpu.device import Device
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector

SIZES = (1 << 15, 1 << 17, 1 << 20)
"""Values of the vectors that are timed; the last may be left out for lack of time."""
CPU_SECONDS = 1.0
"""What timing the CPU takes at most, about: calls at two sizes are always made."""

# Quick ones first: what they leave is for the others.
_ORDER = ("decode", "mean", "uniform", "blocks", "approx", "exact", "tables")

_COPY_BYTES = (1 << 16, 1 << 20, 1 << 23)
_BLOCK = 4096
_ROW = 256
_VECTORS = 4
_DTYPES = {2: "float16", 4: "float32", 8: "float64"}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"method": "uniform"},
    "approx": {"method": "approx"},
    "exact": {"method": "exact"},
    "blocks": {"method": "uniform", "block_size": _BLOCK},
    "tables": {"method": "exact", "block_size": _ROW},
}


class Timed(Protocol):
    """As much of a `dispatch.Backend` as is timed."""

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """See `dispatch.Backend`."""
        ...

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        ...

    def aggregate(self, vectors: list[QuantizedVector], weights: None) -> NDArray[Any]:
        """See `dispatch.Backend`."""
        ...


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """How, and for how long, calls are timed.

    Attributes
    ----------
    clock
        Seconds, monotonic.
    sizes
        Values of the vectors, ascending.
    repeats
        Calls, at most, of which the quickest counts.
    """

    clock: Callable[[], float] = time.perf_counter
    sizes: tuple[int, ...] = SIZES
    repeats: int = 3

    def seconds(self, call: Callable[[], object], limit: float) -> float:
        """Least time of some calls; no further one begins once all took `limit` seconds."""
        begun = self.clock()
        least = math.inf
        for _ in range(self.repeats):
            before = self.clock()
            call()
            now = self.clock()
            least = min(least, now - before)
            if now - begun > limit:
                break
        # A clock may stand still for a moment.
        return max(least, 1e-9)

    def line(self, calls: Callable[[int], Callable[[], object]], limit: float) -> Line:
        """Seconds by number of values, timed at most of `sizes` within about `limit` seconds."""
        begun = self.clock()
        points: list[tuple[int, float]] = []
        for n in self.sizes:
            left = limit - (self.clock() - begun)
            # Two points make a line; one call more is only made if it fits.
            if len(points) >= 2 and points[-1][1] * n / points[-1][0] > left:
                break
            call = calls(n)
            points.append((n, self.seconds(call, max(left, 0.0) / len(self.sizes))))
        return Line.through(points)


def calibrate(cpu: Timed, gpu: Timed, device: Device, watch: Stopwatch | None = None) -> CostModel:
    """Time every operation on both, for values of 2, 4 and 8 bytes, and the copies.

    Parameters
    ----------
    cpu, gpu
        Warm: nothing is compiled by a call.
    device
        The GPU's; nobody else uses it meanwhile.
    watch
        The clock and sizes; None: the usual ones.

    Returns
    -------
    CostModel
        Of calls by one thread, from vectors in pageable host memory.

    Raises
    ------
    DeviceFailed
        From the device.
    """
    watch = watch or Stopwatch()
    begun = watch.clock()
    cells = [(operation, itemsize) for operation in _ORDER for itemsize in _DTYPES]
    left = CPU_SECONDS
    upload, download = _copies(device, watch)
    on_cpu: dict[str, dict[int, Line]] = {operation: {} for operation in OPERATIONS}
    on_gpu: dict[str, dict[int, Line]] = {operation: {} for operation in OPERATIONS}
    for number, (operation, itemsize) in enumerate(cells):
        jobs = _Jobs(operation, itemsize)
        limit = left / (len(cells) - number)
        before = watch.clock()
        on_cpu[operation][itemsize] = watch.line(jobs.calls(cpu), limit)
        left = max(0.0, left - (watch.clock() - before))
        whole = watch.line(jobs.calls(gpu), limit)
        on_gpu[operation][itemsize] = _without_copies(whole, jobs, upload, download)
    return CostModel(on_cpu, on_gpu, upload, download, watch.clock() - begun)


@dataclass(frozen=True, slots=True)
class _Jobs:
    """One operation on values of one size."""

    operation: str
    itemsize: int

    def calls(self, backend: Timed) -> Callable[[int], Callable[[], object]]:
        """For a number of values: the call to time."""
        return lambda n: self._call(backend, n)

    def _call(self, backend: Timed, n: int) -> Callable[[], object]:
        x = np.random.default_rng(n).standard_normal(n)
        values = x.astype(WIRE_DTYPES[_DTYPES[self.itemsize]])
        asked = _OPTIONS.get(self.operation, {"method": "uniform"})
        options = QuantizeOptions.create(bits=4, seed=1, **asked)
        if self.operation == "decode":
            q = backend.quantize(values, options, None)
            return lambda: backend.dequantize(q)
        if self.operation == "mean":
            # n values in all.
            q = backend.quantize(values[: n // _VECTORS], options, None)
            return lambda: backend.aggregate([q] * _VECTORS, None)
        return lambda: backend.quantize(values, options, None)

    def work(self, n: int) -> Work:
        """What one such call is."""
        if self.operation == "decode":
            return Work.of_decode(n, self.itemsize, n // 2)
        if self.operation == "mean":
            return Work.of_mean(n // _VECTORS, _VECTORS, self.itemsize, n // 2)
        options = QuantizeOptions.create(bits=4, **_OPTIONS[self.operation])
        return Work.of_quantize(n, self.itemsize, options)


def _without_copies(whole: Line, jobs: _Jobs, upload: Line, download: Line) -> Line:
    """The line of a GPU less what its copies take."""
    n = 1 << 20
    work = jobs.work(n)
    each = upload.each * work.bytes_in / n + download.each * work.bytes_out / n
    return Line(max(0.0, whole.fixed - upload.fixed - download.fixed), max(0.0, whole.each - each))


def _copies(device: Device, watch: Stopwatch) -> tuple[Line, Line]:
    """Lines of uploads and downloads, by bytes."""
    up, down = [], []
    ready = np.zeros(1, np.uint8)
    for nbytes in _COPY_BYTES:
        host = np.zeros(nbytes, np.uint8)
        buffer = device.upload(host)

        def upload(host: NDArray[Any] = host) -> None:
            # The download ends when the upload has.
            device.download(device.upload(host), ready)

        def download(host: NDArray[Any] = host, buffer: Any = buffer) -> None:
            device.download(buffer, host)

        up.append((nbytes, watch.seconds(upload, CPU_SECONDS)))
        down.append((nbytes, watch.seconds(download, CPU_SECONDS)))
    return Line.through(up), Line.through(down)
