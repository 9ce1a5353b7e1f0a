"""Copies in parts beside kernels: right by any clock, and wrong if an event is left out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.gpu import fake_streams
from tests.gpu.fake_cupy import CUDARuntimeError, FakeCupy
from tests.gpu.fake_streams import CLOCKS, COPIES_FIRST, LATE, RANDOM, Clock
from tests.gpu.foreign import Dlpack, Interface, place
from tests.gpu.shim_device import ShimDevice
from tests.gpu.test_identity import bits_of

import quiver_kernels as qk
from quiver_kernels import dispatch
from quiver_kernels.errors import DeviceFailed, InvalidInput, QuiverError
from quiver_kernels.gpu import cupy_device, passes
from quiver_kernels.gpu.arrays import DeviceArray
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.compiling import Nvrtc
from quiver_kernels.gpu.cupy_device import CupyDevice
from quiver_kernels.gpu.device import Download
from quiver_kernels.options import QuantizeOptions

PART = 1 << 12
# More parts than there are buffers, the last one short.
X = np.random.default_rng(8).normal(size=6001).astype(np.float32)
Open = Callable[..., tuple[CupyDevice, FakeCupy]]


@pytest.fixture
def opened(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens devices whose work is done by a clock."""
    monkeypatch.setattr(Nvrtc, "find", lambda: Nvrtc.__new__(Nvrtc))
    monkeypatch.setattr(Nvrtc, "architectures", (90,))
    monkeypatch.setattr(
        cupy_device, "compiled_file", lambda _, module, __, folder: folder / f"{module}.cubin"
    )

    def open_one(kind: str = LATE, seed: int = 0) -> tuple[CupyDevice, FakeCupy]:
        cupy = FakeCupy(ShimDevice(library, seed), Clock(kind, seed))
        return CupyDevice(cupy, 0, tmp_path, PART), cupy

    return open_one


def round_trip(device: CupyDevice) -> bool:
    """Up, through a kernel and down again, part by part; memory is used again at once."""
    found = []
    for shift in range(3):
        x = X + np.float32(shift)
        vector, bounds = passes.upload_with_range(device, x)
        wide = passes.widened(device, vector)
        del vector
        # The pool hands out the memory of the vector, which the kernel may not have read yet.
        other = device.upload(np.roll(x, 1))
        back, rolled = np.empty(x.size), np.empty_like(x)
        device.download_all([Download(wide.values, back), Download(other, rolled)])
        found.append((bounds.low, bounds.high) == (x.min(), x.max()))
        found.append(np.array_equal(back, x) and np.array_equal(rolled, np.roll(x, 1)))
    return all(found)


def same_bits(device: CupyDevice) -> bool:
    """Whether a backend over the device gives the CPU's bits."""
    gpu, cpu = GpuBackend(device), dispatch.load("cpu")
    for method in ("uniform", "approx"):
        options = QuantizeOptions.create(bits=7, method=method, seed=3)
        theirs = cpu.quantize(X, options, None)
        if bits_of(gpu.quantize(X, options, None)) != bits_of(theirs):
            return False
        if gpu.dequantize(theirs).tobytes() != cpu.dequantize(theirs).tobytes():
            return False
    means = (one.aggregate([theirs, theirs], [1.0, 2.0]).tobytes() for one in (gpu, cpu))
    return len(set(means)) == 1


@pytest.mark.parametrize("kind", CLOCKS)
def test_whenever_work_is_done_the_bits_are_the_cpus(opened: Open, kind: str):
    for seed in range(3 if kind == "random" else 1):
        device, _ = opened(kind, seed)
        assert round_trip(device)
        assert same_bits(device)


def wrong(opened: Open) -> list[str]:
    """Clocks by which the device computes something else, or fails."""
    found = []
    for kind in (LATE, COPIES_FIRST, RANDOM):
        try:
            device, _ = opened(kind, 1)
            right = round_trip(device) and same_bits(device)
        except (ArithmeticError, AssertionError, LookupError, ValueError, QuiverError):
            # Numbers that no device computes may break anything.
            right = False
        if not right:
            found.append(kind)
    return found


@pytest.mark.parametrize("fault", ["kernels do not wait", "copies do not wait", "buffers reused"])
def test_an_event_that_is_left_out_is_noticed(
    opened: Open, monkeypatch: pytest.MonkeyPatch, fault: str
):
    wait = fake_streams.Stream.wait_event

    def leaves_out(stream: Any, event: Any) -> None:
        copying = stream is stream._clock.streams[1]
        if copying != (fault == "copies do not wait"):
            wait(stream, event)

    if fault == "buffers reused":
        monkeypatch.setattr(fake_streams.Event, "synchronize", lambda _: None)
    else:
        monkeypatch.setattr(fake_streams.Stream, "wait_event", leaves_out)
    assert wrong(opened)


def test_the_first_wait_of_an_upload_matters(opened: Open, monkeypatch: pytest.MonkeyPatch):
    """It guards memory that the pool took back while a kernel still reads it."""
    assert round_trip(opened(COPIES_FIRST)[0])
    monkeypatch.setattr("quiver_kernels.gpu.staging.Staging.begin", lambda _: None)

    assert not round_trip(opened(COPIES_FIRST)[0])


def test_memory_that_is_pinned_already_is_not_staged(opened: Open):
    for kind in CLOCKS:
        device, cupy = opened(kind)
        memory = cupy_pinned(device, cupy, X.nbytes)
        memory[:] = X.view(np.uint8)
        buffers = len(cupy.pinned)
        buffer = device.upload(memory.view(np.float32))
        memory[:] = 0
        assert len(cupy.pinned) == buffers
        back = np.empty_like(X)
        device.download(buffer, back)
        assert back.tobytes() == X.tobytes()


def cupy_pinned(device: CupyDevice, cupy: FakeCupy, nbytes: int) -> NDArray[np.uint8]:
    with device._use():
        return np.frombuffer(cupy.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)


def test_pinned_memory_is_little_and_kept(opened: Open):
    device, cupy = opened()
    for _ in range(3):
        round_trip(device)

    assert len(cupy.pinned) <= 2 * 3
    assert sum(map(len, cupy.pinned)) <= 2 * 3 * max(PART, 1 << 16)


def test_codes_come_down_while_errors_are_added_up(opened: Open, monkeypatch: pytest.MonkeyPatch):
    """The copy of the codes waits for the encoder alone."""
    device, cupy = opened(COPIES_FIRST)
    order: list[str] = []
    shim = cupy._shim
    launch, download = shim.launch, shim.download
    monkeypatch.setattr(shim, "launch", lambda one: (order.append(one.kernel), launch(one))[1])
    monkeypatch.setattr(
        shim, "download", lambda b, out: (order.append(f"down {out.nbytes}"), download(b, out))[1]
    )
    q = GpuBackend(device).quantize(
        X, QuantizeOptions.create(bits=2, method="uniform", seed=3), None
    )

    part = f"down {min(q.codes.nbytes, PART)}"
    assert order.index("encode_float32") < order.index(part) < order.index("errors_float32")


def test_a_failure_in_the_middle_leaves_a_device_that_works(opened: Open):
    for kind in CLOCKS:
        device, cupy = opened(kind)
        calls = 0

        def each(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise RuntimeError("not wanted any more")

        with pytest.raises(RuntimeError, match="not wanted"):
            device.upload(X, each)
        cupy.fault = CUDARuntimeError("cudaErrorLaunchFailure")
        with pytest.raises(DeviceFailed):
            device.upload(X)
        cupy.fault = None
        assert round_trip(device)


# -- arrays of others --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLOCKS)
def test_what_the_owner_still_writes_is_waited_for(opened: Open, kind: str):
    device, cupy = opened(kind)
    shim = cupy._shim
    array = place(shim, np.zeros_like(X))
    theirs = fake_streams.Stream(cupy.clock)
    theirs.launch(functools.partial(np.copyto, array, X))
    lent = DeviceArray(Interface(array, stream=theirs.ptr), "x", 0).open(device)

    back = passes.borrowed(device, lent).to_host(device)
    assert back.tobytes() == X.tobytes()


def test_without_the_wait_old_values_are_read(opened: Open):
    device, cupy = opened(LATE)
    array = place(cupy._shim, np.zeros_like(X))
    fake_streams.Stream(cupy.clock).launch(functools.partial(np.copyto, array, X))
    lent = DeviceArray(Interface(array, stream=None), "x", 0).open(device)

    assert not passes.borrowed(device, lent).to_host(device).any()


def test_an_array_of_the_owner_is_filled_before_the_call_returns(opened: Open):
    q = qk.quantize(X, bits=3, seed=1)
    for kind in CLOCKS:
        device, cupy = opened(kind)
        gpu = GpuBackend(device)
        out = Dlpack(place(cupy._shim, np.zeros_like(X)))
        gpu.dequantize_to(q, DeviceArray(out, "out", 0))
        assert out.streams == [device.stream]
        assert out.array.tobytes() == qk.dequantize(q).tobytes()
        gpu.aggregate_to([q, q], None, DeviceArray(out, "out", 0))
        assert out.array.tobytes() == qk.aggregate([q, q]).tobytes()
        # What is in a wrapped message is decoded on the device, which is free for that.
        wrapped = qk.quantize(X, bits=3, seed=1, outliers=0.9)
        gpu.dequantize_to(wrapped, DeviceArray(out, "out", 0))
        assert out.array.tobytes() == qk.dequantize(wrapped).tobytes()


def test_memory_of_the_host_is_not_taken_for_the_devices(opened: Open):
    device, _ = opened()
    with pytest.raises(InvalidInput, match="must lie on GPU 0; CUDA has its memory on device -2"):
        GpuBackend(device).quantize(
            DeviceArray(Interface(X), "x", None), QuantizeOptions.create(bits=2), None
        )
