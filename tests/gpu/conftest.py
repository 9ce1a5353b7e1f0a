"""Devices that the kernels run on: the CPU shim, and with `make test-gpu` a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gpu.shim_device import ShimDevice, build

from quiver_kernels import dispatch
from quiver_kernels.dispatch import Backend
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.cupy_device import open_device
from quiver_kernels.gpu.device import Device


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `-m` nothing asks for a GPU; pytest counts what is left out as deselected."""
    if config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def nothing_stays_loaded() -> Iterator[None]:
    """A backend over a stand-in is forgotten: tests of other folders share the process."""
    load = dispatch.load
    yield
    load.cache_clear()


@pytest.fixture(scope="session")
def libraries(request: pytest.FixtureRequest) -> Path:
    """Where libraries of the shim are kept from run to run."""
    return Path(request.config.cache.mkdir("gpu_shim"))


@pytest.fixture(scope="session")
def library(libraries: Path) -> Path:
    """The shim with all kernels."""
    return build(libraries)


@pytest.fixture(scope="session", params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """Whoever asks for the GPU has one: without, opening it fails, and so does the test."""
    if request.param == "gpu":
        return open_device()
    return ShimDevice(request.getfixturevalue("library"))


@pytest.fixture(scope="session")
def gpu(device: Device) -> GpuBackend:
    return GpuBackend(device)


@pytest.fixture(scope="session")
def cpu() -> Backend:
    return dispatch.load("cpu")
