"""Which backend computes a request: a table of backends, loaded when first asked for."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import BackendUnavailable, DeviceFailed
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import LevelsResult


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

    def expected_mse(
        self, x: NDArray[Any], levels: NDArray[Any], weights: NDArray[Any] | None
    ) -> float:
        """The objective over d for a given table that brackets `x`."""
        ...

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """The decoded vector, in the shape and dtype of the original."""
        ...

    def aggregate(
        self, vectors: Sequence[QuantizedVector], weights: Sequence[float] | None
    ) -> NDArray[Any]:
        """Weighted mean of the decoded vectors, accumulated in float64."""
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
    found = _probe_gpu()
    if isinstance(found, str):
        raise BackendUnavailable(found)
    return found


@functools.cache
def _probe_gpu() -> Backend | str:
    """The GPU, checked against the CPU; or why there is none. Looking may take seconds: once."""
    from quiver_kernels.gpu.cupy_device import open_device

    try:
        device = open_device()
        # What has no kernel yet is the CPU's.
        load("cpu")
        from quiver_kernels.gpu.backend import GpuBackend

        backend = GpuBackend(device)
        backend.verify()
    except (BackendUnavailable, DeviceFailed) as error:
        return error.detail
    return backend


def _load_reference() -> Backend:
    from quiver_kernels.reference import ReferenceBackend

    return ReferenceBackend()


_LOADERS = {"cpu": _load_cpu, "gpu": _load_gpu, "reference": _load_reference}


@functools.cache
def load(name: str) -> Backend:
    """The backend called `name`, made once; `BackendUnavailable` says what is missing."""
    return _LOADERS[name]()


def pick(device: str) -> Backend:
    """The backend for a request's ``device``: ``auto`` is the CPU."""
    return load("cpu" if device == "auto" else device)


def pick_decoder() -> Backend:
    """A backend that can decode: the CPU's, or plain NumPy where Numba is not installed."""
    try:
        return load("cpu")
    except BackendUnavailable:
        return load("reference")


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
