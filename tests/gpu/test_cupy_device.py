"""The layer over CuPy, with a stand-in for CuPy: the real one needs a driver."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gpu.fake_cupy import CUDADriverError, CUDARuntimeError, FakeCupy, OutOfMemoryError
from tests.gpu.shim_device import ShimDevice

import quiver_kernels as qk
from quiver_kernels import dispatch
from quiver_kernels.errors import DeviceFailed
from quiver_kernels.gpu import cupy_device
from quiver_kernels.gpu.compiling import Nvrtc
from quiver_kernels.gpu.cupy_device import open_device


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
    yield fake
    dispatch._probe_gpu.cache_clear()
    assert fake.loaded == compiled


def test_a_device_that_gives_the_cpus_bits_is_offered(cupy: FakeCupy):
    x = np.random.default_rng(1).normal(size=3000).astype(np.float16)

    q = qk.quantize(x, bits=3, seed=1, device="gpu")

    assert dispatch.available() == {"cpu": True, "gpu": True}
    assert (q.device, qk.quantize(x, seed=1).device) == ("gpu", "cpu")
    assert np.array_equal(q.codes, qk.quantize(x, bits=3, seed=1).codes)
    # Each module once, though several kernels were used.
    assert sorted(cupy.loaded) == ["decode", "encode", "errors", "range"]


def test_the_device_says_what_it_is(cupy: FakeCupy):
    device = open_device()

    assert (device.name, device.processors) == ("Fake", 3)
    with pytest.raises(qk.BackendUnavailable, match="CuPy finds 1 devices"):
        open_device(1)


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
