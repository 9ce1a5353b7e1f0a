"""Which backend computes a request: a table of backends, loaded when first asked for.

Nothing is looked for at import. ``auto`` is the CPU until `cost_model` has measured a GPU in this
process, as the service does when it warms up; then the cheaper device.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.batch import Naming
from quiver_kernels.costs import CPU, GPU, CostModel, Work
from quiver_kernels.errors import BackendUnavailable, DeviceFailed, InvalidInput
from quiver_kernels.lanes import Lane
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import QuantizeRequest
from quiver_kernels.wire import LevelsResult

if TYPE_CHECKING:
    from quiver_kernels.gpu.backend import GpuBackend
    from quiver_kernels.gpu.device import Device


class Backend(Protocol):
    """What every device offers. Arrays in are checked by the backend, not trusted."""

    name: str

    def solve_levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> NDArray[Any]:
        """Level table(s) of `x`: shape (s,), or (blocks, s) with a block size."""
        ...

    def levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        """Level table(s) of `x` with their expected error."""
        ...

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """Levels, unbiased codes and packed bytes."""
        ...

    def quantize_many(
        self, requests: Sequence[QuantizeRequest], naming: Naming
    ) -> list[QuantizedVector]:
        """As `quantize` for each; what is raised about one is raised inside ``naming(number)``.

        Of vectors that cannot be quantized, the first one's error is raised.
        """
        ...

    def expected_mse(
        self, x: NDArray[Any], levels: NDArray[Any], weights: NDArray[Any] | None
    ) -> float:
        """The objective over d for a given table that brackets `x`."""
        ...

    def dequantize(self, q: QuantizedVector, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The decoded vector, in the shape and dtype of the original; `out` if that is given.

        `out` is contiguous, of this shape and dtype.
        """
        ...

    def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Weighted mean of the decoded vectors, accumulated in float64; `out` as above."""
        ...

    def add_codes(
        self,
        q: QuantizedVector,
        start: int,
        stop: int,
        tables: Sequence[NDArray[np.int64]],
        totals: Sequence[NDArray[np.int64]],
    ) -> None:
        """Add to every total the entries of its table for the codes from `start` to `stop`.

        Tables are laid out as the vector's, one row per block. Nothing is added if a code
        points beyond them.
        """
        ...

    def extent(self, values: NDArray[Any]) -> tuple[float, float]:
        """Least magnitude above 0 (infinity if there is none) and the largest; NaN if not finite.

        Parameters
        ----------
        values
            Of a floating type, shape (n,).
        """
        ...

    def add_scaled(self, values: NDArray[Any], factor: float, total: NDArray[np.int64]) -> None:
        """Add ``values * factor``, all of them integers below 2^62, to `total`."""
        ...

    def add_cut(
        self,
        values: NDArray[Any],
        factor: float,
        cut: float,
        high: NDArray[np.int64],
        low: NDArray[np.int64],
    ) -> None:
        """Add ``values * factor``: the whole part to `high`, `cut` times the rest to `low`.

        Whole parts are below 2^62; `cut` is a power of two that makes the rests integers.
        """
        ...

    def divide(
        self,
        numbers: Sequence[NDArray[np.int64]],
        scales: Sequence[float],
        wide: float,
        tail: float,
        out: NDArray[np.float64],
        unclear: NDArray[np.bool_],
    ) -> None:
        """See `doubles.divide`."""
        ...

    def warm_up(self) -> None:
        """Compile every kernel, so that no later call waits for a compiler."""
        ...


def _load_cpu() -> Backend:
    if importlib.util.find_spec("numba") is None:
        raise BackendUnavailable(
            "device cpu needs Numba, which is not installed: pip install 'quiver-kernels[cpu]'"
        )
    from quiver_kernels.cpu.backend import CpuBackend

    return CpuBackend()


def _load_gpu() -> Backend:
    return _lanes()[0].backend


def _lanes() -> tuple[Lane, ...]:
    found = _probe_gpu()
    if isinstance(found, str):
        raise BackendUnavailable(found)
    return found


@functools.cache
def _probe_gpu() -> tuple[Lane, ...] | str:
    """The GPUs, checked against the CPU; or why there is none. Looking may take seconds: once."""
    from quiver_kernels.gpu.cupy_device import count_devices

    found: list[Lane] = []
    complaints: list[str] = []
    try:
        count = count_devices()
        # What has no kernel yet is the CPU's.
        load("cpu")
    except BackendUnavailable as error:
        return error.detail
    # One that is broken does not keep the others from work.
    for number in range(count):
        try:
            found.append(_open_lane(number))
        except BackendUnavailable as error:
            complaints.append(error.detail)
    return tuple(found) or complaints[0]


def _open_lane(number: int) -> Lane:
    from quiver_kernels.gpu.backend import GpuBackend
    from quiver_kernels.gpu.cupy_device import open_device

    device = open_device(number)
    backend = GpuBackend(device)
    try:
        backend.verify()
    except BackendUnavailable:
        raise
    except Exception as error:
        # A device that was opened may still fail in any way at its first kernels.
        text = f"{type(error).__name__}: {error}"
        raise BackendUnavailable(f"device gpu is not available here: {text}") from error
    return Lane(number, backend, device.name, device.memory)


def warm_up_schemes() -> None:
    """Compile the kernels of all schemes (`quiver_kernels.schemes`)."""
    from quiver_kernels.schemes import registry

    registry.warm_up()


def open_lanes(memory: float = 1.0) -> tuple[Lane, ...]:
    """The GPUs that give the CPU's bits, each a lane. Seconds when first called.

    Parameters
    ----------
    memory
        What each may hold: up to 1 a share of its memory, above that bytes.

    Raises
    ------
    BackendUnavailable
        There is none; the text says why.
    """
    lanes = []
    for lane in _lanes():
        device = _device_of(lane)
        limit = int(device.memory * memory if memory <= 1 else min(memory, device.memory))
        device.limit_memory(limit)
        lanes.append(replace(lane, memory=limit))
    return tuple(lanes)


def _device_of(lane: Lane) -> Device:
    from quiver_kernels.gpu.backend import GpuBackend

    assert isinstance(lane.backend, GpuBackend)  # _open_lane made it
    return lane.backend.device


@functools.cache
def cost_model() -> CostModel | None:
    """What CPU and GPU cost here, timed when first called, in some seconds; None without a GPU.

    Both must be warm (`Backend.warm_up`), or compiling is timed. Several GPUs are taken to be
    alike: the first is timed. From then on ``auto`` is the cheaper device in this process.
    """
    from quiver_kernels.calibration import calibrate

    try:
        lane = _lanes()[0]
        return calibrate(load("cpu"), lane.backend, _device_of(lane))
    except (BackendUnavailable, DeviceFailed):
        return None


def _load_reference() -> Backend:
    from quiver_kernels.reference import ReferenceBackend

    return ReferenceBackend()


_LOADERS = {"cpu": _load_cpu, "gpu": _load_gpu, "reference": _load_reference}


@functools.cache
def load(name: str) -> Backend:
    """The backend called `name`, made once; `BackendUnavailable` says what is missing."""
    return _LOADERS[name]()


def pick(device: str, work: Work | None = None) -> Backend:
    """The backend for a request's ``device``.

    Parameters
    ----------
    device
        ``auto``: the device that `work` is on, or else the cheaper one where `cost_model` has been
        called, or else the CPU.
    work
        What is asked for, as far as known.
    """
    if device != "auto":
        return load(device)
    if work is None:
        return load(CPU)
    if work.on_device:
        return load(GPU)
    model = cost_model() if cost_model.cache_info().currsize else None
    return load(CPU if model is None else model.choose(work))


def pick_on_device(device: str, number: int | None) -> GpuBackend:
    """The backend for data that lie on a GPU.

    Parameters
    ----------
    device
        As for `pick`; ``cpu`` is refused, since data are not copied behind the caller's back.
    number
        Of the GPU; None if it is not known: the first.

    Raises
    ------
    InvalidInput
        `device` is another.
    BackendUnavailable
        The GPU's backend does not work here.
    """
    if device not in ("auto", GPU):
        raise InvalidInput(
            f"device must be auto or gpu for data on a GPU; got {device!r}: copy them to the host "
            "for any other",
            code="invalid_option",
            field="device",
        )
    from quiver_kernels.gpu.backend import GpuBackend

    lanes = {lane.number: lane.backend for lane in _lanes()}
    if number is None:
        number = min(lanes)
    if number not in lanes:
        raise BackendUnavailable(f"data lie on GPU {number}, which does not work here")
    found = lanes[number]
    assert isinstance(found, GpuBackend)  # _open_lane made it
    return found


def pick_decoder() -> Backend:
    """A backend that can decode: the CPU's, or plain NumPy where Numba is not installed."""
    try:
        return load("cpu")
    except BackendUnavailable:
        return load("reference")


class Survey(Protocol):
    """A first pass over a vector, of which more and more is there; see `cpu.survey`."""

    def arrived(self, size: int) -> bool:
        """Note that the first `size` values are there; whether a `step` would find some."""
        ...

    def step(self) -> bool:
        """Look at a chunk that is there, in any thread; False if there is none left now."""
        ...

    def offered(self) -> AbstractContextManager[None]:
        """Let the CPU's `Backend.quantize` of this very vector begin with what was found."""
        ...


def begin_survey(flat: NDArray[Any], options: QuantizeOptions) -> Survey | None:
    """A survey of a vector that is to be quantized on the CPU; None where that cannot be.

    Parameters
    ----------
    flat
        Room for its values, shape (n,), n > 0, of a type of the wire.
    options
        What it will be quantized with, as far as known.
    """
    if importlib.util.find_spec("numba") is None or options.is_scheme or options.is_wrapped:
        return None
    from quiver_kernels.cpu.solving import survey_for

    return survey_for(flat, options)


def available() -> dict[str, bool]:
    """Devices a request may name, and whether each works here."""
    found = {}
    for name in ("cpu", "gpu"):
        try:
            load(name)
        except BackendUnavailable:
            found[name] = False
        else:
            found[name] = True
    return found
