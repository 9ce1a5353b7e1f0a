"""The asynchronous client: the blocking one in threads, with real cancellation.

Threads and not an asynchronous transport, by measurement (docs/decisions/client-transport.md):
sockets release the interpreter, so a thread moves a large body with the least work, and
the loop never waits for a conversion or a check of an array either.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, overload

from numpy.typing import ArrayLike, NDArray

from quiver_client._cancellation import Cancellation
from quiver_client._local import LocalClient
from quiver_client._many import Many, PerVector, Result
from quiver_client._retry import RetryPolicy
from quiver_client._sync import DEFAULT_TIMEOUT, Client
from quiver_client._tls import StrPath
from quiver_client.errors import ClientClosed
from quiver_kernels.framing import Buffer
from quiver_kernels.options import (
    DEFAULT_BINS,
    DEFAULT_GRID,
    DEFAULT_LEVEL_SETS,
    METHODS,
    QuantizeOptions,
)
from quiver_kernels.planning import ALL_BITS, BitPlan
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes.normed.statistics import Statistics
from quiver_kernels.sketch import Sketch
from quiver_kernels.tree import QuantizedTree
from quiver_kernels.treerequest import DEFAULT_MIN_SIZE
from quiver_kernels.wire import LevelsResult

T = TypeVar("T")

LOCAL = "local:"


class AsyncClient:
    """`Client` with ``await``; it never blocks the event loop.

    Parameters
    ----------
    url
        As for `Client`; ``local:`` computes in this process.
    api_key, timeout, connect_timeout, retry, ca_file, client_cert, ssl_context
        As for `Client`; without meaning for ``local:``.
    max_concurrency
        Calls in progress at once; more wait their turn.

    Notes
    -----
    Cancelling a task breaks its connection at once. Only a connection that is still being
    established, and a local computation, run to their end unheeded.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        connect_timeout: float = 5.0,
        retry: RetryPolicy | None = None,
        ca_file: StrPath | None = None,
        client_cert: StrPath | tuple[StrPath, StrPath] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_concurrency: int = 32,
    ) -> None:
        self._client: Client | LocalClient
        if url == LOCAL:
            self._client = LocalClient()
        else:
            self._client = Client(
                url,
                api_key=api_key,
                timeout=timeout,
                connect_timeout=connect_timeout,
                retry=retry,
                ca_file=ca_file,
                client_cert=client_cert,
                ssl_context=ssl_context,
            )
        # Makes threads when they are first needed, none now.
        self._threads = ThreadPoolExecutor(max_concurrency, thread_name_prefix="quiver-client")

    async def quantize(
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
        """As `Client.quantize`; do not change `x` before it is done."""
        return await self._run(
            lambda client: client.quantize(
                x,
                bits,
                method,
                seed,
                num_levels=num_levels,
                weights=weights,
                bins=bins,
                grid=grid,
                level_sets=level_sets,
                block_size=block_size,
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
        )

    @overload
    async def quantize_many(
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
    async def quantize_many(
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

    async def quantize_many(
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
        # A cast: which overload it is was decided by the caller.
        return await self._run(
            lambda client: client.quantize_many(
                cast("Any", vectors),
                bits,
                method,
                seed,
                num_levels=num_levels,
                bins=bins,
                grid=grid,
                level_sets=level_sets,
                block_size=block_size,
                device=device,
                world_size=world_size,
                rank=rank,
                shared_seed=shared_seed,
                levels=levels,
                parameters=parameters,
                outliers=outliers,
                entropy=entropy,
                feedback_scale=feedback_scale,
                per_vector=per_vector,
            )
        )

    async def levels_from_sketches(
        self,
        sketches: Sequence[Sketch | Buffer],
        num_levels: int = 16,
        granularity: int | Literal["auto"] | None = None,
    ) -> LevelsResult:
        """As `Client.levels_from_sketches`."""
        return await self._run(
            lambda client: client.levels_from_sketches(sketches, num_levels, granularity)
        )

    async def levels_from_statistics(
        self,
        statistics: Statistics,
        num_levels: int = 16,
        method: str = "alq",
        parameters: Mapping[str, object] | None = None,
    ) -> LevelsResult:
        """As `Client.levels_from_statistics`."""
        return await self._run(
            lambda client: client.levels_from_statistics(statistics, num_levels, method, parameters)
        )

    async def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """As `Client.dequantize`."""
        return await self._run(lambda client: client.dequantize(q))

    async def optimal_levels(
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
        result = await self.levels(
            x,
            num_levels,
            method,
            weights,
            bins=bins,
            grid=grid,
            level_sets=level_sets,
            block_size=block_size,
            device=device,
        )
        return result.levels

    async def levels(
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
        return await self._run(
            lambda client: client.levels(
                x,
                num_levels,
                method,
                weights,
                bins=bins,
                grid=grid,
                level_sets=level_sets,
                block_size=block_size,
                device=device,
            )
        )

    @overload
    async def aggregate(
        self, vectors: Sequence[QuantizedVector], weights: Sequence[float] | None = None
    ) -> NDArray[Any]: ...

    @overload
    async def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None = None,
        *,
        quantize: QuantizeOptions,
    ) -> QuantizedVector: ...

    async def aggregate(
        self,
        vectors: Sequence[QuantizedVector],
        weights: Sequence[float] | None = None,
        *,
        quantize: QuantizeOptions | None = None,
    ) -> NDArray[Any] | QuantizedVector:
        """As `Client.aggregate`."""
        if quantize is None:
            return await self._run(lambda client: client.aggregate(vectors, weights))
        options = quantize
        return await self._run(lambda client: client.aggregate(vectors, weights, quantize=options))

    async def aggregate_trees(
        self,
        trees: Sequence[QuantizedTree],
        weights: Sequence[float] | None = None,
        *,
        quantize: QuantizeOptions | None = None,
        min_size: int = DEFAULT_MIN_SIZE,
    ) -> QuantizedTree:
        """As `Client.aggregate_trees`."""
        return await self._run(
            lambda client: client.aggregate_trees(
                trees, weights, quantize=quantize, min_size=min_size
            )
        )

    async def plan(
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
        return await self._run(
            lambda client: client.plan(
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
        )

    async def info(self) -> dict[str, Any]:
        """As `Client.info`."""
        return await self._run(lambda client: client.info())

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return await self._run(lambda client: client.ready())

    def with_options(self, *, timeout: float | None = None, max_retries: int | None = None) -> Self:
        """As `Client.with_options`; threads are shared too."""
        copy = type(self).__new__(type(self))
        copy._client = self._client.with_options(timeout=timeout, max_retries=max_retries)
        copy._threads = self._threads
        return copy

    async def close(self) -> None:
        """Wait for the calls in progress, then close the connections."""
        # In a thread of the loop's own: the wait must not block the loop.
        await asyncio.to_thread(self._threads.shutdown)
        self._client.close()

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    async def _run(self, work: Callable[[Client | LocalClient], T]) -> T:
        cancellation = Cancellation()
        client = self._client._cancelled_by(cancellation)
        try:
            future = self._threads.submit(work, client)
        except RuntimeError:
            raise ClientClosed("the client is closed") from None
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            cancellation.cancel()
            raise
