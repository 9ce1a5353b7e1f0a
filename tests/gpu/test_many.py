"""Many vectors at once: the bits of each are the CPU's, and errors name the first that is bad."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.gpu.shim_device import ShimDevice, ShimFault
from tests.gpu.test_failures import Both, Failing
from tests.gpu.test_identity import bits_of, sample
from tests.support.strategies import DTYPES

from quiver_kernels import dispatch
from quiver_kernels.batch import BatchItem, BatchRequest
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import DeviceFailed, InvalidInput
from quiver_kernels.gpu import many
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.device import Device
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import QuantizeRequest
from quiver_service.devices import Devices
from quiver_service.engine import Engine
from quiver_service.pool import WorkerPool

CHOICES: list[dict[str, Any]] = [
    {"method": "uniform", "bits": 3},
    {"method": "approx", "grid": "uniform", "bins": 40, "bits": 2},
    {"method": "exact", "bits": 2},
    {"method": "exact", "bits": 4},
    {"method": "uniform", "bits": 5, "block_size": 33},
    {"method": "accelerated", "num_levels": 5},
    {"method": "exact", "bits": 1},
    {"method": "uniform", "bits": 8, "world_size": 5, "rank": 3, "shared_seed": 77},
    {"method": "exact", "num_levels": 7, "block_size": 16, "world_size": 2, "rank": 1},
]


def requested(x: NDArray[Any], seed: int = 1, **chosen: Any) -> QuantizeRequest:
    if "world_size" in chosen:
        chosen = {"shared_seed": seed + 9, **chosen}
    return QuantizeRequest(x, None, QuantizeOptions.create(seed=seed, **chosen))


def mixed(count: int = 40) -> list[QuantizeRequest]:
    """Vectors of all types, of several sizes and options."""
    rng = np.random.default_rng(11)
    found = []
    for number in range(count):
        dtype = sorted(DTYPES)[number % 4]
        size = int(rng.choice([1, 2, 7, 64, 100, 333]))
        chosen = CHOICES[int(rng.integers(len(CHOICES)))]
        found.append(requested(sample(dtype, size, number), 10**9 * number, **chosen))
    return found


@contextlib.contextmanager
def named(number: int) -> Iterator[None]:
    try:
        yield
    except InvalidInput as error:
        error.detail = f"number {number}: {error.detail}"
        error.args = (error.detail,)
        raise


def compare(
    gpu: GpuBackend, cpu: Backend, requests: Sequence[QuantizeRequest]
) -> list[QuantizedVector]:
    ours, theirs = (backend.quantize_many(requests, named) for backend in (gpu, cpu))
    assert len(ours) == len(theirs) == len(requests)
    for one, other in zip(ours, theirs, strict=True):
        assert bits_of(one) == bits_of(other)
        assert one.levels.shape == other.levels.shape
        assert one.levels.dtype == other.levels.dtype
        assert one.block_size == other.block_size
    return ours


def test_many_vectors(gpu: GpuBackend, cpu: Backend):
    found = compare(gpu, cpu, mixed(28))

    assert {q.device for q in found} == {"gpu"}


@pytest.mark.parametrize("at_once", [1, 500])
def test_groups_are_of_one_type_and_not_too_large(
    device: Device, gpu: GpuBackend, cpu: Backend, at_once: int
):
    requests = mixed(16)
    items = [many.Item.of(number, request) for number, request in enumerate(requests)]
    assert None not in items
    groups = list(many.groups(items, at_once))

    assert sorted(item.number for group in groups for item in group) == list(range(16))
    for group in groups:
        assert len({item.x.dtype for item in group}) == 1
        assert len(group) == 1 or sum(item.x.nbytes for item in group) <= at_once
        for number, q in many.quantize(device, group).items():
            request = requests[number]
            assert bits_of(q) == bits_of(cpu.quantize(request.vector, request.options, None))
    assert max(map(len, groups)) == 1 if at_once == 1 else max(map(len, groups)) > 1


def test_vectors_that_are_computed_alone_are_among_others(gpu: GpuBackend, cpu: Backend):
    x = sample("float32", 90)
    weights = np.arange(90.0)
    requests = [
        requested(x, bits=2),
        QuantizeRequest(x, weights, QuantizeOptions.create(bits=2, seed=3)),
        requested(x, method="simba", bits=2),
        requested(x, levels=[-9.0, 0.0, 9.0]),
        # Too far apart for float32 arithmetic.
        requested(np.array([-3e38, 0.0, 3e38], np.float32), num_levels=2),
        requested(sample("float32", many.LONGEST + 1), method="uniform", bits=2),
        requested(sample("float64", 50), bits=2),
    ]
    alone = [many.Item.of(number, one) is None for number, one in enumerate(requests)]

    assert alone == [False, True, True, True, False, True, False]
    assert many.quantize(gpu.device, [many.Item.of(0, requests[4])]) == {}
    compare(gpu, cpu, requests)


def test_the_first_bad_vector_is_named(gpu: GpuBackend, cpu: Backend):
    requests = mixed(9)
    bad = requests[5].vector.copy()
    bad[-1] = np.nan
    requests[5] = requested(bad, bits=2)
    requests[7] = requested(np.array([np.inf, 1.0], np.float32), bits=2)

    for backend in (gpu, cpu):
        with pytest.raises(InvalidInput, match=f"number 5: .* nan at index {bad.size - 1}"):
            backend.quantize_many(requests, named)
    assert gpu.quantize_many([], named) == []
    with pytest.raises(InvalidInput, match=r"number 0: .* at least one value"):
        gpu.quantize_many([requested(np.empty(0), bits=2)], named)


def test_one_launch_of_a_kernel_for_all(library: Path):
    seen = Failing()
    gpu = GpuBackend(ShimDevice(library, before=seen))
    x = sample("float32", 64)
    gpu.quantize_many([requested(x + number, bits=2) for number in range(30)], named)

    kernels = [name for name in seen.calls if name.endswith(("float32", "solve"))]
    assert sorted(kernels) == [
        "encode_each_float32",
        "errors_each_float32",
        "range_each_float32",
        "rows_solve",
    ]
    assert seen.calls.count("download") == 4


def many_agree(device: Device) -> bool:
    """Whether 40 vectors are quantized as by the CPU; a fault is no agreement."""
    requests = [
        requested(sample("float32", 200 + number, number), number, method="uniform", bits=3)
        for number in range(40)
    ]
    try:
        ours = GpuBackend(device).quantize_many(requests, named)
    except ShimFault:
        return False
    theirs = dispatch.load("cpu").quantize_many(requests, named)
    return all(bits_of(one) == bits_of(other) for one, other in zip(ours, theirs, strict=True))


# -- in the service -----------------------------------------------------------------------------


class Cold(GpuBackend):
    """Compiles nothing beforehand."""

    def warm_up(self) -> None:
        pass


def engine_of(device: Device) -> Engine:
    devices = Devices(Both(Cold(device)))
    devices.warm_up()
    return Engine(WorkerPool(1, 1), 1 << 30, devices)


def batch(device: str = "gpu") -> BatchRequest:
    requests = [requested(one.vector, 3, bits=2, device=device) for one in mixed(6)]
    items = [BatchItem(one, f"vectors[{number}]", False) for number, one in enumerate(requests)]
    return BatchRequest(tuple(items), None)


@pytest.mark.parametrize("at", [None, 0, 11])
def test_a_batch_of_the_service(library: Path, cpu: Backend, at: int | None):
    failing = Failing()
    engine = engine_of(ShimDevice(library, before=failing))
    failing.at = at
    failing.fault = lambda: DeviceFailed("no memory", code="device_out_of_memory")
    found = engine.quantize_many(batch())

    for q, item in zip(found.vectors, batch().items, strict=True):
        request = item.request
        assert bits_of(q) == bits_of(cpu.quantize(request.vector, request.options, None))
        assert q.device == ("gpu" if at is None else "cpu")
    if at is None:
        assert "encode_each_float32" in failing.calls
    else:
        assert engine.devices.fallbacks == {("gpu", "device_out_of_memory"): 1}


def test_a_bad_vector_of_a_batch_is_named_by_the_service(library: Path):
    engine = engine_of(ShimDevice(library))
    request = batch()
    request.items[4].request.vector[0] = np.nan

    with pytest.raises(InvalidInput, match=r"^vectors\[4\]: vector must be finite"):
        engine.quantize_many(request)
