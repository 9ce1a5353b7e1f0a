"""As much of CuPy as `CupyDevice` uses, as its documentation has it, over the shim.

It shows that the calls fit together, not that CuPy and a driver do as documented.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tests.gpu.fake_streams import Clock, Event, Stream
from tests.gpu.shim_device import ShimDevice

from quiver_kernels.errors import DeviceFailed
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


class FakeStream(Stream):
    """A stream, and the context in which it is current."""

    def __init__(self, cupy: FakeCupy, current: set[str]) -> None:
        super().__init__(cupy.clock)
        self._cupy = cupy
        self._within = Current(current, "stream")

    def __enter__(self) -> FakeStream:
        self._within.__enter__()
        self._cupy.current_stream = self
        return self

    def __exit__(self, *_: object) -> None:
        self._within.__exit__()

    def wait_event(self, event: Event) -> None:
        self._cupy.check()
        super().wait_event(event)

    def synchronize(self) -> None:
        self._cupy.check()
        super().synchronize()


class FakeEvent(Event):
    """An event of the current device."""

    def __init__(self, cupy: FakeCupy) -> None:
        cupy.check()
        super().__init__()
        self._cupy = cupy

    def record(self, stream: Stream) -> None:
        self._cupy.check()
        super().record(stream)

    def synchronize(self) -> None:
        self._cupy.check()
        super().synchronize()


class FakeCupy:
    """The module, with `count` devices. `fault`, if set, is raised by every launch and allocation.

    What is done on a device of `broken` fails. `clock` decides when work in streams is done.
    """

    uint8 = np.uint8

    def __init__(self, shim: ShimDevice, clock: Clock | None = None) -> None:
        self._shim = shim
        self.clock = clock or Clock()
        self.current_stream: FakeStream | None = None
        self.pinned: list[bytearray] = []
        self._pool: dict[int, list[Any]] = {}
        self._current: set[str] = set()
        self.fault: Exception | None = None
        self.count = 1
        self.broken: set[str] = set()
        self.loaded: list[str] = []
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            Device=lambda number: Current(self._current, f"device {number}"),
            Stream=self._stream,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDeviceCount=lambda: self.count,
                getDeviceProperties=lambda _: {
                    "name": b"Fake",
                    "multiProcessorCount": 3,
                    "totalGlobalMem": 1 << 33,
                },
                pointerGetAttributes=self._attributes,
            ),
            Event=lambda disable_timing=False: FakeEvent(self),
            ExternalStream=self._external,
            alloc_pinned_memory=self._alloc_pinned,
            UnownedMemory=self._unowned,
            MemoryPointer=lambda memory, offset: (memory, offset),
            get_elapsed_time=lambda begun, ended: 1e3 * (ended.at - begun.at),
        )

    def get_default_memory_pool(self) -> SimpleNamespace:
        """One for the current device."""
        return SimpleNamespace(set_limit=self._set_limit)

    def _set_limit(self, *, size: int) -> None:
        self.check()
        self._shim.limit_memory(size)

    def _stream(self, *, non_blocking: bool) -> FakeStream:
        assert non_blocking
        assert self._current in [{f"device {number}"} for number in range(self.count)]
        return FakeStream(self, self._current)

    def _external(self, ptr: int) -> Stream:
        return next(stream for stream in self.clock.streams if stream.ptr == ptr)

    def _alloc_pinned(self, size: int) -> bytearray:
        self.check()
        self.pinned.append(bytearray(b"\xcd" * size))
        return self.pinned[-1]

    def is_pinned(self, host: np.ndarray) -> bool:
        address = host.ctypes.data
        for memory in self.pinned:
            begin = np.frombuffer(memory, np.uint8).ctypes.data
            if begin <= address and address + host.nbytes <= begin + len(memory):
                return True
        return False

    def _attributes(self, address: int) -> SimpleNamespace:
        self.check()
        if self._shim.holds(address):
            return SimpleNamespace(type=2, device=0)
        host = np.ndarray(1, np.uint8, (ctypes.c_uint8 * 1).from_address(address))
        return SimpleNamespace(type=int(self.is_pinned(host)), device=-2)

    def _unowned(self, address: int, nbytes: int, owner: object, device: int) -> Any:
        assert f"device {device}" in self._current
        return self._shim.borrow(address, nbytes, owner)

    def ndarray(self, shape: tuple[int], dtype: type, *, memptr: tuple[Any, int]) -> FakeArray:
        """An array over memory of somebody else."""
        self.check()
        assert dtype is np.uint8
        memory, offset = memptr
        assert (memory.nbytes, offset) == (*shape, 0)
        return FakeArray(self, self._shim, memory, memory.nbytes)

    def check(self) -> None:
        """Whatever is done, is done with the device and the stream."""
        assert self._current in [{f"device {number}", "stream"} for number in range(self.count)]
        if self._current & self.broken:
            raise CUDARuntimeError("cudaErrorECCUncorrectable")
        if self.fault is not None:
            raise self.fault

    def empty(self, size: int, dtype: type) -> FakeArray:
        self.check()
        assert dtype is np.uint8
        # As CuPy's pool: what is given back is handed out again, without a wait for kernels.
        free = self._pool.get(size)
        buffer = free.pop() if free else self._allocate(size)
        array = FakeArray(self, self._shim, buffer, size)
        weakref.finalize(array, lambda: self._pool.setdefault(size, []).append(buffer))
        return array

    def _allocate(self, size: int) -> Any:
        try:
            return self._shim.allocate(size)
        except DeviceFailed:
            self._pool.clear()
        try:
            return self._shim.allocate(size)
        except DeviceFailed as error:
            raise OutOfMemoryError(str(error)) from error

    def put(self, work: Callable[[], None]) -> None:
        """A kernel in the current stream."""
        self.check()
        assert self.current_stream is not None
        self.current_stream.launch(work)

    def copyto(self, target: FakeArray, source: FakeArray) -> None:
        assert target.nbytes == source.nbytes
        buffers = source.buffer, target.buffer
        self.put(lambda: self._shim.copy(*buffers))

    def RawModule(self, *, path: str) -> SimpleNamespace:
        self.check()
        module = Path(path).stem
        self.loaded.append(module)

        def function(name: str) -> Any:
            def run(grid: Any, block: Any, arguments: Any, *, shared_mem: int) -> None:
                # Kernels know addresses, not owners.
                given = tuple(a.buffer if isinstance(a, FakeArray) else a for a in arguments)
                launch = Launch(module, name, *grid, *block, given, shared_mem)
                self.put(lambda: self._shim.launch(launch))

            return run

        return SimpleNamespace(get_function=function)


class FakeArray:
    """A flat array of bytes on the device."""

    def __init__(
        self, cupy: FakeCupy, shim: ShimDevice, buffer: Any, nbytes: int, base: Any = None
    ) -> None:
        self._cupy = cupy
        self._shim = shim
        self._base = base
        self.buffer = buffer
        self.nbytes = nbytes
        self.data = SimpleNamespace(ptr=buffer.address)

    def set(self, host: np.ndarray, *, stream: Stream) -> None:
        self._cupy.check()
        assert isinstance(stream, FakeStream)
        assert (host.dtype, host.shape) == (np.uint8, (self.nbytes,))
        # Memory that is not pinned is copied away at once.
        source = host if self._cupy.is_pinned(host) else host.copy()
        shim, buffer = self._shim, self.buffer
        stream.put(lambda: shim.fill(buffer, source))

    def __getitem__(self, part: slice) -> FakeArray:
        start, stop, _ = part.indices(self.nbytes)
        buffer = self._shim.part(self.buffer, start, stop - start)
        return FakeArray(self._cupy, self._shim, buffer, stop - start, self)

    def view(self, dtype: np.dtype[Any]) -> SimpleNamespace:
        shim, buffer = self._shim, self.buffer
        assert self.nbytes % dtype.itemsize == 0
        return SimpleNamespace(sort=lambda: self._cupy.put(lambda: shim.sort(buffer, dtype)))

    def get(self, *, stream: Stream, out: np.ndarray, blocking: bool = True) -> None:
        self._cupy.check()
        assert isinstance(stream, FakeStream)
        assert (out.dtype, out.shape) == (np.uint8, (self.nbytes,))
        assert blocking or self._cupy.is_pinned(out), "such a copy would not be asynchronous"
        shim, buffer = self._shim, self.buffer
        stream.put(lambda: shim.download(buffer, out))
        if blocking:
            stream.synchronize()
