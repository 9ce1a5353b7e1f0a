"""Machine code of the CUDA sources, made by NVRTC and kept on disk.

CuPy's own way to NVRTC is not taken: it always flushes subnormal numbers to zero. NVRTC needs no
driver, so tests compile in the same way on any machine.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from quiver_kernels.errors import BackendUnavailable
from quiver_kernels.gpu import sources

_PATTERNS = ("cuda_nvrtc/lib/libnvrtc.so.*", "cu*/lib/libnvrtc.so.*")
"""Where the wheels of NVIDIA have it, below their package."""


class CompilationFailed(BackendUnavailable):
    """A source was refused; the text is the compiler's."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Machine code for one architecture.

    Attributes
    ----------
    code
        A cubin.
    log
        What the compiler said; with ``verbose`` registers, stack and spills of every kernel.
    """

    code: bytes
    log: str


class Nvrtc:
    """NVIDIA's run-time compiler.

    Parameters
    ----------
    library
        Path or name of the shared library.

    Raises
    ------
    BackendUnavailable
        There is no such library.
    """

    def __init__(self, library: str) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise BackendUnavailable(f"device gpu needs NVRTC: {error}") from None
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        for name in _TAKING_PROGRAMS:
            getattr(self._library, name).argtypes = (ctypes.c_void_p, ctypes.c_void_p)

    @classmethod
    def find(cls) -> Nvrtc:
        """The compiler of NVIDIA's wheels, or else of the system.

        Raises
        ------
        BackendUnavailable
            There is none.
        """
        spec = importlib.util.find_spec("nvidia")
        for folder in spec.submodule_search_locations or () if spec else ():
            for pattern in _PATTERNS:
                found = sorted(Path(folder).glob(pattern))
                if found:
                    return cls(str(found[-1]))
        name = ctypes.util.find_library("nvrtc")
        if name is None:
            raise BackendUnavailable(
                "device gpu needs NVRTC, which is not installed: pip install nvidia-cuda-nvrtc-cu12"
            )
        return cls(name)

    @property
    def version(self) -> str:
        """Of the compiler, as ``12.9``."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    @property
    def architectures(self) -> tuple[int, ...]:
        """Compute capabilities it makes code for, ascending: 90 for 9.0."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return tuple(sorted(found))

    def compile(self, module: str, architecture: int, *, verbose: bool = False) -> Compiled:
        """Machine code of a module of `sources.KERNELS`.

        Raises
        ------
        CompilationFailed
            The compiler refuses the source.
        """
        return self.compile_text(sources.text(f"{module}.cu"), module, architecture, verbose)

    def compile_text(
        self, text: str, module: str, architecture: int, verbose: bool = False
    ) -> Compiled:
        """Machine code of a source text that may include `sources.COMMON`."""
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            text.encode(),
            f"{module}.cu".encode(),
            1,
            (ctypes.c_char_p * 1)(sources.text(sources.COMMON).encode()),
            (ctypes.c_char_p * 1)(sources.COMMON.encode()),
        )
        options = [f"--gpu-architecture=sm_{architecture}", *sources.FLAGS]
        options += ["--ptxas-options=-v"] if verbose else []
        try:
            status = self._library.nvrtcCompileProgram(
                program,
                len(options),
                (ctypes.c_char_p * len(options))(*(option.encode() for option in options)),
            )
            log = self._text(program, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
            if status:
                raise CompilationFailed(f"{module}.cu for sm_{architecture}: {log}")
            return Compiled(self._text(program, "nvrtcGetCUBIN"), log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, name: str) -> bytes:
        """One of a program's results, whose size another function tells."""
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        self._call(name, program, found)
        return found.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            reason = self._library.nvrtcGetErrorString(status).decode()
            raise BackendUnavailable(f"device gpu: {name} failed: {reason}")


_TAKING_PROGRAMS = (
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
)


def suited(architectures: tuple[int, ...], capability: int) -> int:
    """The architecture to compile for, for a device of a compute capability.

    Machine code runs on its own capability and on later ones of the same major number.

    Raises
    ------
    BackendUnavailable
        The compiler knows none that the device runs.
    """
    fitting = [one for one in architectures if one // 10 == capability // 10 and one <= capability]
    if not fitting:
        raise BackendUnavailable(
            f"device gpu has compute capability {capability / 10}; NVRTC compiles for "
            f"{', '.join(str(one / 10) for one in architectures)}"
        )
    return max(fitting)


def compiled_file(
    nvrtc: Nvrtc, module: str, architecture: int, folder: Path, ahead: Path = sources.AHEAD
) -> Path:
    """A file with the machine code of `module`, made where there is none in `folder` yet.

    Its name tells sources, flags, architecture and compiler, so a file is never out of date. One
    in the folder `ahead`, made before this installation was put to use (`gpu.ahead`), is as good.
    """
    key = sources.fingerprint(module)[:32]
    name = f"quiver-{module}-{key}-sm_{architecture}-nvrtc-{nvrtc.version}.cubin"
    if (ahead / name).exists():
        return ahead / name
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        code = nvrtc.compile(module, architecture).code
        # Others may do the same at once; a file appears whole or not at all.
        handle, made = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(code)
        # An image is built by another user than it is run by.
        Path(made).chmod(0o644)
        Path(made).replace(path)
    return path
