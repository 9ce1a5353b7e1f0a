"""A `Device` over CuPy: the only module that imports it, and not before a device is opened."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import BackendUnavailable, DeviceFailed
from quiver_kernels.gpu.compiling import Nvrtc, compiled_file, suited
from quiver_kernels.gpu.device import Argument, Buffer, Launch

# More shared memory than this has to be asked for, kernel by kernel.
_USUAL_SHARED = 48 << 10


@dataclass(frozen=True, slots=True)
class CupyBuffer:
    """Memory from CuPy's pool."""

    array: Any

    @property
    def nbytes(self) -> int:
        """See `Buffer`."""
        return int(self.array.nbytes)


class CupyDevice:
    """One GPU, with a stream of its own.

    Parameters
    ----------
    cupy
        The module, of a device that is available.
    number
        Of the device, from 0.
    cache
        Folder that machine code is kept in.
    """

    def __init__(self, cupy: Any, number: int, cache: Path) -> None:
        self._cupy = cupy
        self._failing = _errors_of(cupy)
        self._cache = cache
        self._functions: dict[tuple[str, str], Any] = {}
        self._modules: dict[str, Any] = {}
        self._device = cupy.cuda.Device(number)
        with self._device:
            properties = cupy.cuda.runtime.getDeviceProperties(number)
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self._nvrtc = Nvrtc.find()
        capability = int(self._device.compute_capability)
        self._architecture = suited(self._nvrtc.architectures, capability)
        self._name = str(properties["name"].decode())
        self._processors = int(properties["multiProcessorCount"])

    @property
    def name(self) -> str:
        """See `Device`."""
        return self._name

    @property
    def processors(self) -> int:
        """See `Device`."""
        return self._processors

    def allocate(self, nbytes: int) -> Buffer:
        """See `Device`."""
        with self._use():
            return CupyBuffer(self._cupy.empty(nbytes, np.uint8))

    def upload(self, host: NDArray[Any]) -> Buffer:
        """See `Device`."""
        with self._use():
            array = self._cupy.empty(host.nbytes, np.uint8)
            # Memory that is not pinned is copied away before this returns.
            array.set(host.reshape(-1).view(np.uint8), stream=self._stream)
            return CupyBuffer(array)

    def download(self, buffer: Buffer, out: NDArray[Any]) -> None:
        """See `Device`."""
        assert isinstance(buffer, CupyBuffer)
        with self._use():
            part = buffer.array[: out.nbytes]
            part.get(stream=self._stream, out=out.reshape(-1).view(np.uint8))

    def launch(self, launch: Launch) -> None:
        """See `Device`."""
        with self._use():
            function = self._function(launch.module, launch.kernel)
            if launch.shared > _USUAL_SHARED:
                function.max_dynamic_shared_size_bytes = launch.shared
            arguments = tuple(_argument(one) for one in launch.arguments)
            function((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared)

    def _function(self, module: str, kernel: str) -> Any:
        found = self._functions.get((module, kernel))
        if found is None:
            if module not in self._modules:
                path = compiled_file(self._nvrtc, module, self._architecture, self._cache)
                self._modules[module] = self._cupy.RawModule(path=str(path))
            found = self._modules[module].get_function(kernel)
            self._functions[module, kernel] = found
        return found

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        """Make device and stream current; what CuPy raises becomes `DeviceFailed`."""
        try:
            with self._device, self._stream:
                yield
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise DeviceFailed(f"device gpu: {error}", code="device_out_of_memory") from error
        except self._failing as error:
            raise DeviceFailed(f"device gpu: {error}") from error


def open_device(number: int = 0) -> CupyDevice:
    """The GPU of this number.

    Raises
    ------
    BackendUnavailable
        CuPy is not installed, or has no driver, no such device or no compiler.
    """
    if importlib.util.find_spec("cupy") is None:
        raise BackendUnavailable(
            "device gpu needs CuPy, which is not installed: pip install 'quiver-kernels[cuda12]'; "
            "use cpu or auto"
        )
    try:
        return _open(importlib.import_module("cupy"), number)
    except BackendUnavailable:
        raise
    except Exception as error:
        # A broken driver or installation may raise anything, at any of these steps.
        text = f"{type(error).__name__}: {error}"
        raise BackendUnavailable(f"device gpu is not available here: {text}") from error


def _open(cupy: Any, number: int) -> CupyDevice:
    count = cupy.cuda.runtime.getDeviceCount() if cupy.cuda.is_available() else 0
    if number >= count:
        raise BackendUnavailable(
            f"device gpu is not available here: CuPy finds {count} devices; use cpu or auto"
        )
    return CupyDevice(cupy, number, _cache_folder())


def _cache_folder() -> Path:
    """Where CuPy, too, keeps what it compiles."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


def _errors_of(cupy: Any) -> tuple[type[Exception], ...]:
    return (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)


def _argument(one: Argument) -> Any:
    if one is None:
        return np.uint64(0)
    return one.array if isinstance(one, CupyBuffer) else one
