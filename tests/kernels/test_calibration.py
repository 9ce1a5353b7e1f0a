"""Calibration over a clock that only calls move: the costs that were put in are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quiver_kernels.calibration import CPU_SECONDS, Stopwatch, calibrate
from quiver_kernels.costs import CPU, GPU, OPERATIONS, CostModel, Line, Work
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector

BUS = Line(1e-5, 1e-10)
# The clock does not see how long the vectors really take.
SIZES = (1 << 9, 1 << 11, 1 << 14)
DTYPES = {2: np.float16, 4: np.float32, 8: np.float64}


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """A backend whose calls take what a line says, and a device that copies."""

    number = 0
    name = "made up"

    def __init__(self, clock: Clock, line: Line, bus: Line | None = None) -> None:
        self._clock = clock
        self._line = line
        self._bus = bus
        self.calls = 0
        self.longest = 0
        self.spent = 0.0

    def _take(self, values: int, nbytes: int = 0, out: int = 0) -> None:
        self.calls += 1
        self.longest = max(self.longest, values)
        self.spent += self._line(values)
        self._clock.now += self._line(values)
        if self._bus is not None:
            self._clock.now += self._bus(nbytes) + self._bus(out)

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        q = QuantizedVector(
            method=options.method,
            bits=4,
            num_levels=16,
            shape=x.shape,
            dtype=x.dtype.name,
            block_size=None,
            seed=1,
            levels=np.zeros(16),
            codes=np.zeros(x.size // 2, np.uint8),
            vnmse=0.0,
            device="cpu",
            timings_ms={},
        )
        self._take(x.size, x.nbytes, q.codes.nbytes)
        return q

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        self._take(q.size, q.codes.nbytes, q.size * np.dtype(q.dtype).itemsize)
        return np.zeros(1)

    def aggregate(
        self, vectors: list[QuantizedVector], weights: list[float] | None
    ) -> NDArray[Any]:
        assert weights is None
        self._take(
            sum(q.size for q in vectors), sum(q.codes.nbytes for q in vectors), 8 * vectors[0].size
        )
        return np.zeros(1)

    def upload(self, host: NDArray[Any]) -> int:
        self._clock.now += BUS(host.nbytes)
        return host.nbytes

    def download(self, buffer: int, out: NDArray[Any]) -> None:
        # One byte is how an upload is waited for.
        self._clock.now += BUS(out.nbytes) if out.nbytes > 1 else 0.0


def measured(cpu: Line, gpu: Line) -> tuple[CostModel, Machine, Machine, Clock]:
    clock = Clock()
    host, card = Machine(clock, cpu), Machine(clock, gpu, BUS)
    model = calibrate(host, card, card, Stopwatch(clock, SIZES))  # type: ignore[arg-type]
    return model, host, card, clock


def test_costs_are_found_and_copies_are_told_apart():
    cpu, gpu = Line(2e-6, 1e-9), Line(1e-4, 5e-12)
    model, _, _, clock = measured(cpu, gpu)

    assert (model.upload.fixed, model.upload.each) == pytest.approx((BUS.fixed, BUS.each))
    assert (model.download.fixed, model.download.each) == pytest.approx((BUS.fixed, BUS.each))
    for operation in OPERATIONS:
        for itemsize in DTYPES:
            found = model.cpu[operation][itemsize]
            assert (found.fixed, found.each) == pytest.approx((cpu.fixed, cpu.each), rel=1e-3)
            found = model.gpu[operation][itemsize]
            assert found.fixed == pytest.approx(gpu.fixed, rel=1e-3)
            assert found.each == pytest.approx(gpu.each, rel=1e-2)
    assert model.seconds == pytest.approx(clock.now)
    # And so are whole costs, copies included.
    work = Work.of_quantize(1 << 24, 4, QuantizeOptions.create(bits=4, method="uniform"))
    whole = gpu(1 << 24) + BUS(1 << 26) + BUS(1 << 23)
    assert model.cost(GPU, work) == pytest.approx(whole, rel=1e-3)
    assert model.cost(CPU, work) == pytest.approx(cpu(1 << 24), rel=1e-3)


def test_a_slow_cpu_is_not_timed_for_long():
    quick = measured(Line(0.0, 1e-9), Line(1e-4, 0.0))
    slow = measured(Line(0.0, 1.28e-5), Line(1e-4, 0.0))

    assert quick[1].longest == SIZES[-1]
    assert slow[1].longest < SIZES[-1]
    assert slow[1].spent < 1.5 * CPU_SECONDS
    # Two sizes are enough for the line.
    assert slow[0].cpu["exact"][4].each == pytest.approx(1.28e-5)


def test_a_clock_that_stands_still_gives_a_model_all_the_same():
    clock = Clock()
    host, card = Machine(clock, Line(0.0, 0.0)), Machine(clock, Line(0.0, 0.0), Line(0.0, 0.0))

    model = calibrate(host, card, card, Stopwatch(clock, SIZES))  # type: ignore[arg-type]

    assert model.choose(Work.of_decode(1 << 20, 4, 1 << 19)) == CPU
