"""A `Device` on the CPU: the real kernel sources, run by shim/cuda_shim.h. See docs/gpu.md."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import DeviceFailed
from quiver_kernels.gpu import sources
from quiver_kernels.gpu.device import Argument, Buffer, Download, Launch

SHIM = Path(__file__).parent / "shim" / "cuda_shim.h"
CODES = {1: "bad launch", 2: "barrier", 3: "memory"}
FLAGS = (
    "-std=c++20",
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
    "-fPIC",
    "-shared",
    "-Wno-unknown-pragmas",
)


class ShimFault(DeviceFailed):
    """What a kernel did wrong."""


def build(
    folder: Path,
    modules: Mapping[str, tuple[str, ...]] = sources.KERNELS,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """A library of kernels, by module, kept in `folder` while nothing changes.

    `texts` stand in the place of source files of these names.
    """
    names = (sources.COMMON, *(f"{module}.cu" for module in modules))
    given = texts or {}
    texts = {name: given[name] if name in given else sources.text(name) for name in names}
    unit = [f'#include "{SHIM}"', f'#include "{sources.COMMON}"']
    for module, kernels in modules.items():
        unit.append(f'namespace {module}_module {{\n#include "{module}.cu"\n}}')
        unit += [f"SHIM_KERNEL({module}_module, {name})" for name in kernels]
    digest = hashlib.sha256(repr((SHIM.read_text(), texts, unit, FLAGS)).encode()).hexdigest()[:24]
    library = folder / f"{digest}.so"
    folder.mkdir(parents=True, exist_ok=True)
    # Other processes that want the same wait for it.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(folder / digest, texts, "\n".join(unit) + "\n", library)
    return library


def _compile(work: Path, texts: Mapping[str, str], unit: str, library: Path) -> None:
    work.mkdir(exist_ok=True)
    for name, text in {**texts, "unit.cc": unit}.items():
        (work / name).write_text(text)
    made = work / "unit.so"
    subprocess.run(
        ["g++", *FLAGS, f"-I{work}", str(work / "unit.cc"), "-o", str(made)],
        check=True,
        capture_output=True,
        text=True,
    )
    made.replace(library)


class _Shape(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32),
        ("block", ctypes.c_uint32),
        ("shared", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
    )


class ShimBuffer:
    """Memory that only kernels and the copies of its device get at."""

    def __init__(self, library: ctypes.CDLL, nbytes: int) -> None:
        region = library.shim_allocate(nbytes)
        assert region
        self.nbytes = nbytes
        self.library = library
        self.address: int = library.shim_address(region) or 0
        weakref.finalize(self, library.shim_free, region)


class ShimPart:
    """Some of the memory of a buffer, or of somebody else; it keeps the owner."""

    def __init__(self, library: ctypes.CDLL, address: int, nbytes: int, owner: object) -> None:
        self.nbytes = nbytes
        self.library = library
        self.address = address
        self.owner = owner


class ShimDevice:
    """Kernels run as they are launched, in an order of threads drawn from `seed`.

    Parameters
    ----------
    library
        From `build`.
    seed
        Of the order of threads; every launch takes another.
    before
        Called with the name of what is about to be done: ``allocate``, ``upload``, ``download``
        or the kernel's. What it raises is what the device raises.
    part_bytes
        Of the parts of an upload.
    """

    name = "shim"
    number = 0
    stream = 0x51
    processors = 2
    memory = 1 << 40

    def __init__(
        self,
        library: Path,
        seed: int = 0,
        before: Callable[[str], None] | None = None,
        part_bytes: int = 1 << 14,
    ) -> None:
        self.part_bytes = part_bytes
        self.waited_for: list[int] = []
        self._library = ctypes.CDLL(str(library))
        self._library.shim_allocate.restype = ctypes.c_void_p
        self._library.shim_allocate.argtypes = [ctypes.c_uint64]
        self._library.shim_address.restype = ctypes.c_void_p
        self._library.shim_address.argtypes = [ctypes.c_void_p]
        self._library.shim_free.argtypes = [ctypes.c_void_p]
        self._library.shim_message.restype = ctypes.c_char_p
        self._seed = seed
        self._before = before or (lambda _: None)
        self._buffers: weakref.WeakSet[ShimBuffer] = weakref.WeakSet()
        self._limit = self.memory
        self._held = 0

    def limit_memory(self, nbytes: int) -> None:
        """See `Device`."""
        self._limit = nbytes

    def _new(self, nbytes: int) -> ShimBuffer:
        if self._held + nbytes > self._limit:
            raise DeviceFailed(f"{nbytes} bytes", code="device_out_of_memory")
        buffer = ShimBuffer(self._library, nbytes)
        self._held += nbytes
        self._buffers.add(buffer)
        weakref.finalize(buffer, self._give_back, nbytes)
        return buffer

    def _give_back(self, nbytes: int) -> None:
        self._held -= nbytes

    def copy(self, source: Buffer, target: Buffer) -> None:
        """See `Device`."""
        self._before("copy")
        assert isinstance(source, ShimBuffer | ShimPart)
        assert isinstance(target, ShimBuffer | ShimPart)
        assert source.nbytes == target.nbytes
        ctypes.memmove(target.address, source.address, source.nbytes)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """See `Device`; like any other memory."""
        return np.zeros(nbytes, np.uint8)

    def seconds_of(self, call: Callable[[], object]) -> float:
        """See `Device`; everything is done when it returns."""
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    @contextlib.contextmanager
    def without_barrier(self, line: int) -> Iterator[None]:
        """Barriers in this line of their source do nothing."""
        self._library.shim_skip_barrier(line)
        try:
            yield
        finally:
            self._library.shim_skip_barrier(0)

    def allocate(self, nbytes: int) -> Buffer:
        """See `Device`; full of poison."""
        self._before("allocate")
        return self._new(nbytes)

    def upload(
        self, host: NDArray[Any], each: Callable[[Buffer, int], None] | None = None
    ) -> Buffer:
        """See `Device`."""
        self._before("upload")
        assert host.flags.c_contiguous
        buffer = self._new(host.nbytes)
        for start in range(0, host.nbytes, self.part_bytes):
            size = min(self.part_bytes, host.nbytes - start)
            ctypes.memmove(buffer.address + start, host.ctypes.data + start, size)
            if each is not None:
                each(self.part(buffer, start, size), start)
        return buffer

    def fill(self, buffer: Buffer, host: NDArray[Any]) -> None:
        """See `Device`."""
        self._before("upload")
        assert isinstance(buffer, ShimBuffer | ShimPart)
        assert host.flags.c_contiguous
        assert host.nbytes <= buffer.nbytes
        ctypes.memmove(buffer.address, host.ctypes.data, host.nbytes)

    def part(self, buffer: Buffer, start: int, nbytes: int) -> Buffer:
        """See `Device`."""
        assert isinstance(buffer, ShimBuffer | ShimPart)
        assert 0 <= start <= start + nbytes <= buffer.nbytes
        return ShimPart(self._library, buffer.address + start, nbytes, buffer)

    def download(self, buffer: Buffer, out: NDArray[Any]) -> None:
        """See `Device`."""
        self._before("download")
        assert isinstance(buffer, ShimBuffer | ShimPart)
        assert out.flags.c_contiguous
        assert out.nbytes <= buffer.nbytes
        ctypes.memmove(out.ctypes.data, buffer.address, out.nbytes)

    def download_all(self, wanted: Sequence[Download]) -> None:
        """See `Device`."""
        for one in wanted:
            self.download(one.buffer, one.out)

    def mark(self) -> object:
        """See `Device`; everything before is done."""
        return object()

    def borrow(self, address: int, nbytes: int, owner: object) -> Buffer:
        """See `Device`."""
        return ShimPart(self._library, address, nbytes, owner)

    def address(self, buffer: Buffer) -> int:
        """See `Device`."""
        assert isinstance(buffer, ShimBuffer | ShimPart)
        return buffer.address

    def holds(self, address: int) -> bool:
        """Whether memory of this device lies there."""
        return any(0 <= address - one.address < max(1, one.nbytes) for one in self._buffers)

    def after(self, stream: int) -> None:
        """See `Device`; everything is done. Kept for tests."""
        self.waited_for.append(stream)

    def finish(self) -> None:
        """See `Device`."""
        self._before("finish")

    def launch(self, launch: Launch) -> None:
        """See `Device`; done when it returns."""
        self._before(launch.kernel)
        values = [self._argument(one) for one in launch.arguments]
        count = len(values)
        pointers = (ctypes.c_void_p * count)(*(value.ctypes.data for value in values))
        sizes = (ctypes.c_uint32 * count)(*(value.nbytes for value in values))
        self._seed += 1
        shape = _Shape(launch.grid, launch.block, launch.shared, self._seed)
        run = getattr(self._library, f"shim_launch_{launch.kernel}")
        code = run(ctypes.byref(shape), pointers, sizes, count)
        if code:
            text = self._library.shim_message().decode()
            raise ShimFault(f"{launch.kernel}: {CODES[code]}: {text}")

    def sort(self, buffer: Buffer, dtype: np.dtype[Any]) -> None:
        """See `Device`; by NumPy."""
        self._before("sort")
        assert isinstance(buffer, ShimBuffer | ShimPart)
        assert dtype.kind == "u"
        memory = (ctypes.c_uint8 * buffer.nbytes).from_address(buffer.address)
        np.frombuffer(memory, dtype).sort()

    def _argument(self, one: Argument) -> NDArray[Any]:
        """The bytes that a kernel gets for an argument."""
        if one is None:
            return np.zeros(1, np.uint64)
        if isinstance(one, ShimBuffer | ShimPart):
            assert one.library is self._library, "memory of another device"
            return np.array([one.address], np.uint64)
        # A host array, or a Python number, is a mistake that a GPU would not forgive.
        assert isinstance(one, np.generic), f"an argument of type {type(one).__name__}"
        return np.array([one])
