"""A device that fails: the CPU computes in its place, the same bits, and it is tried again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from messages import VND, pack, quantize_fields
from quiver_kernels import dispatch
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import DeviceFailed, InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import LevelsRequest, LevelsResult, QuantizeRequest
from quiver_service.devices import LONGEST_REST_SECONDS, Devices
from quiver_service.effort import Sizes
from quiver_service.engine import Engine
from quiver_service.pool import WorkerPool

X = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
SITES = ("upload", "levels", "encode", "download")


class OutOfMemoryError(MemoryError):
    """As CuPy raises it."""


class CUDARuntimeError(RuntimeError):
    """As CuPy raises it."""


FAULTS: list[Callable[[], Exception]] = [
    lambda: OutOfMemoryError("Out of memory allocating 64 bytes"),
    lambda: CUDARuntimeError("cudaErrorIllegalAddress"),
    lambda: DeviceFailed("no memory left", code="device_out_of_memory"),
]


class FaultyGpu:
    """The CPU's kernels behind a device layer that fails at its n-th call."""

    name = "gpu"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.fault: Callable[[], Exception] = FAULTS[0]
        self._cpu = dispatch.load("cpu")

    def _site(self, name: str) -> None:
        self.calls.append(name)
        if self.fail_at is not None and len(self.calls) > self.fail_at:
            raise self.fault()

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        self._site("upload")
        self._site("levels")
        q = self._cpu.quantize(x, options, weights)
        self._site("encode")
        self._site("download")
        return q

    def levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        self._site("upload")
        self._site("levels")
        return self._cpu.levels(x, options, weights)

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        return self._cpu.dequantize(q)

    def aggregate(
        self, vectors: Sequence[QuantizedVector], weights: Sequence[float] | None
    ) -> NDArray[Any]:
        return self._cpu.aggregate(vectors, weights)

    def warm_up(self) -> None:
        self._site("warm_up")


class Both:
    """A CPU and a GPU that may fail."""

    def __init__(self) -> None:
        self.gpu = FaultyGpu()

    def pick(self, device: str) -> Backend:
        return self.gpu if device in ("gpu", "auto") else dispatch.load("cpu")  # type: ignore[return-value]

    def pick_decoder(self) -> Backend:
        return dispatch.load("cpu")

    def available(self) -> dict[str, bool]:
        return {"cpu": True, "gpu": True}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def both() -> Both:
    return Both()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(both: Both, clock: Clock) -> Engine:
    return Engine(WorkerPool(1, 1), 1 << 30, Devices(both, clock=clock))


def request(**options: Any) -> QuantizeRequest:
    return QuantizeRequest(X, None, QuantizeOptions.create(bits=3, seed=5, **options))


def bits_of(q: QuantizedVector) -> bytes:
    return q.codes.tobytes() + q.levels.tobytes()


def test_the_device_is_used_while_it_works(engine: Engine, both: Both):
    engine.quantize(request())

    assert both.gpu.calls == list(SITES)
    assert engine.devices.fallbacks == {}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("device", ["gpu", "auto"])
@pytest.mark.parametrize("site", range(len(SITES)))
def test_a_failure_at_any_call_gives_the_cpus_bits(
    engine: Engine, both: Both, site: int, device: str, fault: Callable[[], Exception]
):
    expected = bits_of(dispatch.load("cpu").quantize(X, request().options, None))
    both.gpu.fail_at, both.gpu.fault = site, fault

    q = engine.quantize(request(device=device))

    assert len(both.gpu.calls) == site + 1
    assert bits_of(q) == expected
    assert q.device == "cpu"
    assert sum(engine.devices.fallbacks.values()) == 1


def test_levels_fall_back_too(engine: Engine, both: Both):
    both.gpu.fail_at = 0

    found = engine.levels(LevelsRequest(X, None, QuantizeOptions.create(bits=3)))

    assert np.array_equal(
        found.levels, dispatch.load("cpu").levels(X, request().options, None).levels
    )


def test_without_falling_back_the_failure_would_be_the_answer(both: Both):
    """The control: what the tests above would see if nothing were done."""
    engine = Engine(WorkerPool(1, 1), 1 << 30, Devices(both, fall_back=False))
    both.gpu.fail_at = 0

    with pytest.raises(OutOfMemoryError):
        engine.quantize(request())


def test_a_failed_device_rests_and_is_then_tried_by_one_request(
    engine: Engine, both: Both, clock: Clock
):
    both.gpu.fail_at = 0
    engine.quantize(request())
    for _ in range(3):
        engine.quantize(request())
    assert len(both.gpu.calls) == 1

    clock.now = 1.0
    engine.quantize(request())
    assert len(both.gpu.calls) == 2

    # It failed twice: the next rest is twice as long.
    clock.now = 2.5
    engine.quantize(request())
    assert len(both.gpu.calls) == 2

    clock.now = 3.0
    both.gpu.fail_at = None
    assert engine.quantize(request()).device == "cpu"  # the fake reports the kernels it borrows
    assert len(both.gpu.calls) == 2 + len(SITES)
    assert engine.devices.complaints() == []
    assert engine.devices.is_up("gpu") is False  # before warm_up no device is known
    assert engine.devices.fallbacks == {("gpu", "device_error"): 6}


def test_rests_grow_to_a_limit(engine: Engine, both: Both, clock: Clock):
    both.gpu.fail_at = 0
    for _ in range(100):
        engine.quantize(request())
        clock.now += LONGEST_REST_SECONDS

    assert len(both.gpu.calls) == 100


def test_only_one_request_tries_a_resting_device(engine: Engine, both: Both, clock: Clock):
    both.gpu.fail_at = 0
    engine.quantize(request())
    clock.now = 1.0
    claims = [engine.devices._claim("gpu") for _ in range(3)]

    assert [claim is None for claim in claims] == [True, False, False]


def test_invalid_input_is_the_answer_of_any_device(engine: Engine, both: Both):
    def refuse(*_: Any) -> QuantizedVector:
        raise InvalidInput("not finite", code="non_finite")

    both.gpu.quantize = refuse  # type: ignore[method-assign]

    with pytest.raises(InvalidInput):
        engine.quantize(request())
    assert engine.devices.fallbacks == {}


def test_a_device_that_fails_to_warm_up_does_not_keep_the_service_from_starting(
    engine: Engine, both: Both
):
    both.gpu.fail_at = 0

    engine.warm_up()

    assert engine.devices.available == {"cpu": True, "gpu": True}
    assert not engine.devices.is_up("gpu")
    assert engine.devices.is_up("cpu")


def test_the_service_stays_ready_says_so_and_counts(
    make_client: Callable[..., TestClient], both: Both
):
    engine = Engine(WorkerPool(2, 4), 1 << 30, Devices(both), Sizes(tiny=0, small=0))
    client = make_client(engine)
    both.gpu.fail_at, both.gpu.fault = len(both.gpu.calls), FAULTS[2]

    answers = [
        client.post("/quantize", content=pack(quantize_fields()), headers={"content-type": VND})
        for _ in range(2)
    ]

    assert [answer.status_code for answer in answers] == [200, 200]
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert "device_out_of_memory" in ready.json()["degraded"][0]
    metrics = client.get("/metrics").text
    fallbacks = 'quiver_device_fallbacks_total{device="gpu",reason="device_out_of_memory"} 2.0'
    assert fallbacks in metrics
    assert 'quiver_device_up{device="gpu"} 0.0' in metrics
    assert 'quiver_device_up{device="cpu"} 1.0' in metrics
