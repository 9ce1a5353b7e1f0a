"""The service without its transport: requests in, results out, in a pool of threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import dispatch
from quiver_kernels.batch import label_of, naming_errors
from quiver_kernels.costs import CPU, GPU
from quiver_kernels.dispatch import Survey
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.planning import BitPlan, choose, measured
from quiver_kernels.planwire import PlanRequest
from quiver_kernels.prefix import Prefix
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sketch_levels import levels_of_sketches
from quiver_kernels.statistics_levels import levels_of_statistics
from quiver_kernels.stopping import checkpoint
from quiver_kernels.tree import QuantizedTree
from quiver_kernels.tree_mean import aggregate_trees
from quiver_kernels.treerequest import TreesRequest
from quiver_kernels.wire import (
    AggregateRequest,
    BatchRequest,
    LevelsRequest,
    LevelsResult,
    QuantizedBatch,
    QuantizeRequest,
    SketchLevelsRequest,
    StatisticsRequest,
)
from quiver_service import footprint
from quiver_service.budget import Lease
from quiver_service.deadline import Deadline
from quiver_service.devices import Devices
from quiver_service.effort import SIZES, Sizes
from quiver_service.errors import ClientGone, ServiceError
from quiver_service.footprint import Footprint
from quiver_service.pool import WorkerPool
from quiver_service.work import of_batch, of_decode, of_mean, of_vector

T = TypeVar("T")


class Engine:
    """Computes requests; knows nothing of HTTP.

    The four operations are plain calls and safe in any thread; `run` brings one, or any
    other call, to the pool and awaits it.

    Parameters
    ----------
    pool
        Threads that compute; the engine starts and closes it.
    max_output_bytes
        Largest answer; a request that needs more is refused before it is allocated.
    devices
        The backends, and which of them work; None: those of `quiver_kernels.dispatch`.
    sizes
        Which requests count as tiny and as small.
    """

    def __init__(
        self,
        pool: WorkerPool,
        max_output_bytes: int,
        devices: Devices | None = None,
        sizes: Sizes = SIZES,
    ) -> None:
        self.sizes = sizes
        self.pool = pool
        self.max_output_bytes = max_output_bytes
        self.devices = Devices(dispatch) if devices is None else devices

    def start(self) -> None:
        """Start the threads."""
        self.pool.start()

    def warm_up(self) -> None:
        """Compile every kernel of every device that is here. Seconds; run it in a thread."""
        self.devices.warm_up()

    def warm_up_schemes(self) -> None:
        """Compile what few requests ask for; run it in a thread, when the service is ready."""
        self.devices.warm_up_schemes()

    def close(self, timeout: float) -> bool:
        """Finish what is queued, stop the threads; whether all was done within `timeout` s."""
        return self.pool.close(timeout)

    async def run(
        self,
        call: Callable[[], T],
        *,
        small: bool = False,
        deadline: Deadline | None = None,
        lease: Lease | None = None,
        gone: asyncio.Future[None] | None = None,
    ) -> T:
        """Await `call` in the pool.

        Ending this early drops the call if no thread has taken it yet; otherwise it stops at its
        next checkpoint (`quiver_kernels.stopping`).

        Parameters
        ----------
        call
            What to compute; pure, as `WorkerPool.submit` says.
        small
            Whether it is done in a few milliseconds.
        deadline
            When to end without a result, queueing included.
        lease
            Memory that the call uses; held until the call has ended or was dropped, which
            may be after `run` itself has ended.
        gone
            Done when nobody waits for the result any more.

        Raises
        ------
        ServiceError
            ``busy`` or ``draining`` from the pool; ``busy`` when memory ran out; ``deadline``.
        ClientGone
            `gone` came first.
        """
        job = self.pool.submit(call, small=small)
        if lease is not None:
            lease.hold()
            job.add_done_callback(lambda _: lease.release())
        # asyncio.wrap_future leaves a reference cycle that holds the result, and with it large
        # buffers, until the cyclic collector comes.
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        job.add_done_callback(functools.partial(_tell, loop, done))
        if gone is not None:
            gone.add_done_callback(lambda _: _settle(done))
        try:
            async with asyncio.timeout_at(None if deadline is None else deadline.at):
                await done
            if not job.done():
                raise ClientGone("client_disconnect")
            return cast("T", job.result())
        except TimeoutError:
            # A kernel's own TimeoutError would be a finished job.
            if deadline is None or (done.done() and not done.cancelled()):
                raise
            raise deadline.passed() from None
        except MemoryError:
            raise ServiceError("busy", "memory ran out in the computation; try again") from None
        finally:
            job.abandon()
            # An error's traceback holds this frame, and the job holds the error.
            del job

    def begin_survey(self, body: memoryview, prefix: Prefix) -> Survey | None:
        """A first pass over the vector of a body that still arrives; None if that is of no use."""
        values = np.frombuffer(body, np.uint8, prefix.size * prefix.dtype.itemsize, prefix.start)
        return self.devices.begin_survey(values.view(prefix.dtype), prefix.options)

    def quantize(self, request: QuantizeRequest) -> QuantizedVector:
        """Quantize a vector; a seed is drawn when the request has none.

        Raises
        ------
        InvalidInput, BackendUnavailable
            From the kernels.
        ServiceError
            ``too_large``: the answer would exceed the limit.
        """
        self._check_output(footprint.of_quantize(request), request.options.block_size)
        # Drawn before the first try: a second one gives the same bits.
        options = request.options.with_seed()
        return self.devices.compute(
            options.device,
            lambda backend: backend.quantize(request.vector, options, request.weights),
            of_vector(request.vector, options, request.weights),
        )

    def quantize_many(self, request: BatchRequest) -> QuantizedBatch:
        """Quantize vectors, on a GPU all at once; errors as for `quantize`, and name the vector."""
        self._check_output(footprint.of_batch(request), None)
        wanted = {item.request.options.device for item in request.items}
        if len(wanted) == 1 and wanted != {CPU} and self.devices.is_up(GPU):
            return QuantizedBatch(self._quantize_together(wanted.pop(), request), request.names)
        vectors = []
        for item in request.items:
            checkpoint()
            with item.naming_errors():
                vectors.append(self.quantize(item.request))
        return QuantizedBatch(tuple(vectors), request.names)

    def _quantize_together(self, device: str, batch: BatchRequest) -> tuple[QuantizedVector, ...]:
        # Drawn before the first try: a second one gives the same bits.
        requests = [
            replace(item.request, options=item.request.options.with_seed()) for item in batch.items
        ]

        def naming(number: int) -> contextlib.AbstractContextManager[None]:
            return batch.items[number].naming_errors()

        return self.devices.compute(
            device,
            lambda backend: tuple(backend.quantize_many(requests, naming)),
            of_batch(requests),
        )

    def dequantize(self, q: QuantizedVector) -> NDArray[Any]:
        """Decode a quantized vector; errors as for `quantize`."""
        self._check_output(footprint.of_dequantize(q), q.block_size)
        return self.devices.decode(lambda backend: backend.dequantize(q), of_decode(q))

    def levels(self, request: LevelsRequest) -> LevelsResult:
        """Level tables of a vector; errors as for `quantize`."""
        self._check_output(footprint.of_levels(request), request.options.block_size)
        return self.devices.compute(
            request.options.device,
            lambda backend: backend.levels(request.vector, request.options, request.weights),
            of_vector(request.vector, request.options, request.weights),
        )

    def levels_of_sketches(self, request: SketchLevelsRequest) -> LevelsResult:
        """One table for the vectors of many sketches; errors as for `quantize`."""
        self._check_output(footprint.of_sketch_levels(request), None)
        return levels_of_sketches(request.sketches, request.num_levels, request.granularity)

    def levels_of_statistics(self, request: StatisticsRequest) -> LevelsResult:
        """One table from statistics of blocks; on the CPU."""
        self._check_output(footprint.of_statistics(request), None)
        return levels_of_statistics(request)

    def plan(self, request: PlanRequest) -> BitPlan:
        """Bits and methods of many vectors within a budget; errors as for `quantize`."""
        self._check_output(footprint.of_plan(request), None)
        curves = {}
        for name, x in request.vectors.items():
            with naming_errors(label_of(name), wrapped=False):
                curves[name] = request.ways.curve(
                    x, [self._measured(x, options) for options in request.ways.options]
                )
        return choose(curves, request.budget)

    def _measured(
        self, x: NDArray[Any], options: QuantizeOptions
    ) -> LevelsResult | QuantizedVector:
        checkpoint()
        return self.devices.compute(
            options.device, lambda backend: measured(backend, x, options), of_vector(x, options)
        )

    def aggregate(self, request: AggregateRequest) -> NDArray[Any] | QuantizedVector:
        """Weighted mean of quantized vectors, quantized again if the request asks for it."""
        block_size = None if request.quantize is None else request.quantize.block_size
        self._check_output(footprint.of_aggregate(request), block_size)
        mean = self.devices.decode(
            lambda backend: backend.aggregate(request.vectors, request.weights),
            of_mean(request.vectors),
        )
        if request.quantize is None:
            return mean
        options = request.quantize.with_seed()
        return self._encode(mean, options)

    def aggregate_trees(self, request: TreesRequest) -> QuantizedTree:
        """Weighted mean of trees, quantized again if the request asks for it."""
        self._check_output(footprint.of_trees(request), None)
        return self.devices.decode(
            lambda _: aggregate_trees(
                request.trees, request.weights, quantize=request.quantize, encode=self._encode
            )
        )

    def _encode(self, values: NDArray[Any], options: QuantizeOptions) -> QuantizedVector:
        return self.devices.compute(
            options.device,
            lambda backend: backend.quantize(values, options, None),
            of_vector(values, options),
        )

    def _check_output(self, needed: Footprint, block_size: int | None) -> None:
        if needed.output <= self.max_output_bytes:
            return
        hint = "" if block_size is None else f" (block_size={block_size})"
        raise ServiceError(
            "too_large",
            f"the answer would have {needed.output} bytes{hint}; "
            f"the limit is {self.max_output_bytes}",
            field=None if block_size is None else "block_size",
            limit=self.max_output_bytes,
            got=needed.output,
            setting="QUIVER_MAX_OUTPUT_BYTES",
        )


def _tell(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None], _: Future[Any]) -> None:
    # A loop that was closed while the thread computed has nobody left to tell.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, done)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
