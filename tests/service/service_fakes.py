"""A backend in plain NumPy for tests of the service: equal steps, nearest codes, quick.

It is right enough that answers can be checked, and can be told to wait or to fail.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dispatch import Backend
from quiver_kernels.dtypes import from_wire, levels_dtype, wire_name
from quiver_kernels.errors import BackendUnavailable, InvalidInput
from quiver_kernels.lanes import Lane
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.packing import pack_codes, packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import LevelsResult
from quiver_service.devices import Devices
from quiver_service.effort import Sizes
from quiver_service.engine import Engine
from quiver_service.pool import WorkerPool
from quiver_service.settings import GIB, Settings

# However few values: a fake may be told to wait, and must not do so on the event loop.
ALL_LARGE = Sizes(tiny=0, small=0)


def nothing(_: str) -> None:
    """Hook that lets a call pass."""


@dataclass
class FakeBackend:
    """`before` is called with the operation's name before every operation."""

    name: str = "cpu"
    before: Callable[[str], None] = nothing
    warm: threading.Event = field(default_factory=threading.Event)

    def solve_levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> NDArray[Any]:
        wide = _checked(x)
        if weights is not None and (np.asarray(weights, np.float64) < 0).any():
            raise InvalidInput(
                "weights must not be negative", code="invalid_weights", field="weights"
            )
        dtype = levels_dtype(wire_name(x.dtype))
        tables = [
            np.linspace(block.min(), block.max(), options.num_levels).astype(dtype)
            for block in _blocks(wide, options.block_size)
        ]
        return tables[0] if options.block_size is None else np.stack(tables)

    def levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        self.before("levels")
        table = self.solve_levels(x, options, weights)
        return LevelsResult(table, options.num_levels, options.method, 0.0, 0.0, self.name)

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        self.before("quantize")
        assert options.seed is not None
        table = self.solve_levels(x, options, weights)
        codes = [
            np.abs(block[:, None] - row[None, :].astype(np.float64)).argmin(axis=1)
            for block, row in zip(
                _blocks(_checked(x), options.block_size),
                table.reshape(-1, options.num_levels),
                strict=True,
            )
        ]
        flat = np.concatenate(codes).astype(np.uint8)
        return QuantizedVector(
            method=options.method,
            bits=options.bits,
            num_levels=options.num_levels,
            shape=x.shape,
            dtype=wire_name(x.dtype),
            block_size=options.block_size,
            seed=options.seed,
            levels=table,
            codes=pack_codes(flat, options.bits, options.block_size),
            vnmse=0.0,
            device=self.name,
            timings_ms={"levels": 0.1},
        )

    def expected_mse(
        self, x: NDArray[Any], levels: NDArray[Any], weights: NDArray[Any] | None
    ) -> float:
        del x, levels, weights
        return 0.0

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        self.before("dequantize")
        codes = q.indices().reshape(-1)
        if codes.max() >= q.num_levels:
            raise InvalidInput("a code is beyond the table", code="invalid_codes", field="codes")
        tables = q.levels.reshape(-1, q.num_levels)
        which = np.arange(q.size) // (q.block_size or q.size)
        return tables[which, codes].astype(from_wire(q.dtype)).reshape(q.shape)

    def aggregate(
        self, vectors: Sequence[QuantizedVector], weights: Sequence[float] | None
    ) -> NDArray[Any]:
        self.before("aggregate")
        if any(q.shape != vectors[0].shape for q in vectors):
            raise InvalidInput("shapes differ", code="shape_mismatch", field="vectors")
        chosen = [1.0] * len(vectors) if weights is None else list(weights)
        if len(chosen) != len(vectors):
            raise InvalidInput("one weight per vector", code="size_mismatch", field="weights")
        if not all(0 <= w < np.inf for w in chosen) or not any(chosen):
            raise InvalidInput("bad weights", code="invalid_weights", field="weights")
        total = sum(
            w / sum(chosen) * self.dequantize(q).astype(np.float64)
            for w, q in zip(chosen, vectors, strict=True)
        )
        return np.asarray(total).astype(from_wire(vectors[0].dtype))

    def warm_up(self) -> None:
        self.before("warm_up")
        self.warm.set()


class LightBackend(FakeBackend):
    """Needs no memory but its answer's, for measuring that of the service."""

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        q = super().quantize(x.reshape(-1)[:8], options, weights)
        codes = np.zeros(packed_size(x.size, options.bits, options.block_size), np.uint8)
        return replace(q, shape=x.shape, codes=codes)


@dataclass
class FakeBackends:
    """One CPU, no GPU."""

    cpu: FakeBackend = field(default_factory=FakeBackend)

    def pick(self, device: str) -> Backend:
        if device == "gpu":
            raise BackendUnavailable("device gpu is not available here; use cpu or auto")
        return self.cpu

    def pick_decoder(self) -> Backend:
        return self.cpu

    def available(self) -> dict[str, bool]:
        return {"cpu": True, "gpu": False}

    def warm_up_schemes(self) -> None:
        """Nothing to compile."""

    def begin_survey(self, flat: NDArray[Any], options: QuantizeOptions) -> None:
        """Fakes look at whole vectors only."""

    def open_lanes(self, memory: float) -> list[Lane]:
        raise BackendUnavailable("device gpu is not available here; use cpu or auto")

    def cost_model(self) -> None:
        return None


def fake_engine(
    before: Callable[[str], None] = nothing,
    *,
    backend: type[FakeBackend] = FakeBackend,
    threads: int = 2,
    queue_size: int = 16,
    max_output_bytes: int = GIB,
    sizes: Sizes = ALL_LARGE,
) -> Engine:
    """An engine on a `FakeBackend`, which waits for as long as a large request takes."""
    devices = Devices(FakeBackends(backend(before=before)))
    return Engine(WorkerPool(threads, queue_size), max_output_bytes, devices, sizes)


def settings(**values: Any) -> Settings:
    """Small settings for tests."""
    small = {"threads": 2, "queue_size": 16, "budget_bytes": GIB, "max_body_bytes": GIB // 4}
    return Settings(**{**small, **values})


def serve(seconds_per_request: float, kind: str) -> int:
    """Serve a fake backend in this process; for tests that need a real socket."""
    from quiver_service.app import create_app
    from quiver_service.server import run
    from quiver_service.settings import load_settings

    def before(operation: str) -> None:
        if operation != "warm_up":
            time.sleep(seconds_per_request)

    loaded = load_settings()
    engine = fake_engine(
        before,
        backend=LightBackend if kind == "light" else FakeBackend,
        threads=loaded.threads,
        queue_size=loaded.queue_size,
    )
    return run(loaded, create_app(loaded, engine))


def _checked(x: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        wide = np.asarray(x, dtype=np.float64).reshape(-1)
    if not np.isfinite(wide).all():
        raise InvalidInput("vector must be finite", code="non_finite", field="vector")
    return wide


def _blocks(x: NDArray[np.float64], block_size: int | None) -> list[NDArray[np.float64]]:
    step = block_size or x.size
    return [x[start : start + step] for start in range(0, x.size, step)]


if __name__ == "__main__":
    import sys

    sys.exit(serve(float(sys.argv[1]), sys.argv[2]))
