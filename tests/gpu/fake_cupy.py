"""As much of CuPy as `CupyDevice` uses, as its documentation has it, over the shim.

It shows that the calls fit together, not that CuPy and a driver do as documented.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tests.gpu.shim_device import ShimDevice

from quiver_kernels.gpu.device import Launch


class OutOfMemoryError(MemoryError):
    """As CuPy raises it."""


class CUDARuntimeError(RuntimeError):
    """As CuPy raises it."""


class CUDADriverError(RuntimeError):
    """As CuPy raises it."""


class Current:
    """A device or a stream: a context in which it is current."""

    compute_capability = "90"

    def __init__(self, current: set[str], name: str) -> None:
        self._current = current
        self._name = name

    def __enter__(self) -> Current:
        assert self._name not in self._current
        self._current.add(self._name)
        return self

    def __exit__(self, *_: object) -> None:
        self._current.remove(self._name)


class FakeCupy:
    """The module. `fault`, if set, is raised by every launch and allocation."""

    def __init__(self, shim: ShimDevice) -> None:
        self._shim = shim
        self._current: set[str] = set()
        self.fault: Exception | None = None
        self.loaded: list[str] = []
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            Device=lambda number: Current(self._current, f"device {number}"),
            Stream=self._stream,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDeviceCount=lambda: 1,
                getDeviceProperties=lambda _: {"name": b"Fake", "multiProcessorCount": 3},
            ),
        )

    def _stream(self, *, non_blocking: bool) -> Current:
        assert non_blocking
        assert self._current == {"device 0"}
        return Current(self._current, "stream")

    def check(self) -> None:
        """Whatever is done, is done with the device and the stream."""
        assert self._current == {"device 0", "stream"}
        if self.fault is not None:
            raise self.fault

    def empty(self, size: int, dtype: type) -> FakeArray:
        self.check()
        assert dtype is np.uint8
        return FakeArray(self, self._shim, self._shim.allocate(size), size)

    def RawModule(self, *, path: str) -> SimpleNamespace:
        self.check()
        module = Path(path).stem
        self.loaded.append(module)

        def function(name: str) -> Any:
            def run(grid: Any, block: Any, arguments: Any, *, shared_mem: int) -> None:
                self.check()
                given = tuple(a.buffer if isinstance(a, FakeArray) else a for a in arguments)
                self._shim.launch(Launch(module, name, *grid, *block, given, shared_mem))

            return run

        return SimpleNamespace(get_function=function)


class FakeArray:
    """A flat array of bytes on the device."""

    def __init__(self, cupy: FakeCupy, shim: ShimDevice, buffer: Any, nbytes: int) -> None:
        self._cupy = cupy
        self._shim = shim
        self.buffer = buffer
        self.nbytes = nbytes

    def set(self, host: np.ndarray, *, stream: Current) -> None:
        self._cupy.check()
        assert isinstance(stream, Current)
        assert (host.dtype, host.shape) == (np.uint8, (self.nbytes,))
        self.buffer = self._shim.upload(host)

    def __getitem__(self, part: slice) -> FakeArray:
        assert part.start is None
        return FakeArray(self._cupy, self._shim, self.buffer, min(part.stop, self.nbytes))

    def get(self, *, stream: Current, out: np.ndarray) -> None:
        self._cupy.check()
        assert isinstance(stream, Current)
        assert (out.dtype, out.shape) == (np.uint8, (self.nbytes,))
        self._shim.download(self.buffer, out)
