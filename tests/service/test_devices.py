"""A device that fails: the CPU computes in its place, the same bits, and it is tried again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from messages import VND, pack, quantize_fields
from quiver_kernels import dispatch
from quiver_kernels.costs import CostModel, Line
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import BackendUnavailable, DeviceFailed, InvalidInput
from quiver_kernels.lanes import Lane
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import LevelsRequest, LevelsResult, QuantizeRequest
from quiver_service.devices import DOES_NOT_FIT, Devices
from quiver_service.effort import Sizes
from quiver_service.engine import Engine
from quiver_service.pool import WorkerPool
from quiver_service.rests import LONGEST_REST_SECONDS

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
        self.model: CostModel | None = None

    def pick(self, device: str) -> Backend:
        return self.gpu if device in ("gpu", "auto") else dispatch.load("cpu")  # type: ignore[return-value]

    def pick_decoder(self) -> Backend:
        return dispatch.load("cpu")

    def available(self) -> dict[str, bool]:
        return {"cpu": True, "gpu": True}

    def warm_up_schemes(self) -> None:
        """Nothing to compile."""

    def begin_survey(self, flat: Any, options: Any) -> None:
        """Nothing to begin with."""

    def open_lanes(self, memory: float) -> list[Lane]:
        self.memory = memory
        return [Lane(0, self.gpu)]  # type: ignore[arg-type]

    def cost_model(self) -> CostModel | None:
        return self.model


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
    claims = [engine.devices._rests.claim(0) for _ in range(3)]

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


FREE = Line(0.0, 0.0)
GPU_IS_CHEAPER = CostModel({"exact": {4: Line(1.0, 0.0)}}, {"exact": {4: FREE}}, FREE, FREE)
CPU_IS_CHEAPER = CostModel({"exact": {4: FREE}}, {"exact": {4: Line(1.0, 0.0)}}, FREE, FREE)
LONG = np.random.default_rng(4).standard_normal(1 << 15).astype(np.float32)


class Several(Both):
    """A CPU, and GPUs that may fail, each with some memory."""

    def __init__(self, count: int = 2, memory: int | None = None) -> None:
        super().__init__()
        self.gpus = [FaultyGpu() for _ in range(count)]
        self.card_memory = memory
        self.looked_for = 0

    def pick(self, device: str) -> Backend:
        if device == "gpu" and not self.gpus:
            raise BackendUnavailable("device gpu is not available here")
        return dispatch.load("cpu") if device != "gpu" else self.gpus[0]  # type: ignore[return-value]

    def available(self) -> dict[str, bool]:
        self.looked_for += 1
        return {"cpu": True, "gpu": bool(self.gpus)}

    def warm_up_schemes(self) -> None:
        """Nothing to compile."""

    def begin_survey(self, flat: Any, options: Any) -> None:
        """Nothing to begin with."""

    def open_lanes(self, memory: float) -> list[Lane]:
        self.memory = memory
        return [
            Lane(number, gpu, f"card {number}", self.card_memory)  # type: ignore[arg-type]
            for number, gpu in enumerate(self.gpus)
        ]

    def used(self) -> list[int]:
        return [gpu.calls.count("upload") for gpu in self.gpus]


def engine_of(several: Several, clock: Clock | None = None, **settings: Any) -> Engine:
    devices = Devices(several, clock=clock or Clock(), **settings)
    return Engine(WorkerPool(1, 1), 1 << 30, devices)


def long(**options: Any) -> QuantizeRequest:
    return QuantizeRequest(LONG, None, QuantizeOptions.create(bits=3, seed=5, **options))


def test_auto_is_what_was_measured_to_be_cheaper():
    used = []
    for model in (GPU_IS_CHEAPER, CPU_IS_CHEAPER, None):
        several = Several()
        several.model = model
        engine = engine_of(several)
        engine.warm_up()
        bits = {bits_of(engine.quantize(long(device=device))) for device in ("auto", "cpu")}
        used.append(sum(several.used()))
        assert len(bits) == 1
        # A short vector stays with the CPU, and what is asked for is done.
        engine.quantize(request())
        assert sum(several.used()) == used[-1]
        engine.quantize(request(device="gpu"))
        assert sum(several.used()) == used[-1] + 1
    assert used == [1, 0, 0]


def test_decoding_and_means_go_where_they_are_cheaper():
    several = Several(1)
    lines = {name: {4: Line(1.0, 0.0)} for name in ("decode", "mean")}
    several.model = CostModel(lines, {name: {4: FREE} for name in lines}, FREE, FREE)
    decoded: list[str] = []
    several.gpus[0].dequantize = lambda _: decoded.append("gpu")  # type: ignore[assignment,method-assign]
    engine = engine_of(several)
    q = engine.quantize(long())
    engine.dequantize(q)
    engine.warm_up()
    engine.dequantize(q)

    # Before anything is measured, the CPU.
    assert decoded == ["gpu"]


def test_a_setting_says_what_auto_means():
    several = Several()
    several.model = CPU_IS_CHEAPER
    engine = engine_of(several, device="gpu")
    engine.warm_up()
    engine.quantize(long())
    engine.quantize(request(device="cpu"))

    assert sum(several.used()) == 1
    assert engine.devices.describe()["device"] == "gpu"
    assert engine.devices.describe()["costs"] is None


def test_a_setting_leaves_gpus_alone():
    several = Several()
    engine = engine_of(several, device="cpu")
    engine.warm_up()

    engine.quantize(long())
    assert (several.looked_for, several.used()) == (0, [0, 0])
    assert engine.devices.available == {"cpu": True, "gpu": False}
    with pytest.raises(BackendUnavailable, match="turned off"):
        engine.quantize(request(device="gpu"))


def test_without_the_gpu_that_was_asked_for_the_service_does_not_start():
    with pytest.raises(BackendUnavailable, match="not available"):
        engine_of(Several(0), device="gpu").warm_up()
    engine_of(Several(0)).warm_up()


def test_a_failed_lane_rests_and_the_others_go_on():
    several, clock = Several(2), Clock()
    engine = engine_of(several, clock)
    engine.warm_up()
    expected = bits_of(engine.quantize(request(device="cpu")))
    several.gpus[0].fail_at = 0

    found = [bits_of(engine.quantize(request(device="gpu"))) for _ in range(4)]

    assert set(found) == {expected}
    assert several.used() == [1, 3]
    assert engine.devices.fallbacks == {("gpu", "device_error"): 1}
    assert engine.devices.is_up("gpu")
    assert engine.devices.lanes_up() == 1
    assert engine.devices.complaints()[0].startswith("device gpu:0 failed 1 times in a row")
    # After the rest one call tries it, and it is taken again.
    clock.now, several.gpus[0].fail_at = 1.0, None
    engine.quantize(request(device="gpu"))
    assert several.used() == [2, 3]
    assert engine.devices.lanes_up() == 2


def test_when_all_lanes_rest_the_cpu_computes():
    several = Several(2)
    engine = engine_of(several)
    engine.warm_up()
    for gpu in several.gpus:
        gpu.fail_at = 0
    for _ in range(5):
        engine.quantize(request(device="gpu"))

    assert several.used() == [1, 1]
    assert engine.devices.fallbacks == {("gpu", "device_error"): 5}
    assert not engine.devices.is_up("gpu")


def test_two_requests_use_two_lanes_side_by_side():
    several = Several(2)
    engine = engine_of(several)
    engine.warm_up()
    both_in = threading.Barrier(2)
    for gpu in several.gpus:

        def wait(*_: Any, gpu: FaultyGpu = gpu) -> QuantizedVector:
            gpu.calls.append("upload")
            both_in.wait(10)
            return dispatch.load("cpu").quantize(X, request().options, None)

        gpu.quantize = wait  # type: ignore[method-assign]
    threads = [
        threading.Thread(target=engine.quantize, args=(request(device="gpu"),)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert several.used() == [1, 1]
    assert engine.devices.fallbacks == {}


@pytest.mark.parametrize("device", ["gpu", "auto"])
def test_what_does_not_fit_goes_to_the_cpu_at_once(device: str):
    several = Several(2, memory=100_000)
    several.model = GPU_IS_CHEAPER
    engine = engine_of(several, memory=0.5)
    engine.warm_up()

    assert several.memory == 0.5
    engine.quantize(long(device=device))
    assert several.used() == [0, 0]
    assert engine.devices.fallbacks == {("gpu", DOES_NOT_FIT): 1}
    assert engine.devices.is_up("gpu")
    # The control: less than that fits.
    few = QuantizeRequest(X[:1000], None, QuantizeOptions.create(bits=3, seed=5, device="gpu"))
    engine.quantize(few)
    assert sum(several.used()) == 1


def test_what_cannot_be_measured_leaves_auto_to_the_cpu():
    several = Several()

    def fail() -> CostModel:
        raise DeviceFailed("lost")

    several.cost_model = fail  # type: ignore[method-assign]
    engine = engine_of(several)
    engine.warm_up()
    engine.quantize(long())

    assert several.used() == [0, 0]


def test_the_choice_changes_only_by_a_fifth():
    """A GPU that is nearly as good is not taken, and one in use is not left, for little."""
    nearly = {
        ratio: CostModel(
            {"exact": {4: Line(1.0, 0.0)}}, {"exact": {4: Line(ratio, 0.0)}}, FREE, FREE
        )
        for ratio in (0.7, 0.9, 1.1)
    }
    several = Several(1)
    several.model = nearly[0.9]
    engine = engine_of(several)
    engine.warm_up()
    counts = []
    for ratio in (0.9, 0.7, 1.1):
        engine.devices._model = nearly[ratio]
        engine.quantize(long())
        counts.append(sum(several.used()))

    assert counts == [0, 1, 2]


def test_info_and_metrics_tell_of_lanes(make_client: Callable[..., TestClient]):
    several = Several(2, memory=1 << 30)
    several.model = GPU_IS_CHEAPER
    client = make_client(Engine(WorkerPool(2, 4), 1 << 30, Devices(several)))
    several.gpus[1].fail_at = 0
    for _ in range(2):
        several.gpus[0].fail_at = 0
        client.post(
            "/quantize",
            content=pack(quantize_fields(device="gpu")),
            headers={"content-type": VND},
        )

    found = client.get("/info").json()["dispatch"]
    assert found["device"] == "auto"
    assert found["lanes"] == [
        {"number": n, "card": f"card {n}", "memory_bytes": 1 << 30, "up": False} for n in range(2)
    ]
    [row] = found["costs"]["costs"]
    assert (row["operation"], row["itemsize"], row["break_even"]) == ("exact", 4, 1 << 15)
    metrics = client.get("/metrics").text
    assert 'quiver_device_lanes{device="gpu",state="resting"} 2.0' in metrics
    assert "quiver_device_waiting 0.0" in metrics
