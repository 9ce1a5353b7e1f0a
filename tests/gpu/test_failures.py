"""A device that fails at any call, and CuPy that is absent, has no driver, or a broken one."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gpu.shim_device import ShimDevice

from quiver_kernels import dispatch
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import BackendUnavailable, DeviceFailed
from quiver_kernels.gpu import sources
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.cupy_device import open_device
from quiver_kernels.lanes import Lane
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_service.devices import Devices

X = np.random.default_rng(3).standard_normal(2000).astype(np.float32)
OPTIONS = QuantizeOptions.create(bits=3, seed=5, method="uniform")


# Made anew each time: an exception keeps alive what was on the stack when it was raised.
FAULTS: list[Callable[[], Exception]] = [
    lambda: DeviceFailed("no memory", code="device_out_of_memory"),
    lambda: RuntimeError("cudaErrorIllegalAddress"),
]


class Failing:
    """What a `ShimDevice` calls first; raises at the call of number `at`, and all later ones."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.at: int | None = None
        self.fault: Callable[[], Exception] = FAULTS[0]

    def __call__(self, name: str) -> None:
        self.calls.append(name)
        if self.at is not None and len(self.calls) > self.at:
            raise self.fault()


class Both:
    """The CPU, and a GPU that may fail."""

    def __init__(self, gpu: Backend) -> None:
        self.gpu = gpu

    def pick(self, device: str) -> Backend:
        return self.gpu if device == "gpu" else dispatch.load("cpu")

    def pick_decoder(self) -> Backend:
        return dispatch.load("cpu")

    def available(self) -> dict[str, bool]:
        return {"cpu": True, "gpu": True}

    def warm_up_schemes(self) -> None:
        """Nothing to compile."""

    def begin_survey(self, flat: Any, options: Any) -> None:
        """Nothing to begin with."""

    def open_lanes(self, memory: float) -> list[Lane]:
        return [Lane(0, self.gpu)]

    def cost_model(self) -> None:
        return None


def test_a_failure_at_any_call_gives_the_cpus_bits(library: Path, cpu: Backend):
    failing = Failing()
    gpu = GpuBackend(ShimDevice(library, before=failing))
    expected = cpu.quantize(X, OPTIONS, None).codes.tobytes()

    def quantize(backend: Backend) -> QuantizedVector:
        return backend.quantize(X, OPTIONS, None)

    assert gpu.quantize(X, OPTIONS, None).codes.tobytes() == expected
    calls = tuple(failing.calls)
    assert {"allocate", "upload", "download", "encode_float32", "errors_float32"} < set(calls)
    for at in range(len(calls)):
        for fault, code in zip(FAULTS, ("device_out_of_memory", "device_error"), strict=True):
            # A fresh state each time: one that failed would rest.
            devices = Devices(Both(gpu))
            failing.calls.clear()
            failing.at, failing.fault = at, fault
            q = devices.compute("gpu", quantize)
            assert (q.device, q.codes.tobytes()) == ("cpu", expected)
            assert len(failing.calls) == at + 1
            assert devices.fallbacks == {("gpu", code): 1}
        # The device is free for the next one.
        failing.at = None
        q = gpu.quantize(X, OPTIONS, None)
        assert (q.device, q.codes.tobytes()) == ("gpu", expected)


def test_memory_is_given_back_after_a_failure(library: Path):
    count = ctypes.CDLL(str(library)).shim_regions
    failing = Failing()
    gpu = GpuBackend(ShimDevice(library, before=failing))
    gc.collect()
    before = count()
    for at in (None, *range(12)):
        failing.calls.clear()
        failing.at = at
        if at is None:
            gpu.quantize(X, OPTIONS, None)
            continue
        with pytest.raises(DeviceFailed):
            gpu.quantize(X, OPTIONS, None)
    gc.collect()

    assert count() == before


@pytest.mark.parametrize("wrong", ["codes", "values", "many", "mean"])
def test_a_device_with_other_bits_is_refused(gpu: GpuBackend, wrong: str):
    gpu.verify()

    class Wrong(GpuBackend):
        def quantize(self, *arguments: Any) -> QuantizedVector:
            q = super().quantize(*arguments)
            if wrong == "codes":
                q.codes[-1] ^= 1
            return q

        def dequantize(self, q: QuantizedVector) -> Any:
            values = super().dequantize(q)
            if wrong == "values":
                values[-1] = values[0]
            return values

        def quantize_many(self, *arguments: Any) -> list[QuantizedVector]:
            found = super().quantize_many(*arguments)
            if wrong == "many":
                found[-1].levels[-1] *= 2
            return found

        def aggregate(self, *arguments: Any) -> Any:
            mean = super().aggregate(*arguments)
            if wrong == "mean":
                mean[-1] = mean[0]
            return mean

    with pytest.raises(BackendUnavailable, match="computes other bits than the CPU"):
        Wrong(gpu._device).verify()


def test_warming_up_runs_every_kernel(library: Path):
    seen = Failing()
    GpuBackend(ShimDevice(library, before=seen)).warm_up()

    kernels = {name for names in sources.KERNELS.values() for name in names}
    # No table of float16 is wide.
    assert kernels - set(seen.calls) == {"widen_float16"}


@pytest.fixture
def unprobed() -> Iterator[None]:
    """Nothing is known yet of a GPU here, and nothing is kept."""
    dispatch._probe_gpu.cache_clear()
    yield
    dispatch._probe_gpu.cache_clear()
    sys.modules.pop("cupy", None)


CUPYS = {
    "does not import": ("raise ImportError('libcuda.so.1: cannot open')", "libcuda"),
    "breaks at import": ("raise OSError('bad driver')", "OSError: bad driver"),
    "finds no device": (
        "class cuda: is_available = staticmethod(lambda: False)",
        "finds 0 devices",
    ),
    "breaks when asked": (
        "class cuda:\n"
        "    @staticmethod\n"
        "    def is_available(): raise RuntimeError('initialization')",
        "RuntimeError: initialization",
    ),
    "breaks when opened": (
        "class cuda:\n"
        "    is_available = staticmethod(lambda: True)\n"
        "    class runtime: getDeviceCount = staticmethod(lambda: 1); CUDARuntimeError = OSError\n"
        "    class driver: CUDADriverError = OSError\n"
        "    @staticmethod\n"
        "    def Device(number): raise ValueError('no context')\n",
        "ValueError: no context",
    ),
}


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("kind", CUPYS)
def test_a_cupy_that_does_not_work(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Backend
):
    text, words = CUPYS[kind]
    (tmp_path / "cupy.py").write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    for load in (open_device, lambda: dispatch.load("gpu")):
        with pytest.raises(BackendUnavailable, match="device gpu is not available") as caught:
            load()
        assert words in caught.value.detail
    assert dispatch.available()["gpu"] is False
    assert dispatch.pick("auto").name == cpu.name


@pytest.mark.usefixtures("unprobed")
def test_without_cupy(monkeypatch: pytest.MonkeyPatch, cpu: Backend):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "cupy" else find(name)
    )
    with pytest.raises(BackendUnavailable, match="device gpu needs CuPy"):
        dispatch.load("gpu")
    assert dispatch.pick("auto").name == cpu.name
