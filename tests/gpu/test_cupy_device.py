"""The layer over CuPy, with a stand-in for CuPy: the real one needs a driver."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gpu.fake_cupy import CUDADriverError, CUDARuntimeError, FakeCupy, OutOfMemoryError
from tests.gpu.shim_device import ShimDevice

import quiver_kernels as qk
from quiver_kernels import calibration, dispatch
from quiver_kernels.calibration import Stopwatch, calibrate
from quiver_kernels.costs import OPERATIONS, Work
from quiver_kernels.errors import DeviceFailed
from quiver_kernels.gpu import cupy_device, ordering
from quiver_kernels.gpu.compiling import Nvrtc
from quiver_kernels.gpu.cupy_device import open_device
from quiver_kernels.gpu.passes import Vector
from quiver_service.devices import Devices

QUICK = Stopwatch(sizes=(16, 48), repeats=1)


@pytest.fixture
def cupy(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    fake = FakeCupy(ShimDevice(library))
    compiled: list[str] = []

    def compiled_file(nvrtc: Nvrtc, module: str, architecture: int, folder: Path) -> Path:
        assert architecture == 90
        assert folder == tmp_path
        compiled.append(module)
        return folder / f"{module}.cubin"

    monkeypatch.setitem(sys.modules, "cupy", fake)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: fake if name == "cupy" else find_spec(name)
    )
    monkeypatch.setattr(Nvrtc, "find", lambda: Nvrtc.__new__(Nvrtc))
    monkeypatch.setattr(Nvrtc, "architectures", (80, 90))
    monkeypatch.setattr(cupy_device, "compiled_file", compiled_file)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    # What is loaded here is forgotten after the test.
    monkeypatch.setattr(dispatch, "load", functools.cache(lambda name: dispatch._LOADERS[name]()))
    dispatch._probe_gpu.cache_clear()
    dispatch.cost_model.cache_clear()
    yield fake
    dispatch._probe_gpu.cache_clear()
    dispatch.cost_model.cache_clear()
    assert fake.loaded == compiled


def test_a_device_that_gives_the_cpus_bits_is_offered(cupy: FakeCupy):
    x = np.random.default_rng(1).normal(size=3000).astype(np.float16)

    q = qk.quantize(x, bits=3, seed=1, device="gpu")

    assert dispatch.available() == {"cpu": True, "gpu": True}
    assert (q.device, qk.quantize(x, seed=1).device) == ("gpu", "cpu")
    assert np.array_equal(q.codes, qk.quantize(x, bits=3, seed=1).codes)
    # Each module once, though several kernels were used.
    assert {"decode", "encode", "errors", "range"} <= set(cupy.loaded)
    assert len(cupy.loaded) == len(set(cupy.loaded))


def test_the_device_says_what_it_is(cupy: FakeCupy):
    device = open_device()

    assert (device.name, device.processors) == ("Fake", 3)
    with pytest.raises(qk.BackendUnavailable, match="CuPy finds 1 devices"):
        open_device(1)


def test_values_are_sorted_by_cupy(cupy: FakeCupy):
    x = np.random.default_rng(2).normal(size=5000).astype(np.float16)
    device = open_device()

    assert np.array_equal(ordering.ascending(device, Vector.upload(device, x)), np.sort(x))
    keys = device.allocate(8)
    cupy.fault = CUDARuntimeError("an illegal memory access")
    with pytest.raises(DeviceFailed):
        device.sort(keys, np.dtype(np.uint32))


def test_every_device_that_works_is_a_lane(cupy: FakeCupy):
    cupy.count = 3
    cupy.broken = {"device 1"}

    lanes = dispatch.open_lanes(0.5)

    assert [(lane.number, lane.card) for lane in lanes] == [(0, "Fake"), (2, "Fake")]
    assert {lane.memory for lane in lanes} == {1 << 32}
    assert dispatch.load("gpu") is lanes[0].backend
    assert dispatch.open_lanes(1 << 20)[0].memory == 1 << 20
    assert dispatch.open_lanes(2.0**50)[0].memory == 1 << 33


def test_if_every_device_is_broken_the_cpu_remains(cupy: FakeCupy):
    cupy.count = 2
    cupy.broken = {"device 0", "device 1"}

    with pytest.raises(qk.BackendUnavailable, match="ECC"):
        dispatch.open_lanes()
    assert dispatch.available() == {"cpu": True, "gpu": False}
    assert dispatch.cost_model() is None


def test_a_limit_makes_the_cpu_do_what_does_not_fit(cupy: FakeCupy):
    x = np.random.default_rng(1).normal(size=50_000).astype(np.float32)
    options = qk.QuantizeOptions.create(bits=3, seed=1, method="uniform", device="gpu")
    devices = Devices(dispatch, memory=64 << 10)
    q = devices.compute("gpu", lambda backend: backend.quantize(x, options, None))

    # The pool refuses, as no size was told in advance.
    assert (q.device, devices.fallbacks) == ("cpu", {("gpu", "device_out_of_memory"): 1})
    devices = Devices(dispatch, memory=64 << 10)
    work = Work.of_quantize(x.size, 4, options)
    q = devices.compute("gpu", lambda backend: backend.quantize(x, options, None), work)
    assert (q.device, devices.fallbacks) == ("cpu", {("gpu", "does_not_fit"): 1})


def test_auto_is_measured_once(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "calibrate", functools.partial(calibrate, watch=QUICK))
    work = Work.of_quantize(1 << 20, 4, qk.QuantizeOptions.create(bits=4, method="uniform"))

    assert dispatch.pick("auto", work).name == "cpu"
    assert cupy.loaded == []
    model = dispatch.cost_model()

    assert model is not None
    # The shim is slow: nothing goes there but what is there already.
    assert dispatch.pick("auto", work).name == "cpu"
    assert dispatch.pick("auto", replace(work, on_device=True)).name == "gpu"
    assert dispatch.cost_model() is model
    for operation in OPERATIONS:
        assert model.gpu[operation][4](1000) > 0
    json.dumps(model.describe())


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (OutOfMemoryError("64 bytes"), "device_out_of_memory"),
        (CUDARuntimeError("cudaErrorIllegalAddress"), "device_error"),
        (CUDADriverError("CUDA_ERROR_LAUNCH_FAILED"), "device_error"),
    ],
)
def test_what_cupy_raises_is_a_failure_of_the_device(cupy: FakeCupy, fault: Any, code: str):
    device = open_device()
    buffer = device.upload(np.arange(4, dtype=np.uint8))
    cupy.fault = fault
    for call in (
        lambda: device.allocate(64),
        lambda: device.upload(np.zeros(4)),
        lambda: device.download(buffer, np.zeros(4, np.uint8)),
    ):
        with pytest.raises(DeviceFailed, match=str(fault)) as caught:
            call()
        assert caught.value.code == code
    cupy.fault = None
    back = np.zeros(4, np.uint8)
    device.download(buffer, back)
    assert back.tolist() == [0, 1, 2, 3]
