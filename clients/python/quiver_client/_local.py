"""The same methods without a service: the kernels are called in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

from numpy.typing import ArrayLike, NDArray

from quiver_client._cancellation import Cancellation
from quiver_client._core import (
    as_client_errors,
    as_tensor,
    create_options,
    create_requantize,
    create_ways,
    require_trees,
    require_vectors,
    sketch_messages,
)
from quiver_client._many import Many, PerVector, Result, Wanted
from quiver_client._version import __version__
from quiver_client.errors import LocalModeUnavailable
from quiver_kernels import wire
from quiver_kernels.batch import naming_errors
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.framing import Buffer
from quiver_kernels.options import (
    DEFAULT_BINS,
    DEFAULT_GRID,
    DEFAULT_LEVEL_SETS,
    GRIDS,
    METHODS,
    QuantizeOptions,
)
from quiver_kernels.planning import ALL_BITS, BitPlan
from quiver_kernels.quantized import WIRE_VERSION, QuantizedVector
from quiver_kernels.schemes.normed.statistics import Statistics
from quiver_kernels.sketch import Sketch
from quiver_kernels.statisticswire import statistics_request
from quiver_kernels.tree import QuantizedTree
from quiver_kernels.treerequest import DEFAULT_MIN_SIZE
from quiver_kernels.wire import LevelsResult


class LocalClient:
    """The methods of `Client`, computed in this process.

    Bits, levels and errors are those that a service gives; `errors.Invalid` has ``status``
    None, because nothing was sent.

    Raises
    ------
    LocalModeUnavailable
        Numba is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("numba") is None:
            raise LocalModeUnavailable(
                "local mode computes with Numba, which is not installed: "
                "pip install 'quiver-client[local]'"
            )

    def _cancelled_by(self, cancellation: Cancellation) -> Self:
        # A kernel cannot be stopped; it ends, and nobody waits for it.
        del cancellation
        return self

    def quantize(
        self,
        x: ArrayLike,
        bits: int | None = None,
        method: str = "exact",
        seed: int | None = None,
        *,
        num_levels: int | None = None,
        weights: ArrayLike | None = None,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
        world_size: int | None = None,
        rank: int | None = None,
        shared_seed: int | None = None,
        levels: ArrayLike | None = None,
        parameters: Mapping[str, object] | None = None,
        outliers: float | None = None,
        entropy: bool = False,
        feedback_scale: bool = False,
    ) -> QuantizedVector:
        """As `Client.quantize`."""
        options = create_options(
            bits=bits,
            num_levels=num_levels,
            method=method,
            bins=bins,
            grid=grid,
            level_sets=level_sets,
            block_size=block_size,
            seed=seed,
            device=device,
            world_size=world_size,
            rank=rank,
            shared_seed=shared_seed,
            levels=levels,
            parameters=parameters,
            outliers=outliers,
            entropy=entropy,
            feedback_scale=feedback_scale,
        )
        return self._quantize(x, weights, options)

    @overload
    def quantize_many(
        self,
        vectors: Sequence[ArrayLike],
        bits: int | None = None,
        method: str = "exact",
        seed: int | None = None,
        *,
        num_levels: int | None = None,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
        world_size: int | None = None,
        rank: int | None = None,
        shared_seed: int | None = None,
        levels: ArrayLike | None = None,
        parameters: Mapping[str, object] | None = None,
        outliers: float | None = None,
        entropy: bool = False,
        feedback_scale: bool = False,
        per_vector: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> list[QuantizedVector]: ...

    @overload
    def quantize_many(
        self,
        vectors: Mapping[str, ArrayLike],
        bits: int | None = None,
        method: str = "exact",
        seed: int | None = None,
        *,
        num_levels: int | None = None,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
        world_size: int | None = None,
        rank: int | None = None,
        shared_seed: int | None = None,
        levels: ArrayLike | None = None,
        parameters: Mapping[str, object] | None = None,
        outliers: float | None = None,
        entropy: bool = False,
        feedback_scale: bool = False,
        per_vector: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, QuantizedVector]: ...

    def quantize_many(
        self,
        vectors: Many,
        bits: int | None = None,
        method: str = "exact",
        seed: int | None = None,
        *,
        num_levels: int | None = None,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
        world_size: int | None = None,
        rank: int | None = None,
        shared_seed: int | None = None,
        levels: ArrayLike | None = None,
        parameters: Mapping[str, object] | None = None,
        outliers: float | None = None,
        entropy: bool = False,
        feedback_scale: bool = False,
        per_vector: PerVector | None = None,
    ) -> Result:
        """As `Client.quantize_many`."""
        from quiver_kernels import dispatch

        wanted = Wanted.of(
            vectors,
            per_vector,
            bits=bits,
            num_levels=num_levels,
            method=method,
            bins=bins,
            grid=grid,
            level_sets=level_sets,
            block_size=block_size,
            seed=seed,
            device=device,
            world_size=world_size,
            rank=rank,
            shared_seed=shared_seed,
            levels=levels,
            parameters=parameters,
            outliers=outliers,
            entropy=entropy,
            feedback_scale=feedback_scale,
        )
        found = []
        for label, request in zip(wanted.labels(), wanted.requests, strict=True):
            with as_client_errors(), naming_errors(label, wrapped=True):
                backend = dispatch.pick(request.options.device)
                found.append(backend.quantize(request.vector, request.options, request.weights))
        return wanted.result(found)

    def levels_from_sketches(
        self,
        sketches: Sequence[Sketch | Buffer],
        num_levels: int = 16,
        granularity: int | Literal["auto"] | None = None,
    ) -> LevelsResult:
        """As `Client.levels_from_sketches`."""
        from quiver_kernels.sketch_levels import levels_of_sketches

        messages = sketch_messages(sketches)
        options = create_options(num_levels=num_levels)
        with as_client_errors():
            chosen = wire.check_granularity(granularity)
            request = wire.sketch_levels_request(messages, options.num_levels, chosen)
            return levels_of_sketches(request.sketches, request.num_levels, request.granularity)

    def levels_from_statistics(
        self,
        statistics: Statistics,
        num_levels: int = 16,
        method: str = "alq",
        parameters: Mapping[str, object] | None = None,
    ) -> LevelsResult:
        """As `Client.levels_from_statistics`."""
        from quiver_kernels.statistics_levels import levels_of_statistics

        given = {"num_levels": num_levels, "method": method, "parameters": parameters}
        with as_client_errors():
            return levels_of_statistics(statistics_request(statistics, given))

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """As `Client.dequantize`."""
        from quiver_kernels import api

        with as_client_errors():
            return api.dequantize(q)

    def optimal_levels(
        self,
        x: ArrayLike,
        num_levels: int = 16,
        method: str = "exact",
        weights: ArrayLike | None = None,
        *,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
    ) -> NDArray[Any]:
        """As `Client.optimal_levels`."""
        return self.levels(
            x,
            num_levels,
            method,
            weights,
            bins=bins,
            grid=grid,
            level_sets=level_sets,
            block_size=block_size,
            device=device,
        ).levels

    def levels(
        self,
        x: ArrayLike,
        num_levels: int = 16,
        method: str = "exact",
        weights: ArrayLike | None = None,
        *,
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        level_sets: int = DEFAULT_LEVEL_SETS,
        block_size: int | None = None,
        device: str = "auto",
    ) -> LevelsResult:
        """As `Client.levels`."""
        from quiver_kernels import dispatch

        options = create_options(
            num_levels=num_levels,
            method=method,
            bins=bins,
            grid=grid,
            level_sets=level_sets,
            block_size=block_size,
            device=device,
        )
        with as_client_errors():
            return dispatch.pick(options.device).levels(*_arrays(x, options, weights))

    @overload
    def aggregate(
        self, vectors: Sequence[QuantizedVector], weights: Sequence[float] | None = None
    ) -> NDArray[Any]: ...

    @overload
    def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None = None,
        *,
        quantize: QuantizeOptions,
    ) -> QuantizedVector: ...

    def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None = None,
        *,
        quantize: QuantizeOptions | None = None,
    ) -> NDArray[Any] | QuantizedVector:
        """As `Client.aggregate`."""
        from quiver_kernels import api

        require_vectors(vectors)
        with as_client_errors():
            mean = api.aggregate(vectors, weights)
        return mean if quantize is None else self._quantize(mean, None, quantize)

    def aggregate_trees(
        self,
        trees: Sequence[QuantizedTree],
        weights: Sequence[float] | None = None,
        *,
        quantize: QuantizeOptions | None = None,
        min_size: int = DEFAULT_MIN_SIZE,
    ) -> QuantizedTree:
        """As `Client.aggregate_trees`."""
        from quiver_kernels.tree_mean import aggregate_trees

        require_trees(trees)
        requantize = create_requantize(quantize, min_size)
        with as_client_errors():
            return aggregate_trees(trees, weights, quantize=requantize)

    def plan(
        self,
        vectors: Mapping[str, ArrayLike],
        *,
        max_bytes: int | None = None,
        bits_per_value: float | None = None,
        max_error: float | None = None,
        bits: Sequence[int] = ALL_BITS,
        methods: Sequence[str] = METHODS[:1],
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        block_size: int | None = None,
        raw: bool = True,
        device: str = "auto",
    ) -> BitPlan:
        """As `Client.plan`."""
        from quiver_kernels import api

        create_ways(
            max_bytes=max_bytes,
            bits_per_value=bits_per_value,
            max_error=max_error,
            bits=bits,
            methods=methods,
            bins=bins,
            grid=grid,
            block_size=block_size,
            raw=raw,
            device=device,
        )
        with as_client_errors():
            return api.plan(
                vectors,
                max_bytes=max_bytes,
                bits_per_value=bits_per_value,
                max_error=max_error,
                bits=bits,
                methods=methods,
                bins=bins,
                grid=grid,
                block_size=block_size,
                raw=raw,
                device=device,
            )

    def info(self) -> dict[str, Any]:
        """Versions, methods, types and devices of this process, by the names of `Client.info`."""
        from quiver_kernels import dispatch
        from quiver_kernels.schemes import described, registry

        return {
            "name": "quiver",
            "version": __version__,
            "wire_version": WIRE_VERSION,
            "methods": list(registry.names()),
            "schemes": described.schemes(),
            "grids": list(GRIDS),
            "dtypes": list(WIRE_DTYPES),
            "devices": dispatch.available(),
        }

    def ready(self) -> bool:
        """True: there is nothing to wait for."""
        return True

    def with_options(self, *, timeout: float | None = None, max_retries: int | None = None) -> Self:
        """The client itself: it has no network to wait for."""
        del timeout, max_retries
        return self

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to close."""

    def _quantize(
        self, x: ArrayLike, weights: ArrayLike | None, options: QuantizeOptions
    ) -> QuantizedVector:
        from quiver_kernels import dispatch

        with as_client_errors():
            backend = dispatch.pick(options.device)
            return backend.quantize(*_arrays(x, options.with_seed(), weights))


def _arrays(
    x: ArrayLike, options: QuantizeOptions, weights: ArrayLike | None
) -> tuple[NDArray[Any], QuantizeOptions, NDArray[Any] | None]:
    return as_tensor(x, "x"), options, None if weights is None else as_tensor(weights, "weights")
