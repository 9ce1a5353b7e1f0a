"""Which backend computes a request: a table of backends, loaded when first asked for."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from quiver_kernels.errors import BackendUnavailable
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
    raise BackendUnavailable("device gpu is not available here; use cpu or auto")


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
