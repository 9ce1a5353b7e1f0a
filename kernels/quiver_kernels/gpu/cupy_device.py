"""A `Device` over CuPy: the only module that imports it, and not before a device is opened."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import BackendUnavailable, DeviceFailed, InvalidInput
from quiver_kernels.gpu.compiling import Nvrtc, compiled_file, suited
from quiver_kernels.gpu.device import Argument, Buffer, Download, Launch, Mark
from quiver_kernels.gpu.staging import PART_BYTES, Staging

# More shared memory than this has to be asked for, kernel by kernel.
_USUAL_SHARED = 48 << 10
# What the driver takes with a call, so that staging would be a detour.
_FEW_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class CupyBuffer:
    """Memory from CuPy's pool."""

    array: Any

    @property
    def nbytes(self) -> int:
        """See `Buffer`."""
        return int(self.array.nbytes)


@dataclass(frozen=True, slots=True)
class CupyMark:
    """An event of the stream that kernels run in."""

    event: Any


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
    part_bytes
        Most that is copied at once.
    """

    def __init__(self, cupy: Any, number: int, cache: Path, part_bytes: int = PART_BYTES) -> None:
        self._cupy = cupy
        self._part_bytes = part_bytes
        self._failing = _errors_of(cupy)
        self._cache = cache
        self._functions: dict[tuple[str, str], Any] = {}
        self._modules: dict[str, Any] = {}
        self._device = cupy.cuda.Device(number)
        with self._device:
            properties = cupy.cuda.runtime.getDeviceProperties(number)
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._copies = cupy.cuda.Stream(non_blocking=True)
        self._number = number
        self._staged: Staging | None = None
        self._nvrtc = Nvrtc.find()
        capability = int(self._device.compute_capability)
        self._architecture = suited(self._nvrtc.architectures, capability)
        self._name = str(properties["name"].decode())
        self._processors = int(properties["multiProcessorCount"])
        self._memory = int(properties["totalGlobalMem"])

    @property
    def name(self) -> str:
        """See `Device`."""
        return self._name

    @property
    def number(self) -> int:
        """See `Device`."""
        return self._number

    @property
    def stream(self) -> int:
        """See `Device`."""
        return int(self._stream.ptr)

    @property
    def part_bytes(self) -> int:
        """See `Device`."""
        return self._part_bytes

    @property
    def processors(self) -> int:
        """See `Device`."""
        return self._processors

    @property
    def memory(self) -> int:
        """See `Device`."""
        return self._memory

    def limit_memory(self, nbytes: int) -> None:
        """See `Device`; CuPy has one pool for a card, which all of the process share."""
        with self._use():
            self._cupy.get_default_memory_pool().set_limit(size=nbytes)

    def copy(self, source: Buffer, target: Buffer) -> None:
        """See `Device`."""
        assert isinstance(source, CupyBuffer)
        assert isinstance(target, CupyBuffer)
        with self._use():
            self._cupy.copyto(target.array, source.array)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """See `Device`."""
        with self._use():
            memory = self._cupy.cuda.alloc_pinned_memory(nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)

    def seconds_of(self, call: Callable[[], object]) -> float:
        """See `Device`; by CUDA's events."""
        with self._use():
            begun, ended = (self._cupy.cuda.Event() for _ in range(2))
            begun.record(self._stream)
        call()
        with self._use():
            ended.record(self._stream)
            ended.synchronize()
            return 1e-3 * float(self._cupy.cuda.get_elapsed_time(begun, ended))

    def allocate(self, nbytes: int) -> Buffer:
        """See `Device`."""
        with self._use():
            return CupyBuffer(self._cupy.empty(nbytes, np.uint8))

    def upload(
        self, host: NDArray[Any], each: Callable[[Buffer, int], None] | None = None
    ) -> Buffer:
        """See `Device`."""
        with self._use():
            buffer = CupyBuffer(self._cupy.empty(host.nbytes, np.uint8))
        self._send(host, buffer, each)
        return buffer

    def fill(self, buffer: Buffer, host: NDArray[Any]) -> None:
        """See `Device`."""
        assert isinstance(buffer, CupyBuffer)
        self._send(host, buffer, None)

    def _send(
        self,
        host: NDArray[Any],
        target: CupyBuffer,
        each: Callable[[Buffer, int], None] | None,
    ) -> None:
        source = host.reshape(-1).view(np.uint8)
        if source.size <= min(_FEW_BYTES, self._part_bytes):
            with self._use():
                # Memory that is not pinned is copied away before this returns.
                target.array[: source.size].set(source, stream=self._stream)
            if each is not None:
                each(self.part(target, 0, source.size), 0)
            return
        with self._use():
            staging = self._staging()
            pinned = staging.is_pinned(source)
            staging.begin()
        try:
            for start in range(0, source.size, self._part_bytes):
                stop = min(start + self._part_bytes, source.size)
                with self._use():
                    staging.send(source[start:stop], target.array[start:stop], pinned=pinned)
                if each is not None:
                    each(self.part(target, start, stop - start), start)
        finally:
            if pinned:
                with self._use():
                    staging.settle()

    def part(self, buffer: Buffer, start: int, nbytes: int) -> Buffer:
        """See `Device`."""
        assert isinstance(buffer, CupyBuffer)
        return CupyBuffer(buffer.array[start : start + nbytes])

    def download(self, buffer: Buffer, out: NDArray[Any]) -> None:
        """See `Device`."""
        self.download_all([Download(buffer, out)])

    def download_all(self, wanted: Sequence[Download]) -> None:
        """See `Device`."""
        with self._use():
            staging = self._staging()
            moves = []
            for one in wanted:
                assert isinstance(one.buffer, CupyBuffer)
                after = one.after.event if isinstance(one.after, CupyMark) else staging.mark()
                out = one.out.reshape(-1).view(np.uint8)
                moves.append((one.buffer.array[: out.size], out, after))
            staging.receive(moves)

    def mark(self) -> Mark:
        """See `Device`."""
        with self._use():
            return CupyMark(self._staging().mark())

    def borrow(self, address: int, nbytes: int, owner: object) -> Buffer:
        """See `Device`; memory of another device is refused, for a kernel would not survive it."""
        with self._use():
            number = int(self._cupy.cuda.runtime.pointerGetAttributes(address).device)
            if number != self._number:
                raise InvalidInput(
                    f"an array must lie on GPU {self._number}; CUDA has its memory on device "
                    f"{number}",
                    code="invalid_type",
                )
            memory = self._cupy.cuda.UnownedMemory(address, nbytes, owner, self._number)
            pointer = self._cupy.cuda.MemoryPointer(memory, 0)
            return CupyBuffer(self._cupy.ndarray((nbytes,), np.uint8, memptr=pointer))

    def address(self, buffer: Buffer) -> int:
        """See `Device`."""
        assert isinstance(buffer, CupyBuffer)
        return int(buffer.array.data.ptr)

    def after(self, stream: int) -> None:
        """See `Device`."""
        with self._use():
            event = self._cupy.cuda.Event(disable_timing=True)
            event.record(self._cupy.cuda.ExternalStream(stream))
            self._stream.wait_event(event)

    def finish(self) -> None:
        """See `Device`."""
        with self._use():
            self._stream.synchronize()

    def _staging(self) -> Staging:
        if self._staged is None:
            self._staged = Staging(self._cupy, self._stream, self._copies, self._part_bytes)
        return self._staged

    def launch(self, launch: Launch) -> None:
        """See `Device`."""
        with self._use():
            function = self._function(launch.module, launch.kernel)
            if launch.shared > _USUAL_SHARED:
                function.max_dynamic_shared_size_bytes = launch.shared
            arguments = tuple(_argument(one) for one in launch.arguments)
            function((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared)

    def sort(self, buffer: Buffer, dtype: np.dtype[Any]) -> None:
        """See `Device`; CuPy's radix sort, which needs as much memory again."""
        assert isinstance(buffer, CupyBuffer)
        with self._use():
            buffer.array.view(dtype).sort()

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


def count_devices() -> int:
    """How many GPUs this process sees, at least one.

    Raises
    ------
    BackendUnavailable
        CuPy is not installed, or has no driver or no device.
    """
    with _in_words():
        return _count(_cupy(), 0)


def open_device(number: int = 0) -> CupyDevice:
    """The GPU of this number.

    Raises
    ------
    BackendUnavailable
        CuPy is not installed, or has no driver, no such device or no compiler.
    """
    with _in_words():
        cupy = _cupy()
        _count(cupy, number)
        return CupyDevice(cupy, number, _cache_folder())


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """What a broken driver or installation raises, which may be anything, as one error."""
    try:
        yield
    except BackendUnavailable:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise BackendUnavailable(f"device gpu is not available here: {text}") from error


def _cupy() -> Any:
    if importlib.util.find_spec("cupy") is None:
        raise BackendUnavailable(
            "device gpu needs CuPy, which is not installed: pip install 'quiver-kernels[cuda12]'; "
            "use cpu or auto"
        )
    return importlib.import_module("cupy")


def _count(cupy: Any, number: int) -> int:
    """How many devices there are; `number` must be one of them."""
    count = int(cupy.cuda.runtime.getDeviceCount()) if cupy.cuda.is_available() else 0
    if number >= count:
        raise BackendUnavailable(
            f"device gpu is not available here: CuPy finds {count} devices; use cpu or auto"
        )
    return count


def _cache_folder() -> Path:
    """Where CuPy, too, keeps what it compiles."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


def _errors_of(cupy: Any) -> tuple[type[Exception], ...]:
    return (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)


def _argument(one: Argument) -> Any:
    if one is None:
        return np.uint64(0)
    return one.array if isinstance(one, CupyBuffer) else one
